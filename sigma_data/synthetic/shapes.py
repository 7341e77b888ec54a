"""Geometry: every object as filled polygons with roles, in its own units and in the image's.

A thing lives in a disc of radius one around (0, 0). Roles say which colour a polygon takes; only
`body` carries the thing's colour and texture. Boxes in truth are exact: they come from the polygons.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from sigma_data.synthetic import creatures
from sigma_data.synthetic.glyphs import ICONS, strokes
from sigma_data.synthetic.polygons import (
    Local,
    Points,
    arc,
    band,
    bar,
    cos_sin,
    ellipse,
    path,
    polygon,
    rectangle,
    star,
)
from sigma_data.synthetic.scene import Thing


@dataclass(frozen=True)
class Part:
    """A polygon of shape (n, 2) and the role that gives it its colour."""

    role: str
    points: Points


def _heart() -> Points:
    left, right = arc(-0.44, -0.3, 0.46, 0.46, 150, 330), arc(0.44, -0.3, 0.46, 0.46, 210, 390)
    return np.concatenate([left, right, polygon(0.0, 0.92)])


def _moon() -> Points:
    return np.concatenate([arc(0, 0, 0.92, 0.92, 40, 320, steps=40), arc(0.36, 0, 0.68, 0.62, 300, 60, steps=30)])


def _drop() -> Points:
    return np.concatenate([polygon(0.0, -1.0), arc(0, 0.3, 0.66, 0.66, -30, 210, steps=30)])


def _petals() -> list[Local]:
    centres = [np.array(cos_sin(72 * i - 90)) * 0.44 + (0, -0.25) for i in range(5)]
    return [("body", ellipse(float(x), float(y), 0.32)) for x, y in centres]


def _spots(*circles: tuple[float, float, float]) -> list[Local]:
    return [("light", ellipse(x, y, radius, count=18)) for x, y, radius in circles]


def _wheels(*xs: float) -> list[Local]:
    wheels: list[Local] = []
    for x in xs:
        wheels += [("ink", ellipse(x, 0.42, 0.23)), ("light", ellipse(x, 0.42, 0.1))]
    return wheels


SHAPES: dict[str, Callable[[], list[Local]]] = {
    "ball": lambda: [("body", ellipse(0, 0, 0.88))],
    "square": lambda: [("body", rectangle(-0.74, -0.74, 0.74, 0.74))],
    "triangle": lambda: [("body", polygon(0, -0.95, 0.9, 0.65, -0.9, 0.65))],
    "star": lambda: [("body", star(5, 1.0, 0.46))],
    "heart": lambda: [("body", _heart())],
    "hexagon": lambda: [("body", star(3, 0.94, 0.94))],
    "diamond": lambda: [("body", polygon(0, -1, 0.68, 0, 0, 1, -0.68, 0))],
    "cross": lambda: [
        ("body", polygon(-0.3, -0.9, 0.3, -0.9, 0.3, -0.3, 0.9, -0.3, 0.9, 0.3, 0.3, 0.3, 0.3, 0.9, -0.3, 0.9,
                         -0.3, 0.3, -0.9, 0.3, -0.9, -0.3, -0.3, -0.3)),
    ],
    "moon": lambda: [("body", _moon())],
    "drop": lambda: [("body", _drop())],
    "donut": lambda: [("body", ellipse(0, 0, 0.92)), ("hole", ellipse(0, 0, 0.34))],
    "arrow": lambda: [("body", polygon(-0.9, -0.28, 0.1, -0.28, 0.1, -0.7, 0.95, 0, 0.1, 0.7, 0.1, 0.28, -0.9, 0.28))],
    "gear": lambda: [("body", star(9, 0.98, 0.72)), ("body", ellipse(0, 0, 0.76)), ("hole", ellipse(0, 0, 0.24))],
    "house": lambda: [
        ("accent", rectangle(0.28, -0.86, 0.48, -0.4)),
        ("body", rectangle(-0.66, -0.2, 0.66, 0.8)),
        ("accent", polygon(-0.88, -0.16, 0, -0.92, 0.88, -0.16)),
        ("dark", rectangle(-0.46, 0.24, -0.12, 0.8)), ("light", rectangle(0.14, 0.2, 0.48, 0.52)),
    ],
    "tree": lambda: [
        ("wood", polygon(-0.14, 0.2, 0.14, 0.2, 0.2, 0.95, -0.2, 0.95)),
        ("body", ellipse(-0.38, 0.02, 0.42)), ("body", ellipse(0.38, 0.02, 0.42)), ("body", ellipse(0, -0.38, 0.56)),
        *[("accent", ellipse(x, y, 0.08, count=14)) for x, y in ((-0.4, 0.12), (0.42, 0.16), (-0.16, -0.62))],
    ],
    "car": lambda: [
        ("body", polygon(-0.5, -0.12, -0.3, -0.5, 0.32, -0.5, 0.58, -0.12)),
        ("light", polygon(-0.36, -0.12, -0.22, -0.4, 0.0, -0.4, 0.0, -0.12)),
        ("light", polygon(0.08, -0.12, 0.08, -0.4, 0.27, -0.4, 0.43, -0.12)),
        ("body", polygon(-0.92, -0.12, 0.76, -0.12, 0.96, 0.04, 0.96, 0.4, -0.92, 0.4)),
        ("accent", rectangle(0.8, 0.06, 0.96, 0.2)), *_wheels(-0.5, 0.52),
    ],
    "boat": lambda: [
        ("wood", rectangle(-0.06, -0.92, 0.04, 0.3)),
        ("accent", polygon(0.08, -0.86, 0.76, 0.12, 0.08, 0.12)),
        ("light", polygon(-0.1, -0.6, -0.1, 0.12, -0.6, 0.12)),
        ("body", polygon(-0.95, 0.22, 0.95, 0.22, 0.62, 0.76, -0.66, 0.76)),
    ],
    "fish": lambda: [
        ("accent", polygon(-0.5, 0, -0.98, -0.5, -0.86, 0, -0.98, 0.5)),
        ("accent", polygon(-0.2, -0.4, 0.1, -0.78, 0.34, -0.36)),
        ("body", ellipse(0.12, 0, 0.8, 0.52)), ("white", ellipse(0.56, -0.12, 0.13)),
        ("ink", ellipse(0.59, -0.12, 0.06, count=14)),
    ],
    "cup": lambda: [
        ("accent", band(0.5, 0.05, 0.42, 0.24, -100, 100)),
        ("body", polygon(-0.68, -0.6, 0.56, -0.6, 0.44, 0.78, -0.56, 0.78)),
        ("light", ellipse(-0.06, -0.6, 0.62, 0.14)),
    ],
    "mushroom": lambda: [
        ("cream", polygon(-0.24, 0.0, 0.24, 0.0, 0.34, 0.88, -0.34, 0.88)),
        ("body", np.concatenate([arc(0, 0.14, 0.92, 0.98, 180, 360, steps=30)])),
        *_spots((-0.52, -0.2, 0.12), (0.5, -0.26, 0.15), (0.1, -0.62, 0.12)),
    ],
    "flower": lambda: [
        ("leaf", bar(0, 0.1, 0, 0.92, 0.12)), ("leaf", ellipse(0.26, 0.64, 0.26, 0.11)),
        *_petals(), ("accent", ellipse(0, -0.25, 0.24)),
    ],
    "rocket": lambda: [
        ("accent", polygon(-0.3, 0.1, -0.7, 0.76, -0.24, 0.6)), ("accent", polygon(0.3, 0.1, 0.7, 0.76, 0.24, 0.6)),
        ("flame", polygon(-0.2, 0.62, 0, 1.0, 0.2, 0.62)),
        ("body", np.concatenate([arc(0, 0.0, 0.36, 0.96, 180, 360, steps=24), polygon(0.28, 0.66, -0.28, 0.66)])),
        ("light", ellipse(0, -0.3, 0.17)),
    ],
    "umbrella": lambda: [
        *[("wood", part) for part in path(np.concatenate([polygon(0, -0.1),
            arc(0.16, 0.72, 0.16, 0.18, 180, 0, steps=6)]), 0.1)],
        ("body", arc(0, 0.08, 0.94, 0.94, 180, 360, steps=30)), ("dark", polygon(-0.3, 0.08, 0, -0.86, 0.3, 0.08)),
        ("accent", ellipse(0, -0.88, 0.08, count=14)),
    ],
    "balloon": lambda: [
        ("wood", polygon(-0.2, 0.66, 0.2, 0.66, 0.16, 0.96, -0.16, 0.96)),
        ("body", ellipse(0, -0.24, 0.72, 0.72)), ("accent", polygon(-0.5, 0.28, 0.5, 0.28, 0.2, 0.6, -0.2, 0.6)),
    ],
    "gift": lambda: [
        ("body", rectangle(-0.68, -0.2, 0.68, 0.78)), ("body", rectangle(-0.78, -0.44, 0.78, -0.12)),
        ("accent", rectangle(0.22, -0.44, 0.46, 0.78)), ("accent", ellipse(0.1, -0.62, 0.24, 0.16)),
        ("accent", ellipse(0.58, -0.62, 0.24, 0.16)),
    ],
    "butterfly": lambda: [
        ("body", ellipse(-0.46, -0.32, 0.46, 0.5)), ("body", ellipse(0.46, -0.32, 0.46, 0.5)),
        ("accent", ellipse(-0.36, 0.42, 0.34, 0.4)), ("accent", ellipse(0.36, 0.42, 0.34, 0.4)),
        ("ink", bar(0, -0.6, 0, 0.7, 0.16)),
    ],
    "snail": lambda: [
        ("accent", np.concatenate([arc(-0.1, 0.62, 0.86, 0.24, 180, 0, steps=16),
            polygon(0.9, 0.2, 0.94, -0.3, 0.62, -0.3, 0.6, 0.4)])),
        ("ink", ellipse(0.78, -0.14, 0.06, count=12)), ("body", ellipse(-0.14, -0.04, 0.64)),
        ("dark", ellipse(0.08, -0.02, 0.24)),
        ("light", ellipse(0.08, -0.02, 0.1)),
    ],
    "apple": lambda: [
        ("wood", bar(0, -0.5, 0.08, -0.92, 0.1)), ("leaf", ellipse(0.32, -0.74, 0.26, 0.12)),
        ("body", ellipse(-0.26, 0.14, 0.54, 0.66)), ("body", ellipse(0.26, 0.14, 0.54, 0.66)),
        ("light", ellipse(-0.5, -0.1, 0.09, 0.16)),
    ],
    "lamp": lambda: [
        ("accent", rectangle(-0.07, 0.0, 0.07, 0.8)), ("accent", ellipse(0, 0.84, 0.46, 0.12)),
        ("body", polygon(-0.34, -0.86, 0.34, -0.86, 0.72, 0.16, -0.72, 0.16)),
    ],
    "cactus": lambda: [
        ("accent", polygon(-0.4, 0.5, 0.4, 0.5, 0.3, 0.94, -0.3, 0.94)),
        *[("body", p) for p in path(polygon(0, 0.1, 0.56, 0.1, 0.56, -0.3), 0.24)],
        *[("body", p) for p in path(polygon(0, 0.28, -0.54, 0.28, -0.54, -0.12), 0.24)],
        ("body", bar(0, 0.4, 0, -0.66, 0.5)),
    ],
    "sign": lambda: [("wood", rectangle(-0.08, 0.2, 0.08, 0.95)), ("body", rectangle(-0.98, -0.56, 0.98, 0.36))],
}  # fmt: skip

ANCHORS: dict[str, tuple[float, float]] = {
    "moon": (-0.62, 0.0), "donut": (0.63, 0.0), "gear": (0.5, 0.0), "house": (0.3, 0.02), "tree": (0.1, -0.28),
    "car": (0.0, 0.12), "boat": (0.0, 0.48), "fish": (0.1, 0.15), "cup": (0.0, 0.1), "mushroom": (0.0, -0.16),
    "flower": (0.0, -0.72), "rocket": (0.0, 0.22), "umbrella": (-0.58, -0.16), "balloon": (0.0, -0.2),
    "gift": (-0.2, 0.26),
    "butterfly": (0.5, -0.3), "snail": (-0.46, 0.0), "apple": (0.1, 0.2), "lamp": (0.0, -0.3), "cactus": (0.0, -0.2),
    "drop": (0.0, 0.3), "triangle": (0.0, 0.2), "heart": (0.0, 0.1), "sign": (-0.86, -0.1), "creature": (-0.35, 0.58),
}  # fmt: skip
"""A point of the body that nothing of the thing covers, where it is not (0, 0)."""

OBJECTS = tuple(name for name in SHAPES if name != "sign")
LOPSIDED = ("moon", "arrow", "house", "car", "boat", "fish", "cup", "gift", "snail", "apple", "flower")
"""Shapes that a mirror visibly changes."""
UPRIGHT = tuple(
    name for name in OBJECTS if name not in ("ball", "donut", "gear", "cross", "square", "hexagon", "diamond")
)
"""Shapes that every rotation visibly changes."""
BROAD = ("ball", "square", "heart", "hexagon", "balloon", "apple", "cup", "drop", "lamp")
"""Shapes with room for an icon around their anchor."""


@lru_cache(maxsize=64)
def _local(shape: str) -> tuple[Local, ...]:
    return tuple(SHAPES[shape]())


def local_parts(thing: Thing) -> list[Local]:
    """The polygons of a thing in its own units, back to front."""
    if thing.character:
        parts = creatures.body(thing.character)
        for item in thing.wear:
            parts += creatures.worn(item)
    elif thing.shape in creatures.WEAR:
        parts = creatures.alone(thing.shape)
    elif thing.shape in ICONS:
        parts = [("body", points) for points in ICONS[thing.shape]]
    elif thing.shape == "word":
        parts = [("letter", p) for p in _word(thing.word or "", 0.0, 0.0, 0.95)]
    else:
        parts = list(_local(thing.shape))
    if thing.shape == "sign":
        parts += [("letter", p) for p in _word(thing.word or "", 0.0, -0.1, 0.7)]
    if thing.emblem:
        x, y = ANCHORS.get(thing.shape, (0.0, 0.0))
        if thing.character:
            x, y = 0.0, 0.5
        parts += [("emblem", points * 0.3 + (x, y)) for points in ICONS[thing.emblem.icon]]
    return parts


def parts(thing: Thing) -> list[Part]:
    """The polygons of a thing in the image's units, back to front."""
    matrix = _matrix(thing)
    return [Part(role, points @ matrix + (thing.x, thing.y)) for role, points in local_parts(thing)]


def box(thing: Thing) -> list[float]:
    """The exact box [x0, y0, x1, y1] of a thing, clipped to the image."""
    points = np.concatenate([part.points for part in parts(thing) if part.role != "hole"])
    low, high = points.min(axis=0).clip(0, 1), points.max(axis=0).clip(0, 1)
    return [round(float(value), 4) for value in (*low, *high)]


def anchor(thing: Thing) -> tuple[float, float]:
    """A point where the body of the thing is seen: its colour, or its texture."""
    point = np.array(ANCHORS.get("creature" if thing.character else thing.shape, (0.0, 0.0)))
    if thing.emblem and not thing.character:
        point = point + (0.34, 0.0)
    x, y = point @ _matrix(thing) + (thing.x, thing.y)
    return round(float(x), 4), round(float(y), 4)


def _matrix(thing: Thing) -> Points:
    c, s = cos_sin(thing.rotation)
    flip = -1.0 if thing.mirror else 1.0
    return np.array([[c * flip, s * flip], [-s, c]]) * thing.size


def _word(word: str, x: float, y: float, half: float) -> list[Points]:
    lines = strokes(word)
    scale = half / max(float(line[:, 0].max()) for line in lines)
    return [p for line in lines for p in path(line * scale + (x, y), 0.26 * scale)]
