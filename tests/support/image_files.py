"""Images and their files: whoever needs one, sound or broken, takes it from here."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
from PIL import Image

KINDS = ("jpeg", "png", "webp", "gif", "bmp", "tiff")


def smooth(seed: int, width: int = 80, height: int = 64) -> Image.Image:
    """A smooth colourful image; different seeds give images that are not nearly identical."""
    coarse = np.random.default_rng(seed).integers(0, 256, (9, 9, 3), dtype=np.uint8)
    return Image.fromarray(coarse, "RGB").resize((width, height), Image.Resampling.BICUBIC)


def image_bytes(
    kind: str = "jpeg", seed: int = 0, *, width: int = 80, height: int = 64, mode: str = "RGB", **save: Any
) -> bytes:
    """A file of a format of `KINDS`."""
    image = smooth(seed, width, height)
    return encoded(image if mode == "RGB" else image.convert(mode), kind, **save)


def encoded(image: Image.Image | np.ndarray, kind: str = "png", **save: Any) -> bytes:
    """The bytes of a file of an image or of an array of pixels."""
    buffer = io.BytesIO()
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(buffer, kind.upper(), **save)
    return buffer.getvalue()


def plain(width: int = 64, height: int = 48, colour: str | tuple[int, ...] = "#336699", kind: str = "png") -> bytes:
    """A file of an image of one colour."""
    return encoded(Image.new("RGB", (width, height), colour), kind)


def huge_png(width: int, height: int) -> bytes:
    """A valid all-black one-channel PNG of any size; 30,000 x 30,000 takes less than a megabyte."""
    # One flushed block of zeros, repeated; the checksum of n zero bytes is (n mod 65521, 1).
    total = (width + 1) * height
    packer = zlib.compressobj(9, wbits=-15)
    block = packer.compress(bytes(2**22)) + packer.flush(zlib.Z_FULL_FLUSH)
    last = zlib.compressobj(9, wbits=-15)
    tail = last.compress(bytes(total % 2**22)) + last.flush()
    data = b"\x78\xda" + block * (total // 2**22) + tail + struct.pack(">I", (total % 65521) << 16 | 1)
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + png_chunk(b"IDAT", data) + png_chunk(b"IEND", b"")


def png_chunk(name: bytes, content: bytes) -> bytes:
    """A chunk of a PNG with its checksum."""
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def mutated(data: bytes, generator: np.random.Generator, *, times: int = 1) -> bytes:
    """The data after `times` random byte changes: flips, runs of noise, cuts, insertions, doublings."""
    result = bytearray(data)
    for _ in range(times):
        place = int(generator.integers(0, max(1, len(result))))
        # The first bytes decide most, so every third change falls there.
        place = place % 64 if generator.integers(3) == 0 and result else place
        length = int(generator.integers(1, 65))
        match int(generator.integers(0, 6)):
            case 0 if result:
                result[place] ^= 1 << int(generator.integers(8))
            case 1 if result:
                result[place] = int(generator.choice([0, 1, 0x7F, 0x80, 0xFF]))
            case 2:
                result[place : place + length] = generator.bytes(length)
            case 3:
                del result[place:]
            case 4:
                del result[place : place + length]
            case _:
                result[place:place] = result[place : place + length]
    return bytes(result)
