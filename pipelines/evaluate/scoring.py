"""The second stage: every metric over all results, a file a metric, so that adding one scores that one alone."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pipelines.evaluate.item import Result, Score
from pipelines.evaluate.metrics.base import Metric
from sigma_data.files import dump_json, write_atomic

SCORES = "scores"


def score(
    metric: Metric,
    results: Sequence[Result],
    folder: Path,
    *,
    key: str,
    batch: int = 64,
    progress: Callable[[int], None] = lambda count: None,
) -> list[Score]:
    """Scores of all results under one metric: those kept in `folder`, or new ones.

    `key` says what was scored and how; scores kept under another key are made anew. A result without a
    picture, or to which the metric does not apply, has none, with the reason.
    """
    place = folder / SCORES / f"{metric.name}.json"
    kept = _kept(place, key)
    if kept is not None:
        progress(len(results))
        return kept
    scores: dict[int, Score] = {}
    fitting = []
    for number, result in enumerate(results):
        reason = result.failure or ("" if result.picture is not None else "there is no picture")
        if reason or not metric.applies(result.item):
            scores[number] = Score(result.item.id, metric.name, None, reason)
        else:
            fitting.append(number)
    progress(len(scores))
    for start in range(0, len(fitting), batch):
        some = fitting[start : start + batch]
        for number, value in zip(some, metric.score([results[number] for number in some]), strict=True):
            scores[number] = Score(results[number].item.id, metric.name, value)
        progress(len(some))
    made = [scores[number] for number in range(len(results))]
    place.parent.mkdir(parents=True, exist_ok=True)
    rows = [[one.item, one.value, one.reason] for one in made]
    write_atomic(place, dump_json({"key": key, "metric": metric.name, "version": metric.version, "scores": rows}))
    return made


def _kept(place: Path, key: str) -> list[Score] | None:
    try:
        stored: dict[str, Any] = json.loads(place.read_text("utf-8"))
        if stored["key"] != key:
            return None
        return [Score(item, stored["metric"], value, reason) for item, value, reason in stored["scores"]]
    except (OSError, ValueError, LookupError, TypeError):
        return None
