"""The SigLIP encoder over packed patches: images of any size side by side, each attending to itself."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from sigma_data.loading.batch import unit_range
from sigma_model.attention import Attention, FullAttention, spans_of
from sigma_model.config import VisionConfig
from sigma_model.embed import Embedding


class VisionLayer(nn.Module):
    """A pre-norm transformer layer with full attention inside each image."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.heads = config.num_attention_heads
        self.norm1 = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.norm2 = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.q = nn.Linear(width, width)
        self.k = nn.Linear(width, width)
        self.v = nn.Linear(width, width)
        self.out = nn.Linear(width, width)
        self.fc1 = nn.Linear(width, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, width)

    def forward(self, x: Tensor, attend: Attention) -> Tensor:
        normed = self.norm1(x)
        q, k, v = (project(normed).unflatten(-1, (self.heads, -1)) for project in (self.q, self.k, self.v))
        x = x + self.out(attend(q, k, v).flatten(-2))
        out: Tensor = x + self.fc2(F.gelu(self.fc1(self.norm2(x)), approximate="tanh"))
        return out


class VisionEncoder(nn.Module):
    """Patches [P, patch * patch * 3] of images with grids (rows, columns) -> [P, width].

    Patches are bytes, or floats in [-1, 1].
    """

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.patch_embedding = nn.Linear(config.patch_size**2 * 3, config.hidden_size)
        self.position_embedding = Embedding(config.grid**2, config.hidden_size)
        self.layers = nn.ModuleList(VisionLayer(config) for _ in range(config.num_hidden_layers))
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, patches: Tensor, positions: Tensor, grids: Sequence[tuple[int, int]]) -> Tensor:
        """`positions` [P] index the table of learned positions."""
        lengths = [rows * columns for rows, columns in grids]
        attend = FullAttention(lengths, spans_of(lengths), device=patches.device)
        pixels = unit_range(patches).to(self.patch_embedding.weight.dtype)
        x = self.patch_embedding(pixels) + self.position_embedding(positions)
        for layer in self.layers:
            x = layer(x, attend)
        out: Tensor = self.norm(x)
        return out


class Connector(nn.Module):
    """ViT width -> D, in two layers."""

    def __init__(self, vision_width: int, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(vision_width, width)
        self.fc2 = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc2(F.gelu(self.fc1(x), approximate="tanh"))
        return out
