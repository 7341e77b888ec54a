"""Folders that version 0.1.0 (commit a6f572d) left open, are gone on with, and say the same."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from support.commands import sigma
from support.places import TESTS

from pipelines.quickstart.run import quickstart
from pipelines.quickstart.stages import QuickstartOptions
from sigma_data.errors import ConfigError

OLD = TESTS / "old_version"
MADE = ("--model", "tiny", "--steps", "2", "--limit", "4", "--batch", "2")


@pytest.fixture
def evaluation(tmp_path: Path) -> Path:
    """`sigma eval world:corpus --model tiny --steps 2 --limit 4 --batch 2`, and the corpus it asked, built again."""
    corpus, out = tmp_path / "corpus", tmp_path / "evaluation"
    built = sigma(
        "build-dataset", "world:24?size=64", "splits={train: 50, test: 50}", "--out", corpus, "--workers", "1"
    )
    assert built.returncode == 0, built.stderr
    shutil.copytree(OLD / "evaluate", out)
    settings = (out / "settings.json").read_text()
    (out / "settings.json").write_text(settings.replace("world:CORPUS", f"world:{corpus}"))
    return out


@pytest.mark.slow
def test_an_evaluation_is_scored_and_reported_as_it_was(evaluation: Path) -> None:
    spec = f"world:{evaluation.parent / 'corpus'}"
    before = json.loads((OLD / "evaluate" / "scores" / "benchmark.json").read_text())
    shutil.rmtree(evaluation / "scores")
    for stage in ("score", "report"):
        done = sigma("eval", spec, "--out", evaluation, "--stage", stage, "--json")
        assert done.returncode == 0, done.stderr
    after = json.loads((evaluation / "scores" / "benchmark.json").read_text())
    rows, old = after.pop("scores"), before.pop("scores")
    assert after == before
    assert [(item, metric, reason) for item, metric, _, reason in rows] == [(one[0], one[1], one[3]) for one in old]
    # NumPy's sums differ in their last bits with the width of the CPU's vectors.
    assert [row[2] for row in rows] == [one[2] if one[2] is None else pytest.approx(one[2], rel=1e-12) for one in old]
    assert (evaluation / "report.html").exists()


@pytest.mark.slow
def test_an_evaluation_goes_on_with_what_is_missing(evaluation: Path) -> None:
    spec = f"world:{evaluation.parent / 'corpus'}"
    kept = {path: path.stat().st_mtime_ns for path in (evaluation / "generated" / "batch-000000").iterdir()}
    shutil.rmtree(evaluation / "generated" / "batch-000001")
    done = sigma("eval", spec, "--out", evaluation, *MADE, "--json")
    assert done.returncode == 0, done.stderr
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    old, new = ((place / "generated" / "batch-000001" / "batch.json") for place in (OLD / "evaluate", evaluation))
    assert json.loads(new.read_text()) == json.loads(old.read_text())
    refused = sigma("eval", spec, "--out", evaluation, *MADE, "--no-understanding")
    assert refused.returncode == 2 and "understanding (true there, false now)" in refused.stderr


def test_a_finished_quickstart_of_an_older_recipe_is_refused_by_name_and_left_alone(tmp_path: Path) -> None:
    out = tmp_path / "quickstart"
    shutil.copytree(OLD / "quickstart", out)
    before = (out / "quickstart.json").read_bytes()
    with pytest.raises(ConfigError, match=r"quickstart\.yaml \(changed since then\)"):
        quickstart(QuickstartOptions(out, samples=60, steps=4, limit=6))
    assert (out / "quickstart.json").read_bytes() == before
    assert [path.name for path in out.iterdir() if path.name != ".lock"] == ["quickstart.json"]
