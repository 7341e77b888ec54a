"""Counts, sizes, times and tables as text."""

from __future__ import annotations

import textwrap
from collections.abc import Collection, Sequence


def counted(count: int, noun: str) -> str:
    """A number of things: "1 pack", "1,200 packs"."""
    return f"{count:,} {noun}{'s' * (count != 1)}"


def format_bytes(size: float, *, decimals: int = 1) -> str:
    """A size in GiB, below one GiB in MiB."""
    return f"{size / 2**30:,.{decimals}f} GiB" if size >= 2**30 else f"{size / 2**20:,.{decimals}f} MiB"


def format_duration(seconds: float) -> str:
    """A time as a person says it: "40 s", "3 min 05 s", "2 h 10 min"."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {seconds:02d} s" if minutes else f"{seconds} s"


def aligned(rows: Sequence[Sequence[str]], *, right: Collection[int] = ()) -> str:
    """Rows of as many cells each as lines, columns two spaces apart; those numbered in `right` are right-aligned."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if column in right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def described(rows: Sequence[tuple[str, str]], *, width: int = 79) -> str:
    """Names, each with a text that is wrapped beside it; a word is never cut, so that it can be copied."""
    column = max(len(name) for name, _ in rows) + 4
    return "\n".join(
        textwrap.fill(
            text, width, initial_indent=f"  {name:{column - 2}}", subsequent_indent=" " * column,
            break_long_words=False, break_on_hyphens=False,
        )
        for name, text in rows
    )  # fmt: skip
