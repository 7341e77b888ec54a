"""Encode images deterministically: every byte follows from pixels and colour profile."""

from __future__ import annotations

import io

from PIL import Image

from sigma_data.images.png_metadata import MAX_CHUNK

_MOST_PROFILE = {"JPEG": 255 * 65_519, "PNG": MAX_CHUNK - 1}
"""Largest colour profile in bytes that the format can hold and every reader accepts."""

_RGB_MODES = frozenset({"RGB", "RGBA", "RGBa", "RGBX", "P", "PA", "YCbCr"})


def rgb_profile(image: Image.Image) -> bytes | None:
    """The ICC profile of an opened image if it is valid for its pixels converted to RGB, else None.

    A profile for CMYK, grey or Lab is not, and the one Pillow makes of a converted Lab image holds the time of day.
    """
    profile = image.info.get("icc_profile")
    if image.mode not in _RGB_MODES or not isinstance(profile, bytes) or profile[16:20] != b"RGB ":
        return None
    return profile


def encode(image: Image.Image, kind: str, *, profile: bytes | None = None) -> bytes:
    """An RGB image as a PNG, or as a JPEG of quality 95 without chroma subsampling, with this ICC profile or none."""
    if profile is not None and len(profile) > _MOST_PROFILE[kind]:
        profile = None
    # Options left out are taken from `image.info`; a long comment beside a profile would not fit Pillow's buffer.
    options: dict[str, object] = {"quality": 95, "subsampling": 0, "comment": b""} if kind == "JPEG" else {}
    buffer = io.BytesIO()
    image.save(buffer, kind, icc_profile=profile, **options)
    return buffer.getvalue()
