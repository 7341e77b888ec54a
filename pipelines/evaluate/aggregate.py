"""From scores of items to what a table says: means with bootstrap intervals, a family and overall.

Pure arithmetic. A mean is over the items that were scored, and the count of those that failed stands beside it:
an item never leaves a table silently.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from pipelines.evaluate.item import Item, Result, Score
from sigma_data.errors import ConfigError

OVERALL = "all"
"""The name of the row that takes every item of every family."""

SEED = 0
RESAMPLES = 1000
LEVEL = 0.95
_DRAWS_AT_ONCE = 2**22


@dataclass(frozen=True)
class MetricInfo:
    """What a number means: a metric's name, the version of its definition, which way is better, the definition."""

    name: str
    version: str
    better: Literal["up", "down"]
    definition: str


@dataclass(frozen=True)
class RunScores:
    """A run of a benchmark with all that is known of it.

    `settings` is everything that was recorded; `skipped` gives for metrics that could not run the reason;
    `scores` are of the items of `results`, at most one an item and metric; `summary` holds the benchmark's
    aggregates by name, such as its official score and metrics of whole sets, and `notes` says of some of them what
    they leave out; `main` names the main metric of each family that has one.
    """

    name: str
    benchmark: str
    settings: Mapping[str, Any]
    metrics: Sequence[MetricInfo]
    skipped: Mapping[str, str]
    results: Sequence[Result]
    scores: Sequence[Score]
    summary: Mapping[str, float] = field(default_factory=dict)
    main: Mapping[str, str] = field(default_factory=dict)
    notes: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def families(self) -> tuple[str, ...]:
        """The families in the order in which they first come."""
        return tuple(dict.fromkeys(family for family, _ in self.answered.values()))

    @cached_property
    def answered(self) -> Mapping[str, tuple[str, str | None]]:
        """Every item by its id: its family, and why there is no answer, if there is none.

        Raises ValueError for two results of an item.
        """
        table: dict[str, tuple[str, str | None]] = {}
        for result in self.results:
            if result.item.id in table:
                raise ValueError(f"run {self.name}: two results for the item {result.item.id}")
            table[result.item.id] = (result.item.family, result.failure)
        return table

    @cached_property
    def questions(self) -> Mapping[str, str]:
        """The question of every item: items of one question are not independent."""
        return {result.item.id: result.item.question or result.item.id for result in self.results}

    @cached_property
    def by_item(self) -> Mapping[str, Mapping[str, Score]]:
        """The scores as item -> metric -> score. A value that is not finite counts as a failed score.

        Raises ValueError for two scores of an item under a metric, a score of an item that is not in `results`,
        and a metric that `metrics` does not define.
        """
        table: dict[str, dict[str, Score]] = {item: {} for item in self.answered}
        known = {metric.name for metric in self.metrics}
        for score in self.scores:
            if score.item not in table:
                raise ValueError(f"run {self.name}: a score for the item {score.item}, which has no result")
            if score.metric not in known:
                raise ValueError(f"run {self.name}: the metric {score.metric} has no definition")
            if score.metric in table[score.item]:
                raise ValueError(f"run {self.name}: two scores for the item {score.item} under {score.metric}")
            if score.value is not None and not math.isfinite(score.value):
                score = Score(score.item, score.metric, None, f"the score is {score.value}")
            table[score.item][score.metric] = score
        return table


class Estimate(NamedTuple):
    """A mean and its bootstrap interval; None is what the values do not determine."""

    mean: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Cell:
    """A metric in a row: its estimate over `scored` items, beside which `failed` items have no score."""

    estimate: Estimate
    scored: int
    failed: int


@dataclass(frozen=True)
class Row:
    """A family of a run, or all of it: `items` questions, `failed` of which got no answer.

    `cells` has the metrics that apply here, in the order of the run's metrics.
    """

    family: str
    items: int
    failed: int
    cells: Mapping[str, Cell]


@dataclass(frozen=True)
class Difference:
    """How the second run differs from the first under a metric: second minus first, over items both have.

    `pairs` items are in it, `unpaired` were scored in one run only, or ask something else there. `verdict` says
    whether the second is `better`, `worse`, or the interval has 0 in it and it is `open`.
    """

    family: str
    metric: str
    estimate: Estimate
    pairs: int
    unpaired: int
    verdict: Literal["better", "worse", "open"]


@dataclass(frozen=True)
class Comparison:
    """Two runs on the same items; `left_out` gives for metrics and items that cannot be compared the reason.

    `notes` name what is compared although it differs a little.
    """

    first: str
    second: str
    differences: tuple[Difference, ...]
    left_out: Mapping[str, str]
    notes: tuple[str, ...] = ()


def bootstrap(
    values: Sequence[float] | npt.NDArray[np.float64],
    *,
    seed: int,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
    groups: Sequence[str] | None = None,
) -> Estimate:
    """The mean and its percentile bootstrap interval (Efron 1979), the same for the same values and seed.

    `groups` says which values belong together, as several images of one prompt do: whole groups are drawn (cluster
    bootstrap, Davison and Hinkley 1997, section 3.8). No values have no mean; a single value or group has a mean
    and no interval, since it says nothing about its spread.
    """
    data = np.asarray(values, dtype=np.float64)
    if not data.size:
        return Estimate(None, None, None)
    mean = float(data.mean())
    weights = np.ones(data.size)
    if groups is not None and len(set(groups)) < data.size:
        _, member = np.unique(np.asarray(groups), return_inverse=True)
        weights = np.bincount(member).astype(np.float64)
        data = np.bincount(member, weights=data).astype(np.float64)
    if data.size == 1:
        return Estimate(mean, None, None)
    random = np.random.default_rng(seed)
    rows = max(1, _DRAWS_AT_ONCE // data.size)  # bounds the memory of large benchmarks
    draws = (
        random.integers(0, data.size, (min(rows, resamples - start), data.size))
        for start in range(0, resamples, rows)
    )  # fmt: skip
    means = np.concatenate([data[drawn].sum(axis=1) / weights[drawn].sum(axis=1) for drawn in draws])
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    # A mean of equal values may differ from itself in the last bit.
    return Estimate(mean, min(float(low), mean), max(float(high), mean))


def aggregate(run: RunScores) -> tuple[Row, ...]:
    """A row a family and one overall, over all items and not over families."""
    return tuple(_row(run, family) for family in (*run.families, OVERALL))


def main_metric(run: RunScores, family: str) -> str | None:
    """The metric that speaks for a family; for OVERALL the one that all families share, if they do."""
    if family != OVERALL:
        return run.main.get(family)
    shared = {run.main.get(family) for family in run.families}
    return shared.pop() if len(shared) == 1 else None


def family_summary(run: RunScores) -> dict[str, dict[str, Any]]:
    """A family's main metric with its interval, where it was scored."""
    result = {}
    for row in aggregate(run):
        metric = main_metric(run, row.family)
        cell = row.cells.get(metric) if metric is not None else None
        if cell is not None:
            result[row.family] = {
                "metric": metric,
                **cell.estimate._asdict(),
                "scored": cell.scored,
                "failed": cell.failed,
            }
    return result


def failures(run: RunScores) -> tuple[tuple[str, str, str, str], ...]:
    """Everything that failed as (item, family, metric, reason); the metric is empty where there was no answer."""
    found = []
    for item, (family, failure) in run.answered.items():
        if failure is not None:
            found.append((item, family, "", failure))
            continue
        found += [
            (item, family, score.metric, score.reason)
            for score in run.by_item[item].values()
            if score.value is None and score.reason
        ]
    return tuple(found)


def compare(first: RunScores, second: RunScores) -> Comparison:
    """The paired difference, second minus first, a family and metric, over items that both have scored.

    Benchmarks number their items, so an id alone does not make a pair: references and answers must be the same, too.
    The instruction may be worded otherwise, which the notes say.

    Raises ConfigError where the runs are of different benchmarks or share no item.
    """
    if first.benchmark != second.benchmark:
        raise ConfigError(
            f"{first.name} is a run of {first.benchmark} and {second.name} of {second.benchmark}; "
            "compare runs of one benchmark"
        )
    if first.by_item and second.by_item and not first.by_item.keys() & second.by_item.keys():
        raise ConfigError(
            f"{first.name} and {second.name} have no item in common; compare runs over the same split and limit"
        )
    theirs = {metric.name: metric for metric in second.metrics}
    left_out, differences = {}, []
    for metric in first.metrics:
        other = theirs.get(metric.name)
        if other is None:
            left_out[metric.name] = f"{second.name} does not have it"
        elif metric.version != other.version:
            left_out[metric.name] = f"version {metric.version} and version {other.version} differ"
        elif metric != other:
            left_out[metric.name] = f'their definitions differ: "{metric.definition}" and "{other.definition}"'
    only_second = theirs.keys() - {metric.name for metric in first.metrics}
    left_out |= {name: f"{first.name} does not have it" for name in theirs if name in only_second}
    unlike, reworded = _unlike(first, second)
    if unlike:
        left_out[_count(len(unlike))] = "the same id, but other references, another answer or other metadata"
    notes = (f"{_count(reworded)} with another instruction in {second.name}, otherwise the same",) if reworded else ()
    for family in (*dict.fromkeys((*first.families, *second.families)), OVERALL):
        for metric in first.metrics:
            if metric.name not in left_out and (found := _difference(first, second, family, metric, unlike)):
                differences.append(found)
    return Comparison(first.name, second.name, tuple(differences), left_out, notes)


def _unlike(first: RunScores, second: RunScores) -> tuple[set[str], int]:
    """The items whose id both have and that are not the same, and how many others differ in the instruction alone."""
    theirs = {result.item.id: result.item for result in second.results}
    both = [(result.item, theirs[result.item.id]) for result in first.results if result.item.id in theirs]
    unlike = {one.id for one, other in both if _identity(one) != _identity(other)}
    return unlike, sum(one.instruction != other.instruction for one, other in both if one.id not in unlike)


def _identity(item: Item) -> tuple[Any, ...]:
    """All that makes an item the same as another but the wording of its instruction."""
    truth = dict(item.truth)
    if isinstance(truth.get("metadata"), Mapping):  # GenEval's repeats the instruction
        truth["metadata"] = {key: value for key, value in truth["metadata"].items() if value != item.instruction}
    return item.references, item.answer, item.answer_text, truth


def _count(items: int) -> str:
    return f"{items:,} item{'' if items == 1 else 's'}"


def _members(run: RunScores, family: str) -> list[str]:
    return [item for item, (of, _) in run.answered.items() if family in (OVERALL, of)]


def _row(run: RunScores, family: str) -> Row:
    members = _members(run, family)
    unanswered = {item for item in members if run.answered[item][1] is not None}
    cells = {}
    for metric in run.metrics:
        values: dict[str, float] = {}
        broken: set[str] = set()
        for item in members:
            score = run.by_item[item].get(metric.name)
            if score is not None and score.value is not None:
                values[item] = score.value
            elif score is not None and score.reason and item not in unanswered:
                broken.add(item)
        # Whether a metric applies to an item without an answer is seen in the rest of its family.
        applies = {run.answered[item][0] for item in (*values, *broken)}
        broken |= {item for item in unanswered - values.keys() if run.answered[item][0] in applies}
        if applies:
            groups = [run.questions[item] for item in values]
            cells[metric.name] = Cell(bootstrap([*values.values()], seed=SEED, groups=groups), len(values), len(broken))
    return Row(family, len(members), len(unanswered), cells)


def _value(run: RunScores, item: str, metric: str) -> float | None:
    score = run.by_item.get(item, {}).get(metric)
    return None if score is None else score.value


def _difference(
    first: RunScores, second: RunScores, family: str, metric: MetricInfo, unlike: Set[str]
) -> Difference | None:
    """The difference of a family, or None where neither run has a value there; `unlike` items make no pair."""
    pairs: dict[str, float] = {}
    unpaired = 0
    for item in dict.fromkeys((*_members(first, family), *_members(second, family))):
        before, after = _value(first, item, metric.name), _value(second, item, metric.name)
        if before is not None and after is not None and item not in unlike:
            pairs[item] = after - before
        else:
            unpaired += before is not None or after is not None
    if not pairs and not unpaired:
        return None
    estimate = bootstrap([*pairs.values()], seed=SEED, groups=[first.questions[item] for item in pairs])
    verdict: Literal["better", "worse", "open"] = "open"
    if estimate.low is not None and estimate.high is not None and not estimate.low <= 0 <= estimate.high:
        verdict = "better" if (estimate.low > 0) == (metric.better == "up") else "worse"
    return Difference(family, metric.name, estimate, len(pairs), unpaired, verdict)
