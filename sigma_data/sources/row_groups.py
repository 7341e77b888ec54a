"""Fragments of parquet files: whole row groups, at least so many rows that a task is worth its start.

A row that broken pages lose is told in its place, so that the others keep their numbers.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

from sigma_data.errors import SourceError
from sigma_data.sources.base import Fragment
from sigma_data.sources.parquet import Refused, group_rows, one_line, stream_rows

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

_FRAGMENT_ROWS = 32
"""Least rows of a fragment: images lie in the rows, and a row group is read as a whole."""
_PART = re.compile(r"groups (\d+):(\d+) from row (\d+)")


@dataclass(frozen=True)
class Group:
    """A row group: its index, its first row in the file, how many it has."""

    index: int
    row: int
    rows: int


def group_fragments(location: str, stamp: str, counts: Sequence[int]) -> list[Fragment]:
    """The fragments of a file by the rows of its groups; an empty file has one, of no rows."""
    found: list[Fragment] = []
    start = first_row = row = 0
    for index, rows in enumerate(counts):
        row += rows
        if row - first_row >= _FRAGMENT_ROWS or index == len(counts) - 1:
            found.append(Fragment(location, f"groups {start}:{index + 1} from row {first_row}", stamp, row - first_row))
            start, first_row = index + 1, row
    return found or [Fragment(location, "groups 0:0 from row 0", stamp, 0)]


def refused_fragment(location: str, stamp: str, error: Refused) -> Fragment:
    """The fragment of a file that is refused as a whole; all its rows count as read."""
    return Fragment(location, "file", stamp, error.rows or 1, refused=f"{error.code}: {error}")


def is_group_fragment(fragment: Fragment) -> bool:
    """Whether a fragment is one of these."""
    return fragment.part == "file" or _PART.fullmatch(fragment.part) is not None


def groups_of(fragment: Fragment, file: pq.ParquetFile) -> Iterator[Group]:
    """The row groups of a fragment. Raises Refused where the file has other ones by now."""
    counts = group_rows(file)
    span = _PART.fullmatch(fragment.part)
    if span is None or int(span[2]) > len(counts):
        raise Refused("unreadable_file", "the file changed since its row groups were listed", fragment.rows)
    row = int(span[3])
    for index in range(int(span[1]), int(span[2])):
        yield Group(index, row, counts[index])
        row += counts[index]


def lost_rows(fragment: Fragment, error: Refused) -> int:
    """How many rows are lost with a file that is refused when a fragment of it is read."""
    return (error.rows if _PART.fullmatch(fragment.part) is None else fragment.rows) or 1


def group_values(
    file: pq.ParquetFile, group: Group, columns: list[str]
) -> Iterator[tuple[int, pa.RecordBatch, int] | tuple[int, str]]:
    """(row, batch, index in it) of every row of a group; (row, why) for each that cannot be read.

    Raises SourceError where the storage fails.
    """
    row, end = group.row, group.row + group.rows
    reason = "it ends early"
    try:
        for batch, index in islice(stream_rows(file, group.index, columns), group.rows):
            yield row, batch, index
            row += 1
    except SourceError:  # the storage failed, not the file
        raise
    except Exception as error:  # pyarrow raises whatever broken pages make it raise
        reason = one_line(error)
    for lost in range(row, end):
        yield lost, f"row group {group.index} cannot be read ({reason})"
