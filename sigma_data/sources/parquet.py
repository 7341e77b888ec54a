"""Streaming rows with images from parquet files, robust to their Arrow types, row groups and hostile content.

Rows are decoded page by page, a few at a time, so memory depends on the size of a row and a page, not of a row group.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from functools import lru_cache
from typing import IO, TYPE_CHECKING, Any

from sigma_data.errors import SourceError
from sigma_data.storage.files import LFS_MESSAGE, is_lfs_pointer

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

_READ_BYTES = 2**20
"""Bytes read from the file at a time; by default pyarrow reads a whole column of a row group."""
_BATCH_ROWS, _BATCH_BYTES = 8, 2**24
"""Most rows and about the most bytes decoded at a time; always at least one row."""


class Refused(Exception):
    """An unreadable file, as a whole or from here on; `rows` is how many it holds, if known."""

    def __init__(self, code: str, message: str, rows: int | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.rows = rows


def open_parquet(stream: IO[bytes], size: int) -> pq.ParquetFile:
    """Open a parquet file of `size` bytes. Raises Refused if it is not one or its footer is wrong."""
    import pyarrow.parquet as pq

    try:
        head = stream.read(64)
        stream.seek(0)
        if is_lfs_pointer(head):
            raise Refused("lfs_pointer", f"{LFS_MESSAGE}; how many rows it has is not known")
        source = getattr(stream, "local_path", None) or stream
        file = pq.ParquetFile(source, buffer_size=_READ_BYTES, pre_buffer=False)
        counts = group_rows(file)
        _ = file.schema_arrow
    except (Refused, SourceError):  # the storage failed, not the file
        raise
    except Exception as error:  # pyarrow raises whatever broken bytes make it raise
        message = f"not a parquet file ({one_line(error)}); how many rows it had is not known"
        raise Refused("unreadable_file", message) from None
    if any(rows < 0 for rows in counts) or sum(counts) > max(size, 1):  # no row takes less than a byte
        raise Refused("unreadable_file", f"the footer announces {sum(counts):,} rows in {size:,} bytes")
    return file


def size_of(stamp: str) -> int:
    """Bytes of a file by its stamp; not every remote store reports them."""
    size = stamp.partition(":")[0]
    return int(size) if size.isdecimal() else sys.maxsize


def group_rows(file: pq.ParquetFile) -> list[int]:
    """Rows of each row group."""
    return [file.metadata.row_group(index).num_rows for index in range(file.metadata.num_row_groups)]


def stream_rows(file: pq.ParquetFile, group: int, columns: list[str]) -> Iterator[tuple[pa.RecordBatch, int]]:
    """(batch, index in it) of every row of a row group. Raises whatever broken pages make pyarrow raise."""
    metadata = file.metadata.row_group(group)
    each = max(1, metadata.total_byte_size) // max(1, metadata.num_rows)
    size = min(_BATCH_ROWS, max(1, _BATCH_BYTES // max(1, each)))
    for batch in file.iter_batches(size, row_groups=[group], columns=columns, use_threads=False):
        for index in range(batch.num_rows):
            yield batch, index


def bare(kind: pa.DataType) -> pa.DataType:
    """The value type without extension, dictionary or run-end encoding."""
    import pyarrow as pa

    while True:
        if isinstance(kind, pa.BaseExtensionType):
            kind = kind.storage_type
        elif pa.types.is_dictionary(kind) or pa.types.is_run_end_encoded(kind):
            kind = kind.value_type
        else:
            return kind


@lru_cache(maxsize=1024)  # asked for every value
def element(kind: pa.DataType) -> pa.DataType | None:
    """The bare type of a list's elements, for every kind of list; None for what is not a list."""
    import pyarrow as pa

    is_kind = pa.types
    lists = (
        is_kind.is_list, is_kind.is_large_list, is_kind.is_fixed_size_list, is_kind.is_list_view,
        is_kind.is_large_list_view,
    )  # fmt: skip
    return bare(kind.value_type) if any(test(kind) for test in lists) else None


def holds_bytes(kind: pa.DataType) -> bool:
    """Whether values of a bare type are bytes: binary of every layout, or a list of unsigned bytes."""
    import pyarrow as pa

    is_kind = pa.types
    inner = element(kind)
    return bool(
        is_kind.is_binary(kind)
        or is_kind.is_large_binary(kind)
        or is_kind.is_binary_view(kind)
        or is_kind.is_fixed_size_binary(kind)
        or (inner is not None and is_kind.is_uint8(inner))
    )


def holds_text(kind: pa.DataType) -> bool:
    """Whether values of a bare type are text: strings of every layout, or binary that holds UTF-8."""
    import pyarrow as pa

    is_kind = pa.types
    text = is_kind.is_string(kind) or is_kind.is_large_string(kind) or is_kind.is_string_view(kind)
    return bool(text or is_kind.is_binary(kind) or is_kind.is_large_binary(kind) or is_kind.is_binary_view(kind))


def plain(value: pa.Scalar, names: tuple[str, ...] | None = ("bytes", "path")) -> Any:
    """The value as plain Python: bytes, text, None, numbers, lists and dicts of them.

    Unlike `as_py` it unwraps extension types and gives a list of unsigned bytes as bytes. Of structs only the fields
    with these names are read, None: all. Raises ValueError for text that is not UTF-8.
    """
    import pyarrow as pa

    kind = value.type
    if not value.is_valid:
        return None
    if isinstance(kind, pa.BaseExtensionType) or pa.types.is_dictionary(kind) or pa.types.is_run_end_encoded(kind):
        return plain(value.value, names)
    inner = element(kind)
    if inner is not None:
        values = value.values
        if pa.types.is_uint8(inner) and values.null_count == 0 and values.type == inner:
            return values.to_numpy(zero_copy_only=False).tobytes()
        return [plain(item, names) for item in values]
    if pa.types.is_struct(kind):
        inside = [kind.field(index).name for index in range(kind.num_fields)] if names is None else names
        return {name: plain(value[name], names) for name in inside if kind.get_field_index(name) >= 0}
    return value.as_py()


def one_line(error: Exception) -> str:
    """The error message of another library, shortened to one line."""
    return " ".join(str(error).split())[:200] or type(error).__name__
