"""Nearly black or nearly white images, such as a depth map that was clipped before it was stored.

A mask or an edge map is dark too, but has light lines: an image whose few other pixels are the opposite of its
background does not count.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
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
    least, most = pixels.min(axis=2), pixels.max(axis=2)
    if _flat(float(np.mean(most < DARK)), float(np.mean(most >= LIGHT))):
        return "near_black"
    if _flat(float(np.mean(least >= LIGHT)), float(np.mean(least < DARK))):
        return "near_white"
    return None


def _flat(ground: float, drawn: float) -> bool:
    return ground >= SHARE and drawn <= max(_SPECKS, _DRAWN * (1 - ground))
