"""Numbers as text, and histograms laid out for inline SVG in a 480 x 150 drawing."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

_WIDTH = 480
_SPACE = "\u202f"  # a thin space that does not break


@dataclass(frozen=True)
class Bar:
    """A bar of a histogram in the chart's own units (480 x 150), with its tooltip."""

    x: float
    y: float
    width: float
    height: float
    label: str
    value: str
    tip: str


@dataclass(frozen=True)
class Chart:
    """A histogram: title, a few words beside it, and its bars (none: nothing to show).

    `edges`: a label names the lower edge of its bar, not the bar as a whole.
    """

    title: str
    note: str
    bars: tuple[Bar, ...]
    edges: bool = False


def number(value: float) -> str:
    """An integer with thin spaces between its thousands."""
    return f"{round(value):,}".replace(",", _SPACE)


def file_size(value: float) -> str:
    """Bytes in decimal units, three digits."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if value < 1000 or unit == "TB":
            break
        value /= 1000
    digits = 0 if unit == "B" or value >= 100 else 1
    return f"{value:,.{digits}f}".replace(",", _SPACE) + _SPACE + unit


def percent(part: float, whole: float) -> str:
    """A share in percent; small ones keep a digit, and something is never rounded to nothing."""
    share = 100 * part / whole if whole else 0.0
    if 0 < share < 0.1:
        return f"<{_SPACE}0.1{_SPACE}%"
    return f"{share:.1f}{_SPACE}%" if 0 < share < 99.95 else f"{share:.0f}{_SPACE}%"


def histogram(
    title: str, values: Sequence[int] | Mapping[int, int], steps: Sequence[int], unit: str, things: str = "images"
) -> Chart:
    """Bins of one round width, sixteen at most; what lies beyond the 99.5th percentile shares the last.

    `values` may be given as how often each value stands there.
    """
    if not values:
        return Chart(title, "", ())
    times = Counter(values)
    ordered = sorted(times)
    ends = list(accumulate(times[value] for value in ordered))

    def at(place: int) -> int:
        return ordered[bisect_right(ends, place)]

    low, high = ordered[0], at((ends[-1] - 1) * 995 // 1000)
    step = next((step for step in steps if high // step - low // step < 15), steps[-1])
    first, last = low // step, high // step
    counts: Counter[int] = Counter()
    for value in ordered:
        counts[min(value // step, last + 1)] += times[value]
    bins = range(first, last + 1 + (last + 1 in counts))
    entries = [
        (number(n * step), counts[n], f"{number(n * step)} to {number(n * step + step - 1)} {unit}")
        if n <= last
        else (f"≥{_SPACE}{number(n * step)}", counts[n], f"{number(n * step)} {unit} and more")
        for n in bins
    ]
    note = f"median {number(at((ends[-1] - 1) // 2))}, largest {number(ordered[-1])} {unit}"
    return Chart(title, note, bars(entries, things), edges=True)


def bars(entries: Sequence[tuple[str, int, str]], things: str) -> tuple[Bar, ...]:
    """Bars for (label, count, tooltip); labels are thinned out and values written where there is room."""
    most = max((count for _, count, _ in entries), default=0)
    if not most:
        return ()
    pitch = min(_WIDTH / len(entries), 80)
    every = -(-len(entries) // (11 if max(len(label) for label, _, _ in entries) < 5 else 6))
    result = []
    for index, (label, count, tip) in enumerate(entries):
        # One sample among a million is still drawn.
        height = max(1.0, 104 * count / most) if count else 0.0
        shown = count and (len(entries) <= 6 or count == most)
        result.append(Bar(
            x=round(index * pitch + 1, 1),
            y=round(126 - height, 1),
            width=round(pitch - 2, 1),
            height=round(height, 1),
            label=label if index % every == 0 else "",
            value=number(count) if shown else "",
            tip=f"{tip}: {number(count)} {things}",
        ))  # fmt: skip
    return tuple(result)
