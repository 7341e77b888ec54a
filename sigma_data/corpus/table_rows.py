"""Counts over the rows of a table, of a frame in memory or of a parquet file that is larger than memory.

A report asks for few columns at a time and only for counts, so a file is read batch by batch and column by column.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from sigma_data.corpus.manifest import read_batches

if TYPE_CHECKING:
    import pyarrow as pa

_BATCH = 16_384
_IMAGES = "images."


class TableRows(ABC):
    """The rows of a table. A column `images.NAME` is that of the images: a row an image, images of no row left out."""

    @abstractmethod
    def frames(self, columns: Sequence[str]) -> Iterator[pl.DataFrame]:
        """The rows with these columns, in order, some at a time; images as lists of structs that have the names."""

    def batches(self, columns: Sequence[str]) -> Iterator[pl.DataFrame]:
        """The rows with these columns; with columns of images a row an image."""
        nested = [name for name in columns if name.startswith(_IMAGES)]
        for frame in self.frames(columns):
            if nested:
                frame = frame.explode("images", empty_as_null=False, keep_nulls=False).unnest("images")
            yield frame.select(name.removeprefix(_IMAGES) for name in columns)

    def grouped(self, columns: Sequence[str], group: Callable[[pl.DataFrame], pl.DataFrame]) -> pl.DataFrame:
        """What `group` counts in each batch, added up: its integer columns `len` and `sum...` over equal others."""
        parts: list[pl.DataFrame] = []
        held = merged = 0
        for frame in self.batches(columns):
            part = group(frame)
            part = part.with_columns(pl.col(name).cast(pl.Int64) for name in part.columns if _is_sum(name))
            parts.append(part)
            held += len(part)
            if held > 2 * merged + _BATCH:
                parts = [_added(parts)]
                held = merged = len(parts[0])
        return _added(parts)

    def counts(self, *columns: str) -> pl.DataFrame:
        """The different values of these columns together, and how often each stands there, as `len`."""
        names = [name.removeprefix(_IMAGES) for name in columns]
        return self.grouped(columns, lambda frame: frame.group_by(names).len())

    def list_counts(self, name: str, *columns: str) -> pl.DataFrame:
        """The values in the lists of a column, with others: `len` times in all, in `sum_rows` rows."""

        def group(frame: pl.DataFrame) -> pl.DataFrame:
            flat = frame.with_row_index("at").explode(name, empty_as_null=False).drop_nulls(name)
            return flat.group_by(*columns, name).agg(pl.len(), pl.col("at").n_unique().alias("sum_rows"))

        return self.grouped([*columns, name], group)

    def first(self, columns: Sequence[str]) -> dict[str, Any]:
        """The first row."""
        for frame in self.frames(columns):
            if len(frame):
                return frame.row(0, named=True)
        raise IndexError("the table has no rows")

    def __len__(self) -> int:
        return sum(len(frame) for frame in self.frames(["family"]))


class FrameRows(TableRows):
    """A frame in memory; columns that it lacks are nulls of the type in `schema`."""

    def __init__(self, frame: pl.DataFrame, schema: Mapping[str, pl.DataType] | None = None) -> None:
        missing = [
            pl.lit(None, dtype=dtype).alias(name) for name, dtype in (schema or {}).items() if name not in frame.columns
        ]
        # An empty frame has no row that a literal could be repeated for.
        empty = not frame.height and schema is not None
        self._frame = pl.DataFrame(schema=dict(schema or {})) if empty else frame.with_columns(missing)

    def frames(self, columns: Sequence[str]) -> Iterator[pl.DataFrame]:
        yield self._frame.select(*dict.fromkeys(name.partition(".")[0] for name in columns))


class FileRows(TableRows):
    """A manifest or quarantine on disk; see `read_batches`, also for the errors."""

    def __init__(self, path: Path, schema: pa.Schema, *, nulls: bool = False) -> None:
        self._path, self._schema, self._nulls = path, schema, nulls

    def frames(self, columns: Sequence[str]) -> Iterator[pl.DataFrame]:
        full = [name.replace(_IMAGES, "images.list.element.") for name in columns]
        for batch in read_batches(self._path, self._schema, full, rows=_BATCH, nulls=self._nulls):
            yield pl.DataFrame(pl.from_arrow(batch))


def _added(parts: Sequence[pl.DataFrame]) -> pl.DataFrame:
    if not parts:
        return pl.DataFrame()
    whole = pl.concat(parts)
    sums = [name for name in whole.columns if _is_sum(name)]
    keys = [name for name in whole.columns if name not in sums]
    return whole.group_by(keys, maintain_order=True).agg(pl.col(name).sum() for name in sums)


def _is_sum(name: str) -> bool:
    return name == "len" or name.startswith("sum")


def warnings_of(manifest: TableRows) -> dict[str, int]:
    """As `count_warnings`."""

    def by_code(frame: pl.DataFrame) -> pl.DataFrame:
        codes = frame["warnings"].explode().drop_nulls().str.extract("^([^:]*)").alias("code").to_frame()
        return codes.group_by("code").len()

    found = manifest.grouped(["warnings"], by_code).iter_rows()
    return dict(sorted(found, key=lambda entry: (-entry[1], entry[0])))
