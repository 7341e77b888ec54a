"""Keys and values of a prefix, written once: static buffers, and attention that reads and extends them.

Sequences lie one behind another in one buffer a layer, each with room for what comes after its prefix,
so nothing is ever merged or copied again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from sigma_data.loading.batch import PackedBatch
from sigma_model.attention import Attention, Backend, FullAttention, attention_for
from sigma_model.config import LanguageConfig
from sigma_model.model import SigmaModel


class Cache:
    """Buffers [slots, K, Dh] a layer; sequence s owns `capacities[s]` slots from `starts[s]` on."""

    def __init__(
        self, config: LanguageConfig, capacities: Sequence[int], *, dtype: torch.dtype, device: torch.device | str
    ) -> None:
        self.starts = [sum(capacities[:index]) for index in range(len(capacities))]
        shape = (sum(capacities), config.num_key_value_heads, config.head_dim)
        layers = range(config.num_hidden_layers)
        self.keys = [torch.zeros(shape, dtype=dtype, device=device) for _ in layers]
        self.values = [torch.zeros(shape, dtype=dtype, device=device) for _ in layers]

    def write(self, layer: int, slots: Tensor, k: Tensor, v: Tensor) -> None:
        """Put keys and values [n, K, Dh] into slots [n]."""
        self.keys[layer].index_copy_(0, slots, k)
        self.values[layer].index_copy_(0, slots, v)


def prefill(
    model: SigmaModel,
    batch: PackedBatch,
    cache: Cache,
    *,
    group_mask: bool,
    backend: Backend = Backend.AUTO,
) -> None:
    """Run prefixes, a sample a sequence of the cache, in one forward pass under the training mask.

    All that the batch shows is clean. Its latents are in `known_latents`. Of the last layer only the
    keys and values are computed: nothing reads what it would put out.
    """
    und, gen = model.embed(batch, model.clean_latents(batch, batch.known_latents), batch.u)
    starts = torch.tensor(cache.starts, device=batch.positions.device)
    slots = starts[batch.tags.sample.long()] + batch.tags.place
    inner = attention_for(batch, group_mask=group_mask, backend=backend)
    last = len(cache.keys) - 1

    def attend(layer: int) -> Attention:
        def record(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            cache.write(layer, slots, k, v)
            return q if layer == last else inner(q, k, v)

        return record

    none = torch.zeros(0, dtype=torch.long, device=batch.positions.device)
    model.backbone(und, gen, batch.positions, attend, rows=(none, none))


def cached_attention(
    cache: Cache,
    slots: Tensor,
    order: Tensor,
    q_lengths: Sequence[int],
    k_spans: Sequence[tuple[int, int]],
    *,
    backend: Backend = Backend.AUTO,
) -> Callable[[int], Attention]:
    """Attention of new tokens to their sequence's prefix and to one another, without a mask.

    `slots` [n] is where each new token's key goes, `order` [n] lists the new tokens sequence by
    sequence, `q_lengths` of them each; `k_spans` are the slots that each sequence sees.
    """
    back = order.argsort()
    full = FullAttention(q_lengths, k_spans, device=order.device, backend=backend)

    def attend(layer: int) -> Attention:
        def read(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            cache.write(layer, slots, k, v)
            return full(q[order], cache.keys[layer], cache.values[layer])[back]

        return read

    return attend
