"""The sizes that the model takes images at: one rule, and its parameters for each use."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Integers = npt.NDArray[np.integer[Any]]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class ResizeRule:
    """How an image is resized for the model (golden: tests/golden/resize.json).

    Longest side at most `max_size`, then shortest at least `min_size`, both rounded to `stride`; at most `max_pixels`
    divided by the number of images of the sample; and finally no side longer than `max_size`.
    """

    max_size: int
    min_size: int
    stride: int
    max_pixels: int = 14 * 14 * 9 * 1024

    def size(self, width: int, height: int, *, images: int = 1) -> tuple[int, int]:
        """(width, height) in pixels after the rule."""
        scale = min(self.max_size / max(width, height), 1.0)
        scale = max(scale, self.min_size / min(width, height))
        new = self._scaled(width, height, scale)
        if new[0] * new[1] > self.max_pixels / images:
            new = self._scaled(*new, self.max_pixels / images / (new[0] * new[1]))
        if max(new) > self.max_size:
            new = self._scaled(*new, self.max_size / max(new))
        return new

    def sizes(self, widths: Integers, heights: Integers, images: Integers | int = 1) -> tuple[Integers, Integers]:
        """`size` of many images at once: widths and heights [n]."""
        scale = np.minimum(self.max_size / np.maximum(widths, heights), 1.0)
        scale = np.maximum(scale, self.min_size / np.minimum(widths, heights))
        width, height = self._all_scaled(widths, scale), self._all_scaled(heights, scale)
        # Sizes within the limits are scaled by 1, which changes nothing: their sides are multiples of stride.
        share, area = self.max_pixels / np.asarray(images), width * height
        scale = np.where(area > share, share / area, 1.0)
        width, height = self._all_scaled(width, scale), self._all_scaled(height, scale)
        longest = np.maximum(width, height)
        scale = np.where(longest > self.max_size, self.max_size / longest, 1.0)
        return self._all_scaled(width, scale), self._all_scaled(height, scale)

    def _all_scaled(self, sides: Integers, scale: Floats) -> Integers:
        # rint rounds halves to even, as Python's round does.
        fitted = np.rint(np.rint(sides * scale) / self.stride) * self.stride
        whole: Integers = np.maximum(self.stride, fitted).astype(np.int64)
        return whole

    def _scaled(self, width: int, height: int, scale: float) -> tuple[int, int]:
        return self._fit(round(width * scale)), self._fit(round(height * scale))

    def _fit(self, side: int) -> int:
        return max(self.stride, round(side / self.stride) * self.stride)


VAE_RULE = ResizeRule(max_size=1024, min_size=512, stride=16)
VIT_RULE = ResizeRule(max_size=518, min_size=224, stride=14)
VQA_RULE = ResizeRule(max_size=980, min_size=378, stride=14, max_pixels=2_007_040)
