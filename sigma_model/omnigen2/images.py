"""Sizes and pixels of images as OmniGen2 takes them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from sigma_data.errors import ConfigError
from sigma_data.images.decode import ImageFault, load

Integers = npt.NDArray[np.int64]

STRIDE = 16
"""Pixels that a token covers on a side, patch 2 times the autoencoder's 8."""

TARGET_PIXELS = 1_048_576


@dataclass(frozen=True)
class SizeRule:
    """At most `max_pixels` and no side above `max_side`, sides floored to `stride`; never enlarged.

    Golden: resize.json.
    """

    max_pixels: int = TARGET_PIXELS
    max_side: int = 2048
    stride: int = STRIDE

    def size(self, width: int, height: int) -> tuple[int, int]:
        """(width, height) in pixels; a side is at least one stride."""
        ratio = min(1.0, math.sqrt(self.max_pixels / (width * height)), self.max_side / max(width, height))
        new_width, new_height = (
            max(self.stride, int(side * ratio) // self.stride * self.stride) for side in (width, height)
        )
        return new_width, new_height

    def grids(self, width: Integers, height: Integers, max_pixels: Integers) -> tuple[Integers, Integers]:
        """Columns and rows in strides of many images at once, each with a number of pixels of its own: as `size`."""
        wide, high = width.astype(np.float64), height.astype(np.float64)
        ratio = np.minimum(1.0, np.minimum(np.sqrt(max_pixels / (wide * high)), self.max_side / np.maximum(wide, high)))
        columns, rows = (np.maximum(1, (side * ratio).astype(np.int64) // self.stride) for side in (wide, high))
        return columns, rows


INFERENCE_RULE = SizeRule(max_side=1024)
TRAINING_TARGET_RULE = SizeRule()
_TRAINING_REFERENCE_PIXELS = (1_048_576, 1_048_576, 589_824, 262_144)


def training_reference_rule(references: int) -> SizeRule:
    """Of each of so many references, as many as the model takes: five as four."""
    return SizeRule(max_pixels=_TRAINING_REFERENCE_PIXELS[min(max(references, 1), 4) - 1])


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
    return pixel_bytes(image, size, colour_map=colour_map).float() / 127.5 - 1


def pixel_bytes(image: Image.Image, size: tuple[int, int], *, colour_map: bool = False) -> Tensor:
    """RGB image -> uint8 [3, h, w] at (width, height); lies [h, w, 3] in memory."""
    if image.size != size:
        image = image.resize(size, Image.Resampling.NEAREST if colour_map else Image.Resampling.LANCZOS)
    return torch.from_numpy(np.array(image, dtype=np.uint8)).permute(2, 0, 1)


def output_sizes(
    wanted: tuple[int, int] | None, references: Sequence[tuple[int, int]], *, rule: SizeRule = INFERENCE_RULE
) -> tuple[tuple[int, int], tuple[int, int]]:
    """(size that is sampled, size that the image is stretched to), both (width, height) in pixels.

    With one reference, whose resized size is `references[0]`, both are its size unless another is `wanted`. Else the
    wanted size, by default the largest square, is brought within the most pixels of the `rule` and floored to its
    stride to be sampled.
    """
    if len(references) == 1 and wanted is None:
        return references[0], references[0]
    final = wanted or (rule.max_side, rule.max_side)
    sampled = SizeRule(rule.max_pixels, max(2 * rule.max_side, *final), rule.stride).size(*final)
    return sampled, final if wanted is not None else sampled
