"""GenEval after detection, as plain arithmetic: does what was found match the prompt?

The rules are those of GenEval (Ghosh et al., arXiv 2310.11513): thresholds, counting, positions, colours.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

LEAST_SCORE = 0.3
LEAST_SCORE_COUNTING = 0.9
"""A detection counts above this score; for the tag `counting` above the higher one."""
MOST = 16
"""Detections of a class that count, the surest first."""
POSITION = 0.1
"""Two boxes must lie apart by more than this part of their summed sizes to stand in a relation."""

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Detection:
    """An object found in an image: class name, score 0..1, box (x0, y0, x1, y1) in pixels, colour name if known."""

    name: str
    score: float
    box: Box
    colour: str | None = None


def correct(prompt: Mapping[str, Any], detections: Sequence[Detection]) -> bool:
    """Whether an image fits its prompt: `tag`, `include` and perhaps `exclude` of a metadata line."""
    least = LEAST_SCORE_COUNTING if prompt["tag"] == "counting" else LEAST_SCORE
    found: dict[str, list[Detection]] = {}
    for detection in sorted(detections, key=lambda one: -one.score):
        same = found.setdefault(detection.name, [])
        if detection.score > least and len(same) < MOST:
            same.append(detection)
    fits = True
    groups: list[Sequence[Detection]] = []  # what each demand is met by; empty where it is not
    for demand in prompt["include"]:
        group = found.get(demand["class"], [])[: demand["count"]]
        met = len(group) >= demand["count"]
        if met and "color" in demand:
            met = sum(one.colour == demand["color"] for one in group) >= demand["count"]
        if met and "position" in demand:
            relation, other = demand["position"]
            met = bool(groups[other]) and all(
                relation in relations(one.box, anchor.box) for one in group for anchor in groups[other]
            )
        fits = fits and met
        groups.append(group if met else ())
    return fits and all(len(found.get(ban["class"], [])) < ban["count"] for ban in prompt.get("exclude", []))


def relations(one: Box, other: Box) -> set[str]:
    """Where the first box is as seen from the second: `left of`, `right of`, `above`, `below`, two of them, or none."""
    offset = [(one[axis] + one[axis + 2] - other[axis] - other[axis + 2]) / 2 for axis in (0, 1)]
    sizes = [abs(one[axis + 2] - one[axis]) + abs(other[axis + 2] - other[axis]) for axis in (0, 1)]
    apart = [math.copysign(max(abs(way) - POSITION * size, 0.0), way) for way, size in zip(offset, sizes, strict=True)]
    if all(abs(way) < 1e-3 for way in apart):
        return set()
    length = math.hypot(*offset)
    across, down = apart[0] / length, apart[1] / length
    ways = {"left of": across < -0.5, "right of": across > 0.5, "above": down < -0.5, "below": down > 0.5}
    return {name for name, holds in ways.items() if holds}
