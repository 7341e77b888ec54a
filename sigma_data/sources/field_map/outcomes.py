"""What becomes of rows by their words and values alone, before an image is read: drafts of samples, or faults."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from sigma_data.sample import Family
from sigma_data.sources.field_map.dialogues import drafts_of
from sigma_data.sources.field_map.filters import check_filters
from sigma_data.sources.field_map.rows import NumberedRow
from sigma_data.sources.field_map.schema import RowLayout
from sigma_data.sources.field_map.shapes import Draft
from sigma_data.sources.field_map.side_file import SideValues
from sigma_data.sources.field_map.targets import target_key
from sigma_data.sources.field_map.values import Row, RowFault


@dataclass(slots=True)  # not frozen: one is made of every row
class Outcome:
    """What became of a row: a draft, or a fault. A row may have several drafts, and a draft several rows."""

    row: int | None
    draft: Draft | None = None
    fault: RowFault | None = None
    family: Family | None = None


@dataclass(frozen=True)
class Judge:
    """Makes outcomes of rows. `fields` are what the path of their file gives, `repeated` the targets named twice.

    `single` makes every turn of a dialogue a sample, `side` has values of rows that lie in another file.
    """

    layout: RowLayout
    fields: dict[str, Any]
    filters: bool
    repeated: frozenset[bytes] = frozenset()
    single: bool = False
    side: SideValues | None = None

    def outcomes(self, rows: Iterable[NumberedRow]) -> Iterator[Outcome]:
        """The outcomes of rows that stand for themselves."""
        for number, row in rows:
            yield from self.of_row(number, row)

    def of_row(self, number: int | None, row: Row | RowFault) -> list[Outcome]:
        """The outcomes of a row: a draft or more, or one fault."""
        if isinstance(row, RowFault):
            return [Outcome(number, fault=row)]
        if self.fields:
            row = {**row, "subset": self.fields}
        family = None
        try:
            found = drafts_of(self.layout, row, single=self.single)
            family = found[0].family
            if self.filters:
                check_filters(self.layout, self.side.added(row) if self.side is not None else row)
            if self.repeated and any(target_key(turn) in self.repeated for one in found for turn in one.turns):
                raise RowFault("ambiguous_name", "another row names the same target")
        except RowFault as fault:
            return [Outcome(number, fault=fault, family=family)]
        return [Outcome(number, draft) for draft in found]
