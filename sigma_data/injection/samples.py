"""Injection of whole samples: every turn with the images of its context, the plain wording kept beside.

Who decides a single caption (rules, or a model's reply) is the caller's; this module says what is asked for a sample
and what becomes of it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from sigma_data.injection.request import KEPT, VERSION, Injection, Reference, Request
from sigma_data.injection.rules import UNTOUCHED, inject, routed
from sigma_data.instruction import canonical, parse
from sigma_data.sample import Family, Rejection, Sample, Turn

PLAIN = "plain"
"""The outcome of a sample whose plain wording was drawn to stay."""
_FRAMED = frozenset((Family.LAYOUT, Family.RELATION))
_BOUND = frozenset((Family.COMPOSITIONAL, Family.RELATION))
"""Families that say nothing where the text does not tell their references apart."""


@dataclass(frozen=True)
class Decision:
    """An injection, who made it, and, if a model was asked in vain, why (`fallback`)."""

    injection: Injection
    by: str = "rules"
    fallback: str = ""


def by_rules(request: Request) -> Decision:
    """The rules' decision."""
    return Decision(inject(request))


def requests_of(sample: Sample) -> Iterator[tuple[int, int, Request]]:
    """(turn, phrasing, request) of every text to be injected: phrasing 0 is the instruction, others the alternatives.

    The first turn must name the references that no later turn names, a later one the answer it goes on from.
    """
    if sample.family in UNTOUCHED:
        return
    count = len(sample.references)
    images = {image.number: image for image in sample.images}
    texts = [canonical(turn.instruction, references=count) for turn in sample.turns]
    for index, turn in enumerate(sample.turns):
        if turn.target is None:
            continue
        context = sample.context(index)
        if index == 0:
            later = {number for text in texts[1:] for number in parse(text).placeholders}
            needed = [number for number in context if number not in later]
        else:
            named = [number for number in dict.fromkeys(parse(texts[index]).placeholders) if number in context]
            answer = sample.turns[index - 1].target
            needed = named or ([answer] if answer is not None else list(context[-1:]))
        references = tuple(
            Reference(number, images[number].kind, images[number].label) for number in needed if number in images
        )
        others = tuple(number for number in context if number not in needed)
        for phrasing, text in enumerate((texts[index], *turn.alternatives)):
            caption = text if phrasing == 0 else canonical(text, references=count)
            yield index, phrasing, Request(
                sample.family, caption, references, others, key=f"{sample.id}:{index}:{phrasing}"
            )  # fmt: skip


def stays_plain(sample: Sample, share: float) -> bool:
    """Whether the plain wording is drawn to stay, by the sample's id; layout and relation always have their frame."""
    if sample.family in UNTOUCHED | _FRAMED or share <= 0:
        return False
    digest = hashlib.sha256(f"plain\x1f{sample.id}".encode("utf-8", "replace")).digest()
    return int.from_bytes(digest[:8], "big") < share * 2.0**64


def inject_sample(
    sample: Sample,
    decide: Callable[[Request], Decision] = by_rules,
    *,
    plain_share: float = 0.0,
    model: dict[str, object] | None = None,
) -> Sample | Rejection:
    """The sample with its tokens; a Rejection where it cannot be used without.

    `model` is noted for what a model decided: its name and the version of the prompt. A sample that says it was
    injected before comes back as it is.
    """
    provenance = json.loads(sample.provenance) if sample.provenance else {}
    asked = list(requests_of(sample))
    if not asked or "injection" in provenance:
        return sample
    family = routed(asked[0][2]).family if len(sample.turns) == 1 else sample.family
    if stays_plain(sample, plain_share):
        note: dict[str, object] = {"by": "none", "version": VERSION, "outcome": PLAIN}
        return replace(sample, family=family, provenance=_provenance(provenance, note))
    turns = list(sample.turns)
    decisions: list[Decision] = []
    alternatives: dict[int, list[str]] = {}
    for index, phrasing, request in asked:
        decision = decide(request)
        found = decision.injection
        if found.refused and _unusable(request, found):
            if phrasing == 0:
                return _rejection(sample, found)
            continue  # another phrasing of the same that cannot be bound
        if phrasing == 0:
            decisions.append(decision)
            turns[index] = _injected(turns[index], found)
            alternatives[index] = []
        else:
            alternatives[index].append(found.instruction)
    turns = [replace(turn, alternatives=tuple(dict.fromkeys(alternatives[index]))) if index in alternatives else turn
             for index, turn in enumerate(turns)]  # fmt: skip
    note = _note(decisions, model)
    return replace(sample, family=family, turns=tuple(turns), provenance=_provenance(provenance, note))


def _unusable(request: Request, found: Injection) -> bool:
    """Whether a refused caption cannot stand as it is: it would be read as a token, or bind nothing."""
    if found.code == "token_in_text":
        return True
    return request.family in _BOUND and len(request.references) > 1


def _injected(turn: Turn, found: Injection) -> Turn:
    if found.refused:
        return turn
    bindings = turn.bindings if found.outcome == KEPT else found.bindings
    caption = turn.instruction if found.instruction != turn.instruction and found.outcome != KEPT else turn.caption
    return replace(turn, instruction=found.instruction, bindings=bindings, caption=caption)


def _rejection(sample: Sample, found: Injection) -> Rejection:
    source = sample.source
    return Rejection(source.name, source.location, source.row, found.code, found.message, family=sample.family,
                     license=source.license)  # fmt: skip


def _note(decisions: list[Decision], model: dict[str, object] | None) -> dict[str, object]:
    """What the record says: of several turns, that of the first that was refused, else of the first."""
    first = next((one for one in decisions if one.injection.refused), decisions[0])
    note: dict[str, object] = {"by": first.by, "version": VERSION, "outcome": first.injection.outcome}
    if first.injection.code:
        note["code"] = first.injection.code
    if first.by == "model":
        note |= model or {}
    if first.fallback:
        note["fallback"] = first.fallback
    return note


def _provenance(there: dict[str, object], note: dict[str, object]) -> str:
    return json.dumps({**there, "injection": note}, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
