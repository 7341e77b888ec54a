"""The quickstart of SGT: maps and questions by one command, the same to the bit however often it was stopped."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file
from support.commands import sigma
from support.places import ROOT
from support.training_runs import steps_saved

from pipelines.commands.quickstart import quickstart_summary
from pipelines.common.bundled_configs import CONFIGS
from pipelines.download.catalog import find_entry
from pipelines.quickstart.run import quickstart
from pipelines.quickstart.stages import QuickstartOptions
from sigma_data.errors import ConfigError
from sigma_model.config import preset_directory
from sigma_model.new_vision import add_vision

pytestmark = pytest.mark.slow
STAGES = ("corpus", "validate", "start", "train", "export", "base", "trained")
WORDS = ("--recipe", "sgt", "--samples", "90", "--steps", "3", "--limit", "2")


def run(out: Path, **changes: Any) -> dict[str, Any]:
    return quickstart(QuickstartOptions(out, **{"samples": 90, "steps": 3, "limit": 2, "workers": 0, **changes}))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A quickstart that nobody has stopped, and what it told. Never change it."""
    out = tmp_path_factory.mktemp("quickstart") / "whole"
    return out, run(out, recipe="sgt")


def test_it_tells_of_maps_and_of_each_kind_of_question_before_and_after(whole: tuple[Path, dict[str, Any]]) -> None:
    out, told = whole
    assert tuple(told["stages"]) == STAGES
    assert "segmentation" in told["families"] and len(told["families"]) > 1
    metrics = {of[who]["metric"] for of in told["families"].values() for who in ("base", "trained")}
    assert metrics == {"segmentation-iou", "questions-exact"}
    for report in (told["report"], told["answers"]):
        assert ">trained against base<" in Path(report).read_text()
    words = quickstart_summary(told)
    assert "overlap of instances" in words and told["answers"] in words and "base" in words
    assert steps_saved(out / "run")[-1] == 3


def test_both_losses_are_trained_in_one_run(whole: tuple[Path, dict[str, Any]]) -> None:
    figures = [json.loads(line) for line in (whole[0] / "run" / "metrics.jsonl").read_text().splitlines()]
    [last] = [line for line in figures if line.get("image/segmentation") and line["step"] == 3]
    assert last["text/understanding"] > 0
    assert last["image"] == last["image/segmentation"] and last["text"] == last["text/understanding"]


def test_the_question_it_gives_to_play_with_makes_a_map(whole: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    _, *words = shlex.split(whole[1]["example"])
    made = tmp_path / "made.png"
    words[words.index("--out") + 1] = str(made)
    assert sigma(*words).returncode == 0
    assert made.stat().st_size > 0


def test_killed_in_training_it_goes_on_to_the_same_weights_maps_and_answers(
    whole: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    out = tmp_path / "killed"
    command = [sys.executable, "-m", "cli", "quickstart", "--out", str(out), *WORDS]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True, cwd=ROOT
    )
    deadline = time.monotonic() + 300
    while not steps_saved(out / "run"):
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert steps_saved(out / "run")[-1] < 3, "the kill must have hit the training"
    told = run(out, recipe="sgt")
    assert told["families"] == whole[1]["families"]
    for place in ("model/ema.safetensors", "start/ema.safetensors"):
        assert (out / place).read_bytes() == (whole[0] / place).read_bytes()
    for place in ("base", "trained"):
        mine, theirs = (
            {path.relative_to(root): path.read_bytes() for path in (root / place).rglob("generated/**/*.*")}
            for root in (out, whole[0])
        )
        assert mine == theirs and mine


def test_a_folder_of_the_other_recipe_is_refused_and_left_alone(whole: tuple[Path, dict[str, Any]]) -> None:
    before = (whole[0] / "quickstart.json").read_bytes()
    with pytest.raises(ConfigError, match=r"--recipe \(sgt there, sigma now\)"):
        run(whole[0])
    assert (whole[0] / "quickstart.json").read_bytes() == before


def test_the_fresh_vision_encoder_leaves_everything_else_to_the_bit(tmp_path: Path) -> None:
    add_vision("tiny-base", "tiny", tmp_path / "one")
    add_vision("tiny-base", "tiny", tmp_path / "other", seed=1)
    old = load_file(preset_directory("tiny-base") / "ema.safetensors")
    one, other = (load_file(tmp_path / name / "ema.safetensors") for name in ("one", "other"))
    assert all((one[name] == tensor).all() and (other[name] == tensor).all() for name, tensor in old.items())
    new = one.keys() - old.keys()
    assert new and all(name.startswith(("vit_model.", "connector.", "vit_pos_embed.")) for name in new)
    assert any((one[name] != other[name]).any() for name in new)
    with pytest.raises(ConfigError, match="has a vision encoder already"):
        add_vision(str(tmp_path / "one"), "tiny", tmp_path / "two")
    with pytest.raises(ConfigError, match="has no vision encoder whose sizes"):
        add_vision("tiny-base", "tiny-base", tmp_path / "two")


def test_the_commands_for_real_data_name_the_paths_of_the_configuration(whole: tuple[Path, dict[str, Any]]) -> None:
    config = yaml.safe_load((CONFIGS / "sgt-bagel.yaml").read_text())
    words = quickstart_summary(whole[1])
    assert f"--out {config['data']['corpora'][0]['path']}\n" in words
    assert f"sigma export {config['out']} " in words
    assert "  sigma download bagel\n" in words and config["model"]["path"] == str(find_entry("bagel").folder)
    assert f"cv-bench:{find_entry('cv-bench').folder} " in words
