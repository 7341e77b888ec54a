"""OmniGen2's transformer over a pack: text | references | target, bidirectional within each sample.

Text passes its refiner alone, each reference and each target theirs; then all of a sample attend to one another in
`layers`. The time modulates whatever belongs to a sample, its text and its references too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sigma_model.attention import Attention, Backend, FullAttention, MaskedAttention, spans_of
from sigma_model.omnigen2.config import MAX_REFERENCES, TransformerConfig
from sigma_model.omnigen2.pack import (
    DiffusionSample,
    Layout,
    Pack,
    group_mask,
    image_tokens,
    latents_of,
    lay_out,
    layout_of,
)

HEAD_NORM_EPS, FINAL_NORM_EPS = 1e-5, 1e-6
TIME_FEATURES = 256
THETA = 10000.0

Rotary = tuple[Tensor, Tensor]
"""Cosine and sine [n, 1, Dh / 2]."""

Record = Callable[[str, Tensor], None]
"""Called with a stage's name and its result."""


def rotary(positions: Tensor, widths: Sequence[int]) -> Rotary:
    """Cosine and sine of positions [n, 3] on three axes, one behind another along the head; from angles in float64."""
    parts = []
    for axis, width in enumerate(widths):
        steps = torch.arange(0, width, 2, dtype=torch.float64, device=positions.device) / width
        parts.append(positions[:, axis, None].double() * THETA**-steps)
    angles = torch.cat(parts, dim=-1)[:, None]
    return angles.cos().float(), angles.sin().float()


def rotate(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Turn [n, heads, Dh]; neighbours (2i, 2i + 1) are a pair. In float32, then back to the dtype of x."""
    first, second = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    turned = torch.stack((first * cosine - second * sine, first * sine + second * cosine), dim=-1)
    return turned.flatten(-2).to(x.dtype)


def time_features(time: Tensor, scale: float) -> Tensor:
    """Times [S] -> cosines, then sines [S, 256], float32."""
    half = TIME_FEATURES // 2
    steps = torch.arange(half, dtype=torch.float32, device=time.device)
    angles = (time.float() * scale)[:, None] * torch.exp(-math.log(THETA) / half * steps)
    return torch.cat((angles.cos(), angles.sin()), dim=-1)


class FeedForward(nn.Module):
    """SwiGLU without biases."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        width, inner = config.hidden_size, config.inner_width
        self.linear_1 = nn.Linear(width, inner, bias=False)
        self.linear_2 = nn.Linear(inner, width, bias=False)
        self.linear_3 = nn.Linear(width, inner, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.linear_2(F.silu(self.linear_1(x)) * self.linear_3(x))
        return out


class SelfAttention(nn.Module):
    """Attention with norms of queries and keys; key/value head j serves neighbouring query heads."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        width, dim = config.hidden_size, config.head_dim
        self.head_dim = dim
        self.to_q = nn.Linear(width, width, bias=False)
        self.to_k = nn.Linear(width, config.num_kv_heads * dim, bias=False)
        self.to_v = nn.Linear(width, config.num_kv_heads * dim, bias=False)
        self.norm_q = nn.RMSNorm(dim, eps=HEAD_NORM_EPS)
        self.norm_k = nn.RMSNorm(dim, eps=HEAD_NORM_EPS)
        self.to_out = nn.ModuleList([nn.Linear(width, width, bias=False)])

    def forward(self, x: Tensor, turn: Rotary, attend: Attention) -> Tensor:
        q, k, v = (linear(x).unflatten(-1, (-1, self.head_dim)) for linear in (self.to_q, self.to_k, self.to_v))
        attended = attend(rotate(self.norm_q(q), *turn), rotate(self.norm_k(k), *turn), v)
        out: Tensor = self.to_out[0](attended.flatten(-2))
        return out


class ModulatedNorm(nn.Module):
    """What the time makes of a block: RMS norm times (1 + scale), and three more scales and gates."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.linear = nn.Linear(config.time_width, 4 * config.hidden_size)
        self.norm = nn.RMSNorm(config.hidden_size, eps=config.norm_eps)

    def modulation(self, time: Tensor) -> tuple[Tensor, ...]:
        """[S, E] -> attention scale, attention gate, MLP scale, MLP gate, each [S, D]; the gates as tanh."""
        scale, gate, mlp_scale, mlp_gate = self.linear(F.silu(time)).chunk(4, dim=-1)
        return 1 + scale, gate.tanh(), 1 + mlp_scale, mlp_gate.tanh()

    def forward(self, x: Tensor, scale: Tensor) -> Tensor:
        out: Tensor = self.norm(x) * scale
        return out


class Block(nn.Module):
    """Attention, then an MLP, each between two norms; `modulated` by the time of the token's sample."""

    def __init__(self, config: TransformerConfig, *, modulated: bool) -> None:
        super().__init__()
        width, eps = config.hidden_size, config.norm_eps
        self.attn = SelfAttention(config)
        self.feed_forward = FeedForward(config)
        self.norm1 = ModulatedNorm(config) if modulated else nn.RMSNorm(width, eps=eps)
        self.norm2 = nn.RMSNorm(width, eps=eps)
        self.ffn_norm1 = nn.RMSNorm(width, eps=eps)
        self.ffn_norm2 = nn.RMSNorm(width, eps=eps)

    def forward(
        self, x: Tensor, turn: Rotary, attend: Attention, time: Tensor | None = None, owner: Tensor | None = None
    ) -> Tensor:
        """Tokens [n, D], the times [S, E] of the samples, and each token's sample [n] -> [n, D]."""
        if isinstance(self.norm1, ModulatedNorm):
            assert time is not None
            assert owner is not None
            scale, gate, mlp_scale, mlp_gate = (m.index_select(0, owner) for m in self.norm1.modulation(time))
            x = x + gate * self.norm2(self.attn(self.norm1(x, scale), turn, attend))
            brought: Tensor = mlp_gate * self.ffn_norm2(self.feed_forward(self.ffn_norm1(x) * mlp_scale))
        else:
            x = x + self.norm2(self.attn(self.norm1(x), turn, attend))
            brought = self.ffn_norm2(self.feed_forward(self.ffn_norm1(x)))
        return x + brought


class TimestepEmbedder(nn.Module):
    """Features of a time through two layers."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(TIME_FEATURES, width)
        self.linear_2 = nn.Linear(width, width)

    def forward(self, features: Tensor) -> Tensor:
        out: Tensor = self.linear_2(F.silu(self.linear_1(features.to(self.linear_1.weight.dtype))))
        return out


class TimeCaptionEmbedding(nn.Module):
    """The embedders of time and text."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.timestep_embedder = TimestepEmbedder(config.time_width)
        self.caption_embedder = nn.Sequential(
            nn.RMSNorm(config.text_feat_dim, eps=config.norm_eps), nn.Linear(config.text_feat_dim, config.hidden_size)
        )


class FinalLayer(nn.Module):
    """LayerNorm without weights, scaled by the time, to an image token's features."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(config.time_width, config.hidden_size)
        self.linear_2 = nn.Linear(config.hidden_size, config.out_features)

    def forward(self, x: Tensor, time: Tensor, owner: Tensor) -> Tensor:
        scale = 1 + self.linear_1(F.silu(time)).index_select(0, owner)
        normed = F.layer_norm(x, x.shape[-1:], eps=FINAL_NORM_EPS)
        out: Tensor = self.linear_2(normed * scale)
        return out


@dataclass(frozen=True)
class Frame:
    """What a pack's computation needs at every time: rotary angles and attention of each stage."""

    pack: Pack
    text_turn: Rotary
    reference_turn: Rotary
    target_turn: Rotary
    joint_turn: Rotary
    joint_owner: Tensor
    text_attention: Attention
    reference_attention: Attention
    target_attention: Attention
    joint_attention: Attention


class Omnigen2Transformer(nn.Module):
    """The diffusion transformer. A forward pass gives velocities; the parts are for samplers, which reuse some."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        width = config.hidden_size
        self.x_embedder = nn.Linear(config.features, width)
        self.ref_image_patch_embedder = nn.Linear(config.features, width)
        self.time_caption_embed = TimeCaptionEmbedding(config)
        self.noise_refiner = _blocks(config, config.num_refiner_layers)
        self.ref_image_refiner = _blocks(config, config.num_refiner_layers)
        self.context_refiner = _blocks(config, config.num_refiner_layers, modulated=False)
        self.layers = _blocks(config, config.num_layers)
        self.norm_out = FinalLayer(config)
        self.image_index_embedding = nn.Parameter(torch.zeros(MAX_REFERENCES, width))

    @property
    def device(self) -> torch.device:
        """Where the weights lie."""
        return self.x_embedder.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """What the weights are stored in."""
        return self.x_embedder.weight.dtype

    def forward(self, samples: Sequence[DiffusionSample], *, backend: Backend = Backend.AUTO) -> list[Tensor]:
        """Velocities [z, h, w] of the samples' targets, float32. Raises ConfigError for samples it cannot take."""
        frame = self.frame([layout_of(sample, self.config) for sample in samples], backend=backend)
        text = self.embed_text(torch.cat([sample.text.to(self.device) for sample in samples]), frame)
        references = image_tokens([one for sample in samples for one in sample.references], self.config, text)
        targets = image_tokens([sample.latent for sample in samples], self.config, text)
        time = self.embed_time(times_of(samples, self.device))
        refined = self.embed_images(references, targets, time, frame)
        joint = self.stack(frame.pack.joint_of(text, *refined), time, frame)
        return latents_of(self.head(joint, time, frame).float(), frame.pack.layouts, self.config)

    def frame(self, layouts: Sequence[Layout], *, backend: Backend = Backend.AUTO) -> Frame:
        """All that does not depend on what samples of these layouts show. Raises ConfigError as `lay_out` does."""
        pack = lay_out(layouts, self.config, device=self.device)
        widths = self.config.axes_dim_rope
        turns = [rotary(p, widths) for p in (pack.text_positions, pack.reference_positions, pack.target_positions)]
        cosine, sine = (pack.joint_of(*parts) for parts in zip(*turns, strict=True))

        def attention(lengths: Sequence[int]) -> Attention:
            return FullAttention(lengths, spans_of(lengths), device=self.device, backend=backend)

        return Frame(
            pack=pack,
            text_turn=turns[0],
            reference_turn=turns[1],
            target_turn=turns[2],
            joint_turn=(cosine, sine),
            joint_owner=pack.joint_of(pack.text_owner, pack.reference_owner, pack.target_owner),
            text_attention=attention(pack.text_lengths),
            reference_attention=attention(pack.reference_lengths),
            target_attention=attention(pack.target_lengths),
            joint_attention=self._joint_attention(pack, backend),
        )

    def _joint_attention(self, pack: Pack, backend: Backend) -> Attention:
        masks = [group_mask(layout, self.device) for layout in pack.layouts]
        if all(mask is None for mask in masks):
            return FullAttention(pack.lengths, spans_of(pack.lengths), device=self.device, backend=backend)
        return MaskedAttention(pack.lengths, masks)

    def embed_time(self, time: Tensor) -> Tensor:
        """[S] -> [S, E]."""
        features = time_features(time, self.config.timestep_scale)
        out: Tensor = self.time_caption_embed.timestep_embedder(features)
        return out

    def embed_text(self, states: Tensor, frame: Frame, record: Record | None = None) -> Tensor:
        """States of the language model [T, F] -> [T, D]; does not depend on the time."""
        text: Tensor = self.time_caption_embed.caption_embedder(states.to(self.dtype))
        _note(record, "text_embedded", text)
        for number, block in enumerate(self.context_refiner):
            text = block(text, frame.text_turn, frame.text_attention)
            _note(record, f"context_refiner.{number}", text)
        return text

    def embed_images(
        self, references: Tensor, targets: Tensor, time: Tensor, frame: Frame, record: Record | None = None
    ) -> tuple[Tensor, Tensor]:
        """Image tokens [R, features], [N, features] -> [R, D], [N, D]; each image alone."""
        pack = frame.pack
        x: Tensor = self.ref_image_patch_embedder(references.to(self.dtype))
        x = x + self.image_index_embedding.index_select(0, pack.reference_indices)
        _note(record, "references.embedded", x)
        for number, block in enumerate(self.ref_image_refiner):
            x = block(x, frame.reference_turn, frame.reference_attention, time, pack.reference_owner)
            _note(record, f"references.refiner.{number}", x)
        y: Tensor = self.x_embedder(targets.to(self.dtype))
        _note(record, "x_embedded", y)
        for number, block in enumerate(self.noise_refiner):
            y = block(y, frame.target_turn, frame.target_attention, time, pack.target_owner)
            _note(record, f"noise_refiner.{number}", y)
        return x, y

    def stack(self, joint: Tensor, time: Tensor, frame: Frame, record: Record | None = None) -> Tensor:
        """The main layers over the samples' whole sequences [M, D]."""
        for number, block in enumerate(self.layers):
            joint = block(joint, frame.joint_turn, frame.joint_attention, time, frame.joint_owner)
            _note(record, f"layers.{number}", joint)
        return joint

    def head(self, joint: Tensor, time: Tensor, frame: Frame) -> Tensor:
        """[M, D] -> velocities of the targets' tokens [N, features]."""
        rows = joint.index_select(0, frame.pack.joint_targets)
        out: Tensor = self.norm_out(rows, time, frame.pack.target_owner)
        return out


def times_of(samples: Sequence[DiffusionSample], device: torch.device) -> Tensor:
    """[S], float32 whatever the weights are: rounding a time to bfloat16 moves it by up to 0.002."""
    return torch.stack([torch.as_tensor(sample.time, dtype=torch.float32, device=device) for sample in samples])


def _blocks(config: TransformerConfig, count: int, *, modulated: bool = True) -> nn.ModuleList:
    return nn.ModuleList(Block(config, modulated=modulated) for _ in range(count))


def _note(record: Record | None, name: str, value: Tensor) -> None:
    if record is not None:
        record(name, value)
