"""Rows of parquet files, a few at a time, and only the columns that are asked for."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import IO, TYPE_CHECKING, Any

from sigma_data.sources.base import Fragment
from sigma_data.sources.field_map.rows import NumberedRow, RowFormat
from sigma_data.sources.field_map.values import RowFault
from sigma_data.sources.parquet import (
    Refused,
    bare,
    element,
    group_rows,
    one_line,
    open_parquet,
    plain,
    size_of,
)
from sigma_data.sources.row_groups import Group, group_fragments, group_values, groups_of, lost_rows, refused_fragment

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq


class ParquetRows(RowFormat):
    """Reads .parquet files."""

    def fragments(self, location: str, stamp: str) -> list[Fragment]:
        try:
            with self.folder.open(location) as stream:
                return group_fragments(location, stamp, group_rows(open_parquet(stream, size_of(stamp))))
        except Refused as error:
            return [refused_fragment(location, stamp, error)]

    def read(self, fragment: Fragment, fields: Collection[str] | None = None) -> Iterator[NumberedRow]:
        try:
            with self.folder.open(fragment.location) as stream:
                file = open_parquet(stream, size_of(fragment.stamp))
                for group in groups_of(fragment, file):
                    yield from _group(file, group, fields)
        except Refused as error:
            for _ in range(lost_rows(fragment, error)):
                yield None, RowFault(error.code, str(error))

    def keys(self, location: str) -> list[str]:
        try:
            with self.folder.open(location) as stream:
                return _names(stream)
        except Refused:
            return []


def _names(stream: IO[bytes]) -> list[str]:
    return [str(name) for name in open_parquet(stream, size_of("")).schema_arrow.names]


def _plain_rows(batch: pa.RecordBatch) -> list[dict[str, Any]] | None:
    """The rows of a batch, which is small; None if one of them holds text that is not UTF-8."""
    try:
        rows: list[dict[str, Any]] = batch.to_pylist()
    except ValueError:
        return None
    return rows


def _plain_row(batch: pa.RecordBatch, index: int) -> dict[str, Any]:
    return {name: plain(column[index], None) for name, column in zip(batch.schema.names, batch.columns, strict=True)}


def _is_simple(kind: pa.DataType) -> bool:
    """Whether pyarrow's own conversion gives what `plain` does: bytes as such, no wrapped types, no name twice."""
    import pyarrow as pa

    if pa.types.is_struct(kind):
        fields = [kind.field(index) for index in range(kind.num_fields)]
        return len({field.name for field in fields}) == len(fields) and all(_is_simple(one.type) for one in fields)
    if (inner := element(kind)) is not None:
        return bare(kind) == kind and not pa.types.is_uint8(inner) and _is_simple(kind.value_type)
    is_kind = pa.types
    tests = (
        is_kind.is_string, is_kind.is_large_string, is_kind.is_binary, is_kind.is_large_binary, is_kind.is_boolean,
        is_kind.is_integer, is_kind.is_floating, is_kind.is_null,
    )  # fmt: skip
    return bare(kind) == kind and any(test(kind) for test in tests)


def _group(file: pq.ParquetFile, group: Group, fields: Collection[str] | None) -> Iterator[NumberedRow]:
    simple = all(_is_simple(field.type) for field in file.schema_arrow)
    whole: list[dict[str, Any]] | None = None
    unread = dict.fromkeys(file.schema_arrow.names, b"")  # what is not asked for counts as an image that is there
    columns = [name for name in file.schema_arrow.names if fields is None or name in fields]
    for value in group_values(file, group, columns):
        if len(value) == 2:
            yield value[0], RowFault("unreadable_rows", value[1])
            continue
        row, batch, index = value
        if index == 0:
            whole = _plain_rows(batch) if simple else None
        try:
            found = whole[index] if whole is not None else _plain_row(batch, index)
        except ValueError as error:
            yield row, RowFault("unreadable_rows", f"the row cannot be read ({one_line(error)})")
        else:
            yield row, unread | found
