"""Counts, sizes and tables as text."""

from __future__ import annotations

from collections.abc import Collection, Sequence


def counted(count: int, noun: str) -> str:
    """A number of things: "1 pack", "1,200 packs"."""
    return f"{count:,} {noun}{'s' * (count != 1)}"


def format_bytes(size: float, *, decimals: int = 1) -> str:
    """A size in GiB, below one GiB in MiB."""
    return f"{size / 2**30:,.{decimals}f} GiB" if size >= 2**30 else f"{size / 2**20:,.{decimals}f} MiB"


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
