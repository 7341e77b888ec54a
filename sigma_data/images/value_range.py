"""Deep images: 16 and 32 bits a pixel, whole numbers or floats, as the 8 bits that are shown and trained on.

Depth maps hold millimetres, metres or 0..1, photographs the whole of 16 bits, and Pillow's own conversion
clips all of them at 255. Here the values decide, and nothing else: the same bytes give the same range in
every pass of a build, in training and in evaluation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import numpy.typing as npt
from PIL import Image

_ROWS = 256
"""Rows worked on at a time, so that a copy in float64 stays small."""

_MARK_GAP = 3
"""An end value this many times farther away than all others span is a mark, no measurement: left in, it would
press the others into a quarter of the range."""

_LEVELS = 16
"""Values that must be left without a mark; fewer are labels, not measurements."""

_UNSIGNED = 1  # TIFF's SampleFormat
_SAMPLE_FORMAT = 339


class Rule(StrEnum):
    """How a deep image becomes 8 bits."""

    UNIT = "unit"
    """0..1, times 255."""
    FULL_8BIT = "full_8bit"
    """0..255, as they are."""
    FULL_16BIT = "full_16bit"
    """0..65535, the high byte."""
    MIN_MAX = "min_max"
    """The least value becomes black, the greatest white."""


@dataclass(frozen=True)
class ValueRange:
    """The values of a deep image that become 0 and 255, and the rule that chose them."""

    rule: Rule
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.low:g}..{self.high:g} ({self.rule})"


class NoRangeError(ValueError):
    """A deep image without two different finite values that could become black and white."""


def is_deep(mode: str) -> bool:
    """Whether images of this Pillow mode have more than 8 bits a channel."""
    return mode == "F" or mode.startswith("I")


def range_of(image: Image.Image) -> ValueRange:
    """The range of a decoded deep image.

    Non-finite values and the transparent one do not count, nor does an end value that stands alone far from the
    others (65535, 1e10, -9999 where nothing was measured). What is left, low..high, is read as 0..1, 0..255 or
    0..65535 where it lies inside, reaches the upper half and spans at least a quarter of that range; any other is
    scaled from low to high. A whole-number image of one value within 0..65535 has no range of its own and is
    read as 0..65535. Raises NoRangeError where no range is left.
    """
    low, high = _ends(image)
    if low < high:
        low, high = _without_marks(image, low, high)
        for rule, top in ((Rule.UNIT, 1.0), (Rule.FULL_8BIT, 255.0), (Rule.FULL_16BIT, 65535.0)):
            if low >= 0 and top / 2 < high <= top and high - low >= top / 4:
                return ValueRange(rule, 0.0, top)
        return ValueRange(Rule.MIN_MAX, low + 0.0, high + 0.0)  # no -0.0
    if image.mode != "F" and (low > high or 0 <= low <= 65535):
        return ValueRange(Rule.FULL_16BIT, 0.0, 65535.0)
    what = "has no finite value" if low > high else f"is {low:g} all over"
    raise NoRangeError(f"the deep image (mode {image.mode}) {what}, so there is no range to show it by")


def to_8bit(image: Image.Image) -> Image.Image:
    """A decoded deep image as mode L, by its `range_of`; a transparent value is white, NaN black.

    Values beyond the range are clipped to it. Raises NoRangeError as `range_of` does.
    """
    found = range_of(image)
    key = image.info.get("transparency")
    result = np.empty((image.height, image.width), np.uint8)
    row = 0
    for values in _bands(image):
        if found.rule is Rule.FULL_16BIT:
            shown = np.floor(values / 256)
        else:
            shown = np.rint((values - found.low) * (255 / (found.high - found.low)))
        shown = np.nan_to_num(shown, nan=0.0, posinf=255.0, neginf=0.0).clip(0, 255)
        if isinstance(key, int):
            shown[values == key] = 255
        result[row : row + len(values)] = shown
        row += len(values)
    return Image.fromarray(result, "L")


def _bands(image: Image.Image) -> Iterator[npt.NDArray[np.float64]]:
    """The values in pieces of `_ROWS` rows."""
    values = np.asarray(image)
    if values.dtype == np.int32 and getattr(image, "tag_v2", {}).get(_SAMPLE_FORMAT) == (_UNSIGNED,):
        values = values.view(np.uint32)  # Pillow reads these bits as signed, which puts the upper half below 0
    for top in range(0, image.height, _ROWS):
        yield values[top : top + _ROWS].astype(np.float64)


def _counted(image: Image.Image) -> Iterator[npt.NDArray[np.float64]]:
    """The values that count, flat, in pieces: finite, and not transparent."""
    key = image.info.get("transparency")
    for values in _bands(image):
        counts = np.isfinite(values)
        if isinstance(key, int):
            counts &= values != key
        yield values[counts]


Keep = Callable[[npt.NDArray[np.float64]], npt.NDArray[np.bool_]]


def _ends(image: Image.Image, keep: Keep | None = None) -> tuple[float, float]:
    """The least and the greatest value; (inf, -inf) where there is none."""
    low, high = np.inf, -np.inf
    for values in _counted(image):
        kept = values if keep is None else values[keep(values)]
        if len(kept):
            low, high = min(low, float(kept.min())), max(high, float(kept.max()))
    return low, high


def _without_marks(image: Image.Image, low: float, high: float) -> tuple[float, float]:
    """The ends without those that mark what was not measured: one far above, one below 0 where no other is."""
    first, last = _ends(image, lambda values: (values > low) & (values < high))
    if first >= last:
        return low, high
    marked_low = low < 0 <= first and first - low > _MARK_GAP * (last - first)
    start = first if marked_low else low
    marked_high = high - last > _MARK_GAP * (last - start)
    end = last if marked_high else high
    if (start, end) == (low, high) or _levels(image, start, end) < _LEVELS:
        return low, high
    return start, end


def _levels(image: Image.Image, low: float, high: float) -> int:
    """How many of 256 equal steps between two values occur."""
    occurs = np.zeros(256, np.int64)
    for values in _counted(image):
        occurs += np.histogram(values, bins=256, range=(low, high))[0]
    return int(np.count_nonzero(occurs))
