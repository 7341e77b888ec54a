"""The F1 of two edge maps."""

from __future__ import annotations

import numpy as np

from sigma_data.conditions.canny import Edges


def f1(found: Edges, wanted: Edges, *, tolerance: int = 0) -> float:
    """F1 of two edge maps [h, w]: harmonic mean of precision and recall, 1 where neither has an edge.

    A pixel is met where the other map has one no further than `tolerance` rows and columns away.
    """
    if not found.any() and not wanted.any():
        return 1.0
    if not found.any() or not wanted.any():
        return 0.0
    precision = float((found & _grown(wanted, tolerance)).sum() / found.sum())
    recall = float((wanted & _grown(found, tolerance)).sum() / wanted.sum())
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def _grown(edges: Edges, by: int) -> Edges:
    """The map with every pixel grown to a square of side 2 `by` + 1."""
    height, width = edges.shape
    padded = np.pad(edges, by)
    grown = np.zeros_like(edges)
    for row in range(2 * by + 1):
        for column in range(2 * by + 1):
            grown |= padded[row : row + height, column : column + width]
    return grown
