"""Charts of a corpus: sizes of its images, tokens and references of its samples, from counts over the manifest."""

from __future__ import annotations

from collections import Counter
from typing import Any

from sigma_data.corpus.table_rows import TableRows
from sigma_data.report.charts import Chart, bars, histogram

_ASPECTS = (("1:3", 1 / 3), ("1:2", 1 / 2), ("9:16", 9 / 16), ("2:3", 2 / 3), ("3:4", 3 / 4), ("1:1", 1.0),
            ("4:3", 4 / 3), ("3:2", 3 / 2), ("16:9", 16 / 9), ("2:1", 2.0), ("3:1", 3.0))  # fmt: skip


def sizes(manifest: TableRows) -> tuple[Chart, Chart]:
    """Of all images the longest sides, and the aspects."""
    longest: Counter[int] = Counter()
    aspects: Counter[str] = Counter()
    for width, height, count in manifest.counts("images.width", "images.height").iter_rows():
        if sides := [side for side in (width, height) if side is not None]:
            longest[max(sides)] += count
        if width is not None and height is not None:
            # Nearest by ratio, not by difference: 1:2 is as far from 1:1 as 2:1 is.
            nearest = min(_ASPECTS, key=lambda entry: max(width / height / entry[1], entry[1] * height / width))
            aspects[nearest[0]] += count
    entries = [(name, aspects[name], f"about {name}") for name, _ in _ASPECTS]
    return (
        histogram("Longest side of the images", longest, (16, 32, 64, 128, 256, 512, 1024, 2048), "pixels"),
        Chart("Width to height", "nearest common aspect", bars(entries, "images")),
    )


def tokens(manifest: TableRows) -> Chart:
    """Tokens a sample."""
    steps = tuple(digit * 10**power for power in range(1, 6) for digit in (1, 2, 5))
    return histogram("Tokens a sample", values(manifest, "tokens"), steps, "tokens", "samples")


def values(rows: TableRows, column: str) -> Counter[Any]:
    """How often each value of a column stands there, nulls left out."""
    return Counter({value: count for value, count in rows.counts(column).iter_rows() if value is not None})


def references(manifest: TableRows) -> Chart:
    """References a sample."""
    counts = values(manifest, "references")
    most = max(counts, default=0)
    entries = [(str(n), counts[n], f"{n} references" if n != 1 else "1 reference") for n in range(min(most, 9) + 1)]
    if most > 9:
        entries.append(("10+", sum(count for n, count in counts.items() if n > 9), "10 references or more"))
    mean = sum(n * count for n, count in counts.items()) / max(1, counts.total())
    return Chart("References a sample", f"{mean:.1f} on average", bars(entries, "samples"))
