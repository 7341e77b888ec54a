"""Scoring: a file a metric that stays valid for these results alone, and a reason for every score that is missing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
from support import evaluations

from pipelines.evaluate import score as score_module
from pipelines.evaluate.aggregate import MetricInfo
from pipelines.evaluate.benchmarks import Benchmark
from pipelines.evaluate.item import Item, Result, Score
from pipelines.evaluate.metrics.base import Metric, SetMetric
from sigma_data.errors import ConfigError
from sigma_data.images.decode import ImageFault, load


class Brightness(Metric):
    """The mean level of the output; it takes no item of the family `other`."""

    name = "bright ness"
    better: Literal["up", "down"] = "up"
    scale = "0 to 255"
    definition = "The mean level."

    def __init__(self) -> None:
        self.calls: list[int] = []

    def applies(self, item: Item) -> bool:
        if item.family == "unreadable":
            raise ImageFault("truncated", "the condition is cut off")
        return item.family != "other"

    def score(self, results: Sequence[Result]) -> list[float]:
        self.calls.append(len(results))
        return [float(load(result.image).convert("L").getpixel((0, 0))) for result in results]  # type: ignore[arg-type]


class Count(SetMetric):
    """How many there are."""

    name = "count"
    better: Literal["up", "down"] = "down"
    scale = "0 and up"
    definition = "The number of outputs."
    least = 2

    def applies(self, item: Item) -> bool:
        return True

    def score_set(self, results: Sequence[Result]) -> float:
        for result in results:
            load(result.image)
        return float(len(results))


class Own(Benchmark):
    name = "own"
    version = "1"
    answers = "image"
    metrics = (MetricInfo("own", "1", "up", "Ours."),)

    def iter_items(self) -> Iterator[Item]:
        yield from ()

    def own_scores(self, results: Sequence[Result]) -> list[Score]:
        return [Score(result.item.id, "own", 1.0) for result in results]

    def summary(self, results: Sequence[Result], scores: Sequence[Score]) -> dict[str, float]:
        return {"official": sum(score.value or 0 for score in scores)}


def result(name: str, family: str = "editing", image: bytes | None = b"", failure: str | None = None) -> Result:
    shown = evaluations.plain_image() if image == b"" else image
    return Result(Item(name, family, "Paint it"), image=shown, failure=failure)


RESULTS = [result("a"), result("b", "layout"), result("c", "other"), result("d", image=None, failure="it broke")]
OF = score_module.digest(RESULTS)


def values(folder: Path, *names: str, of: str = OF) -> dict[str, tuple[float | None, str]]:
    return {score.item: (score.value, score.reason) for score in score_module.collect(folder, names, of).scores}


def test_every_result_has_a_score_or_a_reason_or_the_metric_does_not_apply(tmp_path: Path) -> None:
    counted: list[int] = []
    score_module.score_metric(Brightness(), RESULTS, tmp_path, OF, progress=counted.append)
    found = values(tmp_path, "bright ness")
    assert list(found) == ["a", "b", "c", "d"]
    assert found["a"] == found["b"] != (None, "")
    assert (found["c"], found["d"]) == ((None, ""), (None, "it broke"))
    assert sum(counted) == len(RESULTS)


def test_an_image_that_cannot_be_read_costs_its_own_score_alone(tmp_path: Path) -> None:
    metric = Brightness()
    bad = [result("bad", image=b"no image"), result("cut", "unreadable")]
    some = [RESULTS[0], *bad, RESULTS[1], *(replace(RESULTS[0], item=Item(str(n), "editing", "x")) for n in range(3))]
    score_module.score_metric(metric, some, tmp_path, OF, batch=3)
    found = values(tmp_path, "bright ness")
    assert [name for name, (value, _) in found.items() if value is None] == ["bad", "cut"]
    assert found["bad"][1]
    assert found["cut"][1] == "the condition is cut off"
    assert metric.calls == [3, 1, 1, 1, 3], "only the chunk that failed is done one by one"


def test_scores_hold_for_these_results_and_this_definition_alone(tmp_path: Path) -> None:
    metric = Brightness()
    infos = [score_module.info(metric)]
    assert not score_module.is_scored(tmp_path, metric.name, OF, infos)
    score_module.score_metric(metric, RESULTS, tmp_path, OF)
    assert score_module.is_scored(tmp_path, metric.name, OF, infos)
    assert not score_module.is_scored(tmp_path, metric.name, "other results", infos)
    assert not score_module.is_scored(tmp_path, metric.name, OF, [replace(infos[0], version="2")])
    assert not score_module.is_scored(
        tmp_path, metric.name, OF, [replace(infos[0], definition="With another backbone.")]
    )
    with pytest.raises(ConfigError, match="--stage score"):
        score_module.collect(tmp_path, [metric.name], "other results")
    next((tmp_path / score_module.SCORES).iterdir()).write_text('{"of": ')
    assert not score_module.is_scored(tmp_path, metric.name, OF, infos), "a damaged file is made anew"


def test_the_digest_tells_results_apart() -> None:
    others = [
        [*RESULTS[:3], result("d", image=None, failure="otherwise")],
        [result("a", image=evaluations.plain_image("#ff0000")), *RESULTS[1:]],
        RESULTS[:3],
        [*RESULTS[1:], RESULTS[0]],
        [*RESULTS[:3], Result(RESULTS[3].item, text="it broke")],
    ]
    assert len({OF, *map(score_module.digest, others)}) == 1 + len(others)


def test_a_set_has_a_number_for_all_and_for_each_family_with_enough(tmp_path: Path) -> None:
    some = [*RESULTS[:2], result("e"), RESULTS[3]]
    score_module.score_metric(Count(), some, tmp_path, OF)
    found = score_module.collect(tmp_path, ["count"], OF)
    assert found.summary == {"count": 3.0, "count, editing": 2.0}
    assert found.notes == {"count": "over 3 of 4", "count, editing": "over 2 of 3"}, "the failed one is told"
    assert [metric.name for metric in found.metrics] == ["count"]
    assert not found.scores


@pytest.mark.parametrize(
    ("some", "reason"),
    [(RESULTS[:1], "needs 2 results, and there are 1"), ([*RESULTS[:2], result("x", image=b"no")], "cannot be used")],
)
def test_a_set_that_is_too_small_or_unreadable_is_skipped_with_the_reason(
    some: list[Result], reason: str, tmp_path: Path
) -> None:
    score_module.score_metric(Count(), some, tmp_path, OF)
    found = score_module.collect(tmp_path, ["count"], OF)
    assert reason in found.skipped["count"]
    assert not found.summary


def test_a_metric_that_could_not_run_is_tried_again_and_never_replaces_scores_by_the_same_backbone(
    tmp_path: Path,
) -> None:
    metric = Brightness()
    infos = [score_module.info(metric)]
    score_module.skip(tmp_path, metric.name, OF, "no weights")
    assert score_module.collect(tmp_path, [metric.name], OF).skipped == {metric.name: "no weights"}
    assert not score_module.is_scored(tmp_path, metric.name, OF, infos)
    score_module.score_metric(metric, RESULTS, tmp_path, OF)
    score_module.skip(tmp_path, metric.name, OF, "no weights any more")
    assert score_module.is_scored(tmp_path, metric.name, OF, infos)
    assert not score_module.collect(tmp_path, [metric.name], OF).skipped
    score_module.skip(tmp_path, metric.name, "other results", "no weights")
    assert score_module.collect(tmp_path, [metric.name], "other results").skipped


@pytest.mark.parametrize(
    ("now", "stays"),
    [
        (["lab/small"], True),
        (["nobody/other"], False),
        (["lab/smal"], False),
        (["b/small"], False),
        (["lab/small", "lab/head"], False),
    ],
)
def test_scores_by_another_backbone_give_way_to_the_reason_why_this_one_did_not_run(
    now: list[str], stays: bool, tmp_path: Path
) -> None:
    metric = Brightness()
    metric.definition = "The mean level. Backbone lab/small, after its crop."
    score_module.score_metric(metric, RESULTS, tmp_path, OF)
    score_module.skip(tmp_path, metric.name, OF, "no weights", backbones=now)
    found = score_module.collect(tmp_path, [metric.name], OF)
    assert dict(found.skipped) == ({} if stays else {metric.name: "no weights"})
    assert bool(found.scores) is stays


def test_the_benchmarks_own_scores_stand_first_with_its_aggregates(tmp_path: Path) -> None:
    score_module.score_metric(Brightness(), RESULTS, tmp_path, OF)
    score_module.score_own(Own(), RESULTS, tmp_path, OF)
    found = score_module.collect(tmp_path, ["bright ness"], OF)
    assert [metric.name for metric in found.metrics] == ["own", "bright ness"]
    assert found.summary == {"official": 4.0}
    assert score_module.is_scored(tmp_path, score_module.OWN, OF, Own.metrics)


def test_the_definition_says_the_scale() -> None:
    assert score_module.info(Brightness()) == MetricInfo("bright ness", "1", "up", "The mean level. Scale: 0 to 255.")
