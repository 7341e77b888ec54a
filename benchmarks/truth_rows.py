"""One row as a source reads it against what is right of it; the parts of source_truth.py that need no folder."""

from __future__ import annotations

import hashlib
import io
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image as PilImage

from sigma_data.instruction import Placeholder, Text, parse, render
from sigma_data.sample import Family, Sample, Turn

LEGAL, FILTERED, QUARANTINE, SKIPPED = STATUSES = ("legal", "filtered", "quarantine", "skipped")

Row = tuple[str, int | None]
"""A file and a row in it."""
Composite = Callable[[dict[str, Any], Row], bytes]
"""Gives the image that a box of a row is cut out of."""

_MEAN_TOLERANCE = 2.0
"""Grey values by which a mean colour may differ: decoders of JPEG round differently."""
_PIXEL_TOLERANCE = 2.0
"""Mean difference of grey values between a cut and the same box of its composite."""


@dataclass(frozen=True)
class Outcome:
    """What became of a row, or of one of its samples."""

    status: str
    reason: str | None = None
    message: str = ""
    sample: Sample | None = None


def compare_row(
    truth: dict[str, Any], outcomes: Sequence[Outcome], *, filters: bool, composite: Composite
) -> list[str]:
    """The differences between a row's outcomes and what is right of it."""
    if not outcomes:
        return ["was not read"]
    wanted = truth["status"]
    if wanted == FILTERED and not filters:
        wanted = LEGAL
    wrong = [one for one in outcomes if one.status != wanted]
    if wrong:
        return [f"is {_told(wrong[0])}, right is {wanted}{_reasons(truth)}"]
    if wanted in (FILTERED, QUARANTINE, SKIPPED):
        found = {one.reason or "" for one in outcomes}
        differences = [] if found <= set(truth["reasons"]) else [f"is {_told(outcomes[0])}, right is{_reasons(truth)}"]
        samples = [one.sample for one in outcomes if one.sample is not None]
        if wanted == SKIPPED and "target" in truth:
            differences += _skipped(truth, samples, composite)
        return differences
    samples = [one.sample for one in outcomes if one.sample is not None]
    if "directions" in truth:
        return _directions(truth, samples, composite)
    if len(samples) != 1:
        return [f"gives {len(samples)} samples, right is one"]
    return _sample(truth, samples[0], composite)


def relation_differences(truths: dict[Row, dict[str, Any]], found: dict[Row, list[Outcome]], possible: int,
                         composite: Composite) -> Iterator[str]:  # fmt: skip
    """Differences of pairs that become relation samples: three references and a target, of two rows of one file."""
    pairs = {row: truth for row, truth in truths.items() if truth["status"] == LEGAL}
    groups: dict[str, list[Row]] = defaultdict(list)
    for row in pairs:
        groups[row[0].partition("/")[0]].append(row)
    count = 0
    for row, outcomes in found.items():
        for sample in [one.sample for one in outcomes if one.sample is not None]:
            count += 1
            where = f"{row[0]} row {row[1]}"
            group = groups.get(row[0].partition("/")[0], [])
            if row not in pairs or len(group) < 2:
                yield f"{where}: gives a relation sample, and its category has no two good pairs"
                continue
            if len(sample.images) != 4 or len(sample.references) != 3 or sample.family is not Family.RELATION:
                yield f"{where}: is {sample.family} of {len(sample.images)} images, right is relation of 4"
                continue
            truth = pairs[row]
            yield from (
                f"{where}: {one}" for one in _box(truth["references"][0], sample.images[2].data, row, composite)
            )
            yield from (f"{where}: {one}" for one in _box(truth["target"], sample.images[3].data, row, composite))
            others = [other for other in group if other != row]
            if not any(
                not [*_box(pairs[other]["references"][0], sample.images[0].data, other, composite),
                     *_box(pairs[other]["target"], sample.images[1].data, other, composite)]
                for other in others
            ):  # fmt: skip
                yield f"{where}: its demonstration is no other pair of its category"
            if (words := _words(truth["instruction"])) not in _words(sample.turns[0].instruction):
                yield f"{where}: {sample.turns[0].instruction!r} lacks the words {words!r}"
    if count > possible or (possible and not count):
        yield f"there are {count} relation samples, and {possible} are possible"


def _told(outcome: Outcome) -> str:
    reason = f" ({outcome.reason}: {outcome.message[:160]})" if outcome.reason else ""
    return f"{outcome.status}{reason}"


def _reasons(truth: dict[str, Any]) -> str:
    return f" {' or '.join(truth['reasons'])} ({truth.get('why', '')})" if "reasons" in truth else ""


def _skipped(truth: dict[str, Any], samples: list[Sample], composite: Composite) -> list[str]:
    """A text-to-image row: right by its target and its words, though no family takes it as it is."""
    if len(samples) != 1:
        return [f"gives {len(samples)} samples, right is one that waits for a condition"]
    sample = samples[0]
    family = truth.get("family_with_condition", Family.LAYOUT.value)
    differences = [] if sample.family == family else [f"is {sample.family}, right is {family}"]
    differences += [] if len(sample.images) == 1 else [f"has {len(sample.images)} images, right is one"]
    differences += _image("target", truth["target"], sample.images[-1].data, ("", None), composite)
    return differences + (_texts(truth, sample.turns[0], 0) if "instruction" in truth else [])


def _sample(truth: dict[str, Any], sample: Sample, composite: Composite) -> list[str]:
    differences = [] if sample.family == truth["family"] else [f"is {sample.family}, right is {truth['family']}"]
    data = {image.number: image.data for image in sample.images}
    references = list(sample.references)
    wanted = [one for one in truth["references"] if "computed" not in one]
    row: Row = (truth["file"], truth["row"])
    if len(references) != len(wanted) and len(references) != len(truth["references"]):
        differences.append(f"has {len(references)} references, right is {len(truth['references'])}")
    else:
        for number, one in zip(references, wanted, strict=False):
            differences += _image(f"image {number}", one, data[number], row, composite)
    kind = str(truth.get("condition", "")).partition(" ")[0]
    kinds = {image.kind for image in sample.images if image.number in references}
    if kind and references and kinds != {kind}:
        differences.append(f"its reference is of the kind {kinds}, right is {kind}")
    turns = truth.get("turns") or [truth | {"response": None}]
    if len(sample.turns) != len(turns):
        return [*differences, f"has {len(sample.turns)} turns, right is {len(turns)}"]
    for index, (turn, right) in enumerate(zip(sample.turns, turns, strict=True)):
        where = f"turn {index + 1}" if len(turns) > 1 else "the target"
        if right.get("target") is not None:
            differences += _image(where, right["target"], data.get(turn.target or 0), row, composite)
        elif turn.target is not None:
            differences.append(f"{where} produces an image, right is none")
        if (turn.response or None) != (right.get("response") or None):
            differences.append(f"{where}: the response is {turn.response!r}, right is {right.get('response')!r}")
        differences += _texts(right, turn, len(references))
    mask = truth.get("mask")
    if mask and mask["sha256"] in {hashlib.sha256(image or b"").hexdigest() for image in data.values()}:
        differences.append("has the mask as an image")
    return differences


def _directions(truth: dict[str, Any], samples: list[Sample], composite: Composite) -> list[str]:
    """Both directions of a composite; they are told apart by their words, else by their order."""
    wanted = truth["directions"]
    if len(samples) != len(wanted):
        return [f"gives {len(samples)} samples, right is {len(wanted)}"]
    differences = []
    left = list(samples)
    for direction in wanted:
        row = {**truth, **direction, "references": [direction["reference"]]}
        found = [_sample(row, sample, composite) for sample in left]
        best = min(range(len(left)), key=lambda index: len(found[index]))
        differences += [f"side {direction['target_side']} as target: {one}" for one in found[best]]
        left.pop(best)
    return differences


def _image(where: str, right: dict[str, Any], data: bytes | None, row: Row, composite: Composite) -> list[str]:
    if "box" in right:
        return [f"{where}: {one}" for one in _box(right, data, row, composite)]
    digest = hashlib.sha256(data or b"").hexdigest()
    return [] if digest == right["sha256"] else [f"{where} is not {right['path']}, but {digest[:12]}"]


def _box(right: dict[str, Any], data: bytes | None, row: Row, composite: Composite) -> list[str]:
    try:
        cut = _pixels(data or b"")
        whole = _pixels(composite(right, row))
    except (OSError, LookupError, ValueError) as error:
        return [f"cannot be compared ({error})"]
    left, top, right_edge, bottom = right["box"]
    size = [cut.shape[1], cut.shape[0]]
    if size != [right_edge - left, bottom - top]:
        return [f"is {size[0]} x {size[1]}, right is {right_edge - left} x {bottom - top}"]
    mean = cut.reshape(-1, 3).mean(0)
    if "rgb_mean" in right and abs(mean - np.array(right["rgb_mean"])).max() > _MEAN_TOLERANCE:
        return [f"has the mean colour {mean.round(1).tolist()}, right is {right['rgb_mean']}"]
    part = whole[top:bottom, left:right_edge]
    if part.shape != cut.shape or abs(part - cut).mean() > _PIXEL_TOLERANCE:
        return [f"is not the box {right['box']}"]
    return []


def _pixels(data: bytes) -> np.ndarray[Any, np.dtype[np.float64]]:
    with PilImage.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB"), dtype=np.float64)


def _texts(right: dict[str, Any], turn: Turn, references: int) -> list[str]:
    differences = []
    wanted = right["instruction"]
    if not _same(turn.instruction, wanted, references):
        differences.append(f"the instruction is {turn.instruction!r}, right is {wanted!r}")
    if "alternatives" in right:
        found, others = list(turn.alternatives), right["alternatives"]
        if len(found) != len(others) or not all(
            _same(one, other, references) for one, other in zip(found, others, strict=True)
        ):
            differences.append(f"the alternatives are {found}, right is {others}")
    return differences


def _same(found: str, wanted: str, references: int) -> bool:
    """Whether two texts say the same, apart from white space and the spelling of placeholders.

    Placeholders in front may be there although the publisher writes none: his image stands in front as well.
    """
    ours, right = parse(found, references=references).parts, parse(wanted, references=references).parts
    if not any(isinstance(part, Placeholder) for part in right):
        while ours and (isinstance(ours[0], Placeholder) or (isinstance(ours[0], Text) and not ours[0].text.strip())):
            ours = ours[1:]
    return _words(render(ours)) == _words(render(right))


def _words(text: str) -> str:
    return " ".join(re.sub(r"(<image_\d+>)", r" \1 ", text).split())
