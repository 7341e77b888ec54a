"""Pictures as the model takes them: bytes -> resized pixels -> unit range -> patches.

One decode serves every size that a sample needs of a picture; a JPEG far larger than its largest use is
decoded at a fraction of its size.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image

from sigma_data.images import DEFAULT_MAX_PIXELS, ResizeRule, load, open_image

Size = tuple[int, int]
"""(width, height) in pixels, upright."""

_DRAFT_GAP = 3.0
"""A scaled decode stays at least this many times longer than the largest size on either side, so that
bicubic resampling, not the decoder, makes the final pixels."""

_REDUCING_GAP = 3.0
"""Pillow shrinks by whole blocks first, down to this many times the size: several times faster, and by
Pillow's own account hardly told apart from resampling at once."""

_SCALES = (8, 4, 2)
"""Fractions at which JPEG decodes."""

_UNIT = (np.arange(256, dtype=np.float32) / np.float32(255) - np.float32(0.5)) / np.float32(0.5)
"""Each byte in [-1, 1], by the same float32 steps as the usual to-tensor and normalise."""


def resized(
    data: bytes | None, rule: ResizeRule | Size, *, images: int = 1, max_pixels: int = DEFAULT_MAX_PIXELS
) -> npt.NDArray[np.uint8]:
    """The upright picture as RGB on white, uint8 [h, w, 3], bicubic with antialias.

    `rule` gives the size, for a picture among `images` of a sample, or is the size (width, height)
    itself. `max_pixels` bounds what is decoded, as in `images.load`. Raises ImageFault as that does.
    """
    if isinstance(rule, ResizeRule):
        width, height = open_image(data, max_pixels=max_pixels).size
        # The header's sides may be swapped by EXIF: the decoded picture tells, and the rule scales both alike.
        picture = _decoded(data, [rule.size(width, height, images=images)], max_pixels)
        if picture.width == picture.height and width != height:  # scaled decoding rounded the difference away
            picture = load(data, max_pixels=max_pixels)
        if (picture.width > picture.height) != (width > height):
            width, height = height, width
        return _scaled(picture, rule.size(width, height, images=images))
    return several(data, [rule], max_pixels=max_pixels)[0]


def several(
    data: bytes | None, sizes: Sequence[Size], *, max_pixels: int = DEFAULT_MAX_PIXELS
) -> list[npt.NDArray[np.uint8]]:
    """The picture at several sizes (width, height) from one decode, each as `resized` gives it.

    Sizes are those of the upright picture. Raises ImageFault as `images.load` does, ValueError for a size
    that is not positive.
    """
    if any(side <= 0 for size in sizes for side in size):
        raise ValueError(f"sizes must be positive: {list(sizes)}")
    picture = _decoded(data, sizes, max_pixels)
    return [_scaled(picture, size) for size in sizes]


def to_unit(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """uint8 [h, w, 3] -> float32 [3, h, w] in [-1, 1]."""
    return np.ascontiguousarray(_UNIT[pixels.transpose(2, 0, 1)])


def patchify(image: npt.NDArray[np.float32], patch: int = 14) -> npt.NDArray[np.float32]:
    """float32 [3, h, w] -> [rows * columns, patch * patch * 3], patches row by row.

    Inside a patch the order is row, column, channel, the channel innermost. Raises ValueError where a
    side is no multiple of `patch`.
    """
    channels, height, width = image.shape
    if height % patch or width % patch:
        raise ValueError(f"{width} x {height} pixels cannot be cut into patches of {patch}")
    grid = image.reshape(channels, height // patch, patch, width // patch, patch)
    return grid.transpose(1, 3, 2, 4, 0).reshape(-1, patch * patch * channels)


def _decoded(data: bytes | None, sizes: Sequence[Size], max_pixels: int) -> Image.Image:
    """The upright picture, no smaller than its largest use needs where the file has the pixels."""
    image = open_image(data, max_pixels=max_pixels)
    if image.format != "JPEG":
        return load(data, max_pixels=max_pixels)
    widest, tallest = (max(side) for side in zip(*sizes, strict=True))
    # EXIF may swap the sides. The header alone does not say, but the shape that is asked for does.
    width, height = image.size if (image.width >= image.height) == (widest >= tallest) else image.size[::-1]
    ratio = min(width / widest, height / tallest) / _DRAFT_GAP
    scale = next((scale for scale in _SCALES if scale <= ratio), None)
    if scale is None:
        return load(data, max_pixels=max_pixels)
    picture = load(data, max_pixels=max_pixels, at_least=min(width, height) // scale)
    if picture.width < widest or picture.height < tallest:  # an odd shape was asked for
        picture = load(data, max_pixels=max_pixels)
    return picture


def _scaled(picture: Image.Image, size: Size) -> npt.NDArray[np.uint8]:
    if picture.size == size:
        return np.array(picture)
    return np.array(picture.resize(size, Image.Resampling.BICUBIC, reducing_gap=_REDUCING_GAP))
