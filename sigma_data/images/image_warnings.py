"""Warnings about valid images, by code, for manifest, report and dataset card."""

from __future__ import annotations

from sigma_data.images.image_info import ImageInfo
from sigma_data.images.reader_differences import DEEP, LARGE, TRANSPARENT, TURNED, differences

IMAGE_WARNINGS: dict[str, str] = {
    "near_black": "At least 98 % of the image is darker than level 16 of 255, with nothing light on it",
    "near_white": "At least 98 % of the image is at level 240 of 255 or lighter, with nothing dark on it",
    DEEP: "Stored with more than 8 bits a value: other readers clip it at 255",
    TRANSPARENT: "Stored with transparency, shown on white: other readers drop it",
    TURNED: "Stored rotated or mirrored, shown upright: webdataset and Megatron-Energon ignore the orientation",
    LARGE: "A PNG with more text or a larger profile than Pillow opens by default: other readers fail on it",
}
"""Code -> summary."""


def image_warnings(info: ImageInfo) -> dict[str, str]:
    """Code -> message about this image, to follow the words "image 2"."""
    messages = {
        "near_black": "is nearly black",
        "near_white": "is nearly white",
        DEEP: f"has {info.mode} values, shown by the range {info.value_range}; other readers clip them at 255",
        TRANSPARENT: "is transparent in places and shown on white; other readers drop the transparency",
        TURNED: f"is turned upright by its orientation {info.orientation}; webdataset and Megatron-Energon do not",
        LARGE: "has more text or a larger profile than Pillow opens by default, so other readers fail on it",
    }
    return {code: messages[code] for code in (info.near_blank, *differences(info)) if code is not None}
