"""Measurements on pixels for the world: colour distances on a coarse grid, silhouettes, best shifts.

Everything is measured on GRID x GRID cell means, so that fine grain (halftone dots, an autoencoder's blur) counts
for nothing and images of any size compare. Letters: G = GRID.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from sigma_data.synthetic.scene import Thing
from sigma_data.synthetic.shapes import parts

GRID = 32
"""Cells along a side."""

_FINE = 4
"""Silhouettes are drawn this many times finer than the grid."""

Grid = npt.NDArray[np.float64]

_TO_XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
)
_WHITE = _TO_XYZ.sum(axis=1)


def lab(rgb: npt.NDArray[Any]) -> Grid:
    """SRGB 0..255 [..., 3] -> CIELAB [..., 3] under D65 (IEC 61966-2-1, CIE 15)."""
    value = np.asarray(rgb, dtype=np.float64) / 255
    linear = np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)
    xyz = linear @ _TO_XYZ.T / _WHITE
    f = np.where(xyz > 216 / 24389, np.cbrt(xyz), (24389 / 27 * xyz + 16) / 116)
    return np.stack([116 * f[..., 1] - 16, 500 * (f[..., 0] - f[..., 1]), 200 * (f[..., 1] - f[..., 2])], axis=-1)


def cells(image: Image.Image) -> Grid:
    """The mean colour of every cell of an image stretched over the grid, CIELAB [G, G, 3]."""
    return lab(np.asarray(image.convert("RGB").resize((GRID, GRID), Image.Resampling.BOX)))


def distance(one: Grid, other: Grid) -> Grid:
    """Colour differences CIE 1976 of CIELAB [..., 3] -> [...]; 2.3 is just to be seen, 100 is black and white."""
    difference: Grid = np.sqrt(((one - other) ** 2).sum(axis=-1))
    return difference


def mean(values: Grid, weights: Grid) -> float:
    """The weighted mean of values [G, G]; weights must not all be 0."""
    return float((values * weights).sum() / weights.sum())


def silhouettes(things: Sequence[Thing]) -> tuple[list[Grid], Grid]:
    """What of each cell every thing covers and is to be seen of it, and what is left to the background; [G, G]."""
    free = np.ones((GRID, GRID))
    visible: list[Grid] = []
    for thing in reversed(things):  # the last is in front
        cover = _cover(thing)
        visible.append(cover * free)
        free = free * (1 - cover)
    return visible[::-1], free


def _cover(thing: Thing) -> Grid:
    side = GRID * _FINE
    mask = Image.new("L", (side, side))
    draw = ImageDraw.Draw(mask)
    for part in parts(thing):
        points = [(float(x), float(y)) for x, y in part.points * side]
        draw.polygon(points, fill=0 if part.role == "hole" else 255)
    return np.asarray(mask.reduce(_FINE), dtype=np.float64) / 255


def shift(output: Grid, answer: Grid, cover: Grid) -> float:
    """How far from its place in the answer a thing is found in the output, in sides of the image.

    The thing and the ring of cells around it are cut out of the answer [G, G, 3] by its silhouette `cover` [G, G]
    and laid over the output wherever the thing stays inside; the place of least colour distance counts. Where
    several places are equally good, e.g. in an output of one colour, their mean distance counts.
    """
    rows, columns = np.nonzero(cover > 0.1)
    top, bottom, left, right = rows.min(), rows.max() + 3, columns.min(), columns.max() + 3  # with the ring, padded
    edge = ((1, 1), (1, 1), (0, 0))
    padded, template = np.pad(output, edge, mode="edge"), np.pad(answer, edge, mode="edge")[top:bottom, left:right]
    held = np.pad(cover > 0.1, 1)
    ring = held.copy()
    for axis in (0, 1):
        ring = ring | np.roll(ring, 1, axis) | np.roll(ring, -1, axis)
    weights = ring[top:bottom, left:right].astype(np.float64)
    windows = np.lib.stride_tricks.sliding_window_view(padded, template.shape[:2], axis=(0, 1))  # [y, x, 3, h, w]
    costs = distance(windows.transpose(0, 1, 3, 4, 2), template)
    cost = (costs * weights).sum(axis=(2, 3)) / weights.sum()
    away = np.hypot(np.arange(cost.shape[0])[:, None] - top, np.arange(cost.shape[1]) - left) / GRID
    return float(away[cost <= cost.min() + 1e-9].mean())
