"""The quickstart: all of the toolkit by one command, the same to the bit each time, however often it was stopped."""

from __future__ import annotations

import errno
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.commands import sigma
from support.places import ROOT
from support.training_runs import lines, steps_saved

from pipelines.commands.quickstart import quickstart_summary
from pipelines.common.bundled_configs import CONFIGS
from pipelines.download.catalog import find_entry
from pipelines.quickstart.journal import JOURNAL
from pipelines.quickstart.run import quickstart
from pipelines.quickstart.stages import QuickstartOptions
from sigma_data.errors import ConfigError, SigmaError

pytestmark = pytest.mark.slow

STAGES = ("corpus", "validate", "train", "export", "base", "trained")
ASKED = {"samples": 60, "steps": 3, "limit": 2}
WORDS = ("--samples", "60", "--steps", "3", "--limit", "2")


def run(out: Path, **changes: Any) -> dict[str, Any]:
    """The whole command in this process."""
    return quickstart(QuickstartOptions(out, **{**ASKED, "workers": 0, **changes}))


def start(out: Path, *words: str) -> subprocess.Popen[str]:
    """The command as a user starts it."""
    command = [sys.executable, "-m", "cli", "quickstart", "--out", str(out), *WORDS, *words]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True, cwd=ROOT
    )


def wait_for(process: subprocess.Popen[str], there: Callable[[], bool]) -> None:
    """Wait for a moment in the life of the command, which must not have ended by then."""
    deadline = time.monotonic() + 300
    while not there():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)


def kill(process: subprocess.Popen[str]) -> None:
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def came_out(out: Path) -> dict[str, bytes]:
    """Every corpus file, weight and image. Indexes of the corpus hold the place it lies at."""
    places = ("corpus", "model", "run/pictures", "base/generated", "trained/generated", "example")
    files = {path for place in places for path in (out / place).rglob("*") if path.is_file()}
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in files if ".index" not in path.parts}


def marks(out: Path) -> dict[str, tuple[int, int]]:
    """By file its inode and time: what is written anew has others."""
    return {
        path.relative_to(out).as_posix(): (path.stat().st_ino, path.stat().st_mtime_ns)
        for path in out.rglob("*")
        if path.is_file() and path.name != ".lock"
    }


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A quickstart that nobody has stopped, and what it told. Never change it."""
    out = tmp_path_factory.mktemp("quickstart") / "whole"
    return out, run(out)


def test_it_tells_of_each_family_before_and_after_and_leaves_all_that_it_names(
    whole: tuple[Path, dict[str, Any]],
) -> None:
    out, told = whole
    assert set(told["stages"]) == set(STAGES)
    assert told["families"]
    families = told["families"].values()
    assert all(of["base"]["metric"] == of["trained"]["metric"] for of in families)
    # Three steps of a rate that still rises move some images by less than a colour value.
    assert any(of["base"]["mean"] != of["trained"]["mean"] for of in families)
    page = Path(told["report"]).read_text()
    assert ">trained against base<" in page
    assert (out / "model" / "ema.safetensors").stat().st_size > 2**20
    assert steps_saved(out / "run")[-1] == 3


def test_the_question_it_gives_to_play_with_is_answered_by_the_trained_model(
    whole: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    command, *words = shlex.split(whole[1]["example"])
    made = tmp_path / "made.png"
    words[words.index("--out") + 1] = str(made)
    result = sigma(*words)
    assert (command, result.returncode) == ("sigma", 0), result.stderr
    assert made.stat().st_size > 0


def test_two_folders_hold_the_same_to_the_bit_and_two_kills_change_nothing(
    whole: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    out = tmp_path / "killed"
    process = start(out)
    wait_for(process, lambda: bool(steps_saved(out / "run")))
    kill(process)
    assert steps_saved(out / "run")[-1] < 3, "the kill must have hit the training"
    process = start(out)
    wait_for(process, lambda: (out / "base" / "settings.json").exists())
    kill(process)
    assert not (out / "trained" / "report.html").exists(), "the kill must have hit the evaluation"
    told = run(out)
    assert came_out(out) == came_out(whole[0])
    assert lines(out / "run") == lines(whole[0] / "run")
    assert told["families"] == whole[1]["families"]


def test_done_before_it_does_nothing_anew_and_needs_no_network_of_neurons(whole: tuple[Path, dict[str, Any]]) -> None:
    out, _ = whole
    before = marks(out)
    words = ["quickstart", "--out", str(out), *WORDS]
    program = (
        f"import sys, cli; sys.argv[1:] = {words!r}\n"
        "try:\n    cli.main()\nexcept SystemExit as end:\n    sys.exit('torch' in sys.modules or end.code)"
    )
    again = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert again.returncode == 0, again.stderr
    assert marks(out) == before
    told = again.stderr.splitlines()
    assert [line.split()[1] for line in told] == list(STAGES)
    assert all(line.endswith("done before") for line in told)
    assert all(
        word in again.stdout for word in ("base", "post-trained", "accuracy", str(out / "trained" / "report.html"))
    )


def test_json_is_all_that_is_printed(whole: tuple[Path, dict[str, Any]]) -> None:
    again = sigma("quickstart", "--out", whole[0], *WORDS, "--json")
    assert (again.returncode, again.stderr) == (0, "")
    assert json.loads(again.stdout) == whole[1]


def test_what_was_removed_is_made_again_and_nothing_before_it(
    whole: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    out = shutil.copytree(whole[0], tmp_path / "copy")
    before = marks(out)
    shutil.rmtree(out / "model")
    shutil.rmtree(out / "trained")
    run(out)
    assert came_out(out).keys() == came_out(whole[0]).keys()
    assert (out / "model" / "ema.safetensors").read_bytes() == (whole[0] / "model" / "ema.safetensors").read_bytes()
    after = marks(out)
    assert {name for name in before if name.startswith(("corpus", "run")) and before[name] != after[name]} == set()


def test_trained_anew_it_scores_the_new_weights_whatever_older_ones_left(
    whole: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    out = shutil.copytree(whole[0], tmp_path / "copy")
    shutil.rmtree(out / "run")
    weights = out / "model" / "ema.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")  # as other code would have trained them
    for name in ("base", "trained"):
        settings = out / name / "settings.json"
        settings.write_text(json.dumps({**json.loads(settings.read_text()), "weights": "others"}))
        shutil.copyfile(out / "example" / "image-1.png", next((out / name / "generated").rglob("*.png")))
    told = run(out)
    assert came_out(out) == came_out(whole[0])
    assert told["families"] == whole[1]["families"]


def test_a_model_without_its_weights_does_not_count_as_exported(
    whole: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    out = shutil.copytree(whole[0], tmp_path / "copy")
    (out / "model" / "ema.safetensors").unlink()
    run(out)
    assert came_out(out) == came_out(whole[0])


def test_moved_and_without_its_example_it_still_gives_a_question_that_can_be_asked(
    whole: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    out = shutil.copytree(whole[0], tmp_path / "moved")
    shutil.rmtree(out / "example")
    told = run(out)
    words = shlex.split(told["example"])
    assert words == [word.replace(str(whole[0]), str(out)) for word in shlex.split(whole[1]["example"])]
    images = [Path(words[place + 1]) for place, word in enumerate(words) if word == "--image"]
    assert images and all(image.is_relative_to(out) and image.exists() for image in images)
    assert str(whole[0]) not in json.dumps(told)


def test_a_stage_that_is_made_again_and_stopped_in_its_midst_does_not_count_as_done(
    whole: tuple[Path, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = shutil.copytree(whole[0], tmp_path / "copy")
    shutil.rmtree(out / "run")

    def stop(*_: Any, **__: Any) -> None:
        (out / "run" / "checkpoints").mkdir(parents=True)
        raise KeyboardInterrupt

    monkeypatch.setattr("pipelines.train.launch.launch", stop)
    with pytest.raises(KeyboardInterrupt):
        run(out)
    assert list(json.loads((out / JOURNAL).read_text())["stages"]) == ["corpus", "validate"]
    assert not any((out / name).exists() for name in ("model", "base", "trained"))


def test_a_full_disk_is_said_in_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("pipelines.build_dataset.run.build", full)
    with pytest.raises(SigmaError, match="the disk is full: free some space, then run the same command again"):
        run(tmp_path / "out")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"samples": 61}, r"--samples \(60 there, 61 now\)"),
        ({"steps": None}, r"--steps \(3 there, \d+ now\)"),
        ({"limit": 1}, r"--limit \(2 there, 1 now\)"),
        ({"recipe": "sgt"}, r"other settings: --recipe \(sigma there, sgt now\); give"),
    ],
)
def test_other_options_in_the_same_folder_are_refused_by_name_and_change_nothing(
    whole: tuple[Path, dict[str, Any]], change: dict[str, Any], words: str
) -> None:
    before = marks(whole[0])
    with pytest.raises(ConfigError, match=words):
        run(whole[0], **change)
    assert marks(whole[0]) == before


def test_a_place_that_it_cannot_have_is_refused_in_a_sentence_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / JOURNAL).write_text("{")
    for name in ("file", "file/below", "mine", "damaged"):
        with pytest.raises(SigmaError, match="choose another place with --out"):
            run(tmp_path / name)
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["notes.txt"]
    refused = sigma("quickstart", "--out", tmp_path / "file")
    assert (refused.returncode, len(refused.stderr.splitlines())) == (2, 1)


def test_told_to_stop_it_says_that_the_same_command_goes_on_and_two_at_once_are_refused(tmp_path: Path) -> None:
    out = tmp_path / "out"
    process = start(out)
    wait_for(process, lambda: (out / "corpus" / ".sigma" / "scan").exists())
    with pytest.raises(ConfigError, match="another quickstart is running"):
        run(out)
    process.terminate()
    output, error = process.communicate(timeout=60)
    assert (process.returncode, output) == (130, "")
    assert error.splitlines()[-1] == "interrupted; run the same command again to continue"
    assert "Traceback" not in error


def test_the_commands_for_real_data_name_the_paths_of_the_configuration(whole: tuple[Path, dict[str, Any]]) -> None:
    config = yaml.safe_load((CONFIGS / "sigma-bagel-7b.yaml").read_text())
    words = quickstart_summary(whole[1])
    assert f"--out {config['data']['corpora'][0]['path']}\n" in words
    assert f"sigma export {config['out']} " in words
    assert "  sigma download bagel\n" in words and config["model"]["path"] == str(find_entry("bagel").folder)
    assert f"release:{find_entry('sigma-dataset').folder} " in words
