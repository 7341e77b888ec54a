"""Files of a source that were refused whole: the rows of a quarantine that have no row number, by file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import polars as pl


@dataclass(frozen=True)
class RefusedFile:
    """A file of which nothing (of a damaged shard: nothing after the damage) was used.

    `records` is how many rows it counts for in the sums: all of them, or 1 where nothing says how many
    it has; `message` says so then.
    """

    source: str
    location: str
    records: int
    code: str
    message: str

    def __str__(self) -> str:
        return (
            f"{self.location}: {self.records:,} {'row' if self.records == 1 else 'rows'}, {self.code}: {self.message}"
        )


def refused_files(quarantine: pl.DataFrame) -> list[RefusedFile]:
    """The refused files of a quarantine (or of any frame with its columns), in the order of the frame."""
    import polars as pl

    whole = quarantine.filter(pl.col("row").is_null() & pl.col("code").is_not_null())
    if "filtered" in whole.columns:
        whole = whole.filter(~pl.col("filtered").fill_null(False))
    files = whole.group_by("source", "location", "code", "message", maintain_order=True).len("records")
    columns = files.select("source", "location", "records", "code", "message")
    return [RefusedFile(source or "", location or "", *rest) for source, location, *rest in columns.iter_rows()]


def refused_lines(files: Sequence[RefusedFile], most: int = 10) -> list[str]:
    """Lines that report refused files: a heading with the sums, then the first files with the reason."""
    if not files:
        return []
    rows = sum(file.records for file in files)
    lines = [f"REFUSED: {_count(len(files), 'file')} ({_count(rows, 'row')}) could not be used:"]
    lines += [f"  {file}" for file in files[:most]]
    if len(files) > most:
        lines.append(
            f"  and {_count(len(files) - most, 'file')} more: in quarantine.parquet, the rows without a row number"
        )
    return lines


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"
