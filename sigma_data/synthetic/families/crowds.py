"""Scenes to be segmented and asked about: several things, of which one may stand in front of another."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from sigma_data.synthetic import casting, shapes
from sigma_data.synthetic.instances import visible_pixels
from sigma_data.synthetic.rng import KeyedRng
from sigma_data.synthetic.scene import Scene, Texture, Thing

MOST = 6
"""Things in a scene."""

_LOOK = 64
"""Side in pixels at which is judged whether one thing covers another; the scene itself has no size."""
_HIDDEN = 20
"""Pixels of the thing behind that must be hidden, so that the image shows which is in front."""
_SHOWN = 0.5
"""Share of the thing behind that must be seen."""


@dataclass(frozen=True)
class Crowd:
    """A scene; `front` covers a part of `behind`, both indices into its things, None where nothing is covered."""

    scene: Scene
    front: int | None = None
    behind: int | None = None


def crowd(rng: KeyedRng) -> Crowd:
    """One to five things that differ in noun and colour, and in half of the scenes one more in front of one of them."""
    count = 1 + rng.below(MOST - 1)
    overlap = rng.chance(0.5)
    things = casting.cast(rng, count + overlap, textured=0.25)
    placed = casting.spread(rng, things[:count], low=0.12, high=0.19)
    place = casting.place(rng)
    if overlap and placed:
        found = _in_front(rng, placed, things[count])
        if found is not None:
            one, behind = found
            return Crowd(Scene(place, (*placed, one)), len(placed), behind)
    return Crowd(Scene(place, placed))


def odd_one(rng: KeyedRng) -> Crowd:
    """Three to five things alike, and one among them that differs in colour, in shape or in both; its index is `front`.

    Nothing covers anything.
    """
    alike = replace(casting.thing(rng, textured=0.0), mirror=False)
    other = replace(
        casting.thing(
            rng,
            among=[name for name in shapes.OBJECTS if name != alike.shape],
            avoid=(alike.colour.name,),
            textured=0.0,
        ),
        mirror=False,
    )
    differs = rng.pick(("colour", "shape", "both"))
    if differs == "colour":
        other = replace(other, shape=alike.shape)
    elif differs == "shape":
        other = replace(other, colour=alike.colour)
    things = [alike] * (3 + rng.below(3))
    index = rng.below(len(things) + 1)
    things.insert(index, other)
    placed = casting.spread(rng, things, low=0.13, high=0.16)
    if len(placed) < len(things):  # there was no room: the odd one is found again by what it is
        index = next((number for number, one in enumerate(placed) if _same(one, other)), -1)
    if index < 0 or len(placed) < 3:
        return odd_one(rng)
    return Crowd(Scene(casting.place(rng), placed), front=index)


def _same(one: Thing, other: Thing) -> bool:
    return (one.shape, one.colour) == (other.shape, other.colour)


def _in_front(rng: KeyedRng, placed: Sequence[Thing], one: Thing) -> tuple[Thing, int] | None:
    """The thing where it covers a part of a placed one and touches no other, with that one's index; None without room.

    All randomness is drawn before anything is tried, so that what was found does not change what is drawn next.
    """
    tries = [(rng.below(len(placed)), rng.between(0, 360), rng.between(0.7, 1.05), rng.between(0.85, 1.1))
             for _ in range(12)]  # fmt: skip
    for behind, angle, away, size in tries:
        host = placed[behind]
        radius = round(host.size * size, 4)
        distance = round(host.size * away, 4)
        x = round(host.x + distance * round(math.cos(math.radians(angle)), 6), 4)
        y = round(host.y + distance * round(math.sin(math.radians(angle)), 6), 4)
        seat = replace(one, size=radius, x=x, y=y)
        side = casting.reach(seat)
        if not (side < x < 1 - side and radius * 1.46 < y < 1 - side):
            continue
        if any(casting.apart(seat, other) <= 0 for number, other in enumerate(placed) if number != behind):
            continue
        [whole] = visible_pixels([host], _LOOK)
        seen, _ = visible_pixels([host, seat], _LOOK)
        if whole - seen >= _HIDDEN and seen >= _SHOWN * whole:
            return seat, behind
    return None


def plain(thing: Thing) -> bool:
    """Whether a thing is of one colour."""
    return thing.texture == Texture()
