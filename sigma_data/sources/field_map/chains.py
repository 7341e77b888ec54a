"""Dialogues whose turns are rows, one after the other: one sample of several turns."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

from sigma_data.images.decode import same_pixels
from sigma_data.images.formats import ImageFault
from sigma_data.sources.base import Fragment
from sigma_data.sources.field_map.names import heads
from sigma_data.sources.field_map.outcomes import Judge, Outcome
from sigma_data.sources.field_map.rows import NumberedRow, RowFormat
from sigma_data.sources.field_map.schema import Chain
from sigma_data.sources.field_map.shapes import Draft, DraftImage
from sigma_data.sources.field_map.values import ABSENT, Row, RowFault, look_up

_LONGEST_CHAIN = 64
"""Most rows of one dialogue, so that memory is bounded."""


def chained(judge: Judge, chain: Chain, runs: Iterable[list[NumberedRow]]) -> Iterator[Outcome]:
    """The outcomes of dialogues whose turns are rows: one sample of consecutive turns, under its first row.

    Turn k goes on from turn k - 1 where its number follows and its reference is the target before; else a new sample
    begins. The other rows of a sample have no outcome of their own.
    """
    for run in runs:
        open_turn: tuple[int | None, Draft, Any] | None = None  # row, the draft so far, the last turn's number
        for number, row in run:
            for outcome in judge.of_row(number, row):
                order = look_up(row, chain.order) if not isinstance(row, RowFault) else ABSENT
                draft = outcome.draft
                if open_turn is not None and draft is not None and _follows(open_turn[2], order):
                    joined = _joined(open_turn[1], draft)
                    if joined is not None:
                        open_turn = (open_turn[0], joined, order)
                        continue
                if open_turn is not None:
                    yield Outcome(open_turn[0], open_turn[1])
                    open_turn = None
                if draft is None:
                    yield outcome
                else:
                    open_turn = (number, draft, order)
        if open_turn is not None:
            yield Outcome(open_turn[0], open_turn[1])


def _follows(before: Any, order: Any) -> bool:
    return isinstance(before, int) and isinstance(order, int) and order == before + 1


def _joined(before: Draft, draft: Draft) -> Draft | None:
    """The dialogue with another turn, or None if that does not go on from the target before."""
    target = before.turns[-1].target
    if len(draft.references) != 1 or target is None or not _same(draft.references[0], target):
        return None
    return replace(before, turns=before.turns + draft.turns)


def _same(first: DraftImage, second: DraftImage) -> bool:
    one, other = (
        image.value.get("bytes") or image.value.get("path") if isinstance(image.value, dict) else image.value
        for image in (first, second)
    )
    if one == other:
        return True
    if not (isinstance(one, bytes) and isinstance(other, bytes) and one and other):
        return False
    try:
        return same_pixels(one, other)
    except ImageFault:  # an image that cannot be decoded is like no other
        return False


def runs_of(
    rows: RowFormat, fragments: list[Fragment], index: int, chain: Chain, names: set[str] | None
) -> Iterator[list[NumberedRow]]:
    """The runs of rows with one value of `chain.by` that begin in a fragment; the last may end in a later one."""

    def key(row: Row | RowFault) -> Any:
        return ABSENT if isinstance(row, RowFault) else look_up(row, chain.by)

    before: Any = ABSENT
    for earlier in reversed(fragments[:index]):
        last = [key(row) for _, row in rows.read(earlier, heads(chain.by))]
        if last:
            before = last[-1]
            break
    run: list[NumberedRow] = []
    skipping = before is not ABSENT
    for place in range(index, len(fragments)):
        for number, row in rows.read(fragments[place], names):
            found = key(row)
            skipping = skipping and found == before
            if skipping:
                continue
            if run and (found is ABSENT or found != key(run[-1][1]) or len(run) >= _LONGEST_CHAIN):
                yield run
                run = []
            if place > index and not run:
                return
            run.append((number, row))
        if not run:  # all its rows belong to a run that began before
            return
    if run:
        yield run
