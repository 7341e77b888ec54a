"""The second stage: every metric over all results, a file a metric, so that adding one scores that one alone.

A file says what was scored (the digest of all results) and by which definition; another digest or
definition makes it void. A metric that cannot run leaves a file with the reason, and is tried anew.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipelines.common.together import together_or_each
from pipelines.evaluate.aggregate import MetricInfo
from pipelines.evaluate.benchmarks import Benchmark
from pipelines.evaluate.item import Result, Score
from pipelines.evaluate.metrics.base import Metric, SetMetric, chunks
from pipelines.evaluate.stored import sha256_of
from sigma_data.errors import ConfigError
from sigma_data.images.decode import ImageFault
from sigma_data.storage.files import disk_error, dump_json, write_atomic

SCORES = "scores"
OWN = "benchmark"
"""The file of what only the benchmark itself can score."""

Progress = Callable[[int], None]


@dataclass(frozen=True)
class Scored:
    """What a file of scores holds; `summary` are numbers of whole sets, `skipped` says of metrics why they did not run.

    `of` is the digest of the results; `notes` say of numbers in `summary` how many results are in them, where some
    are not.
    """

    of: str
    metrics: Sequence[MetricInfo] = ()
    scores: Sequence[Score] = ()
    summary: Mapping[str, float] = field(default_factory=dict)
    skipped: Mapping[str, str] = field(default_factory=dict)
    notes: Mapping[str, str] = field(default_factory=dict)


def digest(results: Sequence[Result]) -> str:
    """SHA-256 over what was made of every item."""
    state = hashlib.sha256()
    for one in results:
        made = sha256_of((one.text or one.failure or "").encode() if one.image is None else one.image)
        state.update(dump_json([one.item.id, one.text is None, one.failure is None]).encode())
        state.update(bytes.fromhex(made))
    return state.hexdigest()


def info(metric: Metric | SetMetric) -> MetricInfo:
    """What a report says about a metric."""
    return MetricInfo(metric.name, metric.version, metric.better, f"{metric.definition} Scale: {metric.scale}.")


def is_scored(folder: Path, name: str, of: str, metrics: Sequence[MetricInfo]) -> bool:
    """Whether the file of that name has scores of these results by these definitions."""
    kept = _read(_place(folder, name))
    return kept is not None and not kept.skipped and kept.of == of and list(kept.metrics) == list(metrics)


def score_metric(
    metric: Metric | SetMetric,
    results: Sequence[Result],
    folder: Path,
    of: str,
    *,
    batch: int = 64,
    progress: Progress = lambda count: None,
) -> None:
    """Score all results and write the file; `progress(results)` as it goes on.

    A result without an image, and one whose images a metric cannot read, has no score, but the reason.
    """
    if isinstance(metric, SetMetric):
        write(folder, metric.name, _score_set(metric, results, of))
        progress(len(results))
        return
    write(
        folder, metric.name, Scored(of, [info(metric)], metric_scores(metric, results, batch=batch, progress=progress))
    )


def metric_scores(
    metric: Metric, results: Sequence[Result], *, batch: int = 64, progress: Progress = lambda count: None
) -> list[Score]:
    """A score of each result, in their order."""
    scores: dict[int, Score] = {}
    fitting = []
    for number, result in enumerate(results):
        applies, reason = _fits(metric, result)
        if applies:
            fitting.append(number)
        else:
            scores[number] = Score(result.item.id, metric.name, None, reason)
    progress(len(scores))
    for some in chunks(fitting, batch):
        for number, (value, reason) in zip(some, _values(metric, [results[n] for n in some]), strict=True):
            scores[number] = Score(results[number].item.id, metric.name, value, reason)
        progress(len(some))
    return [scores[number] for number in range(len(results))]


def score_own(
    benchmark: Benchmark, results: Sequence[Result], folder: Path, of: str, *, scores: Sequence[Score] | None = None
) -> None:
    """What only the benchmark can score, with its official aggregates; `scores` are its own, if they are known."""
    scores = benchmark.own_scores(results) if scores is None else scores
    summary = benchmark.summary(results, scores)
    write(folder, OWN, Scored(of, benchmark.metrics, scores, summary, benchmark.skipped))


def skip(folder: Path, name: str, of: str, reason: str, *, backbones: Sequence[str] = ()) -> None:
    """Say why a metric did not run; scores that it has given of these results before, by these `backbones`, stay."""
    kept = _read(_place(folder, name))
    if kept is None or kept.skipped or kept.of != of or not all(_names(kept.metrics, value) for value in backbones):
        write(folder, name, Scored(of, skipped={name: reason}))


def write(folder: Path, name: str, scored: Scored) -> None:
    """Write a file of scores, whole. Raises BuildError where the disk refuses."""
    place = _place(folder, name)
    rows = [[one.item, one.metric, *_finite(one)] for one in scored.scores]
    metrics = [dataclasses.asdict(metric) for metric in scored.metrics]
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(place, dump_json({
            "of": scored.of, "metrics": metrics, "summary": dict(scored.summary), "skipped": dict(scored.skipped),
            "notes": dict(scored.notes), "scores": rows,
        }))  # fmt: skip
    except OSError as error:
        raise disk_error(error, place) from None


def _finite(score: Score) -> tuple[float | None, str]:
    """Value and reason as JSON can hold them: what is not finite counts as failed, like in `RunScores.by_item`."""
    fails = score.value is not None and not math.isfinite(score.value)
    return (None, f"the score is {score.value}") if fails else (score.value, score.reason)


def collect(folder: Path, names: Sequence[str], of: str) -> Scored:
    """All scores of these results: those of the benchmark, then of the metrics `names`, as far as there are any.

    Raises ConfigError where nothing was scored.
    """
    found = [kept for name in (OWN, *names) if (kept := _read(_place(folder, name))) is not None and kept.of == of]
    if not found:
        raise ConfigError(f"{folder}: has no scores of what was generated there: run the command with --stage score")
    return Scored(
        of,
        [metric for one in found for metric in one.metrics],
        [score for one in found for score in one.scores],
        {name: value for one in found for name, value in one.summary.items()},
        {name: reason for one in found for name, reason in one.skipped.items()},
        {name: note for one in found for name, note in one.notes.items()},
    )


def _fits(metric: Metric | SetMetric, result: Result) -> tuple[bool, str]:
    """Whether the metric takes the result; the reason where it should and cannot."""
    try:
        if not metric.applies(result.item):
            return False, ""
    except ImageFault as fault:
        return False, fault.message
    return result.image is not None, result.failure or ("" if result.image is not None else "there is no image")


def _values(metric: Metric, results: Sequence[Result]) -> list[tuple[float | None, str]]:
    """A value or a reason each; only those at fault have none."""
    return [
        (None, value.message) if isinstance(value, ImageFault) else (value, "")
        for value in together_or_each(metric.score, results, ImageFault)
    ]


def _score_set(metric: SetMetric, results: Sequence[Result], of: str) -> Scored:
    """The number of all results, and of each family where there are several and enough."""
    fits = [(result, *_fits(metric, result)) for result in results]
    fitting = [result for result, fit, _ in fits if fit]
    meant = [result for result, fit, reason in fits if fit or reason]
    sets, of_sets = {metric.name: fitting}, {metric.name: len(meant)}
    families = dict.fromkeys(result.item.family for result in fitting)
    if len(families) > 1:
        for name in families:
            sets[f"{metric.name}, {name}"] = [one for one in fitting if one.item.family == name]
            of_sets[f"{metric.name}, {name}"] = sum(one.item.family == name for one in meant)
    if len(fitting) < metric.least:
        return Scored(of, skipped={metric.name: f"needs {metric.least:,} results, and there are {len(fitting):,}"})
    try:
        summary = {name: metric.score_set(some) for name, some in sets.items() if len(some) >= metric.least}
    except ImageFault as fault:
        return Scored(of, skipped={metric.name: f"an image of the set cannot be used: {fault.message}"})
    notes = {
        name: f"over {len(sets[name]):,} of {of_sets[name]:,}" for name in summary if len(sets[name]) < of_sets[name]
    }
    return Scored(of, [info(metric)], summary=summary, notes=notes)


def _names(metrics: Sequence[MetricInfo], backbone: str) -> bool:
    """Whether a definition names the backbone, and not one whose name only begins or ends like it."""
    whole = re.compile(rf"(?<!\S){re.escape(backbone)}(?=[,.]?(?:\s|$))")
    return any(whole.search(metric.definition) for metric in metrics)


def _place(folder: Path, name: str) -> Path:
    return folder / SCORES / f"{name.replace(' ', '-')}.json"


def _read(place: Path) -> Scored | None:
    """None if the file is missing or unreadable: it is then made again."""
    try:
        stored: dict[str, Any] = json.loads(place.read_text("utf-8"))
        metrics = [MetricInfo(**metric) for metric in stored["metrics"]]
        scores = [Score(*row) for row in stored["scores"]]
        return Scored(stored["of"], metrics, scores, stored["summary"], stored["skipped"], stored.get("notes", {}))
    except (OSError, ValueError, LookupError, TypeError):
        return None
