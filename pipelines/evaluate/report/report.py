"""What comes out of an evaluation: results.json for machines, results.md for a paper's draft, report.html to look at.

All three say the same: every number with its interval, what failed, what was skipped and why, and the published
rows, marked as such.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pipelines.evaluate.aggregate import (
    LEVEL,
    OVERALL,
    RESAMPLES,
    SEED,
    Comparison,
    Difference,
    Estimate,
    Row,
    RunScores,
    aggregate,
    compare,
    failures,
    main_metric,
)
from pipelines.evaluate.report.page import render_page
from pipelines.evaluate.report.published import NOTE, ROWS
from pipelines.evaluate.report.tables import Entry, Line, Table, definitions, figure, interval, tables
from sigma_data.errors import ConfigError
from sigma_data.storage.files import disk_error, dump_json, write_atomic
from sigma_data.token_style import printable

RESULTS, MARKDOWN, REPORT = "results.json", "results.md", "report.html"

_SCHEMA = 1
_MARKS = re.compile(r"([\\`*_\[\]|~])")


def write_report(runs: Sequence[RunScores], folder: Path) -> None:
    """Write results.json, results.md and report.html into `folder`, each whole or not at all.

    Several runs stand side by side, and each is compared with the first. Raises ConfigError where runs are of
    different benchmarks, share a name or no item; BuildError where the disk refuses.
    """
    _check(runs)
    rows = [aggregate(run) for run in runs]
    comparisons = [compare(runs[0], run) for run in runs[1:]]
    made = tables(runs, rows)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(folder / RESULTS, dump_json(_results(runs, rows, comparisons)))
        write_atomic(folder / MARKDOWN, _markdown(runs, made, comparisons))
        write_atomic(folder / REPORT, render_page(runs, rows, made, comparisons))
    except OSError as error:
        raise disk_error(error, folder) from None


def _check(runs: Sequence[RunScores]) -> None:
    if not runs:
        raise ConfigError("there is no run to report: name at least one")
    names = [run.name for run in runs]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ConfigError(f"two runs are called {twice}: give each a name of its own")


def _results(runs: Sequence[RunScores], rows: Sequence[Sequence[Row]], comparisons: Sequence[Comparison]) -> Any:
    return {
        "schema": _SCHEMA,
        "benchmark": runs[0].benchmark,
        "bootstrap": {"level": LEVEL, "resamples": RESAMPLES, "seed": SEED},
        "runs": [_run(run, of_run) for run, of_run in zip(runs, rows, strict=True)],
        "comparisons": [
            {
                "first": one.first,
                "second": one.second,
                "differences": [_flat(difference) for difference in one.differences],
                "left_out": dict(one.left_out),
                "notes": list(one.notes),
            }
            for one in comparisons
        ],
        "published": {
            "note": NOTE,
            "rows": [dataclasses.asdict(row) for row in ROWS if row.benchmark == runs[0].benchmark],
        },
    }


def _run(run: RunScores, rows: Sequence[Row]) -> dict[str, Any]:
    return {
        "name": run.name,
        "settings": dict(run.settings),
        "metrics": [dataclasses.asdict(metric) for metric in run.metrics],
        "skipped": dict(run.skipped),
        "summary": dict(run.summary),
        "notes": dict(run.notes),
        "families": [
            {
                "family": row.family,
                "items": row.items,
                "failed": row.failed,
                "main": main_metric(run, row.family),
                "metrics": {
                    name: {**cell.estimate._asdict(), "scored": cell.scored, "failed": cell.failed}
                    for name, cell in row.cells.items()
                },
            }
            for row in rows
        ],
        "failures": [
            dict(zip(("item", "family", "metric", "reason"), failure, strict=True)) for failure in failures(run)
        ],
        "scores": {
            item: {name: score.value for name, score in scores.items() if score.value is not None}
            for item, scores in run.by_item.items()
        },
    }


def _flat(difference: Difference) -> dict[str, Any]:
    return {
        "family": difference.family,
        "metric": difference.metric,
        **difference.estimate._asdict(),
        "pairs": difference.pairs,
        "unpaired": difference.unpaired,
        "verdict": difference.verdict,
    }


def _markdown(runs: Sequence[RunScores], made: Sequence[Table], comparisons: Sequence[Comparison]) -> str:
    return "\n".join(_lines(runs, made, comparisons)) + "\n"


def _lines(runs: Sequence[RunScores], made: Sequence[Table], comparisons: Sequence[Comparison]) -> Iterator[str]:
    yield f"# {_plain(runs[0].benchmark)}: {_plain(', '.join(run.name for run in runs))}"
    yield ""
    yield f"Means with {LEVEL:.0%} bootstrap intervals over items; an arrow points where better is."
    for table in made:
        yield from ("", f"## {_title(table.family)}", "")
        yield from _table(["", "items", *(column.heading for column in table.columns)], [*map(_cells, table.lines)])
        if table.has_published:
            yield from ("", f"Published: {NOTE}")
    for one in comparisons:
        yield from ("", f"## {_plain(one.second)} against {_plain(one.first)}", "")
        yield "Differences on the items that both have scored, with their intervals."
        yield ""
        yield from _table(
            ["family", "metric", "difference", "pairs", ""],
            [
                [_plain(entry.family), _plain(entry.metric), _signed(entry.estimate), _pairs(entry), entry.verdict]
                for entry in one.differences
            ],
        )
        yield from (f"\nNot compared: {_plain(name)}, {_plain(reason)}." for name, reason in one.left_out.items())
        yield from (f"\nCompared: {_plain(note)}." for note in one.notes)
    for run in runs:
        failed = failures(run)
        if failed:
            yield from ("", f"## Failed in {_plain(run.name)}", "")
            yield from (
                f"- {_plain(item)} ({_plain(family)}{', ' + _plain(metric) if metric else ''}): {_plain(reason)}"
                for item, family, metric, reason in failed
            )
        if run.skipped:
            yield from ("", f"## Skipped in {_plain(run.name)}", "")
            yield from (f"- {_plain(name)}: {_plain(reason)}" for name, reason in run.skipped.items())
    yield from ("", "## Definitions", "")
    for metric, of in definitions(runs):
        version = f"version {_plain(metric.version)}" + (f", in {_plain(of)}" if of else "")
        yield f"- **{_plain(metric.name)}**, {version}: {_plain(metric.definition)}"


def _title(family: str) -> str:
    return {"": "Aggregates", OVERALL: "All items"}.get(family, _plain(family))


def _table(head: Sequence[str], body: Sequence[Sequence[str]]) -> Iterator[str]:
    yield "| " + " | ".join(map(_plain, head)) + " |"
    yield "|" + " --- |" * len(head)
    yield from ("| " + " | ".join(row) + " |" for row in body)


def _cells(line: Line) -> list[str]:
    if line.published:
        name = f"*{_plain(line.name)}, published ({_plain(line.published)})*"
    else:
        name = f"**{_plain(line.name)}**"
    items = "" if line.items is None else f"{line.items}" + (f" ({line.failed} failed)" if line.failed else "")
    return [name, items, *map(_entry, line.entries)]


def _entry(entry: Entry) -> str:
    if entry.estimate.mean is None:
        return entry.note or "–"
    parts = [figure(entry.estimate.mean), _plain(interval(entry.estimate)), entry.note]
    return " ".join(filter(None, [*parts, f"({entry.failed} failed)" if entry.failed else ""]))


def _pairs(difference: Difference) -> str:
    return f"{difference.pairs}" + (f" ({difference.unpaired} unpaired)" if difference.unpaired else "")


def _signed(estimate: Estimate) -> str:
    if estimate.mean is None:
        return "–"
    return f"{'+' if estimate.mean > 0 else ''}{figure(estimate.mean)} {_plain(interval(estimate))}".rstrip()


def _plain(text: str) -> str:
    """Text that Markdown shows as they are: no marks, no HTML, one line."""
    shown = " ".join(printable(text).split()).replace("&", "&amp;").replace("<", "&lt;")
    return _MARKS.sub(r"\\\1", shown)
