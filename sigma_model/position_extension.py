"""A position table for latent grids past the released one: a rule, not a guess.

The released table is fixed: its row for (row, column) of a grid of side S is number row * S + column and holds the
sine-cosine code of both (`sincos_table`). So a larger grid has the same codes inside the old one, and further ones by
the same formula outside. A table that was learnt, as the vision encoder's, has no such rule.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sigma_data.errors import ConfigError
from sigma_model.embed import sincos_table

_ROUNDING = 2**-7
"""How far a stored code may be from the formula's: twice what bfloat16 rounds off numbers of up to 1."""


def extended_table(stored: Tensor, grid: int, *, where: str) -> Tensor:
    """The table [grid * grid, D], float32, of which `stored` [side * side, D] is the upper left part, to the bit.

    Raises ConfigError where `stored` is larger, is not square, or is not the fixed table.
    """
    side = math.isqrt(len(stored))
    if side * side != len(stored) or side > grid:
        raise ConfigError(f"{where}: the position table has {len(stored):,} rows, which is no part of {grid} x {grid}")
    if (sincos_table(side, stored.shape[1]) - stored.float()).abs().max() > _ROUNDING:
        raise ConfigError(
            f"{where}: the position table is not the fixed one of the release, so nothing is known past its "
            f"{side} x {side} places: leave model.max_latent_size out"
        )
    table = sincos_table(grid, stored.shape[1]).view(grid, grid, -1)
    table[:side, :side] = stored.float().view(side, side, -1)
    return table.view(grid * grid, -1)


def may_extend(stored: tuple[int, ...], wanted: torch.Size) -> bool:
    """Whether a stored table's shape is that of a smaller square grid of the same width."""
    side, larger = math.isqrt(stored[0]) if stored else 0, math.isqrt(wanted[0]) if wanted else 0
    return (
        len(stored) == len(wanted) == 2
        and stored[1] == wanted[1]
        and 0 < side < larger
        and (side * side, larger * larger) == (stored[0], wanted[0])
    )
