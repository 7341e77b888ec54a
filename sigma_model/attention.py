"""Which token sees which, stated once, and attention under that rule on whatever hardware is there.

`visible` is the rule: BAGEL's, and SIGMA's group mask on top (arXiv 2602.07564, section 3), in
element-wise operations, so that the dense mask, the mask function of flex attention and the block mask
all come from it. The block mask is built from runs of like tokens: nothing of size N x N exists.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from enum import StrEnum
from functools import cache
from itertools import accumulate, pairwise
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from sigma_data.errors import ConfigError
from sigma_data.loading.batch import PackedBatch, Run, TokenTags

BLOCK = 128
"""Tokens a side of a block of flex attention."""


Integers = np.ndarray[Any, np.dtype[np.int64]]


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


def visible(q: TokenTags, k: TokenTags, *, group_mask: bool) -> Tensor:
    """Whether token q sees token k; the fields broadcast against one another.

    Inside a sample: a picture's tokens see one another, text is causal, both see all segments before
    theirs, but a noised target is seen by its own segment only. With the group mask an attribute
    token sees no reference picture's token of another group.
    """
    same = q.segment == k.segment
    inside = same & (q.image | (k.place <= q.place))
    before = (q.sample == k.sample) & (k.segment < q.segment) & ~k.noised
    if group_mask:
        before = before & ~(q.attribute & k.image & (q.group != k.group))
    return inside | before


def dense_mask(tags: TokenTags, *, group_mask: bool) -> Tensor:
    """Bool [N, N], True = row sees column: the oracle, and the mask of small sequences."""
    rows = TokenTags(*(field[:, None] for field in tags))
    columns = TokenTags(*(field[None, :] for field in tags))
    return visible(rows, columns, group_mask=group_mask)


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


def block_mask(runs: Sequence[Run], tags: TokenTags, *, group_mask: bool, block: int = BLOCK) -> BlockMask:
    """The block mask of flex attention, one for all heads, from runs of like tokens.

    For each sample, whether run q sees run k is one small table; how many pairs of tokens see one
    another in a block is that table between two counts of tokens a block and run. A block with some
    pairs is computed under `visible`, one with all pairs without a mask, one with none not at all.
    """
    tokens = int(tags.sample.shape[0])
    some, all_ = block_tables(runs, tokens, group_mask=group_mask, block=block)
    device = tags.sample.device
    part = some & ~all_
    kv, full_kv, q, full_q = (_ordered(chosen, device) for chosen in (part, all_, part.T, all_.T))

    def mask_mod(_batch: Tensor, _head: Tensor, q: Tensor, k: Tensor) -> Tensor:
        row, column = (TokenTags(*(field[i] for field in tags)) for i in (q, k))
        return visible(row, column, group_mask=group_mask)

    # `BlockMask.from_kv_blocks` would transpose the lists by itself, which takes longer than all else here.
    return BlockMask(
        seq_lengths=(tokens, tokens),
        kv_num_blocks=kv[0],
        kv_indices=kv[1],
        full_kv_num_blocks=full_kv[0],
        full_kv_indices=full_kv[1],
        q_num_blocks=q[0],
        q_indices=q[1],
        full_q_num_blocks=full_q[0],
        full_q_indices=full_q[1],
        BLOCK_SIZE=(block, block),
        mask_mod=mask_mod,
    )


def block_tables(
    runs: Sequence[Run], tokens: int, *, group_mask: bool, block: int = BLOCK
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """(some, all): bool [blocks, blocks], whether any or every pair of tokens in a block is visible.

    Tokens that pad the last block to its size see nothing and are not counted.
    """
    blocks = -(-tokens // block)
    pairs = np.zeros((blocks, blocks), np.float32)  # exact: at most block * block < 2^24
    table = np.array(runs, dtype=np.int64).reshape(-1, len(Run._fields))
    table = table[np.lexsort((table[:, 0], table[:, 2]))]
    text = table[:, 4] == 0
    _add_causal(pairs, table[text, 0], table[text, 1], block)
    borders = np.flatnonzero(np.diff(table[:, 2], prepend=-1, append=np.iinfo(np.int64).max))
    for first, last in pairwise(borders):
        start, stop, _, segment, image, noised, attribute, group = table[first:last].T
        before = (segment[None, :] < segment[:, None]) & (noised[None, :] == 0)
        if group_mask:
            before &= ~((attribute[:, None] == 1) & (image[None, :] == 1) & (group[:, None] != group[None, :]))
        # A text's runs are in order: an earlier run of it is wholly visible, itself it sees causally.
        inside = (image[:, None] == 1) | (start[None, :] < start[:, None])
        sees = before | ((segment[None, :] == segment[:, None]) & inside)
        touched = _touched(start // block, (stop - 1) // block, blocks)
        edges = touched[:, None] * block
        overlap = np.minimum(edges + block, stop[None, :]) - np.maximum(edges, start[None, :])
        counts = np.maximum(overlap, 0).astype(np.float32)
        pairs[np.ix_(touched, touched)] += counts @ sees.astype(np.float32) @ counts.T
    sizes = np.full(blocks, block, np.float32)
    if blocks:
        sizes[-1] = tokens - (blocks - 1) * block
    return pairs > 0, (pairs == sizes[:, None] * sizes[None, :]) & (pairs > 0)


def _touched(first: Integers, last: Integers, blocks: int) -> Integers:
    """The blocks that runs lie in, from the first and the last block of each."""
    depth = np.zeros(blocks + 1, np.int64)
    np.add.at(depth, first, 1)
    np.add.at(depth, last + 1, -1)
    return np.flatnonzero(depth.cumsum()[:-1])


def _add_causal(pairs: np.ndarray[Any, Any], start: Integers, stop: Integers, block: int) -> None:
    """Count the pairs (q, k) with k <= q inside each run of text, block by block."""
    first, last = start // block, (stop - 1) // block
    inside = first == last
    length = stop - start
    np.add.at(pairs, (first[inside], first[inside]), (length * (length + 1) / 2)[inside].astype(np.float32))
    for begin, end in zip(start[~inside].tolist(), stop[~inside].tolist(), strict=True):
        edges = np.arange(begin // block, (end - 1) // block + 1) * block
        part = np.minimum(edges + block, end) - np.maximum(edges, begin)
        square = np.tril(part[:, None] * part[None, :], -1).astype(np.float32)
        square[np.diag_indices(len(part))] = part * (part + 1) / 2
        pairs[np.ix_(edges // block, edges // block)] += square


def _ordered(chosen: np.ndarray[Any, Any], device: torch.device) -> tuple[Tensor, Tensor]:
    """(count [1, 1, blocks], indices [1, 1, blocks, blocks]) of the chosen columns, in order, first."""
    order = np.argsort(~chosen, axis=1, kind="stable").astype(np.int32)
    count = chosen.sum(1, dtype=np.int32)
    return torch.from_numpy(count)[None, None].to(device), torch.from_numpy(order)[None, None].to(device)
