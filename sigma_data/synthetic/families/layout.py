"""Layout: a full picture from its outline or depth map, with words and references for the rest."""

from __future__ import annotations

from dataclasses import replace

from sigma_data.synthetic import casting
from sigma_data.synthetic.casting import Draft, Picture
from sigma_data.synthetic.dice import Dice, colour
from sigma_data.synthetic.phrases import LIGHTS, article, full, listed, manner, noun, ref, scenery
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


def draft(dice: Dice) -> Draft:
    """A map of the target and up to three more references."""
    map_kind = dice.pick(("outline", "outline", "depth"))
    things = list(casting.spread(dice, casting.cast(dice, 1 + dice.below(3)), low=0.16, high=0.25))
    # A name of the place that says its kind; the map shows its shapes.
    drop = casting.place(dice)
    where = f"in front of {article(scenery(dice, drop))}"
    references: list[Picture] = []
    sources = {"layout": "map"}
    words = [full(item) for item in things]
    extras: list[str] = []

    if dice.chance(0.45):
        index = dice.below(len(things))
        item = things[index]
        shown = casting.portrait(dice, item)
        references.append(Picture("subject", shown))
        token = "id" if item.character else "subject"
        sources[token] = "subject"
        words[index] = f"the {ref(dice, token, noun(dice, item), 'subject')}"
    plain = [index for index, item in enumerate(things) if not item.character and not words[index].startswith("the")]
    if plain and dice.chance(0.25):
        index = plain[0]
        base = colour(dice)
        cloth = casting.texture(dice, base)
        things[index] = replace(things[index], colour=base, texture=cloth)
        references.append(Picture("texture", casting.swatch(dice, base, cloth)))
        sources["texture"] = "texture"
        words[index] = (
            f"the {things[index].noun} with the {ref(dice, 'texture', dice.pick(('texture', 'pattern')), 'texture')}"
        )
    scene = Scene(drop, tuple(things))
    if dice.chance(0.3):
        others = casting.spread(dice, casting.cast(dice, dice.below(2)))
        references.append(Picture("background", Scene(replace(drop, detail=dice.below(1 << 30)), others)))
        sources["background"] = "background"
        where = (
            f"in front of the {ref(dice, 'background', dice.pick((scenery(dice, drop), 'background')), 'background')}"
        )
    if len(references) < 3 and dice.chance(0.3):
        look = casting.style(dice)
        scene = replace(scene, style=look)
        references.append(Picture("style", replace(casting.busy(dice), style=look)))
        sources["style"] = "style"
        extras.append(f"in the {ref(dice, 'style', manner(dice, look), 'style')}")
    elif len(references) < 3 and dice.chance(0.2):
        shine = casting.lighting(dice)
        scene = replace(scene, lighting=shine)
        references.append(Picture("lighting", replace(casting.busy(dice), lighting=shine)))
        sources["lighting"] = "lighting"
        extras.append(f"with the {ref(dice, 'lighting', LIGHTS[shine.kind], 'lighting')}")
    references.append(Picture("map", scene, map_kind))

    text = dice.pick(_TEMPLATES).format(
        map=ref(dice, "layout", dice.pick(_MAPS[map_kind]), "map"), things=listed(words), where=where
    )
    return Draft(map_kind, tuple(references), scene, ", ".join((text, *extras)), sources)
