"""What the segments of a sample show: each image decoded once, at the sizes its segments need.

Pixels stay bytes until the network takes them: a quarter of what floats would carry between processes.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sigma_data.images.decode import DEFAULT_MAX_PIXELS
from sigma_data.images.resample import Size, patchify, resized_all
from sigma_data.sequence.layout import Kind, Segment

Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Content:
    """By image number: `images` uint8 [3, h, w] for the VAE, `patches` uint8 [tokens, patch * patch * 3].

    Images lie [h, w, 3] in memory, as they are decoded: to send planes, somebody would have to copy them.
    """

    images: Mapping[int, Bytes]
    patches: Mapping[int, Bytes]


def decode_content(
    segments: Sequence[Segment],
    data: Mapping[int, bytes | None],
    *,
    patch: int,
    known: Mapping[int, Size] | None = None,
    masks: Collection[int] = (),
    max_pixels: int = DEFAULT_MAX_PIXELS,
) -> Content:
    """Decode the images of `data` that `segments` show. `patch` is the side of a ViT patch in pixels.

    `known` are the sizes that the upright images are said to have, `masks` the numbers of images that are maps of
    labels. Raises ImageFault for an image that cannot be used, or has another size than that.
    """
    wanted: dict[int, dict[bool, Size]] = {}
    for segment in segments:
        if segment.kind.image and segment.image in data:
            wanted.setdefault(segment.image, {})[segment.kind is Kind.PATCH] = segment.size
    images: dict[int, Bytes] = {}
    patches: dict[int, Bytes] = {}
    for number, sizes in wanted.items():
        size = known[number] if known is not None else None
        found = resized_all(data[number], list(sizes.values()), known=size, mask=number in masks, max_pixels=max_pixels)
        for as_patches, pixels in zip(sizes, found, strict=True):
            planes = pixels.transpose(2, 0, 1)
            if as_patches:
                patches[number] = patchify(planes, patch)
            else:
                images[number] = planes
    return Content(images, patches)
