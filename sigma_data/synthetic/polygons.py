"""Primitive polygons that everything is drawn with."""

from __future__ import annotations

import math
from functools import cache
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Points = NDArray[np.float64]
Local = tuple[str, Points]
"""A polygon with its role, in its thing's own units."""


def cos_sin(degrees: float) -> tuple[float, float]:
    """Cosine and sine, rounded so that every machine's mathematics library agrees."""
    return round(math.cos(math.radians(degrees)), 7), round(math.sin(math.radians(degrees)), 7)


def polygon(*values: float) -> Points:
    """Points from x, y, x, y, ..."""
    return np.array(values, dtype=np.float64).reshape(-1, 2)


def rectangle(left: float, top: float, right: float, bottom: float) -> Points:
    """An upright rectangle."""
    return polygon(left, top, right, top, right, bottom, left, bottom)


@cache
def _unit_circle(count: int) -> Points:
    return np.array([cos_sin(360 * i / count) for i in range(count)])


def ellipse(x: float, y: float, rx: float, ry: float | None = None, *, count: int = 40) -> Points:
    """An ellipse around (x, y)."""
    return _unit_circle(count) * (rx, rx if ry is None else ry) + (x, y)


def arc(x: float, y: float, rx: float, ry: float, start: int, stop: int, *, steps: int = 14) -> Points:
    """Points on an ellipse from angle `start` to `stop` in degrees, 0 to the right and 90 down."""
    angles = [cos_sin(start + (stop - start) * i / steps) for i in range(steps + 1)]
    return np.array(angles) * (rx, ry) + (x, y)


def bar(x0: float, y0: float, x1: float, y1: float, width: float) -> Points:
    """A line from one point to the other with round ends."""
    start, stop = np.array([x0, y0]), np.array([x1, y1])
    along = stop - start
    length = float(np.sqrt(along @ along)) or 1.0
    c, s = float(along[0]) / length, float(along[1]) / length
    half = _unit_circle(16) * (width / 2)
    ends = np.concatenate([half[12:], half[:5]]), half[4:13]
    spin = np.array([[c, s], [-s, c]])
    return np.concatenate([ends[0] @ spin + stop, ends[1] @ spin + start])


def path(points: Points, width: float) -> list[Points]:
    """A broken line as bars."""
    corners = points.tolist()
    return [bar(p[0], p[1], q[0], q[1], width) for p, q in pairwise(corners)]


def star(points: int, outer: float, inner: float) -> Points:
    """A star with its first ray upwards."""
    values = [np.array(cos_sin(180 * i / points - 90)) * (inner if i % 2 else outer) for i in range(2 * points)]
    return np.array(values)


def band(x: float, y: float, outer: float, inner: float, start: int, stop: int) -> Points:
    """A bent band between two circles."""
    return np.concatenate(
        [arc(x, y, outer, outer, start, stop, steps=18), arc(x, y, inner, inner, stop, start, steps=18)]
    )
