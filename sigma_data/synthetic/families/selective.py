"""Selective: one thing taken out of an image, alone on white."""

from __future__ import annotations

from dataclasses import replace

from sigma_data.synthetic import casting
from sigma_data.synthetic.casting import Draft, Reference
from sigma_data.synthetic.colours import WHITE, colour
from sigma_data.synthetic.phrases import ref
from sigma_data.synthetic.rng import KeyedRng
from sigma_data.synthetic.scene import Backdrop, Scene, Thing
from sigma_data.synthetic.textures import KINDS as TEXTURES

_ORDER = ("first", "second", "third", "fourth")
PAPER = Backdrop("plain", (WHITE,))


def draft(rng: KeyedRng) -> Draft:
    """A scene of two to four things, and the one that is asked for."""
    things = casting.spread(rng, casting.cast(rng, 2 + rng.below(3)), low=0.13, high=0.21)
    things = tuple(replace(item, rotation=0 if item.character else rng.pick((0, 0, 20, -20, 40))) for item in things)
    chosen = rng.pick(things)
    kind = rng.pick(("name", "name", "order", "place", "colour", "texture"))
    references = []
    if kind == "texture":
        base = colour(rng)
        # A gradient shows too little on a small thing to be told by.
        others = {"gradient", *(item.texture.kind for item in things)}
        cloth = casting.texture(rng, base, kinds=[kind for kind in TEXTURES if kind not in others])
        if chosen.character:
            kind = "name"
        else:
            # The swatch shows the pattern in other colours: the pattern is what is asked for.
            index = things.index(chosen)
            chosen = replace(chosen, texture=casting.texture(rng, chosen.colour, kinds=(cloth.kind,)))
            things = (*things[:index], chosen, *things[index + 1 :])
            references.append(Reference("texture", casting.swatch(rng, base, cloth)))
    scene = Scene(casting.place(rng), things)
    references.append(Reference("scene", scene))
    words = _words(rng, kind, chosen, things)
    centred = rng.chance(0.5)
    alone = replace(chosen, x=0.5, y=0.54, size=0.34) if centred else chosen
    verb = rng.pick(("isolate", "extract", "cut out", "take out", "pick out"))
    how = (
        rng.pick(("centred and large, on white", "centre it, enlarged, on a white background"))
        if centred
        else rng.pick(("keeping its place and size, on white", "leave it where it is and make everything else white"))
    )
    selected = f"<select> the {words} {rng.pick(('in', 'from', 'of'))} [scene]"
    text = f"{verb} {selected}, {how}" if rng.chance(0.7) else f"{verb} {selected}. {how[0].upper()}{how[1:]}"
    sources = {"select": "scene"} | ({"texture": "texture"} if kind == "texture" else {})
    change: dict[str, object] = {"select": chosen.name, "by": kind, "centred": centred}
    return Draft(kind, tuple(references), Scene(PAPER, (alone,)), text, sources, change)


def _words(rng: KeyedRng, kind: str, chosen: Thing, things: tuple[Thing, ...]) -> str:
    if kind == "order":
        across = rng.chance(0.6)
        ranked = sorted(things, key=lambda item: item.x if across else item.y)
        place = ranked.index(chosen)
        if place == len(ranked) - 1 and rng.chance(0.5):
            return "rightmost object" if across else "lowest object"
        return f"{_ORDER[place]} object from {'the left' if across else 'the top'}"
    if kind == "place":
        x, y = rng.pick(((0.0, 0.0), (1.0, 0.0), (0.0, 1.0), (1.0, 1.0)))
        nearest = min(things, key=lambda item: (item.x - x) ** 2 + (item.y - y) ** 2)
        corner = f"{'upper' if y == 0 else 'lower'} {'left' if x == 0 else 'right'} corner"
        return f"object nearest to the {corner}" if nearest is chosen else chosen.name
    if kind == "colour":
        return f"{chosen.colour.name} object"
    if kind == "texture":
        return f"object that has the {ref(rng, 'texture', rng.pick(('pattern', 'texture')), 'texture')}"
    return rng.pick((chosen.name, chosen.noun))
