"""What is worth knowing of an image that is sound: a warning each, by code, for manifest, report and card."""

from __future__ import annotations

from sigma_data.images.image_info import ImageInfo
from sigma_data.images.reader_differences import DEEP, LARGE, TRANSPARENT, TURNED, differences

REMARKS: dict[str, str] = {
    "near_black": "A picture at least 98 % of which is darker than level 16 of 255, with nothing light on it",
    "near_white": "A picture at least 98 % of which is at level 240 of 255 or lighter, with nothing dark on it",
    DEEP: "Stored with more than 8 bits a value: other readers clip it at 255",
    TRANSPARENT: "Stored with transparency, shown on white: other readers drop it",
    TURNED: "Stored on its side or mirrored, shown upright: webdataset and Megatron-Energon leave it as it lies",
    LARGE: "A PNG with more text or a larger profile than Pillow opens by default: other readers fail on it",
}
"""Code -> what it says."""


def remarks(facts: ImageInfo) -> dict[str, str]:
    """Code -> what is true of this image, to follow the words "image 2"."""
    told = {
        "near_black": "is nearly black",
        "near_white": "is nearly white",
        DEEP: f"has {facts.mode} values, shown by the range {facts.value_range}; other readers clip them at 255",
        TRANSPARENT: "is transparent in places and shown on white; other readers drop the transparency",
        TURNED: f"is turned upright by its orientation {facts.orientation}; webdataset and Megatron-Energon do not",
        LARGE: "has more text or a larger profile than Pillow opens by default, so other readers fail on it",
    }
    return {code: told[code] for code in (facts.tone, *differences(facts)) if code is not None}
