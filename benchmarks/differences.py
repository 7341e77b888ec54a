"""How far what we compute is from what a reference computed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

TOLERANCE = 1e-4
NORM_TOLERANCE = 1e-3
NORM_FLOOR = 1e-4


@dataclass(frozen=True)
class Difference:
    """The largest error of one array, and how large it may be."""

    name: str
    error: float
    tolerance: float

    @property
    def passes(self) -> bool:
        """NaN does not pass."""
        return self.error <= self.tolerance


def same(name: str, found: Tensor, expected: Tensor) -> Difference:
    """How many elements differ."""
    if found.shape != expected.shape:
        return Difference(f"{name}: shape {tuple(found.shape)}, not {tuple(expected.shape)}", float("inf"), 0.0)
    return Difference(name, float((found.to(expected.dtype) != expected).sum()), 0.0)


def error_of(name: str, found: Tensor, expected: Tensor) -> Difference:
    """The largest absolute error."""
    if found.shape != expected.shape:
        return Difference(f"{name}: shape {tuple(found.shape)}, not {tuple(expected.shape)}", float("inf"), TOLERANCE)
    return Difference(name, float((found.float() - expected.float()).abs().max()), TOLERANCE)


def norms_of(name: str, gradients: Mapping[str, Tensor | None], expected: Mapping[str, float]) -> Difference:
    """The largest relative error of a gradient norm; where zero is expected, the norm itself."""
    worst, at = 0.0, ""
    for parameter, norm in expected.items():
        gradient = gradients[parameter]
        found = float(gradient.norm()) if gradient is not None else 0.0
        # A key's bias in softmax attention without rotation has no gradient: its norm is rounding alone.
        error = abs(found - norm) / max(norm, NORM_FLOOR)
        error = float("inf") if math.isnan(error) else error
        if error > worst:
            worst, at = error, parameter
    if not expected:
        return Difference(f"{name}: none listed", float("inf"), NORM_TOLERANCE)
    missing = set(gradients) - set(expected)
    extra = sum(float(g.norm()) for n in missing if (g := gradients[n]) is not None)
    worst = float("inf") if extra > 0 else worst  # a gradient where the reference has none
    return Difference(f"{name} ({len(expected)}; worst {at}; unlisted sum {extra:.2g})", worst, NORM_TOLERANCE)
