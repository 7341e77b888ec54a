"""Images that other readers decode differently from what sigma shows and trains on.

webdataset, Megatron-Energon and HF `datasets` open an image with Pillow and convert it to RGB. That clips deep values
at 255, drops transparency and (except in HF `datasets`) ignores the orientation. Pillow does not open a PNG with large
metadata at all unless its limits are raised.
"""

from __future__ import annotations

from typing import Literal

from PIL import Image

from sigma_data.images.image_info import ImageInfo
from sigma_data.images.value_range import is_deep

Store = Literal["auto", "original", "shown"]
"""How such images are stored: `original` keeps their bytes, `shown` stores an upright 8-bit RGB PNG, `auto` does that
for deep images only."""

DEEP, TRANSPARENT, TURNED, LARGE = "deep_image", "transparent_image", "turned_image", "large_metadata"
CODES = (DEEP, TRANSPARENT, TURNED, LARGE)

_ROWS = 256


def differences(info: ImageInfo) -> tuple[str, ...]:
    """Codes of the ways in which other readers decode the image differently."""
    found = {
        DEEP: is_deep(info.mode), TRANSPARENT: info.transparent, TURNED: info.orientation != 1,
        LARGE: info.large_metadata,
    }  # fmt: skip
    return tuple(code for code, differs in found.items() if differs)


def stored_as_shown(info: ImageInfo, store: Store) -> str | None:
    """The code for which an image is stored as shown; None if its own bytes are stored."""
    wanted = {"auto": (DEEP,), "original": (), "shown": CODES}[store]
    return next((code for code in differences(info) if code in wanted), None)


def is_transparent(image: Image.Image) -> bool:
    """Whether any pixel of a decoded image is transparent; never for deep images, where no reader heeds it."""
    if "transparency" not in image.info and image.mode not in ("RGBA", "RGBa", "LA", "La", "PA"):
        return False
    if is_deep(image.mode):
        return False
    for top in range(0, image.height, _ROWS):
        strip = image.crop((0, top, image.width, min(top + _ROWS, image.height)))
        strip.info = image.info  # the transparent colour, if any
        if strip.convert("RGBA").getchannel("A").getextrema() != (255, 255):
            return True
    return False
