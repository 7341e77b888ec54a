"""Layout: a full image from its outline or depth map, with words and references for the rest."""

from __future__ import annotations

from dataclasses import replace

from sigma_data.synthetic import casting
from sigma_data.synthetic.casting import Draft, Reference
from sigma_data.synthetic.colours import colour
from sigma_data.synthetic.phrases import LIGHTS, article, full, listed, manner, noun, ref, scenery
from sigma_data.synthetic.rng import KeyedRng
from sigma_data.synthetic.scene import Scene

_MAPS = {
    "outline": ("edge map", "outline", "canny map", "line drawing"),
    "depth": ("depth map", "depth image", "depth"),
}
_TEMPLATES = (
    "following the {map}, draw {things} {where}",
    "draw {things} {where}, following the {map}",
    "use the {map} to make a picture of {things} {where}",
    "fill in the {map}: {things} {where}",
    "create {things} {where} with the layout of the {map}",
    "{things} {where}, arranged as in the {map}",
)


def draft(rng: KeyedRng) -> Draft:
    """A map of the target and up to three more references."""
    map_kind = rng.pick(("outline", "outline", "depth"))
    things = list(casting.spread(rng, casting.cast(rng, 1 + rng.below(3)), low=0.16, high=0.25))
    # A name of the place that says its kind; the map shows its shapes.
    drop = casting.place(rng)
    where = f"in front of {article(scenery(rng, drop))}"
    references: list[Reference] = []
    sources = {"layout": "map"}
    words = [full(item) for item in things]
    extras: list[str] = []

    if rng.chance(0.45):
        index = rng.below(len(things))
        item = things[index]
        shown = casting.portrait(rng, item)
        references.append(Reference("subject", shown))
        token = "id" if item.character else "subject"
        sources[token] = "subject"
        words[index] = f"the {ref(rng, token, noun(rng, item), 'subject')}"
    plain = [index for index, item in enumerate(things) if not item.character and not words[index].startswith("the")]
    if plain and rng.chance(0.25):
        index = plain[0]
        base = colour(rng)
        cloth = casting.texture(rng, base)
        things[index] = replace(things[index], colour=base, texture=cloth)
        references.append(Reference("texture", casting.swatch(rng, base, cloth)))
        sources["texture"] = "texture"
        words[index] = (
            f"the {things[index].noun} with the {ref(rng, 'texture', rng.pick(('texture', 'pattern')), 'texture')}"
        )
    scene = Scene(drop, tuple(things))
    if rng.chance(0.3):
        others = casting.spread(rng, casting.cast(rng, rng.below(2)))
        references.append(Reference("background", Scene(replace(drop, detail=rng.below(1 << 30)), others)))
        sources["background"] = "background"
        where = f"in front of the {ref(rng, 'background', rng.pick((scenery(rng, drop), 'background')), 'background')}"
    if len(references) < 3 and rng.chance(0.3):
        look = casting.style(rng)
        scene = replace(scene, style=look)
        references.append(Reference("style", replace(casting.busy(rng), style=look)))
        sources["style"] = "style"
        extras.append(f"in the {ref(rng, 'style', manner(rng, look), 'style')}")
    elif len(references) < 3 and rng.chance(0.2):
        shine = casting.lighting(rng)
        scene = replace(scene, lighting=shine)
        references.append(Reference("lighting", replace(casting.busy(rng), lighting=shine)))
        sources["lighting"] = "lighting"
        extras.append(f"with the {ref(rng, 'lighting', LIGHTS[shine.kind], 'lighting')}")
    references.append(Reference("map", scene, map_kind))

    text = rng.pick(_TEMPLATES).format(
        map=ref(rng, "layout", rng.pick(_MAPS[map_kind]), "map"), things=listed(words), where=where
    )
    return Draft(map_kind, tuple(references), scene, ", ".join((text, *extras)), sources)
