"""The experiment on SGT compares like with like: the same questions a step, pairs of the same items, every seed shown."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import pytest
from support.places import ROOT

from pipelines.evaluate.aggregate import RunScores
from pipelines.evaluate.benchmarks.questions import EXACT
from pipelines.evaluate.benchmarks.segmentation import HUNGARIAN
from pipelines.evaluate.item import Item, Result, Score
from sigma_data.sample import Family


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    before = set(sys.modules)
    import sgt

    if "sgt" not in before:
        monkeypatch.delitem(sys.modules, "sgt")
    return sgt


def answered(name: str, values: dict[str, list[float]]) -> RunScores:
    """A run of questions by kind; two of a kind are of one conversation."""
    items = [
        Item(f"{kind}-{number}", kind, "", question=f"{kind}-{number // 2}")
        for kind, some in values.items()
        for number in range(len(some))
    ]
    scores = [value for some in values.values() for value in some]
    return RunScores(
        name, "questions", {}, [EXACT], {}, [Result(item, text="") for item in items],
        [Score(item.id, EXACT.name, value) for item, value in zip(items, scores, strict=True)],
    )  # fmt: skip


def test_the_table_has_means_over_seeds_the_paired_difference_and_every_seed(bench: ModuleType) -> None:
    runs = {
        bench.JOINT: [answered("a", {"count": [1, 1, 0, 1]}), answered("b", {"count": [1, 1, 1, 1]})],
        bench.ALONE: [answered("c", {"count": [0, 1, 0, 0]}), answered("d", {"count": [0, 1, 0, 1]})],
    }
    head, _, count, everything = bench.table(runs).splitlines()
    assert head.startswith("| kind (questions) | maps + questions | questions alone | difference |")
    assert count.startswith("| count (4) | 0.875 [") and "0.750 / 0.250; 1.000 / 0.500" in count
    cells = [cell.strip() for cell in count.split("|")]
    assert cells[3].startswith("0.375 [") and cells[4].startswith("0.500 [")
    assert everything.startswith("| all (4) | 0.875")


def test_intervals_are_over_conversations_not_over_their_turns(bench: ModuleType) -> None:
    turns = {f"{number}": (f"{number // 10}", float(number < 10)) for number in range(20)}
    alone = {f"{number}": (f"{number}", float(number < 10)) for number in range(20)}
    wide, narrow = bench.estimate(turns), bench.estimate(alone)
    assert wide.mean == narrow.mean == 0.5
    assert wide.high - wide.low > narrow.high - narrow.low


def test_the_course_has_a_row_a_look_and_a_column_a_seed(bench: ModuleType) -> None:
    work = bench.Experiment(Path("x"), 60, 20, 100, 2, 2)
    assert work.looks == [25, 50, 75, 100]

    def maps(value: float) -> RunScores:
        items = [Item(str(number), "segmentation", "") for number in range(2)]
        scores = [Score(item.id, HUNGARIAN.name, value) for item in items]
        return RunScores("m", "segmentation", {}, [HUNGARIAN], {}, [Result(item, text="") for item in items], scores)

    lines = bench.course(work, {step: [maps(step / 100), maps(step / 200)] for step in work.looks}).splitlines()
    assert lines[0] == "| step | seed 0 | seed 1 |" and lines[-1].startswith("| 100 | 1.000 [1.000, 1.000] | 0.500")


@pytest.mark.slow
def test_questions_alone_come_as_many_a_step_as_beside_maps(bench: ModuleType, tmp_path: Path) -> None:
    from pipelines.plan.config import PlanConfig
    from pipelines.plan.run import run_plan
    from sigma_model.new_vision import add_vision

    work = bench.Experiment(tmp_path, 360, 2, 8, 1, 1)
    from pipelines.build_dataset.config import BuildConfig
    from pipelines.build_dataset.run import build

    shares = f"world:{work.samples}?size=64&families=segmentation:2,understanding:1"
    build(BuildConfig(sources=(shares,), splits={"train": 100, "val": 0, "test": 0}), work.corpus, workers=0)
    add_vision("tiny-base", "tiny", tmp_path / "start")
    budget = bench.budget_alone(work, tmp_path / "start")

    def plan(budget: int, *families: Family) -> dict[str, int]:
        corpus = {"path": str(work.corpus), "families": [*families]}
        data = {"corpora": [corpus], "budget": budget}
        config = PlanConfig.model_validate({"data": data, "model": {"path": str(tmp_path / "start")}})
        epoch: dict[str, int] = run_plan(config)["epochs"][0]
        return epoch

    beside, alone = plan(1280, Family.SEGMENTATION, Family.UNDERSTANDING), plan(budget, Family.UNDERSTANDING)
    assert alone["packs"] == pytest.approx(beside["packs"], rel=0.15)
