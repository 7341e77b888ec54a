"""Stylization: a picture redrawn in the style that another picture shows."""

from __future__ import annotations

from dataclasses import replace

from sigma_data.synthetic import casting
from sigma_data.synthetic.casting import Draft, Picture
from sigma_data.synthetic.dice import Dice
from sigma_data.synthetic.phrases import LIGHTS, loose, manner, noun, ref

_TEMPLATES = (
    "redraw {content} in the {style}",
    "turn {content} into the {style}",
    "render {content} in the {style}",
    "give {content} the look of the {style}",
    "apply the {style} to {content}",
    "repaint {content} so that it looks like the {style}",
    "in the {style}, show {content}",
)


def draft(dice: Dice) -> Draft:
    """A content picture and one or two style pictures with content of their own."""
    kind = dice.pick(("scene", "scene", "portrait", "choice", "light"))
    look = casting.style(dice)
    sources = {"style": "style", "subject": "content"}
    if kind == "portrait":
        item = casting.creature(dice) if dice.chance(0.5) else casting.thing(dice)
        content = casting.portrait(dice, item)
        token = "id" if item.character else "subject"
        words = f"the {ref(dice, token, noun(dice, item), 'content')}"
        if item.character:
            sources = {"style": "style", "id": "content"}
    else:
        content = casting.busy(dice)
        first = content.things[0]
        words = dice.pick((
            f"the {loose(dice, dice.pick(('picture', 'scene', 'photo', 'image')), 'content')}",
            f"the <subject>{first.name} and its <background>surroundings in [content]",
            f"the {ref(dice, 'subject', 'scene', 'content')}",
            f"the {loose(dice, 'picture', 'content')}, keeping its {ref(dice, 'layout', 'layout', 'content')},",
        ))  # fmt: skip
    example = replace(casting.busy(dice), style=look)
    target = replace(content, style=look)
    references = [Picture("content", content), Picture("style", example)]
    text = dice.pick(_TEMPLATES).format(content=words, style=ref(dice, "style", manner(dice, look), "style"))
    if kind == "choice":
        # A second style picture that must be left alone.
        other = casting.style(dice)
        while other.kind == look.kind:
            other = casting.style(dice)
        references.append(Picture("other", replace(casting.busy(dice), style=other)))
        text += f", {dice.pick(('not in that of', 'ignoring the look of', 'and not like'))} [other]"
    elif kind == "light":
        shine = casting.lighting(dice)
        references.append(Picture("lighting", replace(casting.busy(dice), lighting=shine)))
        target = replace(target, lighting=shine)
        sources["lighting"] = "lighting"
        text += f" under the {ref(dice, 'lighting', LIGHTS[shine.kind], 'lighting')}"
    return Draft(kind, tuple(references), target, text.replace(",,", ","), sources, {"style": look.kind})
