"""The usual way to run two experts, to measure ours against: every step of a layer gathers and scatters.

Tokens stay in the order of their sequences. Each norm and projection makes an empty tensor of all
tokens and fills it at the indices of either expert; a sampler merges its cache with the new keys in
every layer of every step, and runs a forward pass for each branch of guidance.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sigma_data.loading.batch import PackedBatch, Specials, TokenTags
from sigma_data.loading.collate import collate, grid_places
from sigma_model.attention import Attention
from sigma_model.attention_mask import dense_mask
from sigma_model.backbone import Backbone
from sigma_model.embed import rotary, rotate
from sigma_model.experts import Layer, Rotary
from sigma_model.model import SigmaModel, widths
from sigma_model.sampling.cache import Cache, prefill
from sigma_model.sampling.context import Context
from sigma_model.sampling.guidance import combine
from sigma_model.sampling.sampler import Branches
from sigma_model.sampling.settings import Guidance


class Gathered:
    """Runs a backbone's weights over tokens in the order of their sequences."""

    def __init__(self, backbone: Backbone, und: Tensor, gen: Tensor) -> None:
        self._backbone = backbone
        self._und, self._gen = und, gen

    def __call__(self, x: Tensor, positions: Tensor, attend: Callable[[int], Attention]) -> Tensor:
        """[N, D], positions [N] -> [N, D] after the final norms."""
        config = self._backbone.config
        angles = rotary(positions, config.head_dim, config.rope_theta)
        cosine, sine = (angle.to(x.dtype) for angle in angles)
        for number, layer in enumerate(self._backbone.layers):
            assert isinstance(layer, Layer)
            x = self._layer(layer, x, (cosine, sine), attend(number))
        return self._both(self._backbone.norm_und, self._backbone.norm_gen, x)

    def _layer(self, layer: Layer, x: Tensor, angles: Rotary, attend: Attention) -> Tensor:
        und, gen, dim = layer.und, layer.gen, layer.und.head_dim
        normed = self._both(und.input_norm, gen.input_norm, x)
        q = self._both(und.q, gen.q, normed).unflatten(-1, (-1, dim))
        k = self._both(und.k, gen.k, normed).unflatten(-1, (-1, dim))
        v = self._both(und.v, gen.v, normed).unflatten(-1, (-1, dim))
        q = rotate(self._both(und.q_norm, gen.q_norm, q), *angles)
        k = rotate(self._both(und.k_norm, gen.k_norm, k), *angles)
        x = x + self._both(und.o, gen.o, attend(q, k, v).flatten(-2))
        return x + self._both(und.mlp, gen.mlp, self._both(und.post_norm, gen.post_norm, x))

    def _both(self, und: nn.Module, gen: nn.Module, x: Tensor) -> Tensor:
        """Each expert's module on its own tokens."""
        of_und, of_gen = und(x[self._und]), gen(x[self._gen])
        out = x.new_zeros((len(x), *of_und.shape[1:]))
        out[self._und] = of_und
        out[self._gen] = of_gen
        return out


class SequenceOrder:
    """A packed batch put back into the order of its sequences, with PyTorch's attention a sample."""

    def __init__(self, batch: PackedBatch, *, group_mask: bool) -> None:
        self.order = (batch.tags.sample.long() * batch.tokens + batch.tags.place).argsort()
        rank = self.order.argsort()
        self.und, self.gen = rank[: batch.n_und], rank[batch.n_und :]
        self.positions = batch.positions[self.order]
        self._lengths = [und_end - und + gen_end - gen for und, und_end, gen, gen_end in batch.spans]
        parts = zip(*(tag[self.order].split(self._lengths) for tag in batch.tags), strict=True)
        # Of four dimensions: with three, PyTorch's CPU attention takes its slow path.
        self._masks = [dense_mask(TokenTags(*part), group_mask=group_mask)[None, None] for part in parts]

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """PyTorch's attention, sample by sample."""
        out = []
        split = (x.transpose(0, 1)[None].split(self._lengths, 2) for x in (q, k, v))
        for q_of, k_of, v_of, mask in zip(*split, self._masks, strict=True):
            attended = F.scaled_dot_product_attention(q_of, k_of, v_of, attn_mask=mask, enable_gqa=True)
            out.append(attended[0].transpose(0, 1))
        return torch.cat(out)


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
