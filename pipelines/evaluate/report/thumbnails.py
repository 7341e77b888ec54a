"""Small copies of many images within a fixed number of bytes: the more images, the smaller each.

What an image may weigh is what is left of the budget, shared over those to come; so it depends on the images
alone, and not on how many threads shrink them.
"""

from __future__ import annotations

import io
import os
from bisect import bisect_left
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from PIL import Image

from pipelines.evaluate.stored import Encoded, bytes_of
from sigma_data.images.decode import thumbnail

LONGEST_SIDE = 256
_LADDER = ((LONGEST_SIDE, 80), (224, 75), (192, 75), (160, 70), (128, 70), (104, 65), (80, 60), (56, 50))
"""Longest side and JPEG quality, from the best down."""
_STRETCH = 128


@dataclass(frozen=True)
class Thumbnail:
    """A small JPEG and its size; if there is none, `missing` says why."""

    data: bytes | None
    width: int = 0
    height: int = 0
    missing: str = ""


def thumbnails(images: Sequence[Encoded], budget: int) -> list[Thumbnail]:
    """A thumbnail an image, in order, `budget` bytes together at most.

    One that cannot be decoded, or for which nothing is left, has no data.
    """
    made: list[Thumbnail] = []
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for start in range(0, len(images), _STRETCH):
            share = budget // (len(images) - start)
            for thumb in pool.map(lambda data, share=share: _fit(data, share), images[start : start + _STRETCH]):
                if thumb.data is not None and len(thumb.data) > budget:
                    thumb = Thumbnail(None, missing="left out to keep the page small")
                budget -= len(thumb.data or b"")
                made.append(thumb)
    return made


def _fit(original: Encoded, share: int) -> Thumbnail:
    """The best step of the ladder that weighs no more than `share`, or the last."""
    first = thumbnail(bytes_of(original), LONGEST_SIDE, quality=90)  # smaller steps are made of it, so it is good
    if first is None:
        return Thumbnail(None, missing="cannot be decoded")

    def step(number: int) -> bytes:
        small = thumbnail(first, _LADDER[number][0], quality=_LADDER[number][1])
        assert small is not None  # we have just written it
        return small

    # Lower steps weigh less, so halving finds the step without trying all.
    best, last = 0, len(_LADDER) - 1
    small = step(best)
    if len(small) > share:
        best = 1 + bisect_left(range(1, last), True, key=lambda number: len(step(number)) <= share)
        small = step(best)
    with Image.open(io.BytesIO(small)) as image:
        return Thumbnail(small, *image.size)
