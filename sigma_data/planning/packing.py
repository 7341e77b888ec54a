"""Samples of known lengths -> packs of at most a budget, nearly full, none lost.

Best-fit decreasing over a window: each sample, the longest first, goes into the fullest pack that still
has room for it. Packs that are not nearly full when a window ends give their samples back to the next.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

Integers = npt.NDArray[np.int64]


def best_fit(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Indices of `lengths` in packs, the longest samples placed first; ties go by index.

    Raises ValueError for a length above the budget or below one.
    """
    if lengths and not 1 <= min(lengths) <= max(lengths) <= budget:
        raise ValueError(f"lengths lie in {min(lengths)} to {max(lengths)}, and a pack holds 1 to {budget}")
    packs: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (tokens left, pack), sorted; a full pack is not listed
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        place = bisect_left(room, (lengths[index], -1))
        if place == len(room):
            left, pack = budget, len(packs)
            packs.append([])
        else:
            left, pack = room.pop(place)
        packs[pack].append(index)
        if left > lengths[index]:
            insort(room, (left - lengths[index], pack))
    return packs


def pack_windows(lengths: Integers, *, budget: int, window: int, least_fill: float = 0.99) -> Iterator[list[int]]:
    """Yield packs of samples in order, window by window; a pack is a list of places in `lengths` [n].

    The packs of a window come in the order of their longest samples, whose order is chance: packs of
    few long samples and packs of many short ones mix. The poorest packs, of those filled below
    `least_fill` of the budget, are opened again with the next window: as many as a window has samples,
    none at the end. Every place is in exactly one pack.
    """
    waiting: list[int] = []
    for start in range(0, len(lengths), window):
        last = start + window >= len(lengths)
        waiting += range(start, min(start + window, len(lengths)))
        sizes = lengths[waiting].tolist()
        packs = best_fit(sizes, budget)
        fills = [sum(sizes[index] for index in pack) for pack in packs]
        back: set[int] = set()
        room = 0 if last else window  # more would make the windows grow, where no mix of lengths fits well
        for number in sorted(range(len(packs)), key=lambda i: (fills[i], i)):
            room -= len(packs[number])
            if fills[number] >= least_fill * budget or room < 0:
                break
            back.add(number)
        again: list[int] = []
        for number in sorted(range(len(packs)), key=lambda i: packs[i][0]):
            members = [waiting[index] for index in packs[number]]
            if number in back:
                again += members
            else:
                yield sorted(members)
        waiting = sorted(again)
