"""The baselines of the world score as the benchmark itself would score them, and stand beside evaluations."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from support import corpora
from support.places import ROOT

from pipelines.evaluate import run_folder
from pipelines.evaluate.aggregate import aggregate
from pipelines.evaluate.benchmarks.world import WorldBenchmark
from pipelines.evaluate.item import Item, Result
from sigma_data.errors import ConfigError
from sigma_data.images.decode import load

FOLDER = str(ROOT / "benchmarks")


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(FOLDER)
    before = set(sys.modules)
    import world_baselines

    if "world_baselines" not in before:
        monkeypatch.delitem(sys.modules, "world_baselines")
    return world_baselines


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> str:
    out = tmp_path_factory.mktemp("world") / "corpus"
    corpora.build(out, "world:24?size=64&families=editing", splits={"train": 1.0, "test": 1.0})
    return str(out)


@pytest.fixture(scope="module")
def items(corpus: str) -> list[Item]:
    return WorldBenchmark(corpus).items()


@pytest.mark.slow
def test_answers_are_scored_as_the_benchmark_scores_their_images(
    bench: ModuleType, corpus: str, items: list[Item]
) -> None:
    benchmark = WorldBenchmark(corpus)
    answers = bench.baselines(corpus, "tiny")
    runs = bench.score(benchmark, items[:2], answers)
    for run, answer in zip(runs, answers.values(), strict=True):
        made = []
        for item in items[:2]:
            buffer = io.BytesIO()
            answer(item).save(buffer, "PNG")
            made.append(Result(item, image=buffer.getvalue()))
        assert run.scores == benchmark.own_scores(made)


def test_the_mean_answer_is_of_the_training_split(bench: ModuleType, corpus: str) -> None:
    answers = [np.asarray(load(item.answer)).astype(float) for item in WorldBenchmark(corpus, split="train").items()]
    (mean,) = bench.mean_answers(corpus).values()
    assert np.abs(np.asarray(mean) - np.mean(answers, axis=0)).max() <= 0.5


@pytest.mark.slow
def test_the_round_trip_is_best_and_a_reference_handed_back_beats_grey_in_editing(
    bench: ModuleType, corpus: str, items: list[Item]
) -> None:
    runs = bench.score(WorldBenchmark(corpus), items, bench.baselines(corpus, "tiny"))
    accuracy = {run.name: aggregate(run)[-1].cells["world-accuracy"].estimate.mean or 0.0 for run in runs}
    assert accuracy["round trip"] > 0.9
    assert accuracy["round trip"] == max(accuracy.values())
    assert accuracy["first reference"] > accuracy["grey"]
    lines = bench.table(runs).splitlines()
    assert lines[0] == "| family | metric | grey | mean | first reference | round trip |"
    assert [line.split(" | ")[1] for line in lines[2:]] == [
        "world-change ↓", "world-accuracy ↑", "world-change ↓", "world-accuracy ↑",
    ]  # fmt: skip


def test_an_answer_is_brought_to_its_items_size(bench: ModuleType, corpus: str, items: list[Item]) -> None:
    answers = bench.baselines(corpus, "tiny")
    assert {name: answer(items[0]).size for name, answer in answers.items()} == dict.fromkeys(answers, (64, 64))
    assert answers["grey"](items[0]).getcolors() == [(64 * 64, bench.GREY)]


def test_an_evaluation_of_other_items_is_refused(
    bench: ModuleType, corpus: str, items: list[Item], tmp_path: Path
) -> None:
    settings = {"name": "mine", "benchmark": f"world:{corpus}", "split": "test", "limit": 2, "batch": 8}
    with run_folder.claimed(tmp_path / "out"):
        run_folder.write(tmp_path / "out", settings | {"items": run_folder.digest_of_items(items[:2])})
    with pytest.raises(ConfigError, match=r"of other items \(split test, limit 2\)"):
        bench.evaluated(tmp_path / "out", items)
