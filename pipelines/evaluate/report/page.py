"""report.html: one file that works offline, with tables ready to read and samples drawn as they are looked at.

Tables are plain HTML. Samples lie in the file as data, and a script, the only one that the page's content
security policy lets run, makes the elements of those on the screen; so thousands of samples open at once.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import jinja2

from pipelines.evaluate.aggregate import (
    LEVEL,
    OVERALL,
    Cell,
    Comparison,
    Row,
    RunScores,
    failures,
    main_metric,
)
from pipelines.evaluate.item import Item, Result, Score
from pipelines.evaluate.report.published import NOTE
from pipelines.evaluate.report.tables import Table, definitions, figure, interval, metrics
from pipelines.evaluate.report.thumbnails import Thumbnail, thumbnails
from pipelines.evaluate.stored import Encoded, sha256_of
from sigma_data.report.charts import number
from sigma_data.storage.files import finite
from sigma_data.token_style import TARGET_COLOUR, TOKEN_COLOURS, instruction_parts, printable

IMAGE_BYTES = 36_000_000
"""What all thumbnails may weigh; base64 makes 48 MB of it."""
FAILURES_SHOWN = 200

_IMAGES_PER_BLOCK = 64
_LONGEST_INSTRUCTION = 1500
_LONGEST_ANSWER = 2000
_LONGEST_REASON = 300


@dataclass(frozen=True)
class Whisker:
    """A run's main metric in a family on a scale from `low` to `high`; places are percent of it."""

    run: str
    text: str
    dot: float
    left: float
    width: float


@dataclass(frozen=True)
class Overview:
    """A family at a glance: its main metric, the ends of the scale, and a whisker a run."""

    family: str
    metric: str
    better: str
    low: str
    high: str
    whiskers: tuple[Whisker, ...]


def render_page(
    runs: Sequence[RunScores],
    rows: Sequence[Sequence[Row]],
    tables: Sequence[Table],
    comparisons: Sequence[Comparison],
    *,
    image_bytes: int = IMAGE_BYTES,
) -> str:
    """The page as HTML text; the same runs give the same bytes. `rows` are the runs' `aggregate`."""
    package = files("pipelines.evaluate.report")
    script = package.joinpath("report.js").read_text(encoding="utf-8")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {
        "figure": figure, "interval": interval, "number": number, "printable": printable, "direction": _direction,
    }  # fmt: skip
    template = environment.from_string(package.joinpath("report.html.j2").read_text(encoding="utf-8"))
    data, images = _samples(runs, image_bytes)
    return template.render(
        benchmark=printable(runs[0].benchmark),
        runs=runs,
        overall=OVERALL,
        level=f"{LEVEL:.0%}",
        overview=_overview(runs, rows),
        tables=tables,
        comparisons=comparisons,
        families=list(dict.fromkeys(family for run in runs for family in run.families)),
        items=len({item for run in runs for item in run.answered}),
        failures=[(run.name, failures(run)) for run in runs],
        failures_shown=FAILURES_SHOWN,
        metrics=metrics(runs),
        definitions=definitions(runs),
        settings=_settings(runs),
        note=NOTE,
        data=_json(data),
        blocks=_blocks(images),
        script=script,
        script_digest=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        colours=TOKEN_COLOURS,
        target_colour=TARGET_COLOUR,
    )


def _overview(runs: Sequence[RunScores], rows: Sequence[Sequence[Row]]) -> list[Overview]:
    """Every family's main metric with its interval; a family without one is in the tables only."""
    better = {name: info.better for name, info in metrics(runs).items()}
    result = []
    families = dict.fromkeys(family for run in runs for family in run.families)
    for family in [*families, *([OVERALL] if len(families) > 1 else [])]:
        name = next(filter(None, (main_metric(run, family) for run in runs)), None)
        if name is None:
            continue
        cells = [
            (run.name, row.cells[name])
            for run, of_run in zip(runs, rows, strict=True)
            for row in of_run
            if row.family == family and name in row.cells and row.cells[name].scored
        ]
        if cells:
            result.append(_on_a_scale(family, name, better.get(name, ""), cells))
    return result


def _on_a_scale(family: str, metric: str, better: str, cells: Sequence[tuple[str, Cell]]) -> Overview:
    ends = [end for _, cell in cells for end in cell.estimate if end is not None]
    high = next((10.0**power for power in range(9) if max(map(abs, ends)) <= 10**power), max(map(abs, ends)))
    low = -high if min(ends) < 0 else 0.0

    def place(value: float) -> float:
        return round(100 * (value - low) / (high - low), 2)

    whiskers = []
    for run, cell in cells:
        mean, first, last = cell.estimate
        assert mean is not None  # it was scored
        left = place(mean if first is None else first)
        right = place(mean if last is None else last)
        text = f"{figure(mean)} {interval(cell.estimate)}".rstrip()
        whiskers.append(Whisker(run, text, place(mean), left, round(right - left, 2)))
    return Overview(family, metric, better, f"{low:g}", f"{high:g}", tuple(whiskers))


def _settings(runs: Sequence[RunScores]) -> list[tuple[str, list[str], bool]]:
    """Every recorded setting as (name, its value in each run, whether the runs differ in it)."""
    flat = [_flat(run.settings) for run in runs]
    names = dict.fromkeys(name for settings in flat for name in settings)
    rows = [(name, [settings.get(name, "–") for settings in flat]) for name in names]
    return [(name, values, len(set(values)) > 1) for name, values in rows]


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
            flat[f"{prefix}{name}"] = printable(text)
    return flat


def _samples(runs: Sequence[RunScores], image_bytes: int) -> tuple[dict[str, Any], list[Thumbnail]]:
    """What the script draws samples from, and the images that it names by number.

    An item is [id, family, instruction, references, answer, answer_text, a run: null or [image, text, failure, values,
    reasons]]. Families, metrics and images are numbers; -1 is no image. Equal images are kept once.
    """
    numbers: dict[str, int] = {}
    originals: list[Encoded] = []

    def image_number(data: Encoded | None) -> int:
        if data is None:
            return -1
        digest = sha256_of(data)
        if digest not in numbers:
            numbers[digest] = len(originals)
            originals.append(data)
        return numbers[digest]

    families = {family: place for place, family in enumerate(dict.fromkeys(f for run in runs for f in run.families))}
    known = {name: place for place, name in enumerate(metrics(runs))}
    results: dict[str, list[Result | None]] = {}
    for place, run in enumerate(runs):
        for result in run.results:
            results.setdefault(result.item.id, [None] * len(runs))[place] = result
    items = []
    for outcomes in results.values():
        item: Item = next(outcome.item for outcome in outcomes if outcome is not None)
        items.append([
            printable(item.id),
            families[item.family],
            [_part(*part) for part in instruction_parts(item.instruction, len(item.references), _LONGEST_INSTRUCTION)],
            [image_number(data) for data in item.references],
            image_number(item.answer),
            _cut(item.answer_text, _LONGEST_ANSWER),
            [
                outcome and [image_number(outcome.image), *_outcome(outcome, run.by_item[item.id], known)]
                for run, outcome in zip(runs, outcomes, strict=True)
            ],
        ])  # fmt: skip
    made = thumbnails(originals, image_bytes)
    main = {family: next(filter(None, (main_metric(run, family) for run in runs)), None) for family in families}
    data = {
        "runs": [printable(run.name) for run in runs],
        "families": [printable(family) for family in families],
        "metrics": [[printable(info.name), info.better] for info in metrics(runs).values()],
        "main": [known.get(name or "", -1) for name in main.values()],
        "block": _IMAGES_PER_BLOCK,
        "sizes": [[thumb.width, thumb.height] if thumb.data else thumb.missing for thumb in made],
        "items": items,
    }
    return data, made


def _outcome(result: Result, scores: Mapping[str, Score], known: Mapping[str, int]) -> list[Any]:
    """The text, the failure, the values and the reasons of an item in a run; metrics by their numbers.

    A reason beside a value explains it, one without says why there is none.
    """
    values = {known[name]: _short(score.value) for name, score in scores.items() if score.value is not None}
    reasons = {
        known[name]: _cut(score.reason, _LONGEST_REASON)
        for name, score in scores.items()
        if score.reason and result.failure is None
    }
    return [_cut(result.text, _LONGEST_ANSWER), _cut(result.failure, _LONGEST_REASON), values, reasons]


def _part(kind: str, text: str) -> Any:
    """A part of an instruction: text, the number of an image, or an attribute in a list."""
    if kind == "text":
        return text
    return [text] if kind == "attribute" else int(text)


def _short(value: float) -> float:
    """A value as cards show it and order goes by: six digits, so that data stay small."""
    return float(f"{value:.6g}")


def _cut(text: str | None, longest: int) -> str | None:
    if text is None:
        return None
    text = printable(text)
    return text if len(text) <= longest else text[:longest].rstrip() + "…"


def _blocks(images: Sequence[Thumbnail]) -> list[str]:
    """Images in blocks, a line of base64 each, so that the script reads only those that it shows."""
    lines = [base64.b64encode(thumb.data or b"").decode() for thumb in images]
    return ["\n".join(lines[at : at + _IMAGES_PER_BLOCK]) for at in range(0, len(lines), _IMAGES_PER_BLOCK)]


def _direction(better: str) -> str:
    return {"up": "higher is better", "down": "lower is better"}.get(better, "")


def _json(value: Any) -> str:
    """JSON that may stand inside a script element: nothing in it can end that."""
    text = json.dumps(finite(value), ensure_ascii=False, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")
