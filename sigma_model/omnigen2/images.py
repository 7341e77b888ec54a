"""Sizes and pixels of images as OmniGen2 takes them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sigma_data.errors import ConfigError
from sigma_data.images.decode import ImageFault, load

STRIDE = 16
"""Pixels that a token covers on a side, patch 2 times the autoencoder's 8."""

TARGET_PIXELS = 1_048_576


@dataclass(frozen=True)
class SizeRule:
    """At most `max_pixels` and no side above `max_side`, sides floored to 16; never enlarged (golden: resize.json)."""

    max_pixels: int = TARGET_PIXELS
    max_side: int = 2048

    def size(self, width: int, height: int) -> tuple[int, int]:
        """(width, height) in pixels; a side is at least 16."""
        ratio = min(1.0, math.sqrt(self.max_pixels / (width * height)), self.max_side / max(width, height))
        return _floored(int(width * ratio)), _floored(int(height * ratio))


INFERENCE_RULE = SizeRule(max_side=1024)
TRAINING_TARGET_RULE = SizeRule()
_TRAINING_REFERENCE_PIXELS = (1_048_576, 1_048_576, 589_824, 262_144)


def training_reference_rule(references: int) -> SizeRule:
    """Of each of so many references, as many as the model takes: five as four."""
    return SizeRule(max_pixels=_TRAINING_REFERENCE_PIXELS[min(max(references, 1), 4) - 1])


def _floored(side: int) -> int:
    return max(STRIDE, side // STRIDE * STRIDE)


def open_image(data: bytes, name: str = "the image") -> Image.Image:
    """The upright image as RGB, transparency on white, grey as RGB. Raises ConfigError naming it."""
    try:
        return load(data)
    except ImageFault as fault:
        raise ConfigError(f"{name}: {fault.message}") from None


def pixels(image: Image.Image, rule: SizeRule | tuple[int, int], *, colour_map: bool = False) -> Tensor:
    """RGB image -> [3, h, w] in [-1, 1] at the rule's size, or at (width, height): Lanczos, as Pillow does it.

    A `colour_map` is resized by nearest neighbour: no colour is invented between two objects.
    """
    size = rule.size(*image.size) if isinstance(rule, SizeRule) else rule
    if image.size != size:
        image = image.resize(size, Image.Resampling.NEAREST if colour_map else Image.Resampling.LANCZOS)
    array = torch.from_numpy(np.array(image, dtype=np.uint8)).permute(2, 0, 1)
    return array.float() / 127.5 - 1


def output_sizes(
    wanted: tuple[int, int] | None, references: list[tuple[int, int]], *, align: bool = True
) -> tuple[tuple[int, int], tuple[int, int]]:
    """(size that is sampled, size that the image is stretched to), both (width, height) in pixels.

    With one reference of resized size `references[0]`, and `align`, both are its size. Else `wanted` (by default the
    largest square) is brought within the most pixels and floored to 16 to be sampled.
    """
    if align and len(references) == 1 and wanted is None:
        return references[0], references[0]
    final = wanted or (1024, 1024)
    return SizeRule(max_side=max(2048, *final)).size(*final), final
