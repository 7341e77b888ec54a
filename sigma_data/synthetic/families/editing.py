"""Editing: one picture, one change told in words."""

from __future__ import annotations

from dataclasses import replace

from sigma_data.synthetic import casting
from sigma_data.synthetic.casting import SLOTS, Draft, Picture
from sigma_data.synthetic.dice import Dice
from sigma_data.synthetic.families.changes import KINDS, subject
from sigma_data.synthetic.phrases import full
from sigma_data.synthetic.scene import Scene, Thing
from sigma_data.synthetic.shapes import OBJECTS

_OWN = ("remove", "add", "move", "swap", "remove", "add", "move")


def draft(dice: Dice) -> Draft:
    """One reference and the changed picture."""
    kind = dice.pick((*_OWN, *KINDS))
    if kind in KINDS:
        return _changed(dice, kind)
    scene = _scene(dice, casting.cast(dice, 2 + dice.below(2)))
    return {"remove": _remove, "add": _add, "move": _move, "swap": _swap}[kind](dice, scene)


def _scene(dice: Dice, things: list[Thing]) -> Scene:
    return Scene(casting.place(dice), casting.spread(dice, things, low=0.15, high=0.21))


def _changed(dice: Dice, kind: str) -> Draft:
    rule = KINDS[kind]
    head = subject(dice, rule)
    others = [item for item in casting.cast(dice, dice.below(3), creatures_too=False) if item.shape != head.shape]
    others = [item for item in others if item.colour.name != head.colour.name]
    scene = _scene(dice, [head, *others])
    change = rule.make(dice, (scene.things[0],))
    if kind == "background" and change.apply(scene).backdrop.kind == scene.backdrop.kind:
        scene = replace(scene, backdrop=casting.place(dice, avoid=(scene.backdrop.kind,)))
    picture = dice.pick(("the picture [scene]", "[scene]", "the photo [scene]"))
    if change.token in ("style", "lighting", "environment", "background") and dice.chance(0.7):
        picture = f"<{change.token}>the scene in [scene]"
    text = change.order.format(thing=_select(dice, scene.things[0]), picture=picture)
    return _finish(
        kind, scene, change.apply(scene), text, {"kind": kind, "value": change.value, "object": 0}, change.token
    )


def _finish(
    kind: str, scene: Scene, target: Scene, text: str, change: dict[str, object], token: str = "select"
) -> Draft:
    sources = {token: "scene"} if f"<{token}>" in text else {"select": "scene"} if "<select>" in text else {}
    return Draft(kind, (Picture("scene", scene),), target, text, sources, change)


def _select(dice: Dice, item: Thing) -> str:
    name = dice.pick((item.name, f"{item.colour.name} {item.noun}", item.noun))
    token = dice.pick(("<select> ", "<select> ", "<id>" if item.character else "<subject>", ""))
    return f"{token}the {name}{dice.pick((' in ', ' in ', ' of ', ' '))}[scene]"


def _remove(dice: Dice, scene: Scene) -> Draft:
    index = dice.below(len(scene.things))
    item = scene.things[index]
    rest = (*scene.things[:index], *scene.things[index + 1 :])
    text = f"{dice.pick(('remove', 'erase', 'delete'))} {_select(dice, item)}"
    return _finish(
        "remove", scene, replace(scene, things=rest), text, {"kind": "remove", "value": item.name, "object": index}
    )


def _add(dice: Dice, scene: Scene) -> Draft:
    """A new thing goes where nothing is: to the named place that is farthest from all others."""
    item = casting.thing(dice, avoid=[other.colour.name for other in scene.things], textured=0.2)
    seats = {slot: replace(item, x=x, y=y, size=0.1) for slot, (x, y) in SLOTS.items()}
    free = {slot: min(casting.apart(seat, other) for other in scene.things) for slot, seat in seats.items()}
    slot = max(free, key=free.__getitem__)
    item = replace(seats[slot], size=round(min(0.15, 0.1 + max(free[slot], -0.03) * 0.9), 4))
    verb = dice.pick(("add", "place", "put", "insert"))
    text = f"{verb} {full(item)} {slot} of {dice.pick(('', 'the picture ', '<layout>the scene in '))}[scene]"
    target = replace(scene, things=(*scene.things, item))
    return _finish(
        "add", scene, target, text, {"kind": "add", "value": item.name, "object": len(scene.things)}, "layout"
    )


def _move(dice: Dice, scene: Scene) -> Draft:
    index = dice.below(len(scene.things))
    item = scene.things[index]
    others = [other for other in scene.things if other is not item]
    free = {
        name: (x, y)
        for name, (x, y) in SLOTS.items()
        if (x - item.x) ** 2 + (y - item.y) ** 2 > 0.04
        and all(casting.apart(replace(item, x=x, y=y), other) > 0 for other in others)
    }
    if not free:
        return _remove(dice, scene)
    slot = dice.pick(tuple(free))
    moved = replace(item, x=free[slot][0], y=free[slot][1])
    things = (*scene.things[:index], moved, *scene.things[index + 1 :])
    text = f"move {_select(dice, item)} so that it is {slot}"
    return _finish("move", scene, replace(scene, things=things), text, {"kind": "move", "value": slot, "object": index})


def _swap(dice: Dice, scene: Scene) -> Draft:
    index = dice.below(len(scene.things))
    item = scene.things[index]
    among = [name for name in OBJECTS if name not in [other.shape for other in scene.things]]
    new = casting.thing(dice, among=among, avoid=[other.colour.name for other in scene.things], textured=0.2)
    new = replace(new, x=item.x, y=item.y, size=item.size)
    things = (*scene.things[:index], new, *scene.things[index + 1 :])
    text = f"{dice.pick(('replace', 'swap'))} {_select(dice, item)} {dice.pick(('with', 'for'))} {full(new)}"
    return _finish(
        "swap", scene, replace(scene, things=things), text, {"kind": "swap", "value": new.name, "object": index}
    )
