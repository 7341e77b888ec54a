"""Nearly black or nearly white images, such as a depth map that was clipped before it was stored.

A mask or an edge map is dark too, but has light lines: an image whose few other pixels are the opposite of its
background does not count.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

NearBlank = Literal["near_black", "near_white"]

SHARE = 0.98
"""Share of the pixels that must be dark (or light)."""

DARK, LIGHT = 16, 240
"""Dark: every channel below 16. Light: every channel at 240 or above."""

_DRAWN = 0.25
"""If at least this share of the other pixels is of the opposite kind, it is a drawing."""

_SPECKS = 0.001
"""Opposite pixels up to this share of the image are specks, not a drawing."""


def near_blank(image: Image.Image) -> NearBlank | None:
    """Whether an RGB image is nearly black or nearly white."""
    pixels = np.asarray(image)
    red, green, blue = pixels[..., 0], pixels[..., 1], pixels[..., 2]
    most = np.maximum(np.maximum(red, green), blue)  # many times as fast as a reduction over three values
    if _flat(_share(most < DARK), _share(most >= LIGHT)):
        return "near_black"
    least = np.minimum(np.minimum(red, green), blue)
    if _flat(_share(least >= LIGHT), _share(least < DARK)):
        return "near_white"
    return None


def _share(where: npt.NDArray[np.bool_]) -> float:
    return np.count_nonzero(where) / where.size


def _flat(ground: float, drawn: float) -> bool:
    return ground >= SHARE and drawn <= max(_SPECKS, _DRAWN * (1 - ground))
