"""Editing: one image, one change described in words."""

from __future__ import annotations

from dataclasses import replace

from sigma_data.synthetic import casting
from sigma_data.synthetic.casting import SLOTS, Draft, Reference
from sigma_data.synthetic.families.changes import KINDS, subject
from sigma_data.synthetic.phrases import full
from sigma_data.synthetic.rng import KeyedRng
from sigma_data.synthetic.scene import Scene, Thing
from sigma_data.synthetic.shapes import OBJECTS

_OWN = ("remove", "add", "move", "swap", "remove", "add", "move")


def draft(rng: KeyedRng) -> Draft:
    """One reference and the changed image."""
    kind = rng.pick((*_OWN, *KINDS))
    if kind in KINDS:
        return _changed(rng, kind)
    scene = _scene(rng, casting.cast(rng, 2 + rng.below(2)))
    return {"remove": _remove, "add": _add, "move": _move, "swap": _swap}[kind](rng, scene)


def _scene(rng: KeyedRng, things: list[Thing]) -> Scene:
    return Scene(casting.place(rng), casting.spread(rng, things, low=0.15, high=0.21))


def _changed(rng: KeyedRng, kind: str) -> Draft:
    rule = KINDS[kind]
    head = subject(rng, rule)
    others = [item for item in casting.cast(rng, rng.below(3), creatures_too=False) if item.shape != head.shape]
    others = [item for item in others if item.colour.name != head.colour.name]
    scene = _scene(rng, [head, *others])
    change = rule.make(rng, (scene.things[0],))
    if kind == "background" and change.apply(scene).backdrop.kind == scene.backdrop.kind:
        scene = replace(scene, backdrop=casting.place(rng, avoid=(scene.backdrop.kind,)))
    image = rng.pick(("the picture [scene]", "[scene]", "the photo [scene]"))
    if change.token in ("style", "lighting", "environment", "background") and rng.chance(0.7):
        image = f"<{change.token}>the scene in [scene]"
    text = change.order.format(thing=_select(rng, scene.things[0]), image=image)
    return _finish(
        kind, scene, change.apply(scene), text, {"kind": kind, "value": change.value, "object": 0}, change.token
    )


def _finish(
    kind: str, scene: Scene, target: Scene, text: str, change: dict[str, object], token: str = "select"
) -> Draft:
    sources = {token: "scene"} if f"<{token}>" in text else {"select": "scene"} if "<select>" in text else {}
    return Draft(kind, (Reference("scene", scene),), target, text, sources, change)


def _select(rng: KeyedRng, item: Thing) -> str:
    name = rng.pick((item.name, f"{item.colour.name} {item.noun}", item.noun))
    token = rng.pick(("<select> ", "<select> ", "<id>" if item.character else "<subject>", ""))
    return f"{token}the {name}{rng.pick((' in ', ' in ', ' of ', ' '))}[scene]"


def _remove(rng: KeyedRng, scene: Scene) -> Draft:
    index = rng.below(len(scene.things))
    item = scene.things[index]
    rest = (*scene.things[:index], *scene.things[index + 1 :])
    text = f"{rng.pick(('remove', 'erase', 'delete'))} {_select(rng, item)}"
    return _finish(
        "remove", scene, replace(scene, things=rest), text, {"kind": "remove", "value": item.name, "object": index}
    )


def _add(rng: KeyedRng, scene: Scene) -> Draft:
    """A new thing goes where nothing is: to the named place that is farthest from all others."""
    item = casting.thing(rng, avoid=[other.colour.name for other in scene.things], textured=0.2)
    seats = {slot: replace(item, x=x, y=y, size=0.1) for slot, (x, y) in SLOTS.items()}
    free = {slot: min(casting.apart(seat, other) for other in scene.things) for slot, seat in seats.items()}
    slot = max(free, key=free.__getitem__)
    item = replace(seats[slot], size=round(min(0.15, 0.1 + max(free[slot], -0.03) * 0.9), 4))
    verb = rng.pick(("add", "place", "put", "insert"))
    text = f"{verb} {full(item)} {slot} of {rng.pick(('', 'the picture ', '<layout>the scene in '))}[scene]"
    target = replace(scene, things=(*scene.things, item))
    return _finish(
        "add", scene, target, text, {"kind": "add", "value": item.name, "object": len(scene.things)}, "layout"
    )


def _move(rng: KeyedRng, scene: Scene) -> Draft:
    index = rng.below(len(scene.things))
    item = scene.things[index]
    others = [other for other in scene.things if other is not item]
    free = {
        name: (x, y)
        for name, (x, y) in SLOTS.items()
        if (x - item.x) ** 2 + (y - item.y) ** 2 > 0.04
        and all(casting.apart(replace(item, x=x, y=y), other) > 0 for other in others)
    }
    if not free:
        return _remove(rng, scene)
    slot = rng.pick(tuple(free))
    moved = replace(item, x=free[slot][0], y=free[slot][1])
    things = (*scene.things[:index], moved, *scene.things[index + 1 :])
    text = f"move {_select(rng, item)} so that it is {slot}"
    return _finish("move", scene, replace(scene, things=things), text, {"kind": "move", "value": slot, "object": index})


def _swap(rng: KeyedRng, scene: Scene) -> Draft:
    index = rng.below(len(scene.things))
    item = scene.things[index]
    among = [name for name in OBJECTS if name not in [other.shape for other in scene.things]]
    new = casting.thing(rng, among=among, avoid=[other.colour.name for other in scene.things], textured=0.2)
    new = replace(new, x=item.x, y=item.y, size=item.size)
    things = (*scene.things[:index], new, *scene.things[index + 1 :])
    text = f"{rng.pick(('replace', 'swap'))} {_select(rng, item)} {rng.pick(('with', 'for'))} {full(new)}"
    return _finish(
        "swap", scene, replace(scene, things=things), text, {"kind": "swap", "value": new.name, "object": index}
    )
