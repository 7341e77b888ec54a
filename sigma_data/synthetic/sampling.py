"""From a draft to a sample: numbering, rendering, encoding, truth."""

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
from sigma_data.synthetic.casting import Draft, Picture
from sigma_data.synthetic.dice import Dice
from sigma_data.synthetic.draw import condition, render
from sigma_data.synthetic.families import RECIPES
from sigma_data.synthetic.phrases import sentence
from sigma_data.synthetic.truth import describe


def _png(picture: Image.Image, buffer: io.BytesIO) -> None:
    picture.save(buffer, "PNG", compress_level=3)


def _jpg(picture: Image.Image, buffer: io.BytesIO) -> None:
    picture.save(buffer, "JPEG", quality=93, subsampling=0)


def _webp(picture: Image.Image, buffer: io.BytesIO) -> None:
    picture.save(buffer, "WEBP", quality=93, method=2)


FORMATS: dict[str, Callable[[Image.Image, io.BytesIO], None]] = {"png": _png, "jpg": _jpg, "webp": _webp}
"""How pictures are encoded; only PNG keeps every pixel exactly."""


@dataclass(frozen=True)
class Drawn:
    """A finished sample: encoded pictures (references in order, the target last), text and truth."""

    pictures: tuple[bytes, ...]
    instruction: str
    truth: str


def draw_sample(*, seed: int, size: int, format: str, family: Family, index: int) -> Drawn:
    """Draw the sample `index` of a family: encoded pictures, canonical instruction, truth as JSON."""
    dice = Dice("world", seed, family.value, index)
    draft = RECIPES[family](dice)
    order = dice.some(draft.references, len(draft.references))
    numbers = {picture.role: number for number, picture in enumerate(order, start=1)}
    text = re.sub(r"\[(\w+)\]", lambda match: f"<image_{numbers[match[1]]}>", draft.instruction)
    pictures = [_rendered(picture, size) for picture in order] + [render(draft.target, size)]
    return Drawn(
        pictures=tuple(_encoded(picture, format) for picture in pictures),
        instruction=canonical(sentence(text)),
        truth=json.dumps(_truth(draft, order, numbers), sort_keys=True, separators=(",", ":")),
    )


def _rendered(picture: Picture, size: int) -> Image.Image:
    return condition(picture.scene, size, picture.map) if picture.map else render(picture.scene, size)


def _encoded(picture: Image.Image, format: str) -> bytes:
    buffer = io.BytesIO()
    FORMATS[format](picture, buffer)
    return buffer.getvalue()


def _truth(draft: Draft, order: list[Picture], numbers: dict[str, int]) -> dict[str, Any]:
    return {
        "kind": draft.kind,
        "change": draft.change,
        "scene": describe(draft.target),
        "references": [
            {"image": number, "role": picture.role, "map": picture.map or None, "scene": describe(picture.scene)}
            for number, picture in enumerate(order, start=1)
        ],
        "sources": {attribute: numbers[role] for attribute, role in draft.sources.items()},
    }
