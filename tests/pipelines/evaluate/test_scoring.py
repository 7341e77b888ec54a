"""Scores that workers give are those of this process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support import eval_runs
from support.places import ROOT

from pipelines.common.process_pool import ProcessPool
from pipelines.evaluate import evaluate, scoring
from pipelines.evaluate.runner import Evaluation
from sigma_data.errors import ConfigError


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path, dict[str, bytes]]:
    """Images of six questions and their scores, made here."""
    folder = tmp_path_factory.mktemp("made")
    spec = f"world:{eval_runs.save_world(folder / 'world', 6)}"
    evaluate(spec, folder / "out", model=eval_runs.save_model(folder / "mine"), steps=2, metrics=["F1"])
    return spec, folder / "out", scores(folder / "out")


def scores(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (out / "scores").iterdir()}


def forget(out: Path) -> None:
    for path in (out / "scores").iterdir():
        path.unlink()


@pytest.mark.slow
def test_stretches_by_two_processes_give_the_same_files(
    made: tuple[str, Path, dict[str, bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, out, expected = made
    forget(out)
    monkeypatch.setattr(scoring, "_STRETCH", 2)
    evaluation = Evaluation.open(out)
    scorer = scoring.scorer_of(evaluation.settings["benchmark"], _questions(evaluation), {}, "cpu")
    results = evaluation.results()
    scoring.score_results(out, evaluation.benchmark, results, ["F1"], scorer, ProcessPool(2))
    assert scores(out) == expected
    assert set(expected) == {"benchmark.json", "F1.json"}


def _questions(evaluation: Evaluation) -> Any:
    from pipelines.evaluate import run_folder

    return run_folder.questions(evaluation.settings)


@pytest.mark.slow
def test_on_ray_the_scores_are_the_same(
    made: tuple[str, Path, dict[str, bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ray")
    spec, out, expected = made
    forget(out)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    evaluate(spec, out, stage="score", metrics=["F1"], engine="ray", address="local")
    assert scores(out) == expected


def test_an_address_without_ray_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="add --engine ray"):
        evaluate("world:x", tmp_path / "out", model="tiny", address="auto")
    assert not (tmp_path / "out").exists()
