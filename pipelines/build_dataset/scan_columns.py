"""What the plan needs of the scan files: a few narrow columns in memory; texts, records and images stay on disk.

Digests stand as 16 of their 32 bytes, families and sources as numbers, and of an image that many samples share the
signature is held once.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipelines.build_dataset.scan import FILTERED, OK
from sigma_data.corpus.refused_files import RefusedFile
from sigma_data.images.fingerprint import SIGNATURE_BYTES
from sigma_data.sample import Family
from sigma_data.storage.paths import literal

FAMILY = pl.Enum([family.value for family in Family])
_BATCH = 8192
_FILES = 64
"""Scan files whose rows are narrowed at a time: a small file's rows take less than their frame."""
_COLUMNS = (
    "status", "id", "family", "source", "size", "json_size", "content", "text", "json_sha256", "old_split",
    "code", "message", "location", "row",
    "images.list.element.number", "images.list.element.sha256",
)  # fmt: skip


@dataclass(frozen=True)
class Digests:
    """The first 16 bytes of [n] digests, as two numbers each."""

    high: NDArray[np.uint64]
    low: NDArray[np.uint64]

    def __len__(self) -> int:
        return len(self.high)

    def __getitem__(self, places: Any) -> Digests:
        return Digests(self.high[places], self.low[places])

    def joined(self, *others: Digests) -> Digests:
        """These and the others behind them."""
        parts = (self, *others)
        return Digests(np.concatenate([one.high for one in parts]), np.concatenate([one.low for one in parts]))

    def first_equal(self) -> NDArray[np.int64]:
        """[n] the place of the first one that is equal."""
        order = np.argsort(self.high, kind="stable")
        high, low = self.high[order], self.low[order]
        alike = high[1:] == high[:-1]
        if (alike & (low[1:] != low[:-1])).any():
            order = np.lexsort((self.low, self.high))
            high, low = self.high[order], self.low[order]
            alike = (high[1:] == high[:-1]) & (low[1:] == low[:-1])
        starts = np.flatnonzero(np.concatenate([np.ones(min(1, len(order)), dtype=bool), ~alike]))
        first = np.empty(len(order), dtype=np.int64)
        first[order] = np.repeat(order[starts], np.diff(np.append(starts, len(order))))
        return first


@dataclass(frozen=True)
class ScanImages:
    """All images of the good rows, in their order, [I] each; `image` counts the different ones, [U]."""

    sample: NDArray[np.uint32]
    number: NDArray[np.int16]
    image: NDArray[np.uint32]
    sha256: Digests
    """Of each different image."""
    signatures: NDArray[np.uint8]
    """[U, 86]"""

    def of(self, kept: NDArray[np.bool_]) -> ScanImages:
        """The images of some samples, which are numbered anew."""
        place = np.cumsum(kept, dtype=np.uint32) - np.uint32(1)
        mine = kept[self.sample]
        there = np.zeros(len(self.signatures), dtype=bool)
        there[self.image[mine]] = True
        code = np.cumsum(there, dtype=np.uint32) - np.uint32(1)
        signatures = self.signatures if there.all() else self.signatures[there]
        return ScanImages(
            place[self.sample[mine]], self.number[mine], code[self.image[mine]], self.sha256[there], signatures
        )


@dataclass
class ScanColumns:
    """The good rows [n] of the scan files, and what is counted of the others.

    `rows` has for each good row: order (its place among all records), fragment, position, id, family, source,
    old_split, size, json_size, images (their number).
    """

    rows: pl.DataFrame
    content: Digests
    text: Digests
    json: NDArray[np.uint64]
    images: ScanImages
    read: int
    codes: Counter[tuple[str, bool]] = field(default_factory=Counter)
    """(code, whether it is filtered) -> records that the scan or an earlier write pass did not take."""
    first: tuple[int, str] | None = None
    """Order and message of the first of these."""
    refused: list[RefusedFile] = field(default_factory=list)


def read_columns(scans: Sequence[Path], unstable: dict[int, dict[int, str]]) -> ScanColumns:
    """The columns of the scan files; `unstable` are positions by fragment that count as rejected, with the reason."""
    counts = [pq.ParquetFile(literal(path)).metadata.num_rows for path in scans]
    starts = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
    found = ScanColumns(pl.DataFrame(), *_EMPTY, read=int(starts[-1]))
    parts: list[_Part] = []
    refused: Counter[tuple[str, str, str, str]] = Counter()
    tables = [_no_rows()]
    for fragment, path in enumerate(scans):
        position = 0
        for batch in _batches(path, _COLUMNS):
            order = int(starts[fragment]) + position
            good = _good(batch, position, unstable.get(fragment, {}), order, found, refused)
            places = np.flatnonzero(good)
            table = pa.Table.from_batches([batch]).take(places)
            numbers = {"order": order + places, "fragment": np.full(len(places), fragment),
                       "position": position + places}  # fmt: skip
            for name, values in numbers.items():
                table = table.append_column(name, pa.array(values, pa.uint32()))
            tables.append(table)
            position += len(batch)
            if len(tables) > _FILES or sum(map(len, tables)) >= _BATCH:
                parts.append(_narrow(pa.concat_tables(tables)))
                tables = []
    if tables:
        parts.append(_narrow(pa.concat_tables(tables)))
    del tables
    found.refused = [RefusedFile(*where[:2], records, *where[2:]) for where, records in refused.items()]
    found.rows = pl.concat([part.rows for part in parts], rechunk=True)
    found.content, found.text = (
        _NO_DIGESTS.joined(*(one.content for one in parts)),
        _NO_DIGESTS.joined(*(one.text for one in parts)),
    )
    found.json = np.concatenate([part.json for part in parts])
    number = np.concatenate([part.number for part in parts])
    sha256 = _NO_DIGESTS.joined(*(part.sha256 for part in parts))
    del parts
    counted = found.rows["images"].to_numpy()
    first = sha256.first_equal()
    different = np.flatnonzero(first == np.arange(len(first)))
    found.images = ScanImages(
        np.repeat(np.arange(len(counted), dtype=np.uint32), counted),
        number,
        np.searchsorted(different, first).astype(np.uint32),
        sha256[different],
        _signatures(scans, found.rows, different),
    )
    return found


_NO_DIGESTS = Digests(np.empty(0, dtype=np.uint64), np.empty(0, dtype=np.uint64))
_EMPTY = (
    _NO_DIGESTS,
    _NO_DIGESTS,
    np.empty(0, dtype=np.uint64),
    ScanImages(
        np.empty(0, dtype=np.uint32), np.empty(0, dtype=np.int16), np.empty(0, dtype=np.uint32), _NO_DIGESTS,
        np.empty((0, SIGNATURE_BYTES), dtype=np.uint8),
    ),
)  # fmt: skip


@dataclass(frozen=True)
class _Part:
    """The good rows of a few scan files."""

    rows: pl.DataFrame
    content: Digests
    text: Digests
    json: NDArray[np.uint64]
    number: NDArray[np.int16]
    sha256: Digests


def _batches(path: Path, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    with pq.ParquetFile(literal(path), pre_buffer=False) as file:
        yield from file.iter_batches(_BATCH, columns=list(columns), use_threads=False)


def _no_rows() -> pa.Table:
    from pipelines.build_dataset.scan import scan_schema

    image = pa.struct({"number": pa.int16(), "sha256": pa.string()})
    kinds = {name: scan_schema().field(name).type for name in _COLUMNS if "." not in name}
    numbers = dict.fromkeys(("order", "fragment", "position"), pa.uint32())
    return pa.schema({**kinds, "images": pa.list_(image), **numbers}).empty_table()


def _good(
    batch: pa.RecordBatch,
    position: int,
    unstable: dict[int, str],
    order: int,
    found: ScanColumns,
    refused: Counter[tuple[str, str, str, str]],
) -> NDArray[np.bool_]:
    """Which rows are good; the others are counted."""
    good: NDArray[np.bool_] = pc.equal(batch["status"], OK).to_numpy(zero_copy_only=False)
    known = {place: unstable[place] for place in range(position, position + len(batch)) if place in unstable}
    for place in np.flatnonzero(~good).tolist():
        code, message = batch["code"][place].as_py(), batch["message"][place].as_py()
        filtered = batch["status"][place].as_py() == FILTERED
        if position + place in known:
            code, message = "unstable", known[position + place]
        found.codes[code, filtered] += 1
        if found.first is None:
            found.first = order + place, message
        if not filtered and not batch["row"][place].is_valid:
            where = (batch["source"][place].as_py() or "", batch["location"][place].as_py() or "")
            refused[*where, code, message] += 1
    for at, message in known.items():
        place = at - position
        if good[place]:
            good[place] = False
            found.codes["unstable", False] += 1
            if found.first is None or order + place < found.first[0]:
                found.first = order + place, message
    return good


def _narrow(table: pa.Table) -> _Part:
    """The rows of a table in narrow columns; its images in the order of the rows."""
    table = table.combine_chunks()
    images = _column(table, "images")
    entries = images.flatten()
    rows = pl.DataFrame({
        "order": _column(table, "order").to_numpy(),
        "fragment": _column(table, "fragment").to_numpy().astype(np.int32),
        "position": _column(table, "position").to_numpy().astype(np.int32),
        "id": pl.Series(pl.from_arrow(_column(table, "id")), dtype=pl.String),
        "family": pl.Series(pl.from_arrow(_column(table, "family"))).cast(FAMILY),
        "source": pl.Series(pl.from_arrow(_column(table, "source"))).cast(pl.Categorical),
        "old_split": pl.Series(pl.from_arrow(_column(table, "old_split"))).cast(pl.Categorical),
        "size": pl.Series(pl.from_arrow(_column(table, "size"))).cast(pl.Int64),
        "json_size": pl.Series(pl.from_arrow(_column(table, "json_size"))).cast(pl.UInt32),
        "images": pl.Series(pl.from_arrow(pc.fill_null(pc.list_value_length(images), 0))).cast(pl.UInt16),
    })  # fmt: skip
    return _Part(
        rows,
        digests(_column(table, "content")),
        digests(_column(table, "text")),
        digests(_column(table, "json_sha256")).high.copy(),
        entries.field("number").to_numpy(zero_copy_only=False).astype(np.int16),
        digests(entries.field("sha256")),
    )


def _column(table: pa.Table, name: str) -> Any:
    column = table.column(name)
    return column.chunk(0) if column.num_chunks else pa.array([], column.type)


def digests(texts: Any) -> Digests:
    """An Arrow array of hexadecimal SHA-256 as numbers; anything else by the SHA-256 of its text."""
    lengths = pc.binary_length(texts)
    if len(texts) and not texts.null_count and pc.all(pc.equal(lengths, 64)).as_py():
        try:
            data = bytes.fromhex("".join(texts.to_pylist()))
        except ValueError:
            data = b""
    else:
        data = b""
    if not data:
        data = b"".join(hashlib.sha256((text or "").encode()).digest() for text in texts.to_pylist())
    words = np.frombuffer(data, dtype=">u8").reshape(-1, 4)
    return Digests(words[:, 0].astype(np.uint64), words[:, 1].astype(np.uint64))


def _signatures(scans: Sequence[Path], rows: pl.DataFrame, different: NDArray[np.int64]) -> NDArray[np.uint8]:
    """[U, 86] the signatures of the images at these places among all, which are sorted."""
    made = np.empty((len(different), SIGNATURE_BYTES), dtype=np.uint8)
    fragment, position = rows["fragment"].to_numpy(), rows["position"].to_numpy()
    before, done = 0, 0
    for number, path in enumerate(scans):
        begin, end = np.searchsorted(fragment, [number, number + 1]).tolist()
        start = 0
        for batch in _batches(path, ["images.list.element.signature"]):
            low, high = np.searchsorted(position[begin:end], [start, start + len(batch)]).tolist()
            good = pa.Table.from_batches([batch]).take(position[begin + low : begin + high] - start)
            values = _column(good.combine_chunks(), "images").flatten().field("signature")
            stop = int(np.searchsorted(different, before + len(values)))
            wanted = values.take(pa.array(different[done:stop] - before))
            data = b"".join(wanted.to_pylist())
            made[done:stop] = np.frombuffer(data, dtype=np.uint8).reshape(-1, SIGNATURE_BYTES)
            before, done, start = before + len(values), stop, start + len(batch)
    return made
