"""Stylization: an image redrawn in the style that another image shows."""

from __future__ import annotations

from dataclasses import replace

from sigma_data.synthetic import casting
from sigma_data.synthetic.casting import Draft, Reference
from sigma_data.synthetic.phrases import LIGHTS, loose, manner, noun, ref
from sigma_data.synthetic.rng import KeyedRng

_TEMPLATES = (
    "redraw {content} in the {style}",
    "turn {content} into the {style}",
    "render {content} in the {style}",
    "give {content} the look of the {style}",
    "apply the {style} to {content}",
    "repaint {content} so that it looks like the {style}",
    "in the {style}, show {content}",
)


def draft(rng: KeyedRng) -> Draft:
    """A content image and one or two style images with content of their own."""
    kind = rng.pick(("scene", "scene", "portrait", "choice", "light"))
    look = casting.style(rng)
    sources = {"style": "style", "subject": "content"}
    if kind == "portrait":
        item = casting.creature(rng) if rng.chance(0.5) else casting.thing(rng)
        content = casting.portrait(rng, item)
        token = "id" if item.character else "subject"
        words = f"the {ref(rng, token, noun(rng, item), 'content')}"
        if item.character:
            sources = {"style": "style", "id": "content"}
    else:
        content = casting.busy(rng)
        first = content.things[0]
        words = rng.pick((
            f"the {loose(rng, rng.pick(('picture', 'scene', 'photo', 'image')), 'content')}",
            f"the <subject>{first.name} and its <background>surroundings in [content]",
            f"the {ref(rng, 'subject', 'scene', 'content')}",
            f"the {loose(rng, 'picture', 'content')}, keeping its {ref(rng, 'layout', 'layout', 'content')},",
        ))  # fmt: skip
    example = replace(casting.busy(rng), style=look)
    target = replace(content, style=look)
    references = [Reference("content", content), Reference("style", example)]
    text = rng.pick(_TEMPLATES).format(content=words, style=ref(rng, "style", manner(rng, look), "style"))
    if kind == "choice":
        # A second style image that must be left alone.
        other = casting.style(rng)
        while other.kind == look.kind:
            other = casting.style(rng)
        references.append(Reference("other", replace(casting.busy(rng), style=other)))
        text += f", {rng.pick(('not in that of', 'ignoring the look of', 'and not like'))} [other]"
    elif kind == "light":
        shine = casting.lighting(rng)
        references.append(Reference("lighting", replace(casting.busy(rng), lighting=shine)))
        target = replace(target, lighting=shine)
        sources["lighting"] = "lighting"
        text += f" under the {ref(rng, 'lighting', LIGHTS[shine.kind], 'lighting')}"
    return Draft(kind, tuple(references), target, text.replace(",,", ","), sources, {"style": look.kind})
