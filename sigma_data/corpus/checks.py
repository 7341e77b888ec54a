"""The rules that a sample must satisfy: one function a rule, each with a code, a severity and a scope.

`examine` decodes every image once, parses every text once, runs the rules in the order of
`RULES` (the most basic first: the first finding is the reason that is reported) and returns all that
the corpus stores about the sample.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import islice

from sigma_data.conditions.maps import CONDITION_FAULTS, condition_faults
from sigma_data.corpus.check_limits import Limits, Severity
from sigma_data.corpus.foreign_spellings import closest_token, leftovers
from sigma_data.corpus.token_estimate import count_tokens
from sigma_data.images.decode import ImageFault, probe, same_pixels
from sigma_data.images.image_info import ImageInfo
from sigma_data.images.image_warnings import IMAGE_WARNINGS, image_warnings
from sigma_data.instruction import ATTRIBUTES, Instruction, parse
from sigma_data.sample import FAMILY_RULES, Family, Sample

_FINDINGS_A_RULE = 100
"""More findings of one rule are not listed: a text of a million bad placeholders says nothing more."""


@dataclass(frozen=True)
class Finding:
    """One broken rule, worded for the person who looks after the source."""

    code: str
    message: str
    severity: Severity


@dataclass(frozen=True)
class Examination:
    """A sample seen through all rules. `infos` lacks the images that could not be decoded."""

    sample: Sample
    infos: Mapping[int, ImageInfo]
    findings: tuple[Finding, ...]
    attributes: tuple[str, ...]
    tokens: int

    @property
    def errors(self) -> tuple[Finding, ...]:
        """The findings that keep the sample out of a corpus."""
        return tuple(finding for finding in self.findings if finding.severity is Severity.ERROR)

    @property
    def warnings(self) -> tuple[Finding, ...]:
        """The findings that are only noted."""
        return tuple(finding for finding in self.findings if finding.severity is Severity.WARNING)


Probe = Callable[[bytes | None], ImageInfo]


class RuleContext:
    """What a rule may look at: the sample, its decoded images, its parsed texts, the limits."""

    def __init__(self, sample: Sample, limits: Limits, prober: Probe) -> None:
        self.sample = sample
        self.limits = limits
        self.infos: dict[int, ImageInfo] = {}
        self.faults: dict[int, ImageFault] = {}
        for image in sample.images:
            try:
                self.infos[image.number] = prober(image.data)
            except ImageFault as fault:
                self.faults[image.number] = ImageFault(fault.code, image.missing) if image.missing else fault
        self.numbers = frozenset(image.number for image in sample.images)

    @cached_property
    def texts(self) -> list[tuple[str, int, Instruction]]:
        """(where, turn index, parsed) of every instruction and alternative phrasing."""
        references = len(self.sample.references)
        return [
            (_where(self.sample, index, phrasing), index, parse(text, references=references))
            for index, turn in enumerate(self.sample.turns)
            for phrasing, text in enumerate((turn.instruction, *turn.alternatives))
        ]

    @cached_property
    def tokens(self) -> int:
        """Estimated sequence length."""
        return count_tokens(self.sample, self.infos)

    @cached_property
    def image_faults(self) -> dict[int, dict[str, str]]:
        """Image number -> code -> what is wrong with the image, of those that can be decoded."""
        images = [image for image in self.sample.images if image.number in self.infos]
        return {i.number: {**image_warnings(self.infos[i.number]), **condition_faults(i.kind, i.data)} for i in images}

    def placeholders(self) -> Iterator[tuple[str, int, int]]:
        """(where, turn index, image number) of every placeholder."""
        for where, turn, instruction in self.texts:
            for number in dict.fromkeys(instruction.placeholders):
                yield where, turn, number

    def later_targets(self, turn: int) -> set[int]:
        """Images that a turn must not name: its own target and those of later turns."""
        return {later.target for later in self.sample.turns[turn:] if later.target is not None}


Rule = Callable[[RuleContext], Iterator[str]]


@dataclass(frozen=True)
class Check:
    """A rule's entry in the table: `families` None means all, `fixed` that it cannot be relaxed."""

    code: str
    severity: Severity
    families: frozenset[Family] | None
    summary: str
    rule: Rule
    fixed: bool = False

    def applies(self, family: Family) -> bool:
        """Whether samples of this family must keep the rule."""
        return self.families is None or family in self.families


RULES: dict[str, Check] = {}

_GENERATION = frozenset(Family) - {Family.UNDERSTANDING}


def _rule(
    code: str, *, severity: Severity = Severity.ERROR, families: Iterable[Family] | None = None, fixed: bool = False
) -> Callable[[Rule], Rule]:
    def add(rule: Rule) -> Rule:
        scope = None if families is None else frozenset(families)
        RULES[code] = Check(code, severity, scope, (rule.__doc__ or "").strip().rstrip("."), rule, fixed)
        return rule

    return add


def _fault_rule(code: str, summary: str) -> None:
    def rule(context: RuleContext) -> Iterator[str]:
        for number, fault in context.faults.items():
            if fault.code == code:
                yield f"image {number}: {fault.message}"

    rule.__doc__ = summary
    _rule(code, fixed=True)(rule)


@_rule("no_pictures", families=_GENERATION, fixed=True)
def _no_images(context: RuleContext) -> Iterator[str]:
    """A sample with no image at all."""
    if not context.sample.images:
        yield "the row has no images"


_fault_rule("empty", "An image without bytes")
_fault_rule("wrong_type", "Bytes that are not an image of a known format")
_fault_rule("bomb", "A header that announces more pixels than the limit")
_fault_rule("truncated", "An image that ends too early")
_fault_rule("undecodable", "An image that its format's decoder refuses")
_fault_rule("no_range", "A float or 32-bit image whose values are not finite or all the same")


@_rule("no_turns", fixed=True)
def _no_turns(context: RuleContext) -> Iterator[str]:
    """No turns, or a number of turns that does not match the images."""
    if not context.sample.turns:
        yield "the row has no turns"


@_rule("empty_instruction")
def _empty_instruction(context: RuleContext) -> Iterator[str]:
    """An instruction without words."""
    for where, _, instruction in context.texts:
        if not instruction.plain:
            yield f"{where} has no words"


@_rule("no_answer", fixed=True)
def _no_answer(context: RuleContext) -> Iterator[str]:
    """A turn with neither an image nor words to produce."""
    for index, turn in enumerate(context.sample.turns):
        if turn.target is None and not (turn.response or "").strip():
            yield f"turn {index + 1} has neither a target image nor a response"


@_rule("target_missing", fixed=True)
def _target_missing(context: RuleContext) -> Iterator[str]:
    """A target number that no image has, or that two turns share."""
    targets = context.sample.targets
    for number in dict.fromkeys(targets):
        if number not in context.numbers:
            yield f"the target is image {number}, and there are {len(context.numbers)} images"
        elif targets.count(number) > 1:
            yield f"image {number} is the target of {targets.count(number)} turns"


@_rule("no_reference")
def _no_reference(context: RuleContext) -> Iterator[str]:
    """Fewer reference images than the family needs."""
    needed = FAMILY_RULES[context.sample.family].min_references
    have = len(context.sample.references)
    if have < needed and context.sample.images:
        yield f"{context.sample.family} needs at least {needed} reference(s) besides the target, the row has {have}"


@_rule("target_as_reference", fixed=True)
def _target_as_reference(context: RuleContext) -> Iterator[str]:
    """An instruction that names the image it must produce."""
    for where, turn, number in context.placeholders():
        if number in context.later_targets(turn):
            yield f"{where} names <image_{number}>, which is the image to produce"
    for index, asked in enumerate(context.sample.turns):
        for token, number in asked.bindings:
            if number in context.later_targets(index):
                yield f"turn {index + 1} binds token {token} to image {number}, which is the image to produce"


@_rule("placeholder_without_picture", fixed=True)
def _placeholder_without_image(context: RuleContext) -> Iterator[str]:
    """A placeholder whose image is not there."""
    for where, _, number in context.placeholders():
        if number not in context.numbers:
            yield f"{where} names <image_{number}>, and there are {len(context.numbers)} images"


@_rule("unknown_token", families=_GENERATION)
def _unknown_token(context: RuleContext) -> Iterator[str]:
    """A word in angle brackets that is not an attribute token, most often a misspelt one."""
    for where, _, instruction in context.texts:
        for token in dict.fromkeys(instruction.unknown):
            meant = closest_token(token)
            yield f"{where} has {token}, which is not one of the {len(ATTRIBUTES)} attribute tokens{meant}"


@_rule("control_token", fixed=True)
def _control_token(context: RuleContext) -> Iterator[str]:
    """A control token of the tokenizer in ordinary text, which would corrupt the sequence."""
    for where, _, instruction in context.texts:
        for token in dict.fromkeys(instruction.control):
            yield f"{where} has {token}, which the tokenizer would read as a control token"
    for index, turn in enumerate(context.sample.turns):
        for token in dict.fromkeys(parse(turn.response or "").control):
            yield f"the response of turn {index + 1} has {token}, which the tokenizer would read as a control token"


@_rule("token_without_picture", families=_GENERATION)
def _token_without_image(context: RuleContext) -> Iterator[str]:
    """An attribute token without an image that it could apply to."""
    for where, index, instruction in context.texts:
        turn = context.sample.turns[index]
        if not instruction.attributes:
            continue
        # Images that no placeholder names stand before the text.
        before = [number for number in context.sample.context(index) if number not in instruction.placeholders]
        groups = instruction.groups(before=before, bindings=dict(turn.bindings))
        for name, number in zip(instruction.attributes, groups, strict=True):
            if number is None:
                yield f"{where} has <{name}> and no image that it could apply to"
            elif number not in context.numbers and number not in instruction.placeholders:
                yield f"{where} binds <{name}> to image {number}, which is not there"


@_rule("instruction_too_long")
def _instruction_too_long(context: RuleContext) -> Iterator[str]:
    """An instruction or response longer than the limit."""
    limit = context.limits.max_instruction
    for index, turn in enumerate(context.sample.turns):
        texts = {"instruction": (turn.instruction, *turn.alternatives), "response": (turn.response or "",)}
        for what, phrasings in texts.items():
            longest = max(len(text) for text in phrasings)
            if longest > limit:
                yield f"the {what} of turn {index + 1} has {longest:,} characters, more than {limit:,}"


@_rule("too_many_references")
def _too_many_references(context: RuleContext) -> Iterator[str]:
    """More reference images than the limit."""
    have = len(context.sample.references)
    if have > context.limits.max_references:
        yield f"the row has {have} references, more than {context.limits.max_references}"


@_rule("too_small")
def _too_small(context: RuleContext) -> Iterator[str]:
    """An image with a side shorter than the limit."""
    for number, info in context.infos.items():
        if min(info.width, info.height) < context.limits.min_side:
            yield f"image {number} is {info.width} x {info.height}, shorter than {context.limits.min_side} on a side"


@_rule("extreme_aspect")
def _extreme_aspect(context: RuleContext) -> Iterator[str]:
    """An image much longer than wide, or wider than long."""
    for number, info in context.infos.items():
        if max(info.width, info.height) > context.limits.max_aspect * min(info.width, info.height):
            yield f"image {number} is {info.width} x {info.height}, beyond {context.limits.max_aspect:g} : 1"


@_rule("target_equals_reference", families=_GENERATION)
def _target_equals_reference(context: RuleContext) -> Iterator[str]:
    """A target with exactly the pixels of an image it was to be made from."""
    data = {image.number: image.data for image in context.sample.images}
    for index, turn in enumerate(context.sample.turns):
        target = context.infos.get(turn.target or 0)
        for number in context.sample.context(index):
            other = context.infos.get(number)
            if target is None or other is None:
                continue
            # Equal bytes, or equal pixels in another encoding: only then are both decoded in full.
            same = target.sha256 == other.sha256
            if not same and target.may_equal(other):
                same = same_pixels(data[turn.target or 0] or b"", data[number] or b"")
            if same:
                yield f"the target of turn {index + 1} (image {turn.target}) is the same image as image {number}"


@_rule("over_budget")
def _over_budget(context: RuleContext) -> Iterator[str]:
    """A sequence longer than the token budget of a pack."""
    tokens = context.tokens
    if tokens > context.limits.max_tokens:
        yield f"the sample takes about {tokens:,} tokens, more than {context.limits.max_tokens:,}"


@_rule("repeated_reference", severity=Severity.WARNING)
def _repeated_reference(context: RuleContext) -> Iterator[str]:
    """The same image given twice as a reference."""
    seen: dict[str, int] = {}
    for number in context.sample.references:
        info = context.infos.get(number)
        if info is None:
            continue
        if info.sha256 in seen:
            yield f"image {number} is the same image as image {seen[info.sha256]}"
        seen.setdefault(info.sha256, number)


@_rule("unnamed_reference", severity=Severity.WARNING, families=_GENERATION)
def _unnamed_reference(context: RuleContext) -> Iterator[str]:
    """A reference that no placeholder names, where others are named."""
    named = {number for _, _, number in context.placeholders()}
    missing = [number for number in context.sample.references if number not in named]
    if named and missing:
        yield f"no placeholder names image {', '.join(map(str, missing))}"


@_rule("unread_placeholder", severity=Severity.WARNING, families=_GENERATION)
def _unread_placeholder(context: RuleContext) -> Iterator[str]:
    """Text that looks like a placeholder or an attribute token, in a spelling that is not read as one."""
    for where, _, instruction in context.texts:
        for word in dict.fromkeys(leftovers(instruction)):
            yield f"{where} has {word}, which is read as text: write <image_1> for images, <style> for tokens"


def _image_rule(code: str, summary: str, severity: Severity = Severity.WARNING) -> None:
    def rule(context: RuleContext) -> Iterator[str]:
        for number, faults in context.image_faults.items():
            if message := faults.get(code):
                yield f"image {number} {message}"

    rule.__doc__ = summary
    _rule(code, severity=severity)(rule)


for _code, _words in {**CONDITION_FAULTS, **IMAGE_WARNINGS}.items():
    _image_rule(_code, _words, Severity.ERROR if _code == "blank_condition" else Severity.WARNING)


def examine(
    sample: Sample, limits: Limits, *, severities: Mapping[str, Severity] | None = None, prober: Probe | None = None
) -> Examination:
    """Decode the images of a sample and check it against every rule that applies to its family.

    `severities` overrides the severity of rules by code; rules marked `fixed` keep theirs. `prober` decodes
    an image: `probe` within the limits, or a `ProbeCache` that remembers.
    """
    context = RuleContext(sample, limits, prober or partial(probe, max_pixels=limits.max_pixels))
    findings: list[Finding] = []
    for check in RULES.values():
        severity = check.severity if check.fixed else (severities or {}).get(check.code, check.severity)
        if severity is not Severity.OFF and check.applies(sample.family):
            findings += [Finding(check.code, text, severity) for text in islice(check.rule(context), _FINDINGS_A_RULE)]
    return Examination(
        sample=sample,
        infos=context.infos,
        findings=tuple(findings),
        attributes=tuple(name for _, _, text in context.texts for name in text.attributes),
        tokens=context.tokens,
    )


def _where(sample: Sample, turn: int, phrasing: int) -> str:
    where = "the instruction" if len(sample.turns) == 1 else f"the instruction of turn {turn + 1}"
    return where if phrasing == 0 else f"{where} (phrasing {phrasing + 1})"
