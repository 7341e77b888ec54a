"""The folder of a run: one training at a time, records of what was trained, nothing half-written after a fault."""

from __future__ import annotations

import errno
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.training_runs import lines, run, settings_of, steps_saved

from pipelines.common.folder_lock import LOCK, locked
from pipelines.train import checkpoint, logs, settings_history, tensorboard_log
from pipelines.train.checkpoint import CHECKPOINTS
from pipelines.train.settings_history import CONFIG, HISTORY
from sigma_data.errors import BuildError, ConfigError, SigmaError, TrainError


def everything(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def entries(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / HISTORY).read_text().splitlines()]


# One at a time --------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_second_training_in_a_folder_is_refused_and_leaves_the_first_alone(
    tmp_path: Path, training_corpus: Path
) -> None:
    out = tmp_path / "run"
    with locked(out, "training"):
        before = everything(out)
        with pytest.raises(ConfigError, match="another training is running there .*choose another place with out="):
            run(settings_of(out, training_corpus))
        assert everything(out) == before
    assert not out.exists()
    run(settings_of(out, training_corpus, steps=1))
    assert not (out / LOCK).exists()


# Records --------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_start_that_trains_nothing_writes_nothing_and_other_settings_are_recorded_by_step(
    tmp_path: Path, training_corpus: Path
) -> None:
    settings = settings_of(tmp_path, training_corpus, steps=2, log={"tensorboard": True})
    run(settings)
    before = everything(tmp_path)
    for changes in ({}, {"optimizer": {"lr": 5e-4}}, {"steps": 1}):
        assert run({**settings, **changes})["new"] == 0
        assert everything(tmp_path) == before
    with pytest.raises(SigmaError):
        run({**settings, "steps": 4, "data": {**settings["data"], "budget": 500}})
    assert everything(tmp_path) == before
    run({**settings, "steps": 3, "optimizer": {"lr": 5e-4}})
    run({**settings, "steps": 3, "optimizer": {"lr": 1e-5}})  # trains nothing
    first, second = entries(tmp_path)
    assert (first["step"], first["changes"], first["config"]["optimizer"]["lr"]) == (1, [], 1e-3)
    assert second["step"] == 3 and second["ranks"] == 1
    assert "optimizer.lr was 0.001 and is 0.0005" in second["changes"] and "steps was 2 and is 3" in second["changes"]
    assert second["config"] == yaml.safe_load((tmp_path / CONFIG).read_text())


def test_entries_of_steps_that_were_lost_are_taken_back(tmp_path: Path, training_corpus: Path) -> None:
    from pipelines.train.config import TrainConfig

    def record(step: int, **changes: Any) -> None:
        config = TrainConfig.model_validate(settings_of(tmp_path, training_corpus, **changes))
        settings_history.record_settings(config, step=step, ranks=1)

    record(1)
    record(5, steps=7)
    record(9, steps=9)  # lost: the checkpoint before is of step 6
    record(7, steps=7)
    assert [entry["step"] for entry in entries(tmp_path)] == [1, 5]
    assert yaml.safe_load((tmp_path / CONFIG).read_text())["steps"] == 7
    (tmp_path / HISTORY).unlink()  # a run that an older version began
    record(9, steps=10)
    assert [(entry["step"], entry["config"]["steps"]) for entry in entries(tmp_path)] == [(1, 7), (9, 10)]


# A disk that refuses --------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system that holds less than a checkpoint."""
    place = tmp_path / "disk"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=10m", "none", str(place)], capture_output=True).returncode:
        pytest.skip("this user may not mount a file system")
    yield place
    subprocess.run(["umount", str(place)], check=True)


@pytest.mark.slow
@pytest.mark.parametrize("asynchronous", [False, True])
def test_after_a_full_disk_no_half_checkpoint_stays_and_with_room_the_same_command_goes_on(
    small_disk: Path, training_corpus: Path, capfd: pytest.CaptureFixture[str], asynchronous: bool
) -> None:
    out = small_disk / "run"
    settings = settings_of(out, training_corpus, steps=2, log={"tensorboard": True})
    settings["checkpoint"] = {"every": 1, "asynchronous": asynchronous}
    for _ in range(2):  # without room, too, it says the same
        with pytest.raises((TrainError, BuildError), match="No space left|disk is full"):
            run(settings)
        assert not list((out / CHECKPOINTS).glob("*/*.distcp"))
    assert "Traceback" not in capfd.readouterr().err
    subprocess.run(["mount", "-o", "remount,size=200m", str(small_disk)], check=True)
    run(settings)
    assert steps_saved(out) == [1, 2] and [line["step"] for line in lines(out)] == [1, 2]


@pytest.mark.slow
def test_what_a_killed_save_left_behind_is_removed_when_the_run_goes_on(tmp_path: Path, training_corpus: Path) -> None:
    half = tmp_path / CHECKPOINTS / "step-00000900"
    half.mkdir(parents=True)
    (half / "__0_0.distcp").write_bytes(b"half")
    run(settings_of(tmp_path, training_corpus, steps=1))
    assert steps_saved(tmp_path) == [1] and not half.exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("where", "code"),
    [
        ("metrics", errno.ENOSPC),
        ("metrics", errno.EIO),
        ("config", errno.EROFS),
        ("config", errno.EDQUOT),
        ("checkpoint", errno.EIO),
        ("checkpoint", errno.ENOSPC),
        ("board", errno.ENOSPC),
        ("board", errno.EIO),
    ],
)
def test_whatever_is_refused_is_one_sentence_and_the_rerun_goes_on(
    where: str, code: int, tmp_path: Path, training_corpus: Path, monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(code, os.strerror(code))

    settings = settings_of(tmp_path, training_corpus, steps=1, log={"tensorboard": True})
    with monkeypatch.context() as patch:
        if where == "metrics":
            patch.setattr(logs, "append", refuse)
        elif where == "config":
            patch.setattr(settings_history, "write_atomic", refuse)
        elif where == "checkpoint":
            patch.setattr(checkpoint, "write_atomic", refuse)
        else:
            gfile = pytest.importorskip("tensorboard.compat.tensorflow_stub.io.gfile")
            patch.setattr(gfile.LocalFileSystem, "_write", refuse)
        if where == "board":  # a view: the run goes on
            run(settings)
        else:
            with pytest.raises((TrainError, BuildError)) as told:
                run(settings)
            assert "\n" not in str(told.value) and str(tmp_path) in str(told.value)
            assert steps_saved(tmp_path) == [] and not list((tmp_path / CHECKPOINTS).glob("*/*.distcp"))
    assert "Traceback" not in capfd.readouterr().err
    assert ("curves cannot be written" in caplog.text) == (where == "board")
    assert run(settings)["checkpoint"] == 1
    assert [line["step"] for line in lines(tmp_path)] == [1]


def test_a_board_that_cannot_be_made_is_a_line_too(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pytest.importorskip("tensorboard")
    (tmp_path / "file").write_text("")
    made = tensorboard_log.TensorBoardLog(tmp_path / "file" / "board", 0)
    made.scalar("loss", 1.0, 1)
    made.close()
    assert len(caplog.messages) == 1 and "curves cannot be written" in caplog.text
