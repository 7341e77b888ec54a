"""The usual way to run two experts, to measure ours against: every step of a layer gathers and scatters.

Tokens stay in the order of their sequences. Each norm and projection makes an empty tensor of all
tokens and fills it at the indices of either expert; a sampler merges its cache with the new keys in
every layer of every step, and runs a forward pass for each branch of guidance. On a GPU attention is flex
attention under torch's own block mask, made anew for every pack.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, create_block_mask

from sigma_data.loading.batch import PackedBatch, Specials, TokenTags
from sigma_data.loading.collate import collate, grid_places
from sigma_model.attention import Attention, FlexAttention
from sigma_model.attention_mask import dense_mask, visible
from sigma_model.backbone import Backbone, same_for_all
from sigma_model.embed import rotary, rotate, shifted_time
from sigma_model.experts import Layer, Rotary
from sigma_model.model import SigmaModel, widths
from sigma_model.sampling.cache import Cache, prefill
from sigma_model.sampling.context import Context
from sigma_model.sampling.guidance import combine
from sigma_model.sampling.sampler import Branches
from sigma_model.sampling.settings import Guidance


class Gathered:
    """Runs a backbone's weights over tokens in the order of their sequences."""

    def __init__(self, backbone: Backbone, und: Tensor, gen: Tensor, *, installed: bool = False) -> None:
        self._backbone = backbone
        self._und, self._gen = und, gen
        self._installed = installed

    def __call__(self, x: Tensor, positions: Tensor, attend: Callable[[int], Attention]) -> Tensor:
        """[N, D], positions [N] -> [N, D] after the final norms."""
        config = self._backbone.config
        angles = rotary(positions, config.head_dim, config.rope_theta)
        cosine, sine = (angle.to(x.dtype) for angle in angles)
        for number, layer in enumerate(self._backbone.layers):
            inputs = x, (cosine, sine), attend(number), self._und, self._gen
            x = layer(*inputs) if self._installed else _layer(layer, *inputs)
        return _both(self._und, self._gen, self._backbone.norm_und, self._backbone.norm_gen, x)


def install_layers(backbone: Backbone) -> None:
    """Let the layers themselves run this way, so that what is hooked to them (sharding, recomputation) runs, too."""
    for layer in backbone.layers:
        layer.forward = partial(_layer, layer)


def _layer(layer: nn.Module, x: Tensor, angles: Rotary, attend: Attention, und: Tensor, gen: Tensor) -> Tensor:
    """[N, D] -> [N, D]; `und` and `gen` are the indices of either expert's tokens."""
    assert isinstance(layer, Layer)
    both = partial(_both, und, gen)
    of_und, of_gen, dim = layer.und, layer.gen, layer.und.head_dim
    normed = both(of_und.input_norm, of_gen.input_norm, x)
    q = both(of_und.q, of_gen.q, normed).unflatten(-1, (-1, dim))
    k = both(of_und.k, of_gen.k, normed).unflatten(-1, (-1, dim))
    v = both(of_und.v, of_gen.v, normed).unflatten(-1, (-1, dim))
    q = rotate(both(of_und.q_norm, of_gen.q_norm, q), *angles)
    k = rotate(both(of_und.k_norm, of_gen.k_norm, k), *angles)
    x = x + both(of_und.o, of_gen.o, attend(q, k, v).flatten(-2))
    return x + both(of_und.mlp, of_gen.mlp, both(of_und.post_norm, of_gen.post_norm, x))


def _both(und: Tensor, gen: Tensor, of_und: nn.Module, of_gen: nn.Module, x: Tensor) -> Tensor:
    """Each expert's module on its own tokens."""
    und_out, gen_out = of_und(x[und]), of_gen(x[gen])
    out = x.new_zeros((len(x), *und_out.shape[1:]))
    out[und] = und_out
    out[gen] = gen_out
    return out


class SequenceOrder:
    """A packed batch put back into the order of its sequences, with PyTorch's attention a sample."""

    attend: Attention

    def __init__(self, batch: PackedBatch, *, group_mask: bool) -> None:
        self._sort(batch)
        self.attend = self._by_sample
        self._lengths = [und_end - und + gen_end - gen for und, und_end, gen, gen_end in batch.spans]
        parts = zip(*(tag[self.order].split(self._lengths) for tag in batch.tags), strict=True)
        # Of four dimensions: with three, PyTorch's CPU attention takes its slow path.
        self._masks = [dense_mask(TokenTags(*part), group_mask=group_mask)[None, None] for part in parts]

    def _sort(self, batch: PackedBatch) -> None:
        self.order = (batch.tags.sample.long() * batch.tokens + batch.tags.place).argsort()
        rank = self.order.argsort()
        self.und, self.gen = rank[: batch.n_und], rank[batch.n_und :]
        self.positions = batch.positions[self.order]

    def _by_sample(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = []
        split = (x.transpose(0, 1)[None].split(self._lengths, 2) for x in (q, k, v))
        for q_of, k_of, v_of, mask in zip(*split, self._masks, strict=True):
            attended = F.scaled_dot_product_attention(q_of, k_of, v_of, attn_mask=mask, enable_gqa=True)
            out.append(attended[0].transpose(0, 1))
        return torch.cat(out)


class FlexOrder(SequenceOrder):
    """The same order for a GPU: flex attention over the whole batch, under torch's own block mask of the rule."""

    def __init__(self, batch: PackedBatch) -> None:
        self._sort(batch)
        tags = TokenTags(*(tag[self.order] for tag in batch.tags))

        def rule(_batch: Tensor, _head: Tensor, q: Tensor, k: Tensor) -> Tensor:
            row, column = (TokenTags(*(tag[i] for tag in tags)) for i in (q, k))
            return visible(row, column, group_mask=True)

        make: Any = _compiled_block_mask() if batch.positions.is_cuda else create_block_mask
        self.attend = FlexAttention(make(rule, None, None, batch.tokens, batch.tokens, device=batch.positions.device))


@cache
def _compiled_block_mask() -> Callable[..., BlockMask]:
    # Not compiled it would hold a table of all pairs of tokens.
    return torch.compile(create_block_mask)


def velocity_error(
    model: SigmaModel,
    batch: PackedBatch,
    latents: Tensor,
    *,
    order: Callable[[], SequenceOrder],
    installed: bool = False,
) -> Tensor:
    """Squared error [M_t, F] of the velocities: what `SigmaModel.forward` computes, in the order of the sequences.

    `latents` [M, F] are the clean ones. `order` is called in every pass, as every pack has its own. `installed`: the
    layers' own `forward` runs, which `install_layers` has replaced.
    """
    ordered = order()
    level = shifted_time(batch.u, 1.0)
    levels = torch.zeros(len(batch.latent_grids), device=latents.device).index_copy(0, batch.target_images, level)
    of_token = levels[batch.latent_image[batch.target_slots]][:, None]
    slots, noise, clean = batch.target_slots, batch.noise.float(), latents.float()
    noised = clean.index_copy(0, slots, (1 - of_token) * clean[slots] + of_token * noise)
    und, gen = model.embed(batch, noised, level)
    x = und.new_zeros(batch.tokens, und.shape[-1]).index_copy(0, ordered.und, und).index_copy(0, ordered.gen, gen)
    run = Gathered(model.backbone, ordered.und, ordered.gen, installed=installed)
    hidden = run(x, ordered.positions, same_for_all(ordered.attend))
    velocity = model.latent_out(hidden[ordered.gen[slots]]).float()
    of_text = model.lm_head(hidden[:0]).sum()  # no answers here; every rank must run, and reduce, the same parts
    error: Tensor = (velocity - (noise - clean[slots])) ** 2 + of_text
    return error


class MergingSampler:
    """Velocity of one request's target: a forward pass a branch, caches merged anew in every layer."""

    @torch.no_grad()
    def __init__(self, model: SigmaModel, contexts: Branches, specials: Specials, *, guidance: Guidance) -> None:
        self._guidance = guidance
        self._branches = [_Branch(model, context, specials) for context in contexts]

    @torch.no_grad()
    def velocity(self, x: Tensor, level: float) -> Tensor:
        """Guided velocity [tokens, F]; guidance is always on."""
        full, without_text, without_image = (branch.velocity(x, level) for branch in self._branches)
        return combine(full, without_text, without_image, self._guidance)


class _Branch:
    """One context, prefilled; keys and values [past, K, Dh] a layer."""

    def __init__(self, model: SigmaModel, context: Context, specials: Specials) -> None:
        self._model = model
        past = sum(segment.length for segment in context.prefix)
        cache = Cache(model.config.language, [past], dtype=model.dtype, device=model.device)
        if past:
            shown = type(context.item)(context.prefix, latents=context.item.latents, patches=context.item.patches)
            prefill(model, collate([shown], specials, widths(model.config)), cache, group_mask=True)
        self._past: Sequence[tuple[Tensor, Tensor]] = list(zip(cache.keys, cache.values, strict=True))
        tokens = context.answer.length
        self._past_index, self._new_index = torch.arange(past), torch.arange(past, past + tokens)
        self._und, self._gen = torch.tensor([0, tokens - 1]), torch.arange(1, tokens - 1)
        self._delimiters = torch.tensor([specials.image_start, specials.image_end])
        self._places = grid_places([context.answer.grid], model.config.latent.grid)
        self._positions = torch.full((tokens,), context.answer.position)
        self._run = Gathered(model.backbone, self._und, self._gen)

    def velocity(self, x: Tensor, level: float) -> Tensor:
        model = self._model
        time = model.time_embedder(torch.full((1,), level))
        x = x.to(model.dtype)
        tokens = x.new_zeros((len(x) + 2, model.config.language.hidden_size))
        tokens[self._und] = model.backbone.embed_tokens(self._delimiters)
        tokens[self._gen] = model.latent_in(x) + time + model.latent_positions[self._places]
        hidden = self._run(tokens, self._positions, self._attention)
        velocity: Tensor = model.latent_out(hidden[self._gen])
        return velocity.float()

    def _attention(self, layer: int) -> Attention:
        def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            merged = (self._merged(past, new) for past, new in zip(self._past[layer], (k, v), strict=True))
            queries, keys, values = (x.transpose(0, 1)[None] for x in (q, *merged))
            return F.scaled_dot_product_attention(queries, keys, values, enable_gqa=True)[0].transpose(0, 1)

        return attend

    def _merged(self, past: Tensor, new: Tensor) -> Tensor:
        merged = new.new_zeros((len(past) + len(new), *new.shape[1:]))
        merged[self._past_index] = past
        merged[self._new_index] = new
        return merged
