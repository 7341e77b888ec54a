"""Promises of the statistics: honest about few values, nothing dropped silently, intervals that cover."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from support.evaluations import CLIP_I, RMSE, plain_image, run

from pipelines.evaluate.aggregate import (
    OVERALL,
    Estimate,
    MetricInfo,
    RunScores,
    aggregate,
    bootstrap,
    compare,
    failures,
    main_metric,
)
from sigma_data.errors import ConfigError


def rows(one):
    return {row.family: row for row in aggregate(one)}


def test_no_values_have_no_mean_and_one_value_has_no_interval() -> None:
    assert bootstrap([], seed=0) == Estimate(None, None, None)
    assert bootstrap([3.5], seed=0) == Estimate(3.5, None, None)


def test_equal_values_have_an_interval_of_no_width() -> None:
    assert bootstrap([0.1] * 1001, seed=0) == pytest.approx((0.1, 0.1, 0.1), abs=1e-12)


def test_the_interval_is_the_percentiles_of_all_resamples_where_they_can_be_counted() -> None:
    values = [1.0, 2.0, 4.0, 9.0]
    means = [np.mean(draw) for draw in itertools.product(values, repeat=4)]
    _, low, high = bootstrap(values, seed=3, resamples=200_000, level=0.8)
    assert (low, high) == pytest.approx((np.quantile(means, 0.1), np.quantile(means, 0.9)), abs=0.26)


def test_the_same_seed_gives_the_same_interval_and_another_seed_another() -> None:
    values = np.random.default_rng(1).normal(size=50)
    assert bootstrap(values, seed=5) == bootstrap(values, seed=5)
    assert bootstrap(values, seed=5) != bootstrap(values, seed=6)


def test_nineteen_of_twenty_intervals_have_the_true_mean_in_them() -> None:
    random = np.random.default_rng(7)
    intervals = [bootstrap(random.normal(10.0, 3.0, 60), seed=seed, resamples=400) for seed in range(400)]
    inside = sum(low <= 10.0 <= high for _, low, high in intervals)
    assert 0.90 <= inside / 400 <= 0.98


def test_large_benchmarks_are_drawn_in_bounded_memory() -> None:
    import tracemalloc

    values = np.random.default_rng(0).normal(size=200_000)
    tracemalloc.start()
    mean, low, high = bootstrap(values, seed=0, resamples=60)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert low < mean < high
    assert high - low == pytest.approx(2 * 1.96 / math.sqrt(200_000), rel=0.4)
    assert peak < 90_000_000  # all draws at once would take 190 MB


def test_a_row_a_family_in_order_and_one_of_all_items() -> None:
    one = run(
        {"a": {"CLIP-I": 60.0}, "b": {"CLIP-I": 90.0}, "c": {"CLIP-I": 30.0}},
        families={"a": "layout", "b": "editing", "c": "editing"},
    )
    assert [row.family for row in aggregate(one)] == ["layout", "editing", OVERALL]
    assert rows(one)["layout"].cells["CLIP-I"].estimate == (60.0, None, None)
    assert rows(one)["editing"].cells["CLIP-I"].estimate.mean == 60.0
    assert rows(one)[OVERALL].cells["CLIP-I"].estimate.mean == pytest.approx(60.0)
    assert [row.items for row in aggregate(one)] == [1, 2, 3]


def test_failed_items_are_counted_beside_the_mean_and_not_in_it() -> None:
    one = run(
        {"a": {"CLIP-I": 60.0}, "b": {"CLIP-I": 80.0}, "c": {}, "d": {}},
        failed={"c": "too long"},
        reasons={("d", "CLIP-I"): "cannot be decoded", ("c", "CLIP-I"): "too long"},
    )
    row = rows(one)["compositional"]
    cell = row.cells["CLIP-I"]
    assert (row.items, row.failed) == (4, 1)
    assert (cell.estimate.mean, cell.scored, cell.failed) == (70.0, 2, 2)
    assert failures(one) == (
        ("c", "compositional", "", "too long"), ("d", "compositional", "CLIP-I", "cannot be decoded"),
    )  # fmt: skip


def test_a_metric_that_does_not_apply_to_a_family_is_no_failure_there() -> None:
    one = run(
        {"a": {"CLIP-I": 60.0, "RMSE": None}, "b": {"RMSE": 0.5}, "c": {}},
        families={"a": "editing", "b": "layout", "c": "editing"},
        failed={"c": "too long"},
        metrics=(CLIP_I, RMSE),
    )
    assert list(rows(one)["editing"].cells) == ["CLIP-I"]
    assert rows(one)["editing"].cells["CLIP-I"].failed == 1
    assert rows(one)[OVERALL].cells["RMSE"].failed == 0
    assert failures(one) == (("c", "editing", "", "too long"),)


def test_a_metric_that_failed_everywhere_is_shown_without_a_mean() -> None:
    one = run({"a": {}, "b": {}}, reasons={("a", "CLIP-I"): "no", ("b", "CLIP-I"): "no"})
    cell = rows(one)["compositional"].cells["CLIP-I"]
    assert (cell.estimate.mean, cell.scored, cell.failed) == (None, 0, 2)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_score_that_is_no_number_is_a_failure(value: float) -> None:
    one = run({"a": {"CLIP-I": value}, "b": {"CLIP-I": 10.0}})
    cell = rows(one)["compositional"].cells["CLIP-I"]
    assert (cell.estimate.mean, cell.failed) == (10.0, 1)
    assert str(value) in failures(one)[0][3]


def test_scores_that_belong_to_nothing_are_refused() -> None:
    good = run({"a": {"CLIP-I": 1.0}})
    from pipelines.evaluate.item import Score

    for wrong in (
        replace(good, scores=[Score("x", "CLIP-I", 1.0)]),
        replace(good, scores=[Score("a", "DINO", 1.0)]),
        replace(good, scores=[*good.scores, *good.scores]),
        replace(good, results=[*good.results, *good.results]),
    ):
        with pytest.raises(ValueError, match="run ours"):
            aggregate(wrong)


def test_the_main_metric_of_all_items_is_the_one_that_families_share() -> None:
    families = {"a": "layout", "b": "editing"}
    values = {"a": {"CLIP-I": 1.0}, "b": {"CLIP-I": 1.0}}
    shared = run(values, families=families, main={"layout": "CLIP-I", "editing": "CLIP-I"})
    differing = run(values, families=families, main={"layout": "F1", "editing": "CLIP-I"})
    assert main_metric(shared, OVERALL) == "CLIP-I"
    assert main_metric(differing, OVERALL) is None


def test_a_difference_is_paired_by_item_and_not_of_means() -> None:
    random = np.random.default_rng(0)
    hard = {f"i{n}": random.normal(50, 20) for n in range(60)}
    first = run({key: {"CLIP-I": value} for key, value in hard.items()})
    second = run({key: {"CLIP-I": value + random.normal(1.0, 0.5)} for key, value in hard.items()}, name="theirs")
    found = compare(first, second).differences[0]
    assert found.estimate.mean == pytest.approx(1.0, abs=0.2)
    assert found.estimate.low > 0.7  # the spread of the items themselves, 20, is not in it
    assert (found.pairs, found.unpaired, found.verdict) == (60, 0, "better")


@pytest.mark.parametrize(("step", "verdict"), [(-2.0, "worse"), (2.0, "better"), (0.0, "open")])
def test_better_is_what_the_metric_says(step: float, verdict: str) -> None:
    noise = [0.5, -0.5] * 10
    first = run({f"i{n}": {"RMSE": 5.0} for n in range(20)}, metrics=(RMSE,))
    second = run({f"i{n}": {"RMSE": 5.0 - step + noise[n]} for n in range(20)}, metrics=(RMSE,), name="theirs")
    assert compare(first, second).differences[0].verdict == verdict


def test_items_scored_in_one_run_only_are_counted_and_a_single_pair_decides_nothing() -> None:
    first = run({"a": {"CLIP-I": 1.0}, "b": {"CLIP-I": 1.0}, "c": {}}, failed={"c": "too long"})
    second = run({"a": {"CLIP-I": 9.0}, "c": {"CLIP-I": 2.0}}, name="theirs")
    found = compare(first, second).differences[0]
    assert (found.pairs, found.unpaired, found.verdict) == (1, 2, "open")
    assert found.estimate == (8.0, None, None)


def test_metrics_of_other_versions_are_not_compared() -> None:
    newer = MetricInfo("CLIP-I", "2", "up", "Another.")
    first = run({"a": {"CLIP-I": 1.0, "RMSE": 1.0}}, metrics=(CLIP_I, RMSE))
    second = run({"a": {"CLIP-I": 1.0}}, metrics=(newer,), name="theirs")
    found = compare(first, second)
    assert found.differences == ()
    assert found.left_out == {"CLIP-I": "version 1 and version 2 differ", "RMSE": "theirs does not have it"}


def test_metrics_of_other_definitions_are_not_compared() -> None:
    small, large = (replace(CLIP_I, definition=f"Backbone {size}.") for size in ("small", "large"))
    first = run({"a": {"CLIP-I": 1.0}, "b": {"CLIP-I": 1.0}}, metrics=(small,))
    found = compare(first, run({"a": {"CLIP-I": 9.0}, "b": {"CLIP-I": 8.0}}, metrics=(large,), name="theirs"))
    assert found.differences == ()
    assert found.left_out == {"CLIP-I": 'their definitions differ: "Backbone small." and "Backbone large."'}


def asking(one: RunScores, **changes: Any) -> RunScores:
    """The run with its item `a` asking something else."""
    return replace(
        one,
        results=[
            replace(made, item=replace(made.item, **changes if made.item.id == "a" else {})) for made in one.results
        ],
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"references": (plain_image("#ffffff"),)}, {"answer": plain_image("#ffffff")}, {"answer_text": "B"}, {"truth": {"kind": "x"}},
        {"truth": {"metadata": {"prompt": "Two cups", "include": [{"class": "cup", "count": 2}]}}},
    ],
)  # fmt: skip
def test_items_of_one_id_that_ask_something_else_make_no_pair(changes: dict[str, Any]) -> None:
    values = {item: {"CLIP-I": 1.0} for item in "abc"}
    found = compare(run(values), asking(run(values, name="theirs"), **changes))
    assert [(one.pairs, one.unpaired) for one in found.differences] == [(2, 1)] * 2
    assert found.left_out == {"1 item": "the same id, but other references, another answer or other metadata"}
    assert not found.notes


def test_items_that_differ_in_their_wording_alone_are_paired_and_this_is_said() -> None:
    def worded(name: str, words: str) -> RunScores:
        truth = {"metadata": {"prompt": words, "include": [{"class": "cup", "count": 2}]}}
        values = {"a": {"CLIP-I": 1.0}, "b": {"CLIP-I": 1.0}}
        return asking(run(values, name=name), instruction=words, truth=truth)

    found = compare(worded("ours", "Two cups"), worded("theirs", "A photo of two cups"))
    assert [(one.pairs, one.unpaired) for one in found.differences] == [(2, 0)] * 2
    assert found.notes == ("1 item with another instruction in theirs, otherwise the same",)
    assert not found.left_out


def test_runs_that_share_nothing_are_refused() -> None:
    with pytest.raises(ConfigError, match="one benchmark"):
        compare(run({"a": {}}), run({"a": {}}, benchmark="geneval"))
    with pytest.raises(ConfigError, match="no item in common"):
        compare(run({"a": {}}), run({"b": {}}))
