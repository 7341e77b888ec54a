"""The ablation trains what it says it trains, asks all runs the same, and goes on where it was stopped."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from support import corpora
from support.commands import sigma
from support.places import ROOT

from pipelines.evaluate.aggregate import MetricInfo, RunScores
from pipelines.evaluate.benchmarks.world import ACCURACY, LEAKAGE
from pipelines.evaluate.item import Item, Result, Score

FOLDER = str(ROOT / "benchmarks")
SMALL = ("--samples", "60", "--steps", "2", "--limit", "6", "--seeds", "1", "--jobs", "1")


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(FOLDER)
    before = set(sys.modules)
    import ablation

    if "ablation" not in before:
        monkeypatch.delitem(sys.modules, "ablation")
    return ablation


class InPlace:
    """Stands in for Popen and runs `sigma` in this process: three times torch and a model take half a minute."""

    def __init__(self, command: list[str], **_: Any) -> None:
        assert command[:3] == [sys.executable, "-m", "cli"]
        self.args = command
        self.returncode = sigma(*command[3:]).returncode

    def poll(self) -> int:
        return self.returncode

    def wait(self) -> int:
        return self.returncode


def run(name: str, accuracy: float, *, competing: tuple[bool, ...] = (True, False)) -> RunScores:
    """A run of one family, an item for each of `competing`, in which two references show a cup or do not."""
    main = MetricInfo("world-error", "1", "down", "")
    metrics = (main, ACCURACY, LEAKAGE)
    shown = {True: ("cup", "cup"), False: ("cup", "star")}
    results = [
        Result(Item(str(number), "editing", "", (), truth={"references": [scene(one) for one in shown[both]]}), text="")
        for number, both in enumerate(competing)
    ]
    scores = [Score(result.item.id, metric.name, accuracy) for result in results for metric in metrics]
    return RunScores(name, "world", {}, metrics, {}, results, scores, main={"editing": main.name})


def scene(*shapes: str) -> dict[str, Any]:
    return {"scene": {"objects": [{"shape": shape} for shape in shapes]}}


def test_references_compete_where_two_show_a_thing_of_one_class(bench: ModuleType) -> None:
    assert bench.competes([scene("cup"), scene(), scene("star", "cup")])
    assert not bench.competes([scene("cup", "cup"), scene("star"), scene()])
    assert [result.item.id for result in bench.only_competing(run("x", 0.5)).results] == ["0"]


def test_the_table_marks_the_differences_whose_interval_over_seeds_excludes_nothing(bench: ModuleType) -> None:
    by_arm = {"tokens + group mask": (0.5, 0.6, 0.7), "tokens": (0.4, 0.5, 0.6), "no tokens": (0.2, 0.5, 0.8)}
    found = {
        name: [(run(name, value), bench.only_competing(run(name, value / 2))) for value in values]
        for name, values in by_arm.items()
    }
    head, _, *lines = bench.table(found).splitlines()
    assert head.split(" | ")[2:5] == [*by_arm]
    assert [line.split(" | ")[:2] for line in lines] == [
        ["| editing (2)", "world-error ↓"], ["| all (2)", "world-accuracy ↑"], ["| all (2)", "world-leakage ↓"],
        ["| competing references (1)", "world-accuracy ↑"], ["| competing references (1)", "world-leakage ↓"],
    ]  # fmt: skip
    cells = [line.removesuffix(" |").split(" | ")[2:] for line in lines]
    assert cells[1][0] == "0.600 (0.500 to 0.700)"
    assert cells[1][3] == "**+0.100 [+0.100, +0.100]** better"
    assert cells[2][3] == "**+0.100 [+0.100, +0.100]** worse"
    # 0.2, 0 and -0.2: 4.303 * 0.2 / sqrt(3)
    assert cells[1][4] == "+0.000 [-0.497, +0.497]"
    assert cells[3][0] == "0.300 (0.250 to 0.350)"


@pytest.mark.slow
def test_the_arms_of_one_recipe_answer_the_same_questions_and_a_second_start_does_nothing_anew(
    bench: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    monkeypatch.setattr(subprocess, "Popen", InPlace)
    assert bench.main(["--out", str(out), *SMALL]) == 0
    table = capsys.readouterr().out

    splits = [
        {row["id"]: row["split"] for row in corpora.read_manifest(out / name)}
        for name in ("corpus-tokens", "corpus-plain")
    ]
    assert splits[0] == splits[1]
    asked = {}
    for arm in bench.ARMS:
        config = yaml.safe_load((out / f"{arm.folder}-0" / "run" / "config.yaml").read_text())
        settings = json.loads((out / f"{arm.folder}-0" / "test" / "settings.json").read_text())
        assert config["steps"] == 2
        asked[arm.name] = (
            config["model"]["group_mask"], Path(config["data"]["corpora"][0]["path"]).name,
            settings["group_mask"], Path(settings["benchmark"]).name, settings["split"], settings["limit"],
        )  # fmt: skip
    assert asked == {
        "tokens + group mask": (True, "corpus-tokens", True, "corpus-tokens", "test", 6),
        "tokens": (False, "corpus-tokens", False, "corpus-tokens", "test", 6),
        "no tokens": (True, "corpus-plain", True, "corpus-plain", "test", 6),
    }

    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("something was started again"))
    assert bench.main(["--out", str(out), *SMALL]) == 0
    assert capsys.readouterr().out == table
    assert bench.main(["--out", str(out), *SMALL[:2], "--steps", "3", *SMALL[4:]]) == 2
    assert "--steps (2 there, 3 now)" in capsys.readouterr().err
