"""Canny edges in numpy, pixel for pixel as OpenCV's `Canny` gives them: the one definition of building and evaluation.

Sobel 3x3 with replicated borders, L1 norm, non-maximum suppression along the quantised gradient, hysteresis.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[np.uint8]
Edges = npt.NDArray[np.bool_]
_Integers = npt.NDArray[np.int32]

LOW, HIGH = 100, 200
"""The thresholds of evaluation, and those of conditions by default."""

_TAN_22 = 13573
"""tan(22.5 degrees) * 2 ** 15, rounded, as OpenCV has it; tan(67.5 degrees) is that plus 2."""


def canny(grey: Pixels, low: int, high: int) -> Edges:
    """Edge pixels of uint8 [h, w] as bool [h, w].

    An edge pixel is a maximum of the gradient's L1 norm across the edge, above `high`, or above `low` and joined
    to such a one by a chain of its like (8 neighbours).
    """
    across, down = _sobel(grey)
    norm = np.pad(np.abs(across) + np.abs(down), 1)  # outside the image there is no gradient
    peaks = _maxima(across, down, norm) & (norm[1:-1, 1:-1] > low)
    return _joined(peaks, peaks & (norm[1:-1, 1:-1] > high))


def _sobel(grey: Pixels) -> tuple[_Integers, _Integers]:
    """Derivatives along x and along y, int32 [h, w]."""
    padded = np.pad(grey.astype(np.int32), 1, mode="edge")
    smooth_rows = padded[:-2] + 2 * padded[1:-1] + padded[2:]
    smooth_columns = padded[:, :-2] + 2 * padded[:, 1:-1] + padded[:, 2:]
    return smooth_rows[:, 2:] - smooth_rows[:, :-2], smooth_columns[2:] - smooth_columns[:-2]


def _maxima(across: _Integers, down: _Integers, norm: _Integers) -> Edges:
    """Where the norm, padded by 1, is greatest across the edge; of two equal neighbours the first one counts."""
    middle = norm[1:-1, 1:-1]
    steep = np.abs(down).astype(np.int64) << 15
    shallow_limit = np.abs(across).astype(np.int64) * _TAN_22
    steep_limit = shallow_limit + (np.abs(across).astype(np.int64) << 16)
    level = (middle > norm[1:-1, :-2]) & (middle >= norm[1:-1, 2:])
    upright = (middle > norm[:-2, 1:-1]) & (middle >= norm[2:, 1:-1])
    falling = (middle > norm[:-2, :-2]) & (middle > norm[2:, 2:])
    rising = (middle > norm[:-2, 2:]) & (middle > norm[2:, :-2])
    slanted = np.where((across ^ down) < 0, rising, falling)
    return np.where(steep < shallow_limit, level, np.where(steep > steep_limit, upright, slanted))


def _joined(peaks: Edges, strong: Edges) -> Edges:
    """The strong pixels and all peaks that chains of peaks join to them: a flood from the strong ones."""
    waiting = np.pad(peaks & ~strong, 1)
    stride = waiting.shape[1]
    steps = np.array([-stride - 1, -stride, -stride + 1, -1, 1, stride - 1, stride, stride + 1])
    flat = waiting.ravel()
    front = np.flatnonzero(np.pad(strong, 1))
    while front.size:
        near = (front[:, None] + steps).ravel()
        front = np.unique(near[flat[near]])
        flat[front] = False
    return peaks & ~waiting[1:-1, 1:-1]
