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
SMALL = ("--samples", "60", "--steps", "2", "--limit", "6")


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


def run(bench: ModuleType, name: str, accuracy: list[float]) -> RunScores:
    """A run of one family whose items have these scores."""
    main = MetricInfo("world-error", "1", "down", "")
    results = [Result(Item(str(number), "editing", "", ()), text="") for number in range(len(accuracy))]
    scores = [
        Score(str(number), metric.name, value)
        for number, value in enumerate(accuracy)
        for metric in (main, ACCURACY, LEAKAGE)
    ]
    metrics = (main, ACCURACY, LEAKAGE)
    return RunScores(name, "world", {}, metrics, {}, results, scores, main={"editing": main.name})


def test_the_table_marks_the_differences_whose_interval_excludes_nothing(bench: ModuleType) -> None:
    scores = ([0.5, 0.6, 0.7], [0.4, 0.5, 0.6], [0.3, 0.5, 0.7])
    runs = [run(bench, arm.name, values) for arm, values in zip(bench.ARMS, scores, strict=True)]
    head, _, *lines = bench.table(runs).splitlines()
    assert head.split(" | ")[2:5] == ["tokens + group mask", "tokens", "no tokens"]
    assert [line.split(" | ")[:2] for line in lines] == [
        ["| editing (3)", "world-error ↓"], ["| all (3)", "world-accuracy ↑"], ["| all (3)", "world-leakage ↓"],
    ]  # fmt: skip
    mask, tokens, both = lines[1].removesuffix(" |").split(" | ")[5:]
    assert mask == "**0.100 [0.100, 0.100]** better"
    assert tokens.startswith("0.000 [-0.")
    assert both.startswith("0.100 [0.000, ")
    assert lines[2].split(" | ")[5] == "**0.100 [0.100, 0.100]** worse"


@pytest.mark.slow
def test_three_runs_of_one_recipe_answer_the_same_questions_and_a_second_start_does_nothing_anew(
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
        config = yaml.safe_load((out / arm.folder / "run" / "config.yaml").read_text())
        settings = json.loads((out / arm.folder / "evaluation" / "settings.json").read_text())
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
