"""Starting from another run, exporting one whose base moved, and what is said where a run is taken for a model."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from support import training_runs
from typer.testing import CliRunner

import cli
from pipelines.common.settings import load_settings
from pipelines.train.checkpoint import CHECKPOINTS
from pipelines.train.config import TrainConfig
from pipelines.train.estimate.dry_run import dry_run
from pipelines.train.export import export_run
from pipelines.train.settings_history import CONFIG
from pipelines.train.start_lines import result_line
from sigma_data.errors import ConfigError
from sigma_model.checkpoint_io import load_model
from sigma_model.loading import describe_model
from sigma_model.run_directory import RUN_CHECKPOINTS, RUN_CONFIG, run_of


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def first(training_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of four steps with checkpoints at 2 and 4. Never change it."""
    out = tmp_path_factory.mktemp("first") / "run"
    training_runs.run(training_runs.settings_of(out, training_corpus, steps=4, checkpoint={"every": 2}))
    return out


def second(out: Path, corpus: Path, **model: Any) -> dict[str, torch.Tensor]:
    """Two steps with another schedule."""
    changes = {"steps": 2, "schedule": {"kind": "constant"}, "model": model}
    training_runs.run(training_runs.settings_of(out, corpus, **changes))
    return training_runs.saved(out)


@pytest.mark.slow
@pytest.mark.parametrize(("at", "weights"), [("", "auto"), ("@2", "auto"), ("", "raw")])
def test_a_run_from_a_run_is_one_from_its_export_to_the_bit(
    first: Path, training_corpus: Path, tmp_path: Path, at: str, weights: str
) -> None:
    straight = second(tmp_path / "a", training_corpus, from_run=f"{first}{at}", from_weights=weights)
    export_run(first, tmp_path / "model", step=int(at[1:] or 4), ema=weights == "auto")
    assert training_runs.same(straight, second(tmp_path / "b", training_corpus, path=str(tmp_path / "model")))
    recorded = load_settings(TrainConfig, tmp_path / "a" / CONFIG, ()).model
    assert recorded.from_run == f"{first}@{at[1:] or 4}"
    assert recorded.from_weights == ("ema" if weights == "auto" else "raw")


@pytest.mark.slow
def test_a_run_from_a_run_goes_on_exports_and_moves_without_the_first(
    first: Path, training_corpus: Path, tmp_path: Path
) -> None:
    gone = Path(shutil.copytree(first, tmp_path / "gone"))
    out = tmp_path / "run"
    settings = training_runs.settings_of(out, training_corpus, steps=1, model={"from_run": str(gone)})
    training_runs.run(settings)
    shutil.rmtree(gone)
    assert training_runs.run({**settings, "steps": 2})["new"] == 1
    with pytest.raises(ConfigError, match="was made from .*gone@4 .* asks for step 2"):
        training_runs.run({**settings, "model": {"from_run": f"{gone}@2"}})
    out.rename(tmp_path / "moved")
    export_run(tmp_path / "moved", tmp_path / "model")
    assert load_model(tmp_path / "model", dtype=torch.float32)


def test_a_dry_run_looks_at_a_run_to_start_from_and_writes_nothing(
    first: Path, training_corpus: Path, tmp_path: Path
) -> None:
    model = {"from_run": str(first), "max_latent_size": 32}
    settings = training_runs.settings_of(tmp_path / "run", training_corpus, model=model)
    assert dry_run(TrainConfig.model_validate(settings)).epoch.samples
    assert not (tmp_path / "run").exists()
    settings["model"] = {"from_run": str(tmp_path)}
    with pytest.raises(ConfigError, match="is not the folder of a training run"):
        dry_run(TrainConfig.model_validate(settings))


def test_a_dry_run_knows_that_the_checkpoint_to_start_from_is_not_there(
    first: Path, training_corpus: Path, tmp_path: Path
) -> None:
    settings = training_runs.settings_of(tmp_path / "run", training_corpus, model={"from_run": f"{first}@3"})
    with pytest.raises(ConfigError, match="holds no complete checkpoint of step 3; there are 2, 4"):
        dry_run(TrainConfig.model_validate(settings))


@pytest.mark.parametrize("part", ["", "checkpoints", "checkpoints/step-00000002"])
def test_a_run_taken_for_a_model_is_told_how_to_make_one(
    first: Path, training_corpus: Path, tmp_path: Path, part: str
) -> None:
    assert (RUN_CONFIG, RUN_CHECKPOINTS) == (CONFIG, CHECKPOINTS)
    assert run_of(first / part) == (first, 2 if "step" in part else None)
    with pytest.raises(ConfigError, match="export it first") as caught:
        describe_model(str(first / part))
    words = str(caught.value).split("`")[1].split()
    words[words.index("--out") + 1] = str(tmp_path / "model")
    result = CliRunner().invoke(cli.app, words[1:])
    assert result.exit_code == 0, result.output
    assert describe_model(str(tmp_path / "model")).config == describe_model(
        str(training_corpus.parent / "model")
    ).config.model_copy(update={"attribute_rows": describe_model(str(tmp_path / "model")).config.attribute_rows})
    with pytest.raises(ConfigError, match=r"name the run, `sigma export ") if part else pytest.raises(ConfigError):
        export_run(first / part, tmp_path / "model")


@pytest.mark.slow
def test_what_training_recommends_at_its_end_works(training_corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "a run"
    for ema, file in ((None, "model.safetensors"), ({"decay": 0.5}, "ema.safetensors")):
        shutil.rmtree(out, ignore_errors=True)
        told = training_runs.run(training_runs.settings_of(out, training_corpus, steps=1, ema=ema))
        command = result_line(told).split("`")[1].replace("DIR", str(tmp_path / file))
        import shlex

        result = CliRunner().invoke(cli.app, shlex.split(command)[1:])
        assert result.exit_code == 0, result.output
        assert (tmp_path / file / file).exists()


@pytest.mark.slow
def test_a_run_whose_base_moved_is_exported_with_its_new_place_and_no_other_weights(
    first: Path, training_corpus: Path, tmp_path: Path
) -> None:
    base, out = export_run(first, tmp_path / "base"), tmp_path / "run"
    training_runs.run(training_runs.settings_of(out, training_corpus, steps=1, model={"path": str(base)}))
    wanted = load_model(export_run(out, tmp_path / "before"), dtype=torch.float32).state_dict()
    base.rename(tmp_path / "moved")
    with pytest.raises(ConfigError, match=r"base: no such .*add model.path=DIR"):
        export_run(out, tmp_path / "after")
    words = ["export", str(out), "--out", str(tmp_path / "after"), f"model.path={tmp_path / 'moved'}"]
    result = CliRunner().invoke(cli.app, words)
    assert result.exit_code == 0, result.output
    assert training_runs.same(load_model(tmp_path / "after", dtype=torch.float32).state_dict(), wanted)
    other = export_run(first, tmp_path / "other", step=2)
    with pytest.raises(ConfigError, match="holds other weights than those that the run was trained from"):
        export_run(out, tmp_path / "wrong", overrides=[f"model.path={other}"])
    assert not (tmp_path / "wrong").exists()
    with pytest.raises(ConfigError, match="an export takes model.path=DIR and model.base=DIR alone"):
        export_run(out, tmp_path / "wrong", overrides=["model.vision=false"])
