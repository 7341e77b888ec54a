"""What the segments of a sample show: each picture decoded once, at the sizes its segments need."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sigma_data.images import DEFAULT_MAX_PIXELS
from sigma_data.pixels import patchify, several, to_unit
from sigma_data.sequence import Kind, Segment

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Content:
    """By picture number: `pictures` [3, h, w] in [-1, 1] for the VAE, `patches` [tokens, patch * patch * 3]."""

    pictures: Mapping[int, Floats]
    patches: Mapping[int, Floats]


def decode_content(
    segments: Sequence[Segment], data: Mapping[int, bytes | None], *, patch: int, max_pixels: int = DEFAULT_MAX_PIXELS
) -> Content:
    """Decode the pictures that `segments` show. `patch` is the side of a ViT patch in pixels.

    Raises ImageFault for a picture that cannot be used.
    """
    wanted: dict[int, dict[bool, tuple[int, int]]] = {}
    for segment in segments:
        if segment.kind.picture and segment.image in data:
            wanted.setdefault(segment.image, {})[segment.kind is Kind.PATCH] = segment.size
    pictures: dict[int, Floats] = {}
    patches: dict[int, Floats] = {}
    for number, sizes in wanted.items():
        for as_patches, pixels in zip(
            sizes, several(data[number], list(sizes.values()), max_pixels=max_pixels), strict=True
        ):
            if as_patches:
                patches[number] = patchify(to_unit(pixels), patch)
            else:
                pictures[number] = to_unit(pixels)
    return Content(pictures, patches)
