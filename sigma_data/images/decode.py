"""Safe decoding of images given as bytes: validation, orientation, conversion to RGB.

`probe` decodes an image once, at the smallest scale that still reads every byte (a JPEG at an eighth of its size,
which still finds a truncated file), and returns its `ImageInfo`. Nothing here changes Pillow's global state.
"""

from __future__ import annotations

import hashlib
import io
import sys
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager

from PIL import Image

from sigma_data.images.decoder_output import captured_stderr
from sigma_data.images.encode import encode, rgb_profile
from sigma_data.images.fingerprint import GRID, signature
from sigma_data.images.formats import EXTENSIONS as EXTENSIONS
from sigma_data.images.formats import MEMBER_EXTENSIONS as MEMBER_EXTENSIONS
from sigma_data.images.formats import ImageFault as ImageFault
from sigma_data.images.formats import sniff as sniff
from sigma_data.images.image_info import ImageInfo
from sigma_data.images.near_blank import near_blank
from sigma_data.images.png_metadata import is_large, readable
from sigma_data.images.reader_differences import Store, is_transparent, stored_as_shown
from sigma_data.images.value_range import NoRangeError, is_deep, range_of, to_8bit

_MODES = frozenset((
    "1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "F", "I", "I;16", "I;16B", "I;16L",
))  # fmt: skip
"""Modes that webdataset, HF datasets and this module open; others are re-encoded."""

DEFAULT_MAX_PIXELS = 25_000_000
"""A 24-megapixel photograph fits; decoding a lossless WebP of this size takes 400 MB of memory."""

PILLOW_MAX_PIXELS = 178_956_970
"""Pillow itself refuses more than this."""

_PNG_END = b"IEND\xaeB`\x82"


def open_image(data: bytes | None, *, max_pixels: int = DEFAULT_MAX_PIXELS) -> Image.Image:
    """Read the header only; the pixels are decoded on first use.

    Raises ImageFault: `empty`, `wrong_type`, `truncated`, `undecodable`, or `bomb` where the header
    announces more than `max_pixels`, before any pixel is decoded.
    """
    name = sniff(data)
    assert data is not None
    _check_complete(data, name)
    try:
        with quiet():
            # MPO is a JPEG followed by more images; Pillow's JPEG reader knows it.
            image = Image.open(io.BytesIO(readable(data) if name == "PNG" else data), formats=(name,))
    except Image.DecompressionBombError:
        raise ImageFault("bomb", f"the header announces more than {PILLOW_MAX_PIXELS:,} pixels") from None
    except Exception as error:  # Pillow's readers raise whatever broken bytes make them raise
        raise fault_of(error) from None
    width, height = image.size
    if width * height > max_pixels:
        raise ImageFault(
            "bomb", f"the header announces {width} x {height} pixels, more than the limit of {max_pixels:,}"
        )
    return image


def probe(data: bytes | None, *, max_pixels: int = DEFAULT_MAX_PIXELS, sha256: str | None = None) -> ImageInfo:
    """Decode an image and describe it; `sha256` is that of the data, if known already.

    Raises ImageFault with one of the codes `empty`, `wrong_type`, `bomb`, `truncated`,
    `undecodable`, `no_range`.
    """
    image = open_image(data, max_pixels=max_pixels)
    assert data is not None
    mode = image.mode
    with quiet():
        turn = orientation_of(image)
        width, height = image.size
        blocks, small = _shrink(image, turn)
        found = range_of(image) if is_deep(mode) else None
    if turn >= 5:
        width, height = height, width
    return ImageInfo(
        format=str(image.format),
        mode=mode,
        width=width,
        height=height,
        size=len(data),
        sha256=sha256 or hashlib.sha256(data).hexdigest(),
        signature=signature(small),
        coarse=zlib.crc32(blocks.tobytes()),
        orientation=turn,
        value_range=found,
        near_blank=near_blank(blocks),
        transparent=is_transparent(image),
        large_metadata=image.format == "PNG" and is_large(data),
    )


def load(data: bytes | None, *, max_pixels: int = DEFAULT_MAX_PIXELS, at_least: int | None = None) -> Image.Image:
    """Decode the upright image as RGB: first frame, transparency on white, deep values scaled to 8 bits.

    With `at_least`, a JPEG may be decoded at a fraction of its size, both sides no shorter than this (for thumbnails).
    Raises ImageFault as `probe` does.
    """
    image = open_image(data, max_pixels=max_pixels)
    try:
        with quiet():
            turn = orientation_of(image)
            if at_least:
                image.draft(None, (at_least, at_least))
            image.load()
            return upright(to_rgb(image), turn)
    except ImageFault:
        raise
    except Exception as error:
        raise fault_of(error) from None


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert a decoded image to RGB: transparency composited on white, deep values by their `value_range`."""
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if is_deep(image.mode):
        return to_8bit(image).convert("RGB")
    if image.mode in ("RGBA", "RGBa", "LA", "La", "PA") or "transparency" in image.info:
        result = Image.new("RGB", image.size)
        for top, strip in _strips(image):
            strip.info = image.info  # the transparent colour, if any
            straight = strip.convert("RGBA")
            white = Image.new("RGBA", straight.size, (255, 255, 255, 255))
            result.paste(Image.alpha_composite(white, straight).convert("RGB"), (0, top))
        return result
    result = image.convert("RGB")
    if image.mode == "LAB":  # Pillow adds the profile it converted by, in which the time stands
        result.info.pop("icc_profile", None)
    return result


def reencode(
    data: bytes, info: ImageInfo, *, max_side: int | None, store: Store = "auto", mask: bool = False
) -> tuple[bytes, str] | None:
    """New bytes and the reason, where the image is not stored as it is; else None.

    Reasons: `mode` (a colour mode that not every reader supports), `max_side` (longer than the limit the user set), and
    those of `reader_differences.stored_as_shown`. A JPEG that is too long stays a JPEG, at quality 95; all else becomes
    PNG. An RGB image keeps its colour profile. A `mask`, whose colours are labels, is scaled by nearest neighbour to
    the size that an image of its size gets, and becomes PNG.
    """
    too_long = max_side is not None and max(info.width, info.height) > max_side
    reason = "max_side" if too_long else None if info.mode in _MODES else "mode"
    reason = reason or stored_as_shown(info, store)
    if reason is None:
        return None
    image = load(data, max_pixels=sys.maxsize)  # the limit was checked by `probe`
    if too_long and max_side is not None:
        image.thumbnail((max_side, max_side), Image.Resampling.NEAREST if mask else Image.Resampling.LANCZOS)
    profile = rgb_profile(open_image(data, max_pixels=sys.maxsize))
    kind = "JPEG" if too_long and not mask and info.format in ("JPEG", "MPO") else "PNG"
    return encode(image, kind, profile=profile), reason


def thumbnail(data: bytes | None, side: int, *, quality: int = 80) -> bytes | None:
    """A small JPEG of the image, `side` pixels at most; None if it cannot be decoded."""
    try:
        image = open_image(data)
        with quiet():
            turn = orientation_of(image)
            small = upright(_reduced(image, side)[0], turn)
    except ImageFault:
        return None
    small.thumbnail((side, side), Image.Resampling.BILINEAR)
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def same_pixels(first: bytes, second: bytes) -> bool:
    """Whether two encoded images, both probed before, have exactly the same upright RGB pixels."""
    return first == second or _pixel_digest(first) == _pixel_digest(second)


def _pixel_digest(data: bytes) -> tuple[tuple[int, int], bytes]:
    """Size and SHA-256 of the pixels, so that two large images are never held at once."""
    image = load(data, max_pixels=sys.maxsize)
    digest = hashlib.sha256()
    for _, strip in _strips(image):
        digest.update(strip.tobytes())
    return image.size, digest.digest()


def _strips(image: Image.Image) -> Iterator[tuple[int, Image.Image]]:
    """Strips of 256 rows with the index of their first row, so that copies stay small."""
    for top in range(0, image.height, 256):
        yield top, image.crop((0, top, image.width, min(top + 256, image.height)))


@contextmanager
def quiet() -> Iterator[None]:
    """Hide warnings of Pillow and its libraries about odd but legal metadata."""
    with warnings.catch_warnings(), captured_stderr():
        warnings.simplefilter("ignore")
        yield


def _check_complete(data: bytes, name: str) -> None:
    """Raise ImageFault `truncated` for files whose missing end the decoder would not notice."""
    if name == "PNG" and _PNG_END not in data:
        raise ImageFault("truncated", "the PNG ends before its last chunk")
    if name == "WEBP" and int.from_bytes(data[4:8], "little") + 8 > len(data):
        announced = int.from_bytes(data[4:8], "little") + 8
        raise ImageFault("truncated", f"the WebP announces {announced:,} bytes and has {len(data):,}")


def fault_of(error: Exception) -> ImageFault:
    """The ImageFault for an exception of a decoder."""
    if isinstance(error, NoRangeError):
        return ImageFault("no_range", str(error))
    text = " ".join(str(error).split())[:200] or type(error).__name__
    if notes := " ".join(" ".join(getattr(error, "__notes__", ())).split())[:200]:
        text = f"{text}; {notes}"  # what a C library printed
    low = text.lower()
    if "truncated" in low or "unexpected end" in low or "not enough" in low:
        return ImageFault("truncated", f"the image ends too early ({text})")
    if "bytesio" in low:  # Pillow's message has a memory address, which must not get into a manifest
        text = "no reader understands it"
    return ImageFault("undecodable", f"the image cannot be decoded ({text})")


_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def orientation_of(image: Image.Image) -> int:
    """The orientation 1..8 that Pillow's `ImageOps.exif_transpose`, and so HF `datasets`, applies.

    Read from EXIF, XMP or the texts of a PNG, which may follow its pixels, so anything but a JPEG is decoded here.
    1 for a TIFF (Pillow decodes it upright) and for broken EXIF. Raises ImageFault where decoding fails.
    """
    if image.format not in ("JPEG", "MPO"):  # a JPEG's header has it, and a JPEG may yet be decoded smaller
        try:
            with quiet():
                image.load()
        except Exception as error:
            raise fault_of(error) from None
    try:
        turn = image.getexif().get(0x0112, 1)
    except Exception:
        return 1
    return next((known for known in _TRANSPOSE if turn == known), 1)


def upright(image: Image.Image, turn: int) -> Image.Image:
    """Apply the EXIF orientation `turn`, 1..8."""
    return image.transpose(_TRANSPOSE[turn]) if turn in _TRANSPOSE else image


def _reduced(image: Image.Image, least: int) -> tuple[Image.Image, tuple[float, float]]:
    """Decode and shrink by whole blocks, to no less than `least` on the short side; RGB, orientation not applied.

    A JPEG is decoded at a fraction of its size, which still reads every byte. Anything else is decoded in full and
    shrunk before compositing, so that a large image is copied at most once. Also returns the (width, height) of the
    result that the image covers: the last block may be partial.
    """
    try:
        drafted = image.draft(None, (least, least))
        width, height = drafted[1][2:] if drafted else image.size
        image.load()
        block = max(1, min(image.size) // (2 * least))
        if is_deep(image.mode):
            image = to_rgb(image)
        elif "transparency" in image.info or image.mode in ("PA", "La", "RGBa"):
            image = image.convert("RGBA")
        elif image.mode not in ("L", "RGB", "RGBA", "LA"):
            image = image.convert("RGB")
        small = to_rgb(image.reduce(block) if block > 1 else image)
    except Exception as error:  # as in open_image
        raise fault_of(error) from None
    return small, (width / block, height / block)


def _shrink(image: Image.Image, turn: int) -> tuple[Image.Image, Image.Image]:
    """The image shrunk by blocks, orientation not applied, and its upright GRID x GRID thumbnail."""
    blocks, covered = _reduced(image, GRID)
    small = blocks.resize((GRID, GRID), Image.Resampling.BILINEAR, box=(0, 0, *covered))
    return blocks, upright(small, turn)
