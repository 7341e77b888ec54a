"""What a world sample's answer could have been: the same scene with one attribute taken from the wrong place.

A scene is redrawn from its sample's seed and index; every alternative differs from the answer in one attribute,
so whichever an output is nearest to says how it has that attribute.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

from sigma_data.sample import Family
from sigma_data.synthetic.casting import Draft
from sigma_data.synthetic.families import RECIPES
from sigma_data.synthetic.rng import KeyedRng
from sigma_data.synthetic.scene import Scene, Thing
from sigma_data.synthetic.truth import describe

MOST = 3
"""Alternatives tried for an attribute; more would only cost time."""

SCENE_ATTRIBUTES = {
    "background": "backdrop", "style": "style", "lighting": "lighting", "weather": "environment", "frame": "frame",
}  # fmt: skip
THING_ATTRIBUTES = ("presence", "shape", "colour", "texture", "expression", "clothing", "icon", "text", "place", "turn")
ATTRIBUTES = (*SCENE_ATTRIBUTES, *THING_ATTRIBUTES, "extras")
"""All that alternatives are made of; `extras` are objects of a reference that the answer does not have."""

_FAR = 0.08
"""Two places of an object differ where they are farther apart than this, in sides of the image."""


@dataclass(frozen=True)
class Alternative:
    """A wrong answer. `thing` is the object whose attribute is wrong, -1 for the image as a whole.

    `leak`: whether the wrong value stands in a reference.
    """

    attribute: str
    thing: int
    scene: Scene
    leak: bool = True


def redraw(family: str, seed: int, index: int) -> Draft:
    """The draft that `sigma_data.synthetic.draw_sample` made the sample from."""
    kind = Family(family)
    return RECIPES[kind](KeyedRng("world", seed, kind.value, index))


def agrees(draft: Draft, truth: Mapping[str, Any]) -> bool:
    """Whether a sample's truth is that of the draft: another version of the world may have drawn it."""
    return bool(describe(draft.target) == truth.get("scene"))


def before(draft: Draft) -> str | None:
    """The role of the reference that the answer is a change of; None where a sample has none."""
    roles = {reference.role for reference in draft.references}
    if draft.change is None or "kind" not in draft.change:
        return None
    return "before" if "before" in roles else "scene"


def alternatives(draft: Draft) -> Iterator[Alternative]:
    """Wrong answers made of what the references show, and of leaving an object out; some may look the same."""
    target = draft.target
    scenes = [reference.scene for reference in draft.references if not reference.map]
    for attribute, field in SCENE_ATTRIBUTES.items():
        right = getattr(target, field)
        values = dict.fromkeys(getattr(scene, field) for scene in scenes)
        for value in islice((value for value in values if value != right), MOST):
            yield Alternative(attribute, -1, replace(target, **{field: value}))
    things = list(dict.fromkeys(thing for scene in scenes for thing in scene.things))
    for index, thing in enumerate(target.things):
        rest = (*target.things[:index], *target.things[index + 1 :])
        yield Alternative("presence", index, replace(target, things=rest), leak=False)
        for attribute, wrong in _of_thing(thing, things):
            changed = (*target.things[:index], wrong, *target.things[index + 1 :])
            yield Alternative(attribute, index, replace(target, things=changed))
    shown = {_identity(thing) for thing in target.things}
    for thing in islice((thing for thing in things if _identity(thing) not in shown), MOST):
        yield Alternative("extras", -1, replace(target, things=(*target.things, thing)))


def _of_thing(right: Thing, others: list[Thing]) -> Iterator[tuple[str, Thing]]:
    """The thing with one attribute of another, at most MOST an attribute and every value once."""
    seen: dict[str, set[Hashable]] = {}
    for other in others:
        for attribute, value, wrong in _wrong(right, other):
            known = seen.setdefault(attribute, set())
            if value not in known and len(known) < MOST:
                known.add(value)
                yield attribute, wrong


def _wrong(right: Thing, other: Thing) -> Iterator[tuple[str, Hashable, Thing]]:
    """(attribute, wrong value, the thing with it) for every attribute in which the other differs."""
    if _kind(other) != _kind(right):
        wrong = replace(other, x=right.x, y=right.y, size=right.size, colour=right.colour, texture=right.texture)
        yield "shape", _kind(other), wrong
    if other.colour.name != right.colour.name:
        yield "colour", other.colour.name, replace(right, colour=other.colour)
    if other.texture != right.texture:
        yield "texture", other.texture, replace(right, texture=other.texture)
    if right.character and other.character:
        for field in ("emotion", "pose"):
            value = getattr(other.character, field)
            if value != getattr(right.character, field):
                wrong = replace(right, character=replace(right.character, **{field: value}))
                yield "expression", (field, value), wrong
        if other.wear != right.wear:
            yield "clothing", other.wear, replace(right, wear=other.wear)
    if right.emblem != other.emblem and not (right.character or other.character):
        yield "icon", other.emblem, replace(right, emblem=other.emblem)
    if right.word and other.word and right.word != other.word:
        yield "text", other.word, replace(right, word=other.word)
    far = (right.x - other.x) ** 2 + (right.y - other.y) ** 2 > _FAR**2
    if far or not 0.8 < other.size / right.size < 1.25:
        wrong = replace(right, x=other.x, y=other.y, size=other.size)
        yield "place", (other.x, other.y, other.size), wrong
    if (other.rotation, other.mirror) != (right.rotation, right.mirror):
        turn = (other.rotation, other.mirror)
        yield "turn", turn, replace(right, rotation=other.rotation, mirror=other.mirror)


def _kind(thing: Thing) -> tuple[str, str | None]:
    return thing.shape, thing.character.species if thing.character else None


def _identity(thing: Thing) -> Hashable:
    return _kind(thing), thing.colour.name, thing.texture.kind, thing.word
