"""A run that the version before issue 12 (commit a6f572d) trained for three steps resumes and exports.

`tests/old_version/train` holds its folder, its corpus, and as resumed.jsonl what that version wrote of steps 4 and 5.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from support.places import TESTS
from support.training_runs import saved, steps_saved

from pipelines.common.settings import load_settings
from pipelines.train.config import TrainConfig
from pipelines.train.export import export_run
from pipelines.train.trainer import train
from sigma_data.instruction import ATTRIBUTES
from sigma_model.checkpoint_io import load_model
from sigma_model.config import ModelConfig

FIGURES = ("step", "loss", "norm", "lr", "epoch", "pack", "image", "val/image", "val_ema/image")


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the run in a place of its own, from where its settings find the corpus."""
    shutil.copytree(TESTS / "old_version" / "train", tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "run"


@pytest.mark.slow
def test_it_resumes_as_the_old_version_did(run: Path) -> None:
    result = train(load_settings(TrainConfig, run / "config.yaml", ["steps=5"]))
    assert (result["steps"], result["new"]) == (5, 2)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, 1, 2, 2, 3, 4, 4, 5]
    old = [json.loads(line) for line in (run.parent / "resumed.jsonl").read_text().splitlines()]
    for line, before in zip(lines[-2:], old, strict=True):
        before = {name.replace("picture", "image"): value for name, value in before.items()}
        assert line.keys() == before.keys()
        wanted = {name: before[name] for name in FIGURES if before[name] is not None}
        assert {name: line[name] for name in wanted} == pytest.approx(wanted, rel=1e-4)


def test_it_exports(run: Path, tmp_path: Path) -> None:
    assert steps_saved(run) == [3]
    exported = load_model(export_run(run, tmp_path / "exported", ema=True), dtype=torch.float32)
    rows = saved(run)["ema/backbone.embed.rows"]
    config = ModelConfig.from_directory(tmp_path / "exported", base=tmp_path / "exported")
    assert config.rows is not None
    assert torch.equal(exported.backbone.embed.weight[[config.rows[name] for name in ATTRIBUTES]], rows)
