"""Arithmetic of shards: which samples share one, and where each of them and each member starts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray

from sigma_data.corpus.shard import BLOCK, END

Integers = NDArray[np.int64]


@dataclass(frozen=True)
class Shard:
    """A shard to be written: path inside the corpus, samples, members, bytes."""

    path: str
    samples: int
    members: int
    size: int


def place(
    split: pl.Series, family: pl.Series, size: Integers, images: NDArray[np.uint16], *, shard_bytes: int,
    shard_samples: int,
) -> tuple[tuple[Shard, ...], dict[str, pl.Series]]:  # fmt: skip
    """Cut ordered samples into shards by split and family.

    Returns the shards and three columns: shard (its place among them), index in the shard, and offset.
    """
    ends = np.concatenate([[0], np.cumsum(size, dtype=np.int64)])
    members = np.concatenate([[0], np.cumsum(images, dtype=np.int64)])
    shards: list[Shard] = []
    first: list[int] = []
    group = pl.DataFrame({"split": split, "family": family}).with_row_index("at")
    kinds = group.group_by("split", "family", maintain_order=True).agg(pl.col("at").min(), pl.len())
    for name, kind, start, count in kinds.iter_rows():
        begin, stop, number = start, start + count, 0
        while begin < stop:
            full = int(np.searchsorted(ends, ends[begin] + shard_bytes - len(END), "right")) - 1
            end = min(max(full, begin + 1), begin + shard_samples, stop)
            path = f"{name}/{kind}-{number:05d}.tar"
            here = int(members[end] - members[begin]) + end - begin
            shards.append(Shard(path, end - begin, here, int(ends[end] - ends[begin]) + len(END)))
            first.append(begin)
            begin, number = end, number + 1
    counts = [shard.samples for shard in shards]
    starts = np.repeat(np.array(first, dtype=np.int64), counts)
    return tuple(shards), {
        "shard": pl.Series(np.repeat(np.arange(len(shards), dtype=np.int32), counts)),
        "index": pl.Series((np.arange(len(size)) - starts).astype(np.int32)),
        "offset": pl.Series(ends[:-1] - ends[starts]),
    }


def with_offsets(table: pa.Table) -> pa.Table:
    """A table with `offset`, `json_size` and `images`, and where the JSON and each image start in the shard."""
    table = table.combine_chunks()
    images = table.column("images").combine_chunks()
    images = images.chunk(0) if isinstance(images, pa.ChunkedArray) else images
    counts = images.value_lengths().fill_null(0).to_numpy(zero_copy_only=False)
    entries = images.flatten()
    sizes = _member_sizes(entries.field("size").to_numpy(zero_copy_only=False))
    offset = table.column("offset").to_numpy()
    begin = offset + _member_sizes(table.column("json_size").to_numpy()) + BLOCK
    before = np.cumsum(sizes) - sizes
    first = np.cumsum(counts) - counts
    shift = np.zeros(len(counts), dtype=np.int64)
    some = counts > 0
    shift[some] = begin[some] - before[first[some]]
    parts = [entries.field(place) for place in range(entries.type.num_fields)]
    names = [field.name for field in entries.type]
    parts[names.index("offset")] = pa.array(before + np.repeat(shift, counts), pa.int64())
    ends = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    changed = pa.ListArray.from_arrays(ends, pa.StructArray.from_arrays(parts, fields=list(entries.type)))
    table = table.set_column(table.column_names.index("images"), "images", changed)
    where = table.column_names.index("json_offset") if "json_offset" in table.column_names else len(table.column_names)
    if where < len(table.column_names):
        return table.set_column(where, "json_offset", pa.array(offset + BLOCK, pa.int64()))
    return table.append_column("json_offset", pa.array(offset + BLOCK, pa.int64()))


def _member_sizes(sizes: Integers) -> Integers:
    """`sigma_data.corpus.shard.member_size` of each."""
    return BLOCK - (-sizes // BLOCK) * BLOCK
