"""Images that show next to nothing: nearly black or nearly white all over.

What a depth map looks like that was clipped before it got here. A mask or an edge map is dark too, but what is
drawn on it is light; so an image whose few other pixels are the opposite of its ground is none of these.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from PIL import Image

Tone = Literal["near_black", "near_white"]

SHARE = 0.98
"""Of the pixels that must be dark (or light)."""

DARK, LIGHT = 16, 240
"""Dark: every channel below 16. Light: every channel at 240 or above."""

_DRAWN = 0.25
"""Of the other pixels, when at least this share is of the opposite kind in some channel, something is drawn."""

_SPECKS = 0.001
"""Opposite pixels up to this share of the image are specks, no drawing."""


def tone_of(image: Image.Image) -> Tone | None:
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
