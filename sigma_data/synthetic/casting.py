"""Random objects, creatures, backgrounds, lights and reference scenes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from sigma_data.synthetic import backdrops, creatures, light, shapes, styles, textures
from sigma_data.synthetic.colours import INK, RGB, WHITE, Colour, colour, mix, shift
from sigma_data.synthetic.glyphs import ICONS, WORDS
from sigma_data.synthetic.rng import KeyedRng
from sigma_data.synthetic.scene import (
    Backdrop,
    Character,
    Emblem,
    Environment,
    Lighting,
    Scene,
    Style,
    Texture,
    Thing,
    Wear,
)

SLOTS: dict[str, tuple[float, float]] = {
    "in the upper left": (0.25, 0.28), "at the top": (0.5, 0.28), "in the upper right": (0.75, 0.28),
    "on the left": (0.25, 0.52), "in the centre": (0.5, 0.52), "on the right": (0.75, 0.52),
    "in the lower left": (0.25, 0.75), "at the bottom": (0.5, 0.75), "in the lower right": (0.75, 0.75),
}  # fmt: skip
"""Places that instructions name, and exactly where they are."""

LOW_SLOTS = tuple(SLOTS)[3:6]
"""Places with headroom for a creature and its hat."""


def texture(rng: KeyedRng, base: Colour, *, kinds: Sequence[str] = textures.KINDS) -> Texture:
    """A random texture whose second colour differs from the base."""
    kind = rng.pick(kinds)
    return Texture(kind, colour(rng, avoid=(base.name,)), rng.between(0.26, 0.42), rng.pick((0, 30, 45, 60, 90)))


def thing(
    rng: KeyedRng, *, among: Sequence[str] = shapes.OBJECTS, avoid: Sequence[str] = (), textured: float = 0.35
) -> Thing:
    """A random thing whose colour name is not in `avoid`."""
    main = colour(rng, avoid=avoid)
    accent = colour(rng, avoid=(main.name,))
    pattern = texture(rng, main) if rng.chance(textured) else Texture()
    return Thing(rng.pick(among), main, accent, pattern, mirror=rng.chance(0.3))


def creature(rng: KeyedRng, *, avoid: Sequence[str] = ()) -> Thing:
    """A random creature."""
    main = colour(rng, avoid=("black", *avoid))
    who = Character(
        species=rng.pick(creatures.SPECIES),
        eyes=rng.pick(creatures.EYES),
        marks=rng.pick(creatures.MARKS),
        emotion=rng.pick(creatures.EMOTIONS),
        pose=rng.pick(tuple(creatures.POSES)),
    )
    return Thing("creature", main, colour(rng, avoid=(main.name,)), character=who)


def wear(rng: KeyedRng) -> Wear:
    """Something to wear."""
    return Wear(rng.pick(creatures.WEAR), colour(rng))


def emblem(rng: KeyedRng, base: Colour) -> Emblem:
    """An icon in a colour that shows on the base."""
    return Emblem(rng.pick(tuple(ICONS)), contrast(rng, base))


def sign(rng: KeyedRng, word: str) -> Thing:
    """A board with a word on it."""
    main = colour(rng, avoid=("grey", "brown"))
    return Thing("sign", main, contrast(rng, main), word=word)


def contrast(rng: KeyedRng, base: Colour) -> Colour:
    """A colour much darker or brighter than the base."""
    dark = sum(base.rgb) < 430
    return Colour("cream", shift(rng, (250, 244, 226), 5)) if dark else Colour("black", shift(rng, (46, 44, 60), 9))


def word(rng: KeyedRng) -> str:
    """A short word."""
    return rng.pick(WORDS)


def lighting(rng: KeyedRng, *, kinds: Sequence[str] = tuple(light.TINTS)) -> Lighting:
    """A light other than day."""
    kind = rng.pick(kinds)
    x = rng.pick((0.0, 1.0)) if kind == "side" else rng.pick((0.3, 0.5, 0.7))
    return Lighting(kind, shift(rng, light.TINTS[kind], 8), x, rng.pick((0.35, 0.5)))


_WEATHER_COLOURS: dict[str, tuple[RGB, ...]] = {
    "rain": ((206, 222, 246), (180, 200, 230)), "snow": ((255, 255, 255), (236, 242, 255)),
    "fog": ((232, 236, 240), (214, 216, 226)),
    "petals": ((255, 170, 196), (255, 214, 226), (240, 120, 160)),
    "leaves": ((214, 110, 40), (190, 60, 40), (226, 170, 50)),
    "sparks": ((255, 236, 130), (255, 190, 90), (180, 255, 220)),
}  # fmt: skip


def environment(rng: KeyedRng) -> Environment:
    """Weather other than clear."""
    kind = rng.pick(light.WEATHER)
    return Environment(kind, shift(rng, rng.pick(_WEATHER_COLOURS[kind]), 8), rng.below(1 << 20))


def style(rng: KeyedRng) -> Style:
    """A style other than flat."""
    return styles.style(rng, rng.pick(tuple(styles.NAMES)))


def place(rng: KeyedRng, *, kinds: Sequence[str] = backdrops.SCENIC, avoid: Sequence[str] = ()) -> Backdrop:
    """A random scenic backdrop."""
    return backdrops.backdrop(rng, rng.pick([kind for kind in kinds if kind not in avoid]))


def ground(rng: KeyedRng, base: Colour | None = None) -> Backdrop:
    """A plain wall or a photo studio that does not swallow a thing of the base colour."""
    drop = backdrops.backdrop(rng, rng.pick(("plain", "studio", "studio")))
    if base is not None and max(abs(a - b) for a, b in zip(drop.colours[1], base.rgb, strict=True)) < 60:
        tone = mix(drop.colours[1], INK if sum(base.rgb) > 400 else WHITE, 55)
        drop = replace(drop, colours=(tone, mix(tone, WHITE, 20), drop.colours[2]))
    return drop


def portrait(rng: KeyedRng, subject: Thing, *, turned: bool = False) -> Scene:
    """One thing in front of a plain ground, as a reference shows it."""
    size = 0.31 if subject.character else 0.37
    y = 0.56 if subject.character else 0.5
    rotation = rng.pick((0, 0, 15, -15, 30, -30)) if turned else 0
    x, y = round(0.5 + rng.between(-0.07, 0.07), 4), round(y + rng.between(-0.04, 0.05), 4)
    shown = replace(subject, x=x, y=y, size=round(size * rng.between(0.86, 1.0), 4), rotation=rotation)
    return Scene(ground(rng, subject.colour), (shown,))


def swatch(rng: KeyedRng, base: Colour, cloth: Texture) -> Scene:
    """An image full of a texture."""
    return Scene(Backdrop("wallpaper", (base.rgb,), texture=replace(cloth, scale=round(cloth.scale * 0.36, 4))))


def reach(item: Thing) -> float:
    """The radius in which nothing else should stand; a creature's leaves room for a hat."""
    return item.size * (1.25 if item.character else 1.08)


def apart(one: Thing, two: Thing) -> float:
    """The free space between two things, negative where they may overlap."""
    distance = math.sqrt((one.x - two.x) ** 2 + (one.y - two.y) ** 2)
    return round(distance - reach(one) - reach(two), 4)


def spread(rng: KeyedRng, things: Sequence[Thing], *, low: float = 0.13, high: float = 0.2) -> tuple[Thing, ...]:
    """The things at random places where no two touch."""
    placed: list[Thing] = []
    for item in things:
        size = rng.between(low, high)
        for attempt in range(80):
            # Smaller after every ten failures, so that a place is found in the end.
            radius = round(size * 0.92 ** (attempt // 10), 4)
            seat = replace(item, size=radius)
            side, top = reach(seat), radius * 1.46 if item.character else radius * 1.08
            seat = replace(seat, x=rng.between(side, 1 - side), y=rng.between(top, 1 - side))
            if all(apart(seat, other) > 0 for other in placed):
                placed.append(seat)
                break
    return tuple(placed)


def cast(rng: KeyedRng, count: int, *, creatures_too: bool = True, textured: float = 0.35) -> list[Thing]:
    """Things that differ in shape and in colour."""
    chosen: list[Thing] = []
    for _ in range(count):
        colours = [other.colour.name for other in chosen]
        if creatures_too and rng.chance(0.25) and not any(other.character for other in chosen):
            chosen.append(creature(rng, avoid=colours))
        else:
            among = [name for name in shapes.OBJECTS if name not in [other.shape for other in chosen]]
            chosen.append(thing(rng, among=among, avoid=colours, textured=textured))
    return chosen


def busy(rng: KeyedRng, *, low: int = 1, high: int = 3) -> Scene:
    """A place with a few things in it."""
    count = low + rng.below(high - low + 1)
    return Scene(place(rng), spread(rng, cast(rng, count)))


@dataclass(frozen=True)
class Reference:
    """A reference image: its role in the instruction of a draft, and its scene, or a map of it."""

    role: str
    scene: Scene
    map: str = ""


@dataclass(frozen=True)
class Draft:
    """A sample before rendering.

    `instruction` names references by role in square brackets; `sources` says from which role each
    attribute of the target comes; `change` is the edit, where the family has one. `target_map` "instances" makes the
    target the colour map of its scene.
    """

    kind: str
    references: tuple[Reference, ...]
    target: Scene
    instruction: str
    sources: dict[str, str]
    change: dict[str, object] | None = None
    target_map: str = ""
