"""Counts, sizes and tables as text."""

from __future__ import annotations

import pytest

from sigma_data.text_format import aligned, counted, format_bytes


@pytest.mark.parametrize(("count", "words"), [(0, "0 packs"), (1, "1 pack"), (1200, "1,200 packs")])
def test_counts_have_the_right_number(count: int, words: str) -> None:
    assert counted(count, "pack") == words


@pytest.mark.parametrize(("count", "words"), [(0, "0.0 MiB"), (2**20 - 2**15, "1.0 MiB"), (3 * 2**29, "1.5 GiB")])
def test_sizes_have_a_unit_that_suits_them(count: int, words: str) -> None:
    assert format_bytes(count) == words


def test_columns_of_a_table_line_up_without_spaces_at_the_end_of_a_line() -> None:
    rows = [("samples", "editing", "all"), ("a", "1,200", ""), ("long name", "7", "8")]
    assert aligned(rows, right=(1,)).splitlines() == [
        "samples    editing  all",
        "a            1,200",
        "long name        7  8",
    ]
