"""JPEGs decoded straight into an array, where simplejpeg is installed (extra `train`): Pillow's bytes in less time.

Pillow decodes into four bytes a pixel of its own, out of which NumPy's three are copied. Both call libjpeg-turbo, so
the pixels are the same; with a build of Pillow of which that is not so, the module stands aside.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

_SCAN, _END = b"\xff\xda", b"\xff\xd9"
"""The markers at which a scan begins and the image ends."""


def decoded(image: Image.Image, data: bytes) -> npt.NDArray[np.uint8] | None:
    """The pixels [h, w, 3] of an `image` whose header alone was read from `data`, as `np.array(image)` gives them.

    None where Pillow is to decode: another format or colour mode, no simplejpeg, or anything that it finds odd.
    """
    if image.format != "JPEG" or image.mode != "RGB" or "transparency" in image.info:
        return None
    reader = _reader()
    return None if reader is None else _pixels(reader, data, image.size)


def _pixels(reader: Any, data: bytes, size: tuple[int, int]) -> npt.NDArray[np.uint8] | None:
    try:
        height, width = reader.decode_jpeg_header(data)[:2]
        if (width, height) != size:  # Pillow checked its own header against the limit of pixels
            return None
        found: npt.NDArray[np.uint8] = reader.decode_jpeg(data, "RGB", fastdct=False, fastupsample=False)
    except Exception:  # ValueError for faults and warnings, KeyError for a subsampling without a name: Pillow judges
        return None
    return found


@cache
def _reader() -> Any:
    """The module, if it is there and gives Pillow's pixels; tried once a process."""
    try:
        import simplejpeg
    except Exception:  # not there, or built for another NumPy, which is a ValueError
        return None
    return simplejpeg if all(_agrees(simplejpeg, trial) for trial in _trials()) else None


def _agrees(reader: Any, data: bytes) -> bool:
    """Whether both read the same pixels."""
    image = Image.open(io.BytesIO(data), formats=("JPEG",))
    found = _pixels(reader, data, image.size)
    return found is not None and np.array_equal(found, np.array(image))


def _trials() -> Iterator[bytes]:
    """Small JPEGs of noise, of odd sides: those that releases of libjpeg-turbo, and other libraries, read differently.

    Of the first scan of a progressive one, 2.1 and 3.0 make other pixels.
    """
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (37, 51, 3), np.uint8))
    for subsampling in (0, 1, 2):
        for progressive in (False, True):
            buffer = io.BytesIO()
            noise.save(buffer, "JPEG", quality=90, subsampling=subsampling, progressive=progressive)
            data = buffer.getvalue()
            yield data[: data.index(_SCAN, data.index(_SCAN) + 2)] + _END if progressive else data
