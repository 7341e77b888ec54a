"""Manifest and quarantine, made of a plan and the scan files in bounded memory.

The scan files are read once, in their order. The manifest is in the order of the shards: its rows go through files of
one row group each, which are then sorted one by one.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipelines.build_dataset.placing import with_offsets
from pipelines.build_dataset.plan import Plan
from pipelines.build_dataset.scan import FILTERED, OK, PLANNED
from sigma_data.corpus.manifest import OPTIONAL, manifest_schema, quarantine_schema
from sigma_data.storage.paths import literal

ROW_GROUP = 65_536
_BATCH = 8_192
_BLOCK = 16_384
_THUMBNAILS_A_CODE = 24
"""Thumbnails that the quarantine keeps for each code."""

Integers = NDArray[np.int64]


def manifest_tables(plan: Plan, scratch: Path) -> Iterator[pa.Table]:
    """The manifest in row groups; the folder `scratch` takes its rows meanwhile."""
    schema = manifest_schema()
    columns = [name for name in schema.names if name not in PLANNED]
    count = len(plan.places)
    if not count:
        yield _as(schema.empty_table(), schema, set())
    elif count <= ROW_GROUP:
        blocks = list(placed(plan, np.arange(count), columns))
        there = _filled([table for _, table in blocks])
        rows = pa.concat_tables([table for _, table in blocks])
        order = np.argsort(np.concatenate([places for places, _ in blocks]), kind="stable")
        del blocks
        yield _as(rows.take(order), schema, there)
    else:
        with tempfile.TemporaryDirectory(prefix="manifest-", dir=scratch) as folder:
            there = _spool(placed(plan, np.arange(count), columns), Path(folder))
            for group in range(-(-count // ROW_GROUP)):
                path = Path(folder, f"{group}.arrow")
                with pa.OSFile(str(path)) as file, pa.ipc.open_stream(file) as reader:
                    rows = reader.read_all()
                path.unlink()
                order = np.argsort(rows.column("place").to_numpy(), kind="stable")
                yield _as(rows.take(order), schema, there)


def _spool(blocks: Iterator[tuple[Integers, pa.Table]], folder: Path) -> set[str]:
    """Deal rows out to files by their row group; returns the optional columns that have values."""
    there: set[str] = set()
    options = pa.ipc.IpcWriteOptions(compression="lz4")
    writers: dict[int, Any] = {}
    with ExitStack() as stack:
        for places, table in blocks:
            there |= _filled([table])
            table = table.append_column("place", pa.array(places))
            groups = places // ROW_GROUP
            for group in np.unique(groups).tolist():
                if group not in writers:
                    sink = stack.enter_context(pa.OSFile(str(folder / f"{group}.arrow"), "wb"))
                    writers[group] = stack.enter_context(pa.ipc.new_stream(sink, table.schema, options=options))
                writers[group].write_table(table.take(np.flatnonzero(groups == group)).combine_chunks())
    return there


def placed(plan: Plan, wanted: Integers, columns: Sequence[str]) -> Iterator[tuple[Integers, pa.Table]]:
    """Rows of `plan.places` with columns of their scan files and those of the plan, some thousands at a time.

    In the order of the sources: each block with the places of its rows in the plan.
    """
    columns = list(dict.fromkeys([*columns, "json_size", "images"]))
    paths = pa.array([shard.path for shard in plan.shards], pa.string())
    places = plan.places
    for some, table in _blocks(plan, wanted, columns):
        part = places[some]
        added = {
            "split": pa.array(part["split"].cast(pl.String).to_list(), pa.string()),
            "shard": paths.take(pa.array(part["shard"].to_numpy())),
            "index": pa.array(part["index"].to_numpy(), pa.int32()),
            "offset": pa.array(part["offset"].to_numpy(), pa.int64()),
            "component": pa.array(plan.ids.gather(part["component"]).to_list(), pa.string()),
        }
        for name, values in added.items():
            table = table.append_column(name, values)
        yield some, with_offsets(table)


def _blocks(plan: Plan, wanted: Integers, columns: list[str]) -> Iterator[tuple[Integers, pa.Table]]:
    fragments = plan.places["fragment"].to_numpy()[wanted]
    positions = plan.places["position"].to_numpy()[wanted]
    order = np.lexsort((positions, fragments))
    wanted, fragments, positions = wanted[order], fragments[order], positions[order]
    del order
    held: list[pa.Table] = []
    start = stop = 0
    for fragment in np.unique(fragments).tolist():
        begin, end = np.searchsorted(fragments, [fragment, fragment + 1]).tolist()
        first = 0
        for batch in _batches(plan, fragment, columns):
            low, high = np.searchsorted(positions[begin:end], [first, first + len(batch)]).tolist()
            if high > low:
                here = positions[begin + low : begin + high] - first
                held.append(pa.Table.from_batches([batch]).take(here))
                stop = begin + high
            first += len(batch)
            if stop - start >= _BLOCK:
                yield wanted[start:stop], pa.concat_tables(held)
                start, held = stop, []
    if held:
        yield wanted[start:stop], pa.concat_tables(held)


def _batches(plan: Plan, fragment: int, columns: list[str]) -> Iterator[pa.RecordBatch]:
    made = plan.made.path if plan.made is not None else None
    path = plan.scans[fragment] if fragment < len(plan.scans) else made
    assert path is not None
    with pq.ParquetFile(literal(path), pre_buffer=False) as file:
        yield from file.iter_batches(_BATCH, columns=columns, use_threads=False)


def _filled(tables: Sequence[pa.Table]) -> set[str]:
    """The optional columns in which a value stands."""
    return {
        name
        for name in OPTIONAL
        for table in tables
        if name in table.column_names and table.column(name).null_count < len(table)
    }


def _as(table: pa.Table, schema: pa.Schema, there: set[str]) -> pa.Table:
    """The table in the columns of a schema, without those optional ones in which no value stands."""
    fields = [field for field in schema if field.name not in OPTIONAL or field.name in there]
    columns = [table.column(field.name).cast(field.type).combine_chunks() for field in fields]
    return pa.table(columns, schema=pa.schema(fields))


def quarantine_tables(plan: Plan) -> Iterator[pa.Table]:
    """The records that were not written, in the order of the sources, in row groups."""
    schema = quarantine_schema()
    if not any(filtered for _, filtered in plan.codes):
        schema = schema.remove(schema.get_field_index("filtered"))
    shown: Counter[str] = Counter()
    held: list[pa.Table] = []
    for frame in _rejects(plan):
        held.append(_thumbnails_bounded(frame, shown).to_arrow().select(schema.names).cast(schema))
        if sum(map(len, held)) >= ROW_GROUP:
            whole = pa.concat_tables(held).combine_chunks()
            yield whole.slice(0, ROW_GROUP)
            held = [whole.slice(ROW_GROUP)]
    rest = pa.concat_tables([schema.empty_table(), *held]).combine_chunks()
    if len(rest) or not sum(plan.codes.values()):
        yield rest


def _rejects(plan: Plan) -> Iterator[pl.DataFrame]:
    """The rows of the quarantine, batch by batch."""
    columns = ["status", *(name for name in quarantine_schema().names if name != "filtered")]
    orders = plan.out["order"].to_numpy()
    start = 0
    for fragment in range(len(plan.scans)):
        known = plan.unstable.get(fragment, {})
        first = 0
        for batch in _batches(plan, fragment, columns):
            low, high = np.searchsorted(orders, [start, start + len(batch)]).tolist()
            left = plan.out[low:high]
            mine = {place - first: why for place, why in known.items() if first <= place < first + len(batch)}
            bad = pc.not_equal(batch["status"], OK).to_numpy(zero_copy_only=False)
            start, first = start + len(batch), first + len(batch)
            if not (bad.any() or len(left) or mine):
                continue
            at = pl.Series(orders[low:high] - (start - len(batch))).cast(pl.UInt32)
            reasons = left.select(at=at, _code="code", _message="message", _filtered="filtered")
            told = pl.DataFrame(
                {"at": list(mine), "_code": ["unstable"] * len(mine), "_message": list(mine.values()),
                 "_filtered": [False] * len(mine)}, schema=reasons.schema,
            )  # fmt: skip
            frame = pl.DataFrame(pl.from_arrow(pa.Table.from_batches([batch]))).with_row_index("at")
            frame = frame.filter(pl.Series(bad) | pl.col("at").is_in([*at.to_list(), *mine]))
            frame = frame.join(pl.concat([reasons, told]), on="at", how="left", maintain_order="left")
            given = pl.col("_code").is_not_null()
            yield frame.with_columns(
                code=pl.coalesce("_code", "code"),
                codes=pl.when(given).then(pl.concat_list("_code")).otherwise("codes"),
                message=pl.when(given).then("_message").otherwise("message"),
                filtered=pl.when(given).then("_filtered").otherwise(pl.col("status") == FILTERED),
                instruction=pl.col("instruction").str.slice(0, 500),
            )


def _thumbnails_bounded(frame: pl.DataFrame, shown: Counter[str]) -> pl.DataFrame:
    """The rows with no more than a few thumbnails a code in all; `shown` counts them over all frames."""
    before = pl.col("code").replace_strict(dict(shown), default=0, return_dtype=pl.Int64) if shown else pl.lit(0)
    nth = before + pl.col("thumbnail").is_not_null().cast(pl.Int64).cum_sum().over("code")
    new = frame.filter(pl.col("thumbnail").is_not_null()).group_by("code").len()
    shown.update(dict(new.iter_rows()))
    return frame.with_columns(pl.when(nth <= _THUMBNAILS_A_CODE).then("thumbnail").alias("thumbnail"))


class FragmentPlaces:
    """Where each fragment's samples go, made when they are asked for: (position, path of the shard, offset) each."""

    def __init__(self, plan: Plan) -> None:
        columns = plan.places.select("fragment", "position", "shard", "offset").sort("fragment", "position")
        self._columns = columns.drop("fragment")
        self._shards = plan.shards
        fragments = columns["fragment"].to_numpy()
        self._starts = np.searchsorted(fragments, np.arange(len(plan.scans) + 1)).tolist()
        owners, sizes = plan.places["fragment"].to_numpy(), plan.places["size"].to_numpy()
        self._sizes = np.bincount(owners, sizes, len(plan.scans) + 1).astype(np.int64).tolist()

    def count(self, fragment: int) -> int:
        """How many samples a fragment has."""
        count: int = self._starts[fragment + 1] - self._starts[fragment]
        return count

    def size(self, fragment: int) -> int:
        """The bytes of its samples in their shards."""
        size: int = self._sizes[fragment]
        return size

    def __getitem__(self, fragment: int) -> list[tuple[int, str, int]]:
        part = self._columns.slice(self._starts[fragment], self.count(fragment))
        return [(position, self._shards[shard].path, offset) for position, shard, offset in part.iter_rows()]
