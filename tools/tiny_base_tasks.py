"""Simple tasks that the tiny base learns beside the world's own: one difficulty each, in the same words and drawings.

The world's instructions ask for many things at once. Moving an object to a named place, colouring an outline by words
or taking an object out are learned sooner where nothing else is asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from sigma_data.synthetic import casting
from sigma_data.synthetic.backdrops import backdrop
from sigma_data.synthetic.casting import LOW_SLOTS, SLOTS, Draft, Reference
from sigma_data.synthetic.colours import WHITE, colour
from sigma_data.synthetic.phrases import full, listed, noun, scenery
from sigma_data.synthetic.rng import KeyedRng
from sigma_data.synthetic.scene import Backdrop, Scene, Thing


def draft(rng: KeyedRng, index: int) -> Draft:
    """A task, its kind by turns, drafted as the world's families are; without attribute tokens."""
    return _TASKS[index % len(_TASKS)](rng)


def _thing(rng: KeyedRng) -> Thing:
    return casting.creature(rng) if rng.chance(0.3) else casting.thing(rng)


def _seated(rng: KeyedRng, shown: Thing) -> tuple[Thing, str]:
    """The thing of a portrait at a named place in the size that the world's compositions have, and the name."""
    slot = rng.pick(LOW_SLOTS if shown.character else tuple(SLOTS))
    x, y = SLOTS[slot]
    if shown.character:
        return replace(shown, x=x, y=0.62, size=0.25), slot
    return replace(shown, x=x, y=y, size=rng.pick((0.19, 0.2))), slot


def _move(rng: KeyedRng) -> Draft:
    item = _thing(rng)
    shown = casting.portrait(rng, item)
    moved, slot = _seated(rng, shown.things[0])
    text = f"{rng.pick(('put', 'place', 'show', 'position'))} the {noun(rng, item)} of [subject] {slot}"
    return _drafted("move", {"subject": shown}, replace(shown, things=(moved,)), text)


def _compose(rng: KeyedRng) -> Draft:
    item, drop = _thing(rng), casting.place(rng)
    shown = casting.portrait(rng, item)
    moved, slot = _seated(rng, shown.things[0])
    verb, joint = rng.pick(("put", "place", "show")), rng.pick(("in the", "in front of the", "against the"))
    text = f"{verb} the {noun(rng, item)} of [subject] {slot} {joint} {scenery(rng, drop)} of [background]"
    return _drafted("compose", {"subject": shown, "background": Scene(drop)}, Scene(drop, (moved,)), text)


def _describe(rng: KeyedRng) -> Draft:
    wall = colour(rng)
    item = _thing(rng)
    placed, slot = _seated(rng, item)
    verb = rng.pick(("draw", "show", "create a picture of"))
    text = f"{verb} {full(item)} {slot} in front of a plain {wall.name} wall"
    plain = replace(backdrop(rng, "plain"), colours=(wall.rgb,))
    return _drafted("describe", {}, Scene(plain, (placed,)), text)


def _fill(rng: KeyedRng) -> Draft:
    things = casting.spread(rng, casting.cast(rng, 1 + rng.below(2), textured=0.1), low=0.18, high=0.26)
    drop = casting.place(rng) if rng.chance(0.5) else backdrop(rng, "plain")
    where = scenery(rng, drop)
    if drop.kind == "plain":
        wall = colour(rng)
        drop, where = replace(drop, colours=(wall.rgb,)), f"a plain {wall.name} wall"
    words = listed([full(item) for item in things])
    text = f"fill in the {rng.pick(('outline', 'edge map'))} of [map]: {words} in front of {where}"
    scene = Scene(drop, things)
    found = _drafted("fill", {}, scene, text)
    return replace(found, references=(Reference("map", scene, "outline"),))


def _isolate(rng: KeyedRng) -> Draft:
    things = casting.spread(rng, casting.cast(rng, 1 + rng.below(2)), low=0.15, high=0.22)
    chosen = rng.pick(things)
    text = f"{rng.pick(('isolate', 'extract', 'cut out', 'take out', 'pick out'))} the {chosen.name} of [scene], "
    text += rng.pick(("centred and large, on white", "centre it, enlarged, on a white background"))
    alone = Scene(Backdrop("plain", (WHITE,)), (replace(chosen, x=0.5, y=0.54, size=0.34),))
    return _drafted("isolate", {"scene": Scene(casting.place(rng), things)}, alone, text)


def _empty(rng: KeyedRng) -> Draft:
    scene = casting.busy(rng)
    text = rng.pick(("remove every object from [scene]", "show [scene] without its objects"))
    return _drafted("empty", {"scene": scene}, replace(scene, things=()), text)


def _drafted(kind: str, references: dict[str, Scene], target: Scene, text: str) -> Draft:
    shown = tuple(Reference(role, scene) for role, scene in references.items())
    return Draft(kind, shown, target, text, {})


_TASKS: tuple[Callable[[KeyedRng], Draft], ...] = (
    _move, _compose, _fill, _isolate, _move, _compose, _fill, _isolate, _describe, _empty,
)  # fmt: skip
