"""The rules a sample must keep: one function a rule, each with a code, a severity and a scope.

`examine` decodes every picture once, parses every text once, runs the rules in the order of
`RULES` (the most basic first, so that the first finding is the reason to name) and returns all that
the corpus stores about the sample.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import islice

from sigma_data.corpus.check_limits import Limits, Severity
from sigma_data.corpus.foreign_spellings import leftovers
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
    """A sample seen through all rules. `facts` lacks the pictures that could not be decoded."""

    sample: Sample
    facts: Mapping[int, ImageInfo]
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


Look = Callable[[bytes | None], ImageInfo]


class RuleContext:
    """What a rule may look at: the sample, its decoded facts, its parsed texts, the limits."""

    def __init__(self, sample: Sample, limits: Limits, look: Look) -> None:
        self.sample = sample
        self.limits = limits
        self.facts: dict[int, ImageInfo] = {}
        self.faults: dict[int, ImageFault] = {}
        for image in sample.images:
            try:
                self.facts[image.number] = look(image.data)
            except ImageFault as fault:
                self.faults[image.number] = ImageFault(fault.code, image.missing) if image.missing else fault
        self.numbers = frozenset(image.number for image in sample.images)

    @cached_property
    def texts(self) -> list[tuple[str, int, Instruction]]:
        """(where, turn index, parsed) of every instruction and alternative phrasing."""
        pictures = len(self.sample.references)
        return [
            (_where(self.sample, index, phrasing), index, parse(text, references=pictures))
            for index, turn in enumerate(self.sample.turns)
            for phrasing, text in enumerate((turn.instruction, *turn.alternatives))
        ]

    @cached_property
    def tokens(self) -> int:
        """Estimated sequence length."""
        return count_tokens(self.sample, self.facts)

    def placeholders(self) -> Iterator[tuple[str, int, int]]:
        """(where, turn index, image number) of every placeholder."""
        for where, turn, instruction in self.texts:
            for number in dict.fromkeys(instruction.placeholders):
                yield where, turn, number

    def later_targets(self, turn: int) -> set[int]:
        """Pictures that a turn must not name: its own target and those of later turns."""
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
    def rule(view: RuleContext) -> Iterator[str]:
        for number, fault in view.faults.items():
            if fault.code == code:
                yield f"image {number}: {fault.message}"

    rule.__doc__ = summary
    _rule(code, fixed=True)(rule)


@_rule("no_pictures", families=_GENERATION, fixed=True)
def _no_pictures(view: RuleContext) -> Iterator[str]:
    """A sample with no picture at all."""
    if not view.sample.images:
        yield "the row has no pictures"


_fault_rule("empty", "A picture without bytes")
_fault_rule("wrong_type", "Bytes that are not a picture of a known format")
_fault_rule("bomb", "A header that announces more pixels than the limit")
_fault_rule("truncated", "A picture that ends too early")
_fault_rule("undecodable", "A picture that its format's decoder refuses")
_fault_rule("no_range", "A float or 32-bit picture whose values are not finite or all the same")


@_rule("no_turns", fixed=True)
def _no_turns(view: RuleContext) -> Iterator[str]:
    """Nothing asked: no turn, or as many turns as do not fit the pictures."""
    if not view.sample.turns:
        yield "the row asks for nothing"


@_rule("empty_instruction")
def _empty_instruction(view: RuleContext) -> Iterator[str]:
    """An instruction without a word."""
    for where, _, instruction in view.texts:
        if not instruction.plain:
            yield f"{where} has no words"


@_rule("no_answer", fixed=True)
def _no_answer(view: RuleContext) -> Iterator[str]:
    """A turn with neither a picture nor words to produce."""
    for index, turn in enumerate(view.sample.turns):
        if turn.target is None and not (turn.response or "").strip():
            yield f"turn {index + 1} has neither a target picture nor a response"


@_rule("target_missing", fixed=True)
def _target_missing(view: RuleContext) -> Iterator[str]:
    """A target number that no picture has, or that two turns share."""
    targets = view.sample.targets
    for number in dict.fromkeys(targets):
        if number not in view.numbers:
            yield f"the target is image {number}, and there are {len(view.numbers)} pictures"
        elif targets.count(number) > 1:
            yield f"image {number} is the target of {targets.count(number)} turns"


@_rule("no_reference")
def _no_reference(view: RuleContext) -> Iterator[str]:
    """Fewer reference pictures than the family needs."""
    needed = FAMILY_RULES[view.sample.family].min_references
    have = len(view.sample.references)
    if have < needed and view.sample.images:
        yield f"{view.sample.family} needs at least {needed} reference(s) besides the target, the row has {have}"


@_rule("target_as_reference", fixed=True)
def _target_as_reference(view: RuleContext) -> Iterator[str]:
    """An instruction that names the picture it must produce."""
    for where, turn, number in view.placeholders():
        if number in view.later_targets(turn):
            yield f"{where} names <image_{number}>, which is the picture to produce"
    for index, asked in enumerate(view.sample.turns):
        for token, number in asked.bindings:
            if number in view.later_targets(index):
                yield f"turn {index + 1} binds token {token} to image {number}, which is the picture to produce"


@_rule("placeholder_without_picture", fixed=True)
def _placeholder_without_picture(view: RuleContext) -> Iterator[str]:
    """A placeholder whose picture is not there."""
    for where, _, number in view.placeholders():
        if number not in view.numbers:
            yield f"{where} names <image_{number}>, and there are {len(view.numbers)} pictures"


@_rule("unknown_token", families=_GENERATION)
def _unknown_token(view: RuleContext) -> Iterator[str]:
    """A word in angle brackets that is no attribute token, most often a misspelt one."""
    for where, _, instruction in view.texts:
        for token in dict.fromkeys(instruction.unknown):
            yield f"{where} has {token}, which is none of the {len(ATTRIBUTES)} attribute tokens{_guess(token)}"


@_rule("control_token", fixed=True)
def _control_token(view: RuleContext) -> Iterator[str]:
    """A control token of the tokenizer in ordinary text, which would break the sequence."""
    for where, _, instruction in view.texts:
        for token in dict.fromkeys(instruction.control):
            yield f"{where} has {token}, which the tokenizer would read as a control token"
    for index, turn in enumerate(view.sample.turns):
        for token in dict.fromkeys(parse(turn.response or "").control):
            yield f"the response of turn {index + 1} has {token}, which the tokenizer would read as a control token"


@_rule("token_without_picture", families=_GENERATION)
def _token_without_picture(view: RuleContext) -> Iterator[str]:
    """An attribute token with no picture to speak of."""
    for where, index, instruction in view.texts:
        turn = view.sample.turns[index]
        if not instruction.attributes:
            continue
        # Pictures that no placeholder names stand before the text.
        before = [number for number in view.sample.context(index) if number not in instruction.placeholders]
        groups = instruction.groups(before=before, bindings=dict(turn.bindings))
        for name, number in zip(instruction.attributes, groups, strict=True):
            if number is None:
                yield f"{where} has <{name}> and no picture it could speak of"
            elif number not in view.numbers and number not in instruction.placeholders:
                yield f"{where} binds <{name}> to image {number}, which is not there"


@_rule("instruction_too_long")
def _instruction_too_long(view: RuleContext) -> Iterator[str]:
    """An instruction or response longer than the limit."""
    limit = view.limits.max_instruction
    for index, turn in enumerate(view.sample.turns):
        texts = {"instruction": (turn.instruction, *turn.alternatives), "response": (turn.response or "",)}
        for what, phrasings in texts.items():
            longest = max(len(text) for text in phrasings)
            if longest > limit:
                yield f"the {what} of turn {index + 1} has {longest:,} characters, more than {limit:,}"


@_rule("too_many_references")
def _too_many_references(view: RuleContext) -> Iterator[str]:
    """More reference pictures than the limit."""
    have = len(view.sample.references)
    if have > view.limits.max_references:
        yield f"the row has {have} references, more than {view.limits.max_references}"


@_rule("too_small")
def _too_small(view: RuleContext) -> Iterator[str]:
    """A picture with a side shorter than the limit."""
    for number, fact in view.facts.items():
        if min(fact.width, fact.height) < view.limits.min_side:
            yield f"image {number} is {fact.width} x {fact.height}, shorter than {view.limits.min_side} on a side"


@_rule("extreme_aspect")
def _extreme_aspect(view: RuleContext) -> Iterator[str]:
    """A picture much longer than wide, or wider than long."""
    for number, fact in view.facts.items():
        if max(fact.width, fact.height) > view.limits.max_aspect * min(fact.width, fact.height):
            yield f"image {number} is {fact.width} x {fact.height}, beyond {view.limits.max_aspect:g} : 1"


@_rule("target_equals_reference", families=_GENERATION)
def _target_equals_reference(view: RuleContext) -> Iterator[str]:
    """A target with exactly the pixels of a picture it was to be made from."""
    data = {image.number: image.data for image in view.sample.images}
    for index, turn in enumerate(view.sample.turns):
        target = view.facts.get(turn.target or 0)
        for number in view.sample.context(index):
            other = view.facts.get(number)
            if target is None or other is None:
                continue
            # Equal bytes, or equal pixels in another encoding: only then are both decoded in full.
            same = target.sha256 == other.sha256
            if not same and target.may_equal(other):
                same = same_pixels(data[turn.target or 0] or b"", data[number] or b"")
            if same:
                yield f"the target of turn {index + 1} (image {turn.target}) is the same picture as image {number}"


@_rule("over_budget")
def _over_budget(view: RuleContext) -> Iterator[str]:
    """A sequence longer than the token budget of a pack."""
    tokens = view.tokens
    if tokens > view.limits.max_tokens:
        yield f"the sample takes about {tokens:,} tokens, more than {view.limits.max_tokens:,}"


@_rule("repeated_reference", severity=Severity.WARNING)
def _repeated_reference(view: RuleContext) -> Iterator[str]:
    """The same picture given twice as a reference."""
    seen: dict[str, int] = {}
    for number in view.sample.references:
        fact = view.facts.get(number)
        if fact is None:
            continue
        if fact.sha256 in seen:
            yield f"image {number} is the same picture as image {seen[fact.sha256]}"
        seen.setdefault(fact.sha256, number)


@_rule("unnamed_reference", severity=Severity.WARNING, families=_GENERATION)
def _unnamed_reference(view: RuleContext) -> Iterator[str]:
    """A reference that no placeholder names, where others are named."""
    named = {number for _, _, number in view.placeholders()}
    missing = [number for number in view.sample.references if number not in named]
    if named and missing:
        yield f"no placeholder names image {', '.join(map(str, missing))}"


@_rule("unread_placeholder", severity=Severity.WARNING, families=_GENERATION)
def _unread_placeholder(view: RuleContext) -> Iterator[str]:
    """Text that looks like a placeholder or an attribute token, in a spelling that is not read as one."""
    for where, _, instruction in view.texts:
        for word in dict.fromkeys(leftovers(instruction)):
            yield f"{where} has {word}, which is read as text: write <image_1> for images, <style> for tokens"


def _remark_rule(code: str, summary: str) -> None:
    def rule(view: RuleContext) -> Iterator[str]:
        for number, fact in view.facts.items():
            if told := image_warnings(fact).get(code):
                yield f"image {number} {told}"

    rule.__doc__ = summary
    _rule(code, severity=Severity.WARNING)(rule)


for _code, _words in IMAGE_WARNINGS.items():
    _remark_rule(_code, _words)


def examine(
    sample: Sample, limits: Limits, *, severities: Mapping[str, Severity] | None = None, look: Look | None = None
) -> Examination:
    """Decode the pictures of a sample and hold it against every rule that applies to its family.

    `severities` relaxes or sharpens rules by code; rules marked `fixed` keep theirs. `look` decodes
    a picture: `probe` within the limits, or a `ProbeCache` that remembers.
    """
    view = RuleContext(sample, limits, look or partial(probe, max_pixels=limits.max_pixels))
    findings: list[Finding] = []
    for check in RULES.values():
        severity = check.severity if check.fixed else (severities or {}).get(check.code, check.severity)
        if severity is not Severity.OFF and check.applies(sample.family):
            findings += [Finding(check.code, text, severity) for text in islice(check.rule(view), _FINDINGS_A_RULE)]
    return Examination(
        sample=sample,
        facts=view.facts,
        findings=tuple(findings),
        attributes=tuple(name for _, _, text in view.texts for name in text.attributes),
        tokens=view.tokens,
    )


def _where(sample: Sample, turn: int, phrasing: int) -> str:
    where = "the instruction" if len(sample.turns) == 1 else f"the instruction of turn {turn + 1}"
    return where if phrasing == 0 else f"{where} (phrasing {phrasing + 1})"


def _guess(token: str) -> str:
    import difflib

    close = difflib.get_close_matches(token.strip("</ >").lower(), ATTRIBUTES, n=1)
    return f" (did you mean <{close[0]}>?)" if close else ""
