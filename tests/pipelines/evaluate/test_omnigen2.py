"""OmniGen2 is evaluated as BAGEL is: images, answers, ranks, settings that never mix."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from support import eval_runs, omnigen2
from support.commands import sigma
from typer.testing import CliRunner

import cli
from sigma_data.errors import ConfigError

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return omnigen2.directory(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return eval_runs.save_world(tmp_path_factory.mktemp("world") / "corpus", 6)


def evaluate(*words: object) -> Any:
    return CliRunner().invoke(cli.app, ["eval", *map(str, words), "--json", "--device", "cpu"])


def test_images_of_a_benchmark_are_made_scored_and_the_same_on_two_ranks(
    model: Path, world: Path, tmp_path: Path
) -> None:
    given = [f"world:{world}", "-m", model, "--limit", 4, "--batch", 2, "--steps", 2, "--route", "both"]
    result = evaluate(*given, "--out", tmp_path / "one")
    assert result.exit_code == 0, result.exception
    told = json.loads(result.stdout)
    assert (told["items"], told["failed"]) == (4, {})
    settings = json.loads((tmp_path / "one" / "settings.json").read_text())
    wanted = {"steps": 2, "text_scale": 4.0, "image_scale": 1.0, "route": "both", "sampler": None, "rescale": None}
    assert {name: settings[name] for name in wanted} == wanted
    assert (tmp_path / "one" / "report.html").exists()
    before = eval_runs.marks(tmp_path / "one")
    assert evaluate(*given, "--out", tmp_path / "one").exit_code == 0
    assert eval_runs.marks(tmp_path / "one") == before
    assert evaluate(*given, "--out", tmp_path / "two", "--nproc", 2).exit_code == 0
    assert eval_runs.generated(tmp_path / "two") == eval_runs.generated(tmp_path / "one")
    other = evaluate(*given, "--out", tmp_path / "one", "--negative", "blurry")
    assert "negative" in str(other.exception)
    assert evaluate(*given[:1], "--out", tmp_path / "one", "--stage", "report").exit_code == 0


def test_questions_are_answered_in_words(model: Path, tmp_path: Path) -> None:
    corpus = eval_runs.save_world(tmp_path / "corpus", 4, families="understanding")
    result = evaluate(f"questions:{corpus}", "-m", model, "--out", tmp_path / "out", "--max-tokens", 3)
    assert result.exit_code == 0, result.exception
    assert json.loads(result.stdout)["failed"] == {}


def test_what_means_nothing_to_a_model_is_refused(model: Path, world: Path, tmp_path: Path) -> None:
    for words, told in (
        (["-m", model, "--rescale", "global"], "--rescale has no meaning with an OmniGen2 model"),
        (["-m", "tiny", "--step-cache", "teacache"], "--step-cache is for OmniGen2 models alone"),
    ):
        result = evaluate(f"world:{world}", *words, "--out", tmp_path / "out")
        assert isinstance(result.exception, ConfigError)
        assert told in str(result.exception)


def test_the_printed_settings_are_omnigen2s_own(tmp_path: Path) -> None:
    """Not BAGEL's defaults, which would not be used; and what is printed is taken back as it was."""
    words = ["eval", "questions:x", "--model", "omnigen2-tiny", "--out", str(tmp_path), "--print-config"]
    values = yaml.safe_load(sigma(*words).stdout)
    assert (values["steps"], values["text_scale"], values["image_scale"]) == (28, 4.0, 1.0)
    assert (values["route"], values["sampler"], values["negative"]) == ("vae", "euler", "")
    assert yaml.safe_load(sigma(*words, "--steps", "9").stdout)["steps"] == 9
    printed = tmp_path / "printed.yaml"
    printed.write_text(yaml.safe_dump(values))
    again = sigma("eval", "--config", str(printed), "--print-config")
    assert yaml.safe_load(again.stdout) == values
