"""Where an image's token stands and how noisy it is: fixed 2-D tables, rotary angles, time features."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class Embedding(nn.Embedding):
    """A learnt table. On the meta device it draws nothing: that would import torch's compiler, which takes seconds."""

    def reset_parameters(self) -> None:
        """Standard normal numbers, where there is memory for them."""
        if not self.weight.is_meta:
            super().reset_parameters()


def sincos_table(grid: int, width: int) -> Tensor:
    """The fixed 2-D position table [grid * grid, width], float32.

    Half of the width encodes the column, then half the row; sine then cosine, base 10000.
    """
    if torch.get_default_device().type == "meta":
        return torch.empty(grid * grid, width)  # as for `Embedding`: arithmetic there would import the compiler
    half = width // 2
    omega = 10000.0 ** (-torch.arange(half // 2, dtype=torch.float64) / (half / 2))
    angles = torch.arange(grid, dtype=torch.float64)[:, None] * omega
    line = torch.cat((angles.sin(), angles.cos()), dim=1)  # [grid, half]
    columns = line[None].expand(grid, grid, half)
    rows = line[:, None].expand(grid, grid, half)
    return torch.cat((columns, rows), dim=-1).reshape(grid * grid, width).float()


def rotary(positions: Tensor, head_dim: int, theta: float) -> tuple[Tensor, Tensor]:
    """Cosine and sine [N, 1, Dh] of the rotary embedding at integer positions [N], float32."""
    steps = torch.arange(0, head_dim, 2, dtype=torch.float32, device=positions.device)
    angles = positions.float()[:, None] * theta ** (-steps / head_dim)
    angles = torch.cat((angles, angles), dim=-1)[:, None]
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Turn [N, heads, Dh] by its positions; the second half of a head pairs with the first."""
    first, second = x.chunk(2, dim=-1)
    return x * cosine + torch.cat((-second, first), dim=-1) * sine


def shifted_time(u: Tensor, shift: float) -> Tensor:
    """Noise level t in [0, 1] of draws u: t' = sigmoid(u), t = s t' / (1 + (s - 1) t')."""
    level = u.sigmoid()
    return shift * level / (1 + (shift - 1) * level)


class TimeEmbedder(nn.Module):
    """Noise level [I] -> [I, D]: 256 sinusoid features (cosine first, period up to 10000), two layers."""

    features = 256

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(self.features, width)
        self.fc2 = nn.Linear(width, width)

    def forward(self, level: Tensor) -> Tensor:
        half = self.features // 2
        steps = torch.arange(half, dtype=torch.float32, device=level.device)
        angles = level.float()[:, None] * torch.exp(-math.log(10000.0) / half * steps)
        features = torch.cat((angles.cos(), angles.sin()), dim=-1).to(self.fc1.weight.dtype)
        out: Tensor = self.fc2(nn.functional.silu(self.fc1(features)))
        return out
