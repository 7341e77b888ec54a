"""Split, number format and length of answers: typed, recorded, refused where a folder was started with others."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support import corpora, eval_runs, image_files
from support.commands import sigma

from pipelines.evaluate import runner
from pipelines.evaluate.generate import results
from pipelines.evaluate.runner import Evaluation
from sigma_model.loading import describe_model
from sigma_model.sampling import generate as sampling

FEW = ("--steps", "3", "--batch", "1", "--limit", "1")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return eval_runs.save_model(tmp_path_factory.mktemp("model") / "mine")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> str:
    corpus = tmp_path_factory.mktemp("world") / "corpus"
    corpora.build(corpus, "world:24?size=64", splits={"val": 1.0, "test": 1.0})
    return f"world:{corpus}"


@pytest.fixture
def never(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever answers an item fails the test."""

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("nothing should be generated")

    monkeypatch.setattr(sampling, "generate_images", refuse)
    monkeypatch.setattr(sampling, "generate_texts", refuse)


def save_question(folder: Path) -> str:
    """CV-Bench with one question."""
    question = {
        "idx": 0, "type": "2D", "task": "Count", "image": {"bytes": image_files.image_bytes("png"), "path": None},
        "question": "How many?", "choices": ["1", "2"], "answer": "(A)", "prompt": "How many?\n(A) 1\n(B) 2",
        "filename": "x.png", "source": "COCO",
    }  # fmt: skip
    pq.write_table(pa.Table.from_pylist([question]), folder / "test_2d.parquet")
    return f"cv-bench:{folder}"


def settings_of(out: Path) -> dict[str, Any]:
    settings: dict[str, Any] = json.loads((out / "settings.json").read_text())
    return settings


@pytest.mark.slow
def test_the_split_named_is_asked_and_later_stages_go_by_it(
    world: str, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert eval_runs.sigma(world, "--model", model, "--out", out, *FEW, "--split", "val", "--stage", "generate") == 0
    assert settings_of(out)["split"] == "val"
    (asked,) = Evaluation.open(out).items
    rows = {row["id"]: row["split"] for row in corpora.read_manifest(Path(world.removeprefix("world:")))}
    assert rows[asked.id] == "val"
    assert eval_runs.sigma(world, "--out", out, "--stage", "score", "--json") == 0
    assert eval_runs.sigma(world, "--out", out, "--stage", "report", "--split", "val", "--json") == 0
    capsys.readouterr()
    assert eval_runs.sigma(world, "--out", out, "--stage", "report", "--split", "test") == 2
    assert "holds an evaluation of the split val, not of test" in capsys.readouterr().err
    assert eval_runs.sigma(world, "--model", model, "--out", out, *FEW) == 2
    assert "split (val there, test now)" in capsys.readouterr().err
    assert eval_runs.sigma(world, "--model", model, "--out", out, *FEW, "--split", "train") == 2
    assert "has no sample in the split 'train'; splits with samples: " in capsys.readouterr().err


@pytest.mark.slow
def test_numbers_are_recorded_as_they_are_computed_in(
    world: str, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    auto, short = tmp_path / "auto", tmp_path / "short"
    typed = (world, "--model", model, *FEW, "--stage", "generate", "--device", "cpu", "--json")
    assert eval_runs.sigma(*typed, "--out", auto) == 0
    assert eval_runs.sigma(*typed, "--out", short, "--dtype", "bfloat16") == 0
    assert (settings_of(auto)["dtype"], settings_of(short)["dtype"]) == ("float32", "bfloat16")
    assert eval_runs.generated(auto) != eval_runs.generated(short)
    assert eval_runs.sigma(*typed, "--out", auto, "--dtype", "float32") == 0, "auto is float32 on a CPU"
    capsys.readouterr()
    assert eval_runs.sigma(*typed, "--out", short) == 2
    assert "dtype (bfloat16 there, float32 now)" in capsys.readouterr().err


@pytest.mark.slow
def test_an_answer_in_words_has_no_more_tokens_than_asked(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    typed = (save_question(tmp_path), "--model", model, "--stage", "generate", "--json")
    lengths = []
    for most in (2, 9):
        out = tmp_path / str(most)
        assert eval_runs.sigma(*typed, "--out", out, "--max-tokens", str(most)) == 0
        assert settings_of(out)["max_tokens"] == most
        (result,) = results(out, Evaluation.open(out).items, 8)
        lengths.append(len(result.text or ""))
    assert lengths[0] < lengths[1]
    capsys.readouterr()
    assert eval_runs.sigma(*typed, "--out", tmp_path / "9") == 2
    assert "max_tokens (9 there, 128 now)" in capsys.readouterr().err


def test_an_adapter_alone_is_no_model(
    world: str, tmp_path: Path, never: None, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    assert eval_runs.sigma(world, "--model", tmp_path / "adapter", "--base", "tiny", "--out", tmp_path / "out") == 2
    assert "is a LoRA adapter and no model: name its base with --model" in capsys.readouterr().err


def test_what_cannot_be_compared_is_said_before_anything_is_made(
    world: str, model: Path, tmp_path: Path, never: None, capsys: pytest.CaptureFixture[str]
) -> None:
    there, other = ({"split": "test", "limit": 1, "items": "", "batch": 1, "name": name} for name in ("mine", "x"))
    folders = {"same": there | {"benchmark": world}, "words": other | {"benchmark": "cv-bench:/data"}}
    for name, settings in folders.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "settings.json").write_text(json.dumps(settings))
    typed = (world, "--model", model, "--out")
    assert eval_runs.sigma(*typed, tmp_path / "out", "--compare", tmp_path / "same") == 2
    assert "same: is called mine, as " in capsys.readouterr().err
    assert eval_runs.sigma(*typed, tmp_path / "out", "--compare", tmp_path / "words") == 2
    assert "words: is of cv-bench, and this is of world" in capsys.readouterr().err
    assert eval_runs.sigma(*typed, tmp_path / "same", "--compare", tmp_path / "same") == 2
    assert "is this evaluation itself" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_answers_longer_than_the_model_takes_are_refused_before_anything_is_made(
    model: Path, tmp_path: Path, never: None, capsys: pytest.CaptureFixture[str]
) -> None:
    typed = (save_question(tmp_path), "--model", model, "--out", tmp_path / "out", "--max-tokens", "1000000")
    assert eval_runs.sigma(*typed) == 2
    assert "--max-tokens 1,000,000: leaves no room for a question" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_where_every_item_failed_nothing_is_scored_and_other_settings_are_taken_next(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    most = describe_model(str(model)).geometry.max_tokens
    out = tmp_path / "out"
    typed = (save_question(tmp_path), "--model", model, "--out", out, "--json", "--max-tokens")
    assert eval_runs.sigma(*typed, str(most - 1)) == 2
    error = capsys.readouterr().err
    assert "all 1 items failed" in error
    assert "use a smaller --max-tokens" in " ".join(error.split())
    assert not (out / "scores").exists()
    assert eval_runs.sigma(*typed, "8") == 0
    assert settings_of(out)["max_tokens"] == 8
    assert json.loads(capsys.readouterr().out)["failed"] == {}


@pytest.mark.slow
def test_versions_that_made_images_are_recorded_and_kept(
    world: str, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    typed = (world, "--model", model, "--out", out, "--steps", "3", "--batch", "1", "--limit", "2", "--stage",
             "generate")  # fmt: skip
    recorded = []
    for made_by, lost in (("1.0", False), ("2.0", False), ("2.0", True), ("2.0", True)):
        monkeypatch.setattr(runner, "sigma_version", lambda now=made_by: now)
        if lost:
            shutil.rmtree(out / "generated" / "batch-000001")
        assert eval_runs.sigma(*typed) == 0
        recorded.append(settings_of(out)["sigma"])
    assert recorded == ["1.0", "1.0", "1.0, then 2.0", "1.0, then 2.0"]


@pytest.mark.slow
def test_later_stages_refuse_what_images_were_not_made_with_and_take_a_name(
    world: str, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert eval_runs.sigma(world, "--model", model, "--out", out, *FEW) == 0
    later = (world, "--out", out, "--stage", "report")
    for option, value, said in (
        ("--model", "tiny", "of the model "), ("--limit", "5", "of the limit 1, not of 5"),
        ("--seed", "7", "of the seed 0, not of 7"), ("--text-scale", "3", "of the text_scale 4.0, not of 3.0"),
        ("--dtype", "bfloat16", "of the dtype float32, not of bfloat16"),
    ):  # fmt: skip
        capsys.readouterr()
        assert eval_runs.sigma(*later, option, value) == 2, option
        assert said in " ".join(capsys.readouterr().err.split())
    shutil.copytree(model, tmp_path / "moved")
    assert eval_runs.sigma(*later, "--model", tmp_path / "moved", *FEW, "--name", "renamed") == 0
    assert settings_of(out)["name"] == "renamed"
    assert json.loads((out / "results.json").read_text())["runs"][0]["name"] == "renamed"


@pytest.mark.slow
def test_what_cannot_be_shown_beside_it_is_said_before_anything_is_made(
    world: str, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    unscored, other = tmp_path / "unscored", tmp_path / "other"
    assert eval_runs.sigma(world, "--model", model, "--out", unscored, *FEW, "--stage", "generate") == 0
    assert eval_runs.sigma(world, "--model", model, "--out", other, *FEW, "--split", "val", "--name", "other") == 0
    monkeypatch.setattr(sampling, "generate_images", lambda *_: pytest.fail("nothing should be generated"))
    capsys.readouterr()
    typed = (world, "--model", model, "--out", tmp_path / "out", *FEW, "--name", "new")
    (tmp_path / "clip").mkdir()
    for option, value, said in (
        ("--compare", unscored, "has no scores"), ("--compare", other, "has no item in common"),
        ("--metric-model", f"clip={tmp_path / 'clip'}", "has no config.json"),
    ):  # fmt: skip
        assert eval_runs.sigma(*typed, option, value) == 2
        assert said in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "out").exists()


def test_asked_for_nothing_it_says_what_may_be_asked() -> None:
    told = sigma("eval")
    assert (told.returncode, told.stderr.count("\n")) == (2, 1)
    assert "sigma eval world:CORPUS --model MODEL --out DIR" in told.stderr
