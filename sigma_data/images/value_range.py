"""Deep images (16 or 32 bits a channel, integers or floats) scaled to the 8 bits that are shown and trained on.

Depth maps hold millimetres, metres or 0..1, photographs all 16 bits, and Pillow's own conversion clips them at 255.
The range follows from the values alone, so it is the same in every pass of a build, in training and in evaluation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import numpy.typing as npt
from PIL import Image

_ROWS = 256
"""Rows processed at a time, so that the float64 copy stays small."""

_MARKER_GAP = 3
"""An extreme value this many times farther away than the span of all others is a marker for "not measured": kept, it
would squeeze the others into a quarter of the range."""

_LEVELS = 16
"""Distinct values that must remain without the marker; fewer are labels, not measurements."""

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
    """The smallest value becomes black, the greatest white."""


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

    Ignores non-finite values, the transparent value and markers for "not measured" (an extreme value far from all
    others: 65535, 1e10, -9999). The remaining low..high is read as 0..1, 0..255 or 0..65535 if it lies inside, reaches
    the upper half and spans at least a quarter of that range; any other is scaled from low to high. An integer image of
    one value within 0..65535 is read as 0..65535. Raises NoRangeError if no range is left.
    """
    low, high = _ends(image)
    if low < high:
        low, high = _without_markers(image, low, high)
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
    """The finite, non-transparent values, flat, in pieces."""
    key = image.info.get("transparency")
    for values in _bands(image):
        counts = np.isfinite(values)
        if isinstance(key, int):
            counts &= values != key
        yield values[counts]


Keep = Callable[[npt.NDArray[np.float64]], npt.NDArray[np.bool_]]


def _ends(image: Image.Image, keep: Keep | None = None) -> tuple[float, float]:
    """The smallest and the greatest value; (inf, -inf) if there are none."""
    low, high = np.inf, -np.inf
    for values in _counted(image):
        kept = values if keep is None else values[keep(values)]
        if len(kept):
            low, high = min(low, float(kept.min())), max(high, float(kept.max()))
    return low, high


def _without_markers(image: Image.Image, low: float, high: float) -> tuple[float, float]:
    """The ends without markers for "not measured": one far above all others, one below 0 if no other is."""
    first, last = _ends(image, lambda values: (values > low) & (values < high))
    if first >= last:
        return low, high
    low_is_marker = low < 0 <= first and first - low > _MARKER_GAP * (last - first)
    start = first if low_is_marker else low
    high_is_marker = high - last > _MARKER_GAP * (last - start)
    end = last if high_is_marker else high
    if (start, end) == (low, high) or _levels(image, start, end) < _LEVELS:
        return low, high
    return start, end


def _levels(image: Image.Image, low: float, high: float) -> int:
    """How many of 256 equal steps between two values occur."""
    occurs = np.zeros(256, np.int64)
    for values in _counted(image):
        occurs += np.histogram(values, bins=256, range=(low, high))[0]
    return int(np.count_nonzero(occurs))
