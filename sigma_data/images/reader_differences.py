"""What other readers make of an image's bytes, where that is not the image that we show and train on.

webdataset's and Megatron-Energon's decoders and HF `datasets` open an image with Pillow and convert it to RGB. That
clips deep values at 255, drops transparency, and (all but HF `datasets`) leaves the image as it lies in the file. A PNG
with large metadata Pillow does not open at all, unless its bounds are raised.
"""

from __future__ import annotations

from typing import Literal

from PIL import Image

from sigma_data.images.image_info import ImageInfo
from sigma_data.images.value_range import is_deep

Store = Literal["auto", "original", "shown"]
"""Which bytes a corpus holds where others would see another image: `original` keeps what came, `shown` stores the image
as we show it, an upright RGB PNG of 8 bits; `auto` does that for deep images alone."""

DEEP, TRANSPARENT, TURNED, LARGE = "deep_image", "transparent_image", "turned_image", "large_metadata"
CODES = (DEEP, TRANSPARENT, TURNED, LARGE)

_ROWS = 256


def differences(facts: ImageInfo) -> tuple[str, ...]:
    """Why other readers see another image, by code; empty where they do not."""
    found = {
        DEEP: is_deep(facts.mode), TRANSPARENT: facts.transparent, TURNED: facts.orientation != 1,
        LARGE: facts.large_metadata,
    }  # fmt: skip
    return tuple(code for code, differs in found.items() if differs)


def stored_as_shown(facts: ImageInfo, store: Store) -> str | None:
    """Why an image is stored as we show it, by code; None where its own bytes are stored."""
    wanted = {"auto": (DEEP,), "original": (), "shown": CODES}[store]
    return next((code for code in differences(facts) if code in wanted), None)


def is_transparent(image: Image.Image) -> bool:
    """Whether any pixel of a decoded image lets the background through; deep images have none that others heed."""
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
