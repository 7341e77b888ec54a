"""A fixed output size and several images of a prompt: recorded, resumable, and honest in their intervals."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support import eval_runs

from pipelines.evaluate.aggregate import MetricInfo, RunScores, aggregate, bootstrap
from pipelines.evaluate.item import Item, Result, Score
from pipelines.evaluate.questions import QuestionSet, repeated

FEW = ("--steps", "3", "--limit", "2", "--batch", "1")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return eval_runs.save_model(tmp_path_factory.mktemp("model") / "mine")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"world:{eval_runs.save_world(tmp_path_factory.mktemp('world') / 'corpus', 12)}"


def images(out: Path) -> dict[str, bytes]:
    found = {}
    for index in sorted(out.glob("generated/*/batch.json")):
        for entry in json.loads(index.read_text()):
            found[entry["id"]] = (index.parent / entry["picture"]).read_bytes()
    return found


@pytest.mark.slow
def test_several_images_of_a_prompt_differ_and_the_first_is_the_one_made_alone(
    world: str, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    alone, twice = tmp_path / "alone", tmp_path / "twice"
    assert eval_runs.sigma(world, "--model", model, "--out", alone, *FEW, "--json") == 0
    several = (world, "--model", model, "--out", twice, *FEW, "--images-per-prompt", "2", "--json")
    assert eval_runs.sigma(*several) == 0
    once, both = images(alone), images(twice)
    assert len(once) == 2 and [*both] == [one for name in once for one in (name, f"{name}#2")]
    assert all(both[name] == data for name, data in once.items())
    assert len(set(both.values())) == 4
    settings = json.loads((twice / "settings.json").read_text())
    assert settings["images_per_prompt"] == 2
    made = eval_runs.marks(twice)
    assert eval_runs.sigma(*several) == 0 and eval_runs.marks(twice) == made, "running again makes nothing anew"
    assert eval_runs.sigma(world, "--out", twice, "--stage", "report", "--json") == 0
    capsys.readouterr()
    assert eval_runs.sigma(world, "--model", model, "--out", twice, *FEW) == 2
    assert "images_per_prompt (2 there, none now)" in capsys.readouterr().err


@pytest.mark.slow
def test_a_fixed_size_is_that_of_every_output(
    world: str, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    typed = (world, "--model", model, "--out", out, *FEW, "--json")
    assert eval_runs.sigma(*typed, "--size", "64x32") == 0
    assert {Image.open(io.BytesIO(data)).size for data in images(out).values()} == {(64, 32)}
    capsys.readouterr()
    assert eval_runs.sigma(*typed, "--size", "32x64") == 2
    assert "size ([64, 32] there, [32, 64] now)" in capsys.readouterr().err
    assert eval_runs.sigma(world, "--model", model, "--out", tmp_path / "large", *FEW, "--size", "96x64") == 0
    assert "so images are 64x40" in capsys.readouterr().err
    assert eval_runs.sigma(*typed, "--size", "96") == 2
    assert "--size 96: write WIDTHxHEIGHT" in capsys.readouterr().err


@pytest.mark.slow
def test_a_folder_of_the_version_before_goes_on(
    world: str, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert eval_runs.sigma(world, "--model", model, "--out", out, *FEW, "--json") == 0
    settings = json.loads((out / "settings.json").read_text())
    del settings["size"], settings["images_per_prompt"]
    (out / "settings.json").write_text(json.dumps(settings))
    assert eval_runs.sigma(world, "--out", out, "--stage", "report", "--json") == 0
    assert eval_runs.sigma(world, "--model", model, "--out", out, *FEW, "--json") == 0


@pytest.mark.parametrize("option", [("--size", "64x64"), ("--images-per-prompt", "2")])
def test_questions_answered_in_words_have_no_size_and_no_images(
    option: tuple[str, str], model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tmp_path / "test.jsonl"
    table.write_text("{}")
    assert eval_runs.sigma(f"cv-bench:{table}", "--model", model, "--out", tmp_path / "out", *option) == 2
    assert f"is answered with text: leave {option[0]} out" in capsys.readouterr().err


def test_geneval_makes_as_many_images_of_a_prompt_as_asked(tmp_path: Path) -> None:
    prompts = tmp_path / "evaluation_metadata.jsonl"
    line = {"tag": "single_object", "include": [{"class": "dog", "count": 1}], "prompt": "a dog"}
    prompts.write_text(json.dumps(line) + "\n")
    for images, ids in ((None, 4), (2, 2)):
        _, items = QuestionSet(images=images).open(f"geneval:{prompts}")
        assert [item.id for item in items] == [f"00000-{number:04d}" for number in range(ids)]
        assert {item.question for item in items} == {"00000"}


def test_the_interval_of_several_images_a_prompt_is_that_of_the_prompts() -> None:
    values = np.random.default_rng(0).normal(size=40)
    alone = bootstrap(values, seed=0)
    copies = bootstrap(np.repeat(values, 5), seed=0, groups=[str(n) for n in np.repeat(np.arange(40), 5)])
    assert copies.mean == pytest.approx(alone.mean)
    # Copies of an item tell nothing new: drawn alone they would narrow the interval by sqrt(5).
    assert copies.high - copies.low == pytest.approx(alone.high - alone.low, rel=0.1)
    assert bootstrap([1.0, 2.0], seed=0, groups=["a", "a"]) == (1.5, None, None)
    assert bootstrap(values, seed=0, groups=[str(n) for n in range(40)]) == alone


def test_tables_draw_whole_prompts() -> None:
    items = [again for number in range(6) for again in repeated(Item(f"q{number}", "a", ""), 2)]
    scores = [Score(item.id, "m", float(item.question[1])) for item in items]
    metrics = [MetricInfo("m", "1", "up", "a number")]
    run = RunScores("r", "b", {}, metrics, {}, [Result(item, image=b"x") for item in items], scores)
    of_prompts = bootstrap([float(n) for n in range(6)], seed=0)
    found = aggregate(run)[0].cells["m"]
    assert found.scored == 12 and found.estimate == pytest.approx(of_prompts)
