"""Which token sees which, stated once: the dense mask, the block mask of flex attention, the count of visible pairs.

`visible` is the rule: BAGEL's, and SIGMA's group mask on top (arXiv 2602.07564, section 3), in element-wise
operations, so that all of these come from it. The block mask and the count are made from runs of like tokens:
nothing of size N x N exists.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from sigma_data.loading.batch import Run, TokenTags

BLOCK = 128
"""Tokens a side of a block of flex attention."""

Integers = np.ndarray[Any, np.dtype[np.int64]]
Booleans = np.ndarray[Any, np.dtype[np.bool_]]

_IMAGE = Run._fields.index("image")


def visible(q: TokenTags, k: TokenTags, *, group_mask: bool) -> Tensor:
    """Whether token q sees token k; the fields broadcast against one another.

    Inside a sample: an image's tokens see one another, text is causal, both see all segments before
    theirs, but a noised target is seen by its own segment only. With the group mask an attribute
    token sees no reference image's token of another group.
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
) -> tuple[Booleans, Booleans]:
    """(some, all): bool [blocks, blocks], whether any or every pair of tokens in a block is visible.

    Tokens that pad the last block to its size see nothing and are not counted.
    """
    blocks = -(-tokens // block)
    pairs = np.zeros((blocks, blocks), np.float32)  # exact: at most block * block < 2^24
    for table, sees in _visible_runs(runs, group_mask=group_mask):
        text = table[..., _IMAGE] == 0
        _add_causal(pairs, table[text, 0], table[text, 1], block)
        for (start, stop), visible_runs in zip(table[..., :2].transpose(0, 2, 1), sees, strict=True):
            touched = _touched(start // block, (stop - 1) // block, blocks)
            edges = touched[:, None] * block
            overlap = np.minimum(edges + block, stop[None, :]) - np.maximum(edges, start[None, :])
            counts = np.maximum(overlap, 0).astype(np.float32)
            pairs[np.ix_(touched, touched)] += counts @ visible_runs.astype(np.float32) @ counts.T
    sizes = np.full(blocks, block, np.float32)
    if blocks:
        sizes[-1] = tokens - (blocks - 1) * block
    return pairs > 0, (pairs == sizes[:, None] * sizes[None, :]) & (pairs > 0)


def visible_pairs(runs: Sequence[Run], *, group_mask: bool) -> int:
    """How many (query, key) pairs of tokens are visible: the sum of the dense mask, without the mask."""
    pairs = 0
    for table, sees in _visible_runs(runs, group_mask=group_mask):
        length = table[..., 1] - table[..., 0]
        text = length[table[..., _IMAGE] == 0]
        pairs += int((length[:, :, None] * length[:, None, :])[sees].sum() + (text * (text + 1) // 2).sum())
    return pairs


def _visible_runs(runs: Sequence[Run], *, group_mask: bool) -> Iterator[tuple[Integers, Booleans]]:
    """For all samples of R runs, S of them: their runs as rows [S, R, fields of Run], and which see which [S, R, R].

    A run of text sees itself causally; that is left out.
    """
    table = np.array(runs, dtype=np.int64).reshape(-1, len(Run._fields))
    table = table[np.lexsort((table[:, 0], table[:, 2]))]
    borders = np.flatnonzero(np.diff(table[:, 2], prepend=-1, append=np.iinfo(np.int64).max))
    counts = np.diff(borders)
    for count in np.unique(counts):
        rows = table[borders[:-1][counts == count, None] + np.arange(count)]
        start, _, sample, segment, *flags, group = torch.from_numpy(rows).unbind(-1)
        image, noised, attribute = (flag.bool() for flag in flags)
        # Runs of one text lie in its order, so that where they start will do for their place.
        tags = TokenTags(sample, segment, start, image, noised, attribute, group)
        queries, keys = (TokenTags(*(field.unsqueeze(axis) for field in tags)) for axis in (2, 1))
        itself = torch.eye(int(count), dtype=torch.bool) & ~image[:, :, None]
        yield rows, (visible(queries, keys, group_mask=group_mask) & ~itself).numpy()


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


def _ordered(chosen: Booleans, device: torch.device) -> tuple[Tensor, Tensor]:
    """(count [1, 1, blocks], indices [1, 1, blocks, blocks]) of the chosen columns, in order, first."""
    order = np.argsort(~chosen, axis=1, kind="stable").astype(np.int32)
    count = chosen.sum(1, dtype=np.int32)
    return torch.from_numpy(count)[None, None].to(device), torch.from_numpy(order)[None, None].to(device)
