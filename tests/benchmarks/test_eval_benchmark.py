"""The sections of benchmarks/eval.py run at tiny sizes, and what they assert of the arms' results holds."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch
from support.places import ROOT

FOLDER = str(ROOT / "benchmarks")


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module, which imports its neighbours by plain names."""
    monkeypatch.syspath_prepend(FOLDER)
    before = set(sys.modules)
    import eval as bench

    for name in {"eval", "packs", "gathered"} - before:
        monkeypatch.delitem(sys.modules, name)
    return bench


def few(bench: ModuleType):
    return replace(bench.QUICK, pictures=3, steps=3)


@pytest.mark.slow
def test_all_ways_to_generate_give_the_same_pictures_and_a_slow_batch_misses_its_aim(
    bench: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench, "BATCH_AIM", float("inf"))
    assert not bench.batch(few(bench))
    monkeypatch.setattr(bench, "BATCH_AIM", 0.0)
    assert bench.batch(few(bench))
    assert "one by one as the release samples" in capsys.readouterr().out


@pytest.mark.slow
def test_a_way_that_makes_other_pictures_is_noticed(bench: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    real = bench.merging
    monkeypatch.setattr(bench, "merging", lambda *given, **named: [torch.zeros_like(x) for x in real(*given, **named)])
    with pytest.raises(AssertionError, match="arms differ"):
        bench.batch(few(bench))


@pytest.mark.slow
def test_scores_are_timed_against_generating(
    bench: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench, "SCORING_AIM", float("inf"))
    assert not bench.scoring(few(bench))
    said = capsys.readouterr().out
    assert "world" in said
    line = next(line for line in said.splitlines() if "scoring with all metrics against generating" in line)
    assert line.endswith("MISSED")


def test_an_evaluation_is_weighed_with_its_pictures(
    bench: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bench.weigh(4, tmp_path / "work")
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert told["pictures"] == pytest.approx(4 * 5 * bench.SIDE**2 * 3, rel=0.05)
    assert told["report"] >= told["score"] >= told["generate"] > 0
    assert len(list((tmp_path / "work" / "out" / "generated").rglob("*.png"))) == 4
