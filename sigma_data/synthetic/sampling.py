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
from sigma_data.synthetic.families import RECIPES
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
    """A finished sample: encoded images (references in order, the target last), text and truth."""

    images: tuple[bytes, ...]
    instruction: str
    truth: str


def draw_sample(*, seed: int, size: int, format: str, family: Family, index: int) -> Drawn:
    """Draw the sample `index` of a family: encoded images, canonical instruction, truth as JSON."""
    rng = KeyedRng("world", seed, family.value, index)
    return draw_draft(RECIPES[family](rng), rng, size=size, format=format)


def draw_draft(draft: Draft, rng: KeyedRng, *, size: int, format: str) -> Drawn:
    """Draw a draft; `rng` puts its references in order."""
    order = rng.some(draft.references, len(draft.references))
    numbers = {reference.role: number for number, reference in enumerate(order, start=1)}
    text = re.sub(r"\[(\w+)\]", lambda match: f"<image_{numbers[match[1]]}>", draft.instruction)
    images = [_rendered(reference, size) for reference in order] + [render(draft.target, size)]
    return Drawn(
        images=tuple(_encoded(image, format) for image in images),
        instruction=canonical(sentence(text)),
        truth=json.dumps(_truth(draft, order, numbers), sort_keys=True, separators=(",", ":")),
    )


def _rendered(reference: Reference, size: int) -> Image.Image:
    return condition(reference.scene, size, reference.map) if reference.map else render(reference.scene, size)


def _encoded(image: Image.Image, format: str) -> bytes:
    buffer = io.BytesIO()
    FORMATS[format](image, buffer)
    return buffer.getvalue()


def _truth(draft: Draft, order: list[Reference], numbers: dict[str, int]) -> dict[str, Any]:
    return {
        "kind": draft.kind,
        "change": draft.change,
        "scene": describe(draft.target),
        "references": [
            {"image": number, "role": reference.role, "map": reference.map or None, "scene": describe(reference.scene)}
            for number, reference in enumerate(order, start=1)
        ],
        "sources": {attribute: numbers[role] for attribute, role in draft.sources.items()},
    }
