"""The tables of a report, the same for Markdown and HTML: ours and published rows under the same columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pipelines.evaluate.aggregate import OVERALL, Cell, Estimate, MetricInfo, Row, RunScores
from pipelines.evaluate.report.published import published


@dataclass(frozen=True)
class Column:
    """A column: a metric, or an aggregate, of which it may not be known which way is better."""

    name: str
    better: str = ""

    @property
    def heading(self) -> str:
        """The name, with an arrow that points where better is."""
        return self.name + {"up": " ↑", "down": " ↓", "": ""}[self.better]


@dataclass(frozen=True)
class Entry:
    """What stands in a cell: an estimate; `note` says what it leaves out, or why there is none.

    `failed` items are not in it.
    """

    estimate: Estimate
    note: str = ""
    failed: int = 0


@dataclass(frozen=True)
class Line:
    """A row: a run of ours, or a published one with the test set and paper it comes from."""

    name: str
    entries: tuple[Entry, ...]
    items: int | None = None
    failed: int = 0
    published: str = ""


@dataclass(frozen=True)
class Table:
    """A table under its family; "" is the table of aggregates."""

    family: str
    columns: tuple[Column, ...]
    lines: tuple[Line, ...]

    @property
    def has_published(self) -> bool:
        """Whether a row was copied from a paper."""
        return any(line.published for line in self.lines)


_NOTHING = Estimate(None, None, None)


def tables(runs: Sequence[RunScores], rows: Sequence[Sequence[Row]]) -> tuple[Table, ...]:
    """Aggregates if any, then everything together, then each family.

    `rows` are the runs' `aggregate`, in the same order. With a single family nothing is said twice.
    """
    families = list(dict.fromkeys(family for run in runs for family in run.families))
    shown = [OVERALL, *families] if len(families) != 1 else families
    made = [_family(runs, rows, family) for family in shown]
    return (*_aggregates(runs), *(table for table in made if table.columns))


def metrics(runs: Sequence[RunScores]) -> dict[str, MetricInfo]:
    """Every metric of the runs by name, in order, as the first run that has it defines it; see `definitions`."""
    found: dict[str, MetricInfo] = {}
    for run in runs:
        for info in run.metrics:
            found.setdefault(info.name, info)
    return found


def definitions(runs: Sequence[RunScores]) -> list[tuple[MetricInfo, str]]:
    """Every definition of every metric, with the names of the runs that go by it where others do not, else ""."""
    found: list[tuple[MetricInfo, str]] = []
    for name in metrics(runs):
        by: dict[MetricInfo, list[str]] = {}
        for run in runs:
            for info in run.metrics:
                if info.name == name:
                    by.setdefault(info, []).append(run.name)
        found += [(info, ", ".join(names) if len(by) > 1 else "") for info, names in by.items()]
    return found


def _family(runs: Sequence[RunScores], rows: Sequence[Sequence[Row]], family: str) -> Table:
    ours = [next((row for row in of_run if row.family == family), None) for of_run in rows]
    papers = published(runs[0].benchmark, family)
    known = metrics(runs)
    skipped = {name for run in runs for name in run.skipped}
    used = {name for row in ours if row for name in row.cells}
    # A metric that was skipped is shown where a paper has it; elsewhere nobody knows whether it applies.
    used |= {name for row in papers for name in row.values if name in known or name in skipped}
    columns = [Column(info.name, info.better) for info in known.values() if info.name in used]
    columns += [
        Column(name) for name in dict.fromkeys(n for run in runs for n in run.skipped) if name in used - known.keys()
    ]
    lines = [
        Line(run.name, tuple(_entry(run, row, column.name) for column in columns), row.items, row.failed)
        for run, row in zip(runs, ours, strict=True)
        if row is not None
    ]
    lines += [_paper(row.method, f"{row.test_set}, {row.source}", row.values, columns) for row in papers]
    return Table(family, tuple(columns), tuple(line for line in lines if not line.published or _has_value(line)))


def _entry(run: RunScores, row: Row, name: str) -> Entry:
    cell: Cell | None = row.cells.get(name)
    if cell is not None:
        return Entry(cell.estimate, "" if cell.scored else "none scored", cell.failed)
    return Entry(_NOTHING, "skipped" if name in run.skipped else "")


def _paper(method: str, place: str, values: Mapping[str, float], columns: Sequence[Column]) -> Line:
    entries = tuple(Entry(Estimate(values.get(column.name), None, None)) for column in columns)
    return Line(method, entries, published=place)


def _has_value(line: Line) -> bool:
    return any(entry.estimate.mean is not None for entry in line.entries)


def _aggregates(runs: Sequence[RunScores]) -> tuple[Table, ...]:
    known = metrics(runs)
    names = tuple(
        Column(name, known[name].better if name in known else "")
        for name in dict.fromkeys(name for run in runs for name in run.summary)
    )
    if not names:
        return ()
    lines = [
        Line(
            run.name,
            tuple(
                Entry(Estimate(run.summary.get(column.name), None, None), run.notes.get(column.name, ""))
                for column in names
            ),
            len(run.answered),
            sum(failure is not None for _, failure in run.answered.values()),
        )
        for run in runs
    ]
    papers = [
        _paper(row.method, f"{row.test_set}, {row.source}", row.values, names) for row in published(runs[0].benchmark)
    ]
    return (Table("", names, tuple(lines + [line for line in papers if _has_value(line)])),)


def figure(value: float | None) -> str:
    """A score for a table: three decimals below 10, two above; a dash if there is none."""
    if value is None:
        return "–"
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.2f}"


def interval(estimate: Estimate) -> str:
    """The interval in brackets, or nothing."""
    if estimate.low is None or estimate.high is None:
        return ""
    return f"[{figure(estimate.low)}, {figure(estimate.high)}]"
