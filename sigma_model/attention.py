"""Attention under the visibility rule of `attention_mask`, on whatever hardware is there."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from enum import StrEnum
from functools import cache
from itertools import accumulate
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from sigma_data.errors import ConfigError
from sigma_data.loading.batch import PackedBatch, TokenTags
from sigma_model.attention_mask import block_mask, dense_mask


class Backend(StrEnum):
    """Who computes attention.

    AUTO takes flex on a GPU and sdpa elsewhere, and flash-attn on a GPU where it is installed and no mask
    is needed: ViT patches, and sampling from a cache. FLEX and SDPA do without flash-attn; FLASH insists
    on it, and takes what AUTO takes under a mask.
    """

    AUTO = "auto"
    FLEX = "flex"
    SDPA = "sdpa"
    FLASH = "flash"


class Attention(Protocol):
    """Attention as a layer sees it: [N, H, Dh], [N, K, Dh], [N, K, Dh] -> [N, H, Dh]."""

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor: ...


def attention_for(batch: PackedBatch, *, group_mask: bool, backend: Backend = Backend.AUTO) -> Attention:
    """Attention over a training batch. Raises ConfigError where a backend cannot do it."""
    on_gpu = batch.positions.is_cuda
    if backend in (Backend.AUTO, Backend.FLASH):
        backend = Backend.FLEX if on_gpu else Backend.SDPA
    if backend is Backend.FLEX and not on_gpu and torch.is_grad_enabled():
        raise ConfigError("flex attention has no backward pass on a CPU: use attention=sdpa, or auto")
    if backend is Backend.FLEX and batch.tokens:
        return FlexAttention(block_mask(batch.runs, batch.tags, group_mask=group_mask))
    return SdpaAttention(batch.spans, batch.tags, group_mask=group_mask)


class SdpaAttention:
    """PyTorch's own attention, sample by sample: samples never see one another.

    The masks take the sum of the samples' lengths squared, not the batch's length squared.
    """

    def __init__(self, spans: Sequence[tuple[int, int, int, int]], tags: TokenTags, *, group_mask: bool) -> None:
        # All samples' understanding tokens, one sample behind another, then all their generation tokens.
        self._lengths = [end - start for start, end, _, _ in spans] + [last - first for _, _, first, last in spans]
        self._masks = []
        for und, und_end, gen, gen_end in spans:
            part = TokenTags(*(torch.cat((field[und:und_end], field[gen:gen_end])) for field in tags))
            # Four dimensions: with three, PyTorch's CPU attention misses its fast kernel.
            self._masks.append(dense_mask(part, group_mask=group_mask)[None, None])

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attend within each sample."""
        if not self._masks:  # no tokens; q, k and v still get gradients, of zero
            return q + 0 * (k.sum() + v.sum())
        # Split, not sliced: the gradient of each slice would be a tensor of the whole batch.
        parts = [x.split(self._lengths) for x in (q, k, v)]
        count = len(self._masks)
        und, gen = [], []
        for number, mask in enumerate(self._masks):
            mine = [torch.cat((of[number], of[count + number])).transpose(0, 1)[None] for of in parts]
            out = F.scaled_dot_product_attention(mine[0], mine[1], mine[2], attn_mask=mask, enable_gqa=True)[0]
            und_part, gen_part = out.transpose(0, 1).split((self._lengths[number], self._lengths[count + number]))
            und.append(und_part)
            gen.append(gen_part)
        return torch.cat((*und, *gen))


class FlexAttention:
    """Flex attention under a block mask; compiled on a GPU."""

    def __init__(self, mask: BlockMask) -> None:
        self._mask = mask

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attend within the batch."""
        attend: Any = _compiled_flex() if q.is_cuda else flex_attention
        q, k, v = (x.transpose(0, 1)[None] for x in (q, k, v))
        out: Tensor = attend(q, k, v, block_mask=self._mask, enable_gqa=True)
        return out[0].transpose(0, 1)


@cache
def _compiled_flex() -> Callable[..., Any]:
    # Dynamic: packs differ in length, and past a few recompilations the eager fallback would be N x N.
    return torch.compile(flex_attention, dynamic=True)


class FullAttention:
    """Attention without a mask inside each of several sequences.

    The queries [sum q_lengths, H, Dh] lie one sequence behind another; a sequence's keys and values are
    a span [first, last) of k and v [tokens, K, Dh]. flash-attn does all at once where it is installed
    and the tensors are its kind; else each sequence goes by itself. Raises ConfigError where the backend
    is FLASH and flash-attn cannot serve.
    """

    def __init__(
        self,
        q_lengths: Sequence[int],
        k_spans: Sequence[tuple[int, int]],
        *,
        device: torch.device | str,
        backend: Backend = Backend.AUTO,
    ) -> None:
        self._q_lengths = list(q_lengths)
        self._k_spans = list(k_spans)
        self._k_lengths = [last - first for first, last in k_spans]
        wanted = backend in (Backend.AUTO, Backend.FLASH)
        self._flash = wanted and torch.device(device).type == "cuda" and flash_available()
        if backend is Backend.FLASH and not self._flash:
            raise ConfigError("flash-attn needs a GPU, and its package installed: use attention=auto")
        if self._flash:  # here and not in the call, which must not wait for the device
            self._ends = [
                torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, device=device)
                for lengths in (self._q_lengths, self._k_lengths)
            ]

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attend; returns the shape of q."""
        if not self._q_lengths:  # no tokens; q, k and v still get gradients, of zero
            return q + 0 * (k.sum() + v.sum())
        if self._flash and q.dtype in (torch.float16, torch.bfloat16):
            return self._by_flash(q, k, v)
        out = []
        for mine in zip(q.split(self._q_lengths), self._of_each(k), self._of_each(v), strict=True):
            queries, keys, values = (x.transpose(0, 1)[None] for x in mine)
            out.append(F.scaled_dot_product_attention(queries, keys, values, enable_gqa=True)[0].transpose(0, 1))
        return torch.cat(out) if len(out) != 1 else out[0]

    def _of_each(self, x: Tensor) -> Sequence[Tensor]:
        """Each sequence's keys or values."""
        if self._k_spans == spans_of(self._k_lengths) and self._k_spans[-1][1] == len(x):
            # The gradient of each slice would be a tensor of all sequences.
            parts: tuple[Tensor, ...] = x.split(self._k_lengths)
            return parts
        return [x[first:last] for first, last in self._k_spans]

    def _by_flash(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        from flash_attn import flash_attn_varlen_func

        if spans_of(self._k_lengths) == self._k_spans:
            k, v = k[: self._k_spans[-1][1]], v[: self._k_spans[-1][1]]
        else:
            k, v = (torch.cat([x[first:last] for first, last in self._k_spans]) for x in (k, v))
        out: Tensor = flash_attn_varlen_func(
            q, k, v, *self._ends, max(self._q_lengths), max(self._k_lengths), causal=False
        )
        return out


class MaskedAttention:
    """Attention inside each of several sequences under a mask [n, n] of its own, or None: all see all."""

    def __init__(self, lengths: Sequence[int], masks: Sequence[Tensor | None]) -> None:
        self._lengths = list(lengths)
        self._masks = [None if mask is None else mask[None, None] for mask in masks]

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attend; returns the shape of q."""
        out = []
        parts = (x.split(self._lengths) for x in (q, k, v))
        for mask, *mine in zip(self._masks, *parts, strict=True):
            queries, keys, values = (x.transpose(0, 1)[None] for x in mine)
            found = F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask, enable_gqa=True)
            out.append(found[0].transpose(0, 1))
        return torch.cat(out)


def spans_of(lengths: Sequence[int]) -> list[tuple[int, int]]:
    """[first, last) of sequences of these lengths, one behind another."""
    ends = list(accumulate(lengths))
    return [(end - length, end) for end, length in zip(ends, lengths, strict=True)]


@cache
def flash_available() -> bool:
    """Whether the flash-attn package is there and loads: one built for another torch does not."""
    try:
        importlib.import_module("flash_attn")
    except (ImportError, OSError):
        return False
    return True
