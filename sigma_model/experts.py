"""One layer of the Mixture-of-Transformers: two experts with weights of their own, one attention.

Tokens come ordered by expert, so each expert sees a slice; only attention sees all of them.
"""

from __future__ import annotations

import contextlib

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sigma_model.attention import Attention
from sigma_model.config import LanguageConfig
from sigma_model.embed import rotate

Rotary = tuple[Tensor, Tensor]
"""Cosine and sine [n, 1, Dh]."""


class Mlp(nn.Module):
    """SwiGLU without biases."""

    def __init__(self, config: LanguageConfig) -> None:
        super().__init__()
        self.gate = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down(F.silu(self.gate(x)) * self.up(x))
        return out


class Expert(nn.Module):
    """The weights of one kind of token in one layer."""

    def __init__(self, config: LanguageConfig) -> None:
        super().__init__()
        width, dim, eps = config.hidden_size, config.head_dim, config.rms_norm_eps
        self.head_dim = dim
        self.input_norm = nn.RMSNorm(width, eps=eps)
        self.q = nn.Linear(width, config.num_attention_heads * dim)
        self.k = nn.Linear(width, config.num_key_value_heads * dim)
        self.v = nn.Linear(width, config.num_key_value_heads * dim)
        self.o = nn.Linear(config.num_attention_heads * dim, width, bias=False)
        self.q_norm = nn.RMSNorm(dim, eps=eps)
        self.k_norm = nn.RMSNorm(dim, eps=eps)
        self.post_norm = nn.RMSNorm(width, eps=eps)
        self.mlp = Mlp(config)

    def project(self, x: Tensor, rotary: Rotary) -> tuple[Tensor, Tensor, Tensor]:
        """[n, D] -> queries [n, H, Dh], keys and values [n, K, Dh]."""
        normed = self.input_norm(x)
        q, k, v = (linear(normed).unflatten(-1, (-1, self.head_dim)) for linear in (self.q, self.k, self.v))
        return rotate(self.q_norm(q), *rotary), rotate(self.k_norm(k), *rotary), v

    def finish(self, x: Tensor, attended: Tensor) -> Tensor:
        """Add what attention [n, H, Dh] brings, then the MLP's."""
        x = x + self.o(attended.flatten(-2))
        out: Tensor = x + self.mlp(self.post_norm(x))
        return out


class Layer(nn.Module):
    """Both experts around one attention.

    `rows` are the tokens of either expert whose output is wanted (None: all): after the last layer
    that is what carries a loss, and the rest of its work is left out. With `freeze_und` no gradient
    flows into or through the understanding expert, so it is not even recorded: its activations are not
    kept.
    """

    def __init__(self, config: LanguageConfig) -> None:
        super().__init__()
        self.und = Expert(config)
        self.gen = Expert(config)

    def forward(
        self,
        und: Tensor,
        gen: Tensor,
        und_rotary: Rotary,
        gen_rotary: Rotary,
        attend: Attention,
        freeze_und: bool = False,
        rows: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:
        with torch.no_grad() if freeze_und else contextlib.nullcontext():
            projected = self.und.project(und, und_rotary)
        q, k, v = (torch.cat(both) for both in zip(projected, self.gen.project(gen, gen_rotary), strict=True))
        attended = attend(q, k, v)
        of_und, of_gen = attended[: len(und)], attended[len(und) :]
        if rows is not None:
            und, of_und, gen, of_gen = und[rows[0]], of_und[rows[0]], gen[rows[1]], of_gen[rows[1]]
        with torch.no_grad() if freeze_und else contextlib.nullcontext():
            und_out = self.und.finish(und, of_und)
        return und_out, self.gen.finish(gen, of_gen)
