"""Counts over a table do not depend on how many rows are read at a time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

import polars as pl

from sigma_data.corpus.table_rows import FrameRows, TableRows, warnings_of

ROWS = 70_000
TABLE = pl.DataFrame(
    {
        "family": ["editing"] * ROWS,
        "component": [f"c{number // 2}" for number in range(ROWS)],
        "size": list(range(ROWS)),
        "warnings": [["near_black: image 1"] if number % 7 == 0 else [] for number in range(ROWS)],
        "images": [[{"width": number % 3}] * (number % 3) for number in range(ROWS)],
    }
)


class Pieces(TableRows):
    """The table in pieces, as a file is read."""

    def frames(self, columns: Sequence[str]) -> Iterator[pl.DataFrame]:
        for start in range(0, ROWS, 9_000):
            yield TABLE.slice(start, 9_000).select(*dict.fromkeys(name.partition(".")[0] for name in columns))


def test_more_different_values_than_are_held_at_a_time_are_counted_exactly() -> None:
    for rows in (Pieces(), FrameRows(TABLE)):
        assert len(rows) == ROWS
        counts = dict(rows.counts("component").iter_rows())
        assert counts == Counter(TABLE["component"])
        sums = rows.grouped(
            ["family", "size"], lambda frame: frame.group_by("family").agg(pl.col("size").sum().alias("sum"))
        )
        assert sums.rows() == [("editing", ROWS * (ROWS - 1) // 2)]
        assert sorted(rows.counts("images.width").iter_rows()) == [
            (1, ROWS // 3),
            (2, 2 * (ROWS // 3)),
        ]
        assert warnings_of(rows) == {"near_black": ROWS // 7}
        assert rows.first(["component"])["component"] == "c0"
