"""From a draft to a sample: numbering, rendering, encoding, ground truth."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from PIL import Image

from sigma_data.instruction import canonical
from sigma_data.sample import Family
from sigma_data.synthetic.casting import Draft, Reference
from sigma_data.synthetic.draw import condition, render
from sigma_data.synthetic.families import RECIPES, segmentation
from sigma_data.synthetic.families.understanding import Conversation, conversation, placed
from sigma_data.synthetic.instances import instance_colours, instance_map
from sigma_data.synthetic.phrases import sentence
from sigma_data.synthetic.rng import KeyedRng
from sigma_data.synthetic.truth import describe


def _png(image: Image.Image, buffer: io.BytesIO) -> None:
    image.save(buffer, "PNG", compress_level=3)


def _jpg(image: Image.Image, buffer: io.BytesIO) -> None:
    image.save(buffer, "JPEG", quality=93, subsampling=0)


def _webp(image: Image.Image, buffer: io.BytesIO) -> None:
    image.save(buffer, "WEBP", quality=93, method=2)


FORMATS: dict[str, Callable[[Image.Image, io.BytesIO], None]] = {"png": _png, "jpg": _jpg, "webp": _webp}
"""How images are encoded; only PNG keeps every pixel exactly."""


@dataclass(frozen=True)
class Drawn:
    """A finished sample: encoded images (references in order, the target last), text and truth.

    `responses` are the answers in words of a conversation whose further questions are `later`; then there is no target.
    """

    images: tuple[bytes, ...]
    instruction: str
    truth: str
    responses: tuple[str, ...] = ()
    later: tuple[str, ...] = ()


def draw_sample(*, seed: int, size: int, format: str, family: Family, index: int) -> Drawn:
    """Draw the sample `index` of a family: encoded images, canonical instruction, truth as JSON."""
    rng = KeyedRng("world", seed, family.value, index)
    if family is Family.UNDERSTANDING:
        return _draw_conversation(conversation(rng), rng, size=size, format=format)
    return draw_draft(draft_of(family, rng), rng, size=size, format=format)


def draft_of(family: Family, rng: KeyedRng) -> Draft:
    """A random draft of a family whose target is an image."""
    return segmentation.draft(rng) if family is Family.SEGMENTATION else RECIPES[family](rng)


def _draw_conversation(said: Conversation, rng: KeyedRng, *, size: int, format: str) -> Drawn:
    """Draw a conversation; `rng` decides where its first question names the image."""
    first, *later = placed(rng, said.exchanges, image=said.scene is not None)
    images = () if said.scene is None else (_encoded(render(said.scene, size), format),)
    scene = None if said.scene is None else describe(said.scene)
    truth = {
        "kind": said.kind,
        "change": None,
        "scene": scene,
        "references": [] if scene is None else [{"image": 1, "role": "scene", "map": None, "scene": scene}],
        "sources": {},
        "questions": [{"kind": one.kind, "answer": one.answer} for one in said.exchanges],
    }
    return Drawn(images, canonical(first), _json(truth), tuple(one.answer for one in said.exchanges), tuple(later))


def draw_draft(draft: Draft, rng: KeyedRng, *, size: int, format: str) -> Drawn:
    """Draw a draft; `rng` puts its references in order."""
    order = rng.some(draft.references, len(draft.references))
    numbers = {reference.role: number for number, reference in enumerate(order, start=1)}
    text = re.sub(r"\[(\w+)\]", lambda match: f"<image_{numbers[match[1]]}>", draft.instruction)
    images = [_rendered(reference, size) for reference in order] + [_target(draft, size)]
    return Drawn(
        images=tuple(_encoded(image, format) for image in images),
        instruction=canonical(sentence(text)),
        truth=_json(_truth(draft, order, numbers)),
    )


def _json(truth: dict[str, Any]) -> str:
    return json.dumps(truth, sort_keys=True, separators=(",", ":"))


def _target(draft: Draft, size: int) -> Image.Image:
    return instance_map(draft.target.things, size) if draft.target_map else render(draft.target, size)


def _rendered(reference: Reference, size: int) -> Image.Image:
    return condition(reference.scene, size, reference.map) if reference.map else render(reference.scene, size)


def _encoded(image: Image.Image, format: str) -> bytes:
    buffer = io.BytesIO()
    FORMATS[format](image, buffer)
    return buffer.getvalue()


def _truth(draft: Draft, order: list[Reference], numbers: dict[str, int]) -> dict[str, Any]:
    instances = {"instances": [list(rgb) for rgb in instance_colours(draft.target.things)]} if draft.target_map else {}
    return {
        "kind": draft.kind,
        "change": draft.change,
        "scene": describe(draft.target),
        "references": [
            {"image": number, "role": reference.role, "map": reference.map or None, "scene": describe(reference.scene)}
            for number, reference in enumerate(order, start=1)
        ],
        "sources": {attribute: numbers[role] for attribute, role in draft.sources.items()},
        **instances,
    }
