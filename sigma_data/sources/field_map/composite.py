"""Cut composites: one image that holds two side by side."""

from __future__ import annotations

from functools import lru_cache
from typing import Literal

from sigma_data.images.decode import load
from sigma_data.images.encode import encode
from sigma_data.images.formats import ImageFault
from sigma_data.sources.field_map.values import RowFault

Side = Literal["left", "right"]


def box_of(width: int, height: int, side: Side, border: int | None) -> tuple[int, int, int, int]:
    """The box (left, upper, right, lower) in pixels of a side.

    Without a border the cut is at width // 2. With one, sides are squares of s = height - 2 border, the left at
    (border, border), the right at s + 2 border (OminiControl's crop of Subjects200K). Raises RowFault `bad_composite`
    where the image is not 2 s + 4 border wide or has no pixel a side.
    """
    if border is None:
        middle = width // 2
        if not 0 < middle < width:
            raise RowFault("bad_composite", f"{width} x {height} cannot be cut into two")
        return (0, 0, middle, height) if side == "left" else (middle, 0, width, height)
    square = height - 2 * border
    if square <= 0 or width != 2 * square + 4 * border:
        wide = 2 * max(square, 1) + 4 * border
        message = f"{width} x {height} is no composite of this kind, which at this height is {wide} wide"
        raise RowFault("bad_composite", message)
    left = border if side == "left" else square + 2 * border
    return left, border, left + square, border + square


def cut(data: bytes, side: Side, border: int | None) -> bytes:
    """One side of a composite as a PNG. Raises RowFault `bad_composite` or why the image cannot be decoded."""
    return _cut(data, border)[side]


@lru_cache(maxsize=2)
def _cut(data: bytes, border: int | None) -> dict[Side, bytes]:
    """Both sides: each is asked for twice, as reference and as target."""
    try:
        image = load(data)
    except ImageFault as fault:
        raise RowFault(fault.code, fault.message) from None
    sides: tuple[Side, ...] = ("left", "right")
    return {side: encode(image.crop(box_of(*image.size, side, border)), "PNG") for side in sides}
