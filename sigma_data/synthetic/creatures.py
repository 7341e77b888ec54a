"""Creatures: who they are, how they feel, how they stand, what they wear, as polygons with roles.

Identity (species, eyes, marks, colours) and state (emotion, pose, clothing) are separate, so that a
sample can take one from one image and the other from another.
"""

from __future__ import annotations

from functools import cache, lru_cache

from sigma_data.synthetic.polygons import Local, Points, arc, bar, ellipse, path, polygon, rectangle
from sigma_data.synthetic.scene import Character, Wear

SPECIES = ("cat", "bear", "bunny", "robot", "alien", "frog", "penguin")
EYES = ("round", "tall", "shiny", "dot")
MARKS = ("none", "cheeks", "patch", "stripes", "freckles")
EMOTIONS = ("happy", "sad", "surprised", "angry", "sleepy")
WEAR = ("top hat", "party hat", "beanie", "crown", "cap", "scarf", "bow tie")

# Elbow and hand of the left and the right arm, then the feet; shoulders are at (-+0.4, 0.3).
POSES: dict[str, tuple[tuple[float, ...], tuple[float, ...], tuple[float, float]]] = {
    "arms down": ((-0.56, 0.52, -0.6, 0.74), (0.56, 0.52, 0.6, 0.74), (-0.22, 0.22)),
    "arms up": ((-0.74, 0.12, -0.86, -0.3), (0.74, 0.12, 0.86, -0.3), (-0.22, 0.22)),
    "arms out": ((-0.68, 0.32, -0.98, 0.32), (0.68, 0.32, 0.98, 0.32), (-0.22, 0.22)),
    "waving": ((-0.56, 0.52, -0.6, 0.74), (0.76, 0.14, 0.9, -0.3), (-0.22, 0.22)),
    "hands on hips": ((-0.84, 0.5, -0.5, 0.7), (0.84, 0.5, 0.5, 0.7), (-0.22, 0.22)),
    "star jump": ((-0.74, 0.14, -0.96, -0.08), (0.74, 0.14, 0.96, -0.08), (-0.58, 0.58)),
    "pointing": ((-0.68, 0.34, -1.0, 0.18), (0.56, 0.52, 0.6, 0.74), (-0.22, 0.22)),
}


def body(who: Character) -> list[Local]:
    """The polygons of a creature, without what it wears."""
    return list(_body(who))


@lru_cache(maxsize=128)
def _body(who: Character) -> tuple[Local, ...]:
    left, right, feet = POSES[who.pose]
    parts: list[Local] = []
    if who.species == "cat":
        parts += [("dark", p) for p in path(arc(0.42, 0.72, 0.34, 0.2, 90, -60, steps=8), 0.12)]
    for foot in feet:
        parts += [("dark", bar(foot * 0.8, 0.7, foot, 0.9, 0.22)), ("dark", ellipse(foot, 0.94, 0.2, 0.1))]
    parts += [("body", ellipse(0, 0.46, 0.5, 0.46)), ("accent", ellipse(0, 0.54, 0.28, 0.28))]
    for sign, arm in ((-1, left), (1, right)):
        shoulder = (sign * 0.38, 0.3)
        parts += [("dark", bar(*shoulder, arm[0], arm[1], 0.19)), ("dark", bar(arm[0], arm[1], arm[2], arm[3], 0.19))]
    parts += _ears(who.species)
    head = rectangle(-0.54, -0.74, 0.54, 0.16) if who.species == "robot" else ellipse(0, -0.3, 0.6, 0.5)
    parts.append(("body", head))
    parts += _marks(who.marks) + _face(who)
    return tuple(parts)


def _ears(species: str) -> list[Local]:
    parts: list[Local] = []
    for s in (-1, 1):
        if species == "cat":
            parts += [("body", polygon(s * 0.55, -1.0, s * 0.14, -0.72, s * 0.56, -0.4)),
                      ("accent", polygon(s * 0.49, -0.86, s * 0.26, -0.7, s * 0.5, -0.52))]  # fmt: skip
        elif species == "bear":
            parts += [("body", ellipse(s * 0.44, -0.7, 0.22)), ("accent", ellipse(s * 0.44, -0.7, 0.11))]
        elif species == "bunny":
            parts += [("body", ellipse(s * 0.26, -0.9, 0.15, 0.34)), ("accent", ellipse(s * 0.26, -0.9, 0.07, 0.22))]
        elif species == "alien":
            parts += [("dark", bar(s * 0.2, -0.7, s * 0.34, -0.98, 0.07)), ("accent", ellipse(s * 0.36, -1.0, 0.1))]
        elif species == "frog":
            parts += [("body", ellipse(s * 0.34, -0.72, 0.22))]
    if species == "robot":
        parts += [("dark", bar(0, -0.7, 0, -0.94, 0.08)), ("accent", ellipse(0, -1.0, 0.11))]
    if species == "penguin":
        parts += [("dark", polygon(-0.16, -0.72, -0.06, -1.0, 0.02, -0.8, 0.16, -0.98, 0.18, -0.7))]
    return parts


def _marks(marks: str) -> list[Local]:
    if marks == "cheeks":
        return [("blush", ellipse(s * 0.4, -0.12, 0.12, 0.08)) for s in (-1, 1)]
    if marks == "patch":
        return [("accent", ellipse(0.24, -0.38, 0.24, 0.24))]
    if marks == "stripes":
        return [("dark", bar(x, -0.74, x, -0.6, 0.07)) for x in (-0.16, 0.0, 0.16)]
    if marks == "freckles":
        return [
            ("dark", ellipse(s * x, y, 0.03, count=10))
            for s in (-1, 1)
            for x, y in ((0.34, -0.14), (0.44, -0.2), (0.42, -0.08))
        ]
    return []


def _face(who: Character) -> list[Local]:
    parts: list[Local] = []
    wide = 1.3 if who.emotion == "surprised" else 1.0
    for s in (-1, 1):
        x, y = s * 0.24, -0.38
        if who.emotion == "sleepy":
            parts += [("ink", p) for p in path(arc(x, y, 0.12, 0.07, 0, 180, steps=5), 0.06)]
        elif who.eyes == "dot":
            parts.append(("ink", ellipse(x, y, 0.08 * wide, count=18)))
        else:
            rx, ry = (0.11, 0.17) if who.eyes == "tall" else (0.14, 0.14)
            parts.append(("white", ellipse(x, y, rx * wide, ry * wide, count=24)))
            parts.append(("ink", ellipse(x + 0.02 * s, y + 0.02, rx * 0.58, ry * 0.62, count=18)))
            if who.eyes == "shiny":
                parts.append(("white", ellipse(x - 0.02, y - 0.04, 0.04, count=10)))
        if who.emotion == "angry":
            parts.append(("ink", bar(s * 0.4, -0.66, s * 0.12, -0.54, 0.08)))
        elif who.emotion == "sad":
            parts.append(("ink", bar(s * 0.4, -0.54, s * 0.14, -0.64, 0.06)))
    if who.species == "penguin":
        parts.append(("flame", polygon(-0.1, -0.28, 0.1, -0.28, 0, -0.14)))
    return parts + _mouth(who.emotion)


def _mouth(emotion: str) -> list[Local]:
    if emotion == "happy":
        return [("ink", arc(0, -0.16, 0.26, 0.22, 0, 180)), ("blush", arc(0, -0.02, 0.13, 0.06, 0, 360, steps=16))]
    if emotion == "sad":
        return [("ink", p) for p in path(arc(0, 0.08, 0.22, 0.16, 200, 340, steps=8), 0.07)]
    if emotion == "surprised":
        return [("ink", ellipse(0, 0.0, 0.12, 0.14))]
    if emotion == "angry":
        return [("white", rectangle(-0.22, -0.1, 0.22, 0.04)), ("ink", bar(-0.22, -0.03, 0.22, -0.03, 0.05))]
    return [("ink", ellipse(0, 0.0, 0.07, 0.05))]


def worn(item: Wear) -> list[Local]:
    """A piece of clothing where it sits on a creature."""
    return [(f"wear:{_hex(item)}:{shade}", points) for shade, points in _wear(item.kind)]


def alone(kind: str) -> list[Local]:
    """A piece of clothing as a thing of its own, in its own units."""
    x, y, scale = _ALONE[kind]
    roles = {"main": "body", "trim": "accent", "dark": "dark"}
    return [(roles[shade], (points - (x, y)) * scale) for shade, points in _wear(kind)]


_ALONE = {
    "top hat": (0.0, -0.98, 1.5), "party hat": (0.0, -1.0, 1.7), "beanie": (0.0, -0.85, 1.5), "crown": (0.0, -0.9, 1.8),
    "cap": (0.12, -0.82, 1.4), "scarf": (0.05, 0.32, 1.7), "bow tie": (0.0, 0.22, 2.6),
}  # fmt: skip


@cache
def _wear(kind: str) -> tuple[tuple[str, Points], ...]:
    if kind == "top hat":
        return (("main", polygon(-0.34, -1.3, 0.34, -1.3, 0.3, -0.74, -0.3, -0.74)),
            ("trim", rectangle(-0.32, -0.9, 0.32, -0.78)),
                ("main", ellipse(0, -0.72, 0.58, 0.1)))  # fmt: skip
    if kind == "party hat":
        return (("main", polygon(0, -1.42, 0.36, -0.68, -0.36, -0.68)),
            ("trim", polygon(-0.14, -1.13, 0.14, -1.13, 0.22, -0.96, -0.22, -0.96)),
                ("trim", ellipse(0, -1.42, 0.1)))  # fmt: skip
    if kind == "beanie":
        return (
            ("trim", ellipse(0, -1.2, 0.14)),
            ("main", arc(0, -0.62, 0.5, 0.54, 180, 360)),
            ("dark", rectangle(-0.54, -0.74, 0.54, -0.56)),
        )
    if kind == "crown":
        return (("main", polygon(-0.42, -0.68, -0.46, -1.12, -0.22, -0.9, 0, -1.2, 0.22, -0.9, 0.46, -1.12, 0.42,
            -0.68)),
                ("trim", ellipse(0, -0.8, 0.08)))  # fmt: skip
    if kind == "cap":
        return (("main", arc(0, -0.66, 0.5, 0.42, 180, 360)), ("dark",
            polygon(0.05, -0.72, 0.9, -0.68, 0.86, -0.58, 0.05, -0.58)),
                ("trim", ellipse(0, -1.06, 0.07)))  # fmt: skip
    if kind == "scarf":
        return (("main", polygon(0.16, 0.2, 0.4, 0.16, 0.46, 0.74, 0.22, 0.76)),
            ("trim", polygon(0.22, 0.64, 0.45, 0.62, 0.46, 0.74, 0.22, 0.76)),
                ("main", bar(-0.36, 0.16, 0.36, 0.16, 0.2)))  # fmt: skip
    return (
        ("main", polygon(0, 0.22, -0.34, 0.06, -0.34, 0.38)),
        ("main", polygon(0, 0.22, 0.34, 0.06, 0.34, 0.38)),
        ("trim", ellipse(0, 0.22, 0.09)),
    )


def _hex(item: Wear) -> str:
    return "{:02x}{:02x}{:02x}".format(*item.colour.rgb)
