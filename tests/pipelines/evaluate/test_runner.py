"""A whole evaluation: any number of ranks, stages that go on from disk, settings that never mix."""

from __future__ import annotations

import fcntl
import json
import re
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support import eval_runs, image_files, tiny_backbones

from pipelines.common.process_pool import run_ranks
from pipelines.evaluate import run_folder, score, scoring
from pipelines.evaluate.defaults import Stage
from pipelines.evaluate.generate import Generation
from pipelines.evaluate.item import Item
from pipelines.evaluate.runner import EvalOptions, evaluate, limited
from sigma_data.errors import BuildError, ConfigError
from sigma_model.loading import describe_model
from sigma_model.sampling import generate as sampling
from sigma_model.sampling.settings import Guidance, Order, SamplingSettings

FEW = Generation(batch=2, settings=SamplingSettings(steps=4))
Change = Callable[..., EvalOptions]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return eval_runs.save_model(tmp_path_factory.mktemp("model") / "mine")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return eval_runs.save_world(tmp_path_factory.mktemp("world") / "corpus", 9)


@pytest.fixture(scope="module")
def options(model: Path, world: Path, tmp_path_factory: pytest.TempPathFactory) -> EvalOptions:
    return EvalOptions(
        f"world:{world}",
        tmp_path_factory.mktemp("out") / "whole",
        model=str(model),
        limit=6,
        generation=FEW,
    )


@pytest.fixture(scope="module")
def whole(options: EvalOptions) -> Path:
    """A finished evaluation. Never change it."""
    evaluate(options)
    return options.out


@pytest.fixture
def copy(whole: Path, options: EvalOptions, tmp_path: Path) -> Change:
    """Options on a copy of the finished evaluation."""
    shutil.copytree(whole, tmp_path / "copy")
    return lambda **changes: replace(options, out=tmp_path / "copy", **changes)


@pytest.fixture
def never(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever generates an image fails the test."""

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("it was generated before")

    monkeypatch.setattr(sampling, "generate_images", refuse)


@pytest.mark.slow
def test_an_evaluation_leaves_settings_images_scores_and_a_report(whole: Path) -> None:
    names = {path.name for path in whole.iterdir()}
    assert {"settings.json", "generated", "scores", "results.json", "results.md", "report.html"} <= names
    settings = json.loads((whole / "settings.json").read_text())
    assert (settings["name"], settings["limit"], settings["steps"], settings["layout"]) == ("mine", 6, 4, "interleaved")
    assert settings["trained"] is True
    results = json.loads((whole / "results.json").read_text())
    (run,) = results["runs"]
    assert run["settings"] == settings
    assert [row["family"] for row in run["families"]][-1] == "all"
    assert all("world-error" in scores for scores in run["scores"].values())
    assert len(run["scores"]) == 6
    page = (whole / "report.html").read_text()
    assert "world-error" in page
    assert "mine" in page


@pytest.mark.slow
def test_three_ranks_make_the_same_bytes_as_one(options: EvalOptions, whole: Path, tmp_path: Path) -> None:
    told = evaluate(replace(options, out=tmp_path / "three", nproc=3))
    assert told["failed"] == {}
    assert eval_runs.generated(tmp_path / "three") == eval_runs.generated(whole)
    for name in ("results.json", "scores/benchmark.json"):
        assert (tmp_path / "three" / name).read_bytes() == (whole / name).read_bytes()


def test_every_share_is_done_once_in_a_process_of_its_own_and_counted(tmp_path: Path) -> None:
    counted: Counter[int] = Counter()
    run_ranks(eval_runs.count_up, [(tmp_path, [1, 2]), (tmp_path, [3])], lambda number: counted.update([number]))
    assert counted == Counter([1, 2, 3])
    assert {path.name for path in tmp_path.iterdir()} == {"0-1", "0-2", "1-3"}


@pytest.mark.parametrize(
    ("how", "kind", "sentence"),
    [
        ("mistake", ConfigError, "the sentence of rank 1"),
        ("fault", BuildError, r"rank 1 failed \(ValueError: a fault in two lines\); run the same command again .*"),
        ("killed", BuildError, r"rank 1 died \(killed, .* --nproc\); run the same command again to continue"),
    ],
)
def test_a_rank_that_fails_or_is_killed_ends_the_others_with_one_sentence(
    how: str, kind: type[Exception], sentence: str, tmp_path: Path
) -> None:
    with pytest.raises(kind) as ended:
        run_ranks(eval_runs.fail, [(tmp_path, how)] * 2, lambda _: None)
    assert re.fullmatch(sentence, str(ended.value))
    other = int((tmp_path / "0.pid").read_text())
    assert not Path(f"/proc/{other}").exists()


def test_a_fault_in_place_is_a_sentence_too() -> None:
    def fault(*_: Any) -> None:
        raise RuntimeError("out of memory")

    with pytest.raises(BuildError, match=r"^rank 0 failed \(RuntimeError: out of memory\)"):
        run_ranks(fault, [None], lambda _: None)


def test_a_finished_evaluation_run_again_makes_and_scores_nothing(
    copy: Change, never: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {path: path.read_bytes() for path in copy().out.rglob("*") if path.is_file()}
    monkeypatch.setattr(score, "score_own", lambda *_: pytest.fail("it was scored before"))
    evaluate(copy())
    assert {path: path.read_bytes() for path in before} == before


def test_only_the_batches_that_are_missing_are_made(copy: Change, whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.rmtree(copy().out / "generated" / "batch-000001")
    kept, names, real = eval_runs.marks(copy().out), [], sampling.generate_images

    def counting(loaded: Any, requests: Any, settings: Any, **_: Any) -> Any:
        names.extend(request.name for request in requests)
        return real(loaded, requests, settings)

    monkeypatch.setattr(sampling, "generate_images", counting)
    evaluate(copy(stage=Stage.GENERATE))
    made = json.loads((whole / "generated" / "batch-000001" / "batch.json").read_text())
    assert names == [entry["id"] for entry in made]
    assert eval_runs.generated(copy().out) == eval_runs.generated(whole)
    assert kept.items() <= eval_runs.marks(copy().out).items()


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"generation": replace(FEW, seed=1)}, ["seed (0 there, 1 now)"]),
        ({"generation": replace(FEW, order=Order.TEXT_FIRST)}, ["layout (interleaved there, text-first now)"]),
        ({"generation": replace(FEW, batch=3)}, ["batch (2 there, 3 now)"]),
        ({"limit": 5}, ["limit (6 there, 5 now)", "items ("]),
        (
            {
                "generation": replace(
                    FEW, settings=SamplingSettings(steps=5, guidance=Guidance(text=3.0), group_mask=False)
                )
            },
            ["steps (4 there, 5 now)", "text_scale (4.0 there, 3.0 now)", "group_mask (true there, false now)"],
        ),
        ({"model": "tiny"}, ["weights (", "trained (true there, false now)"]),
    ],
)
def test_other_settings_are_refused_by_name_and_nothing_changes(
    changes: dict[str, Any], named: list[str], copy: Change, never: None
) -> None:
    before = (copy().out / "settings.json").read_bytes()
    with pytest.raises(ConfigError, match="was started with other settings") as refused:
        evaluate(copy(**changes))
    assert all(name in str(refused.value) for name in named), str(refused.value)
    assert str(refused.value).count(" there, ") == len(named)
    assert (copy().out / "settings.json").read_bytes() == before


@pytest.mark.slow
def test_where_nothing_was_generated_settings_may_change(copy: Change) -> None:
    shutil.rmtree(copy().out / "generated")
    evaluate(copy(generation=replace(FEW, seed=1)))
    assert json.loads((copy().out / "settings.json").read_text())["seed"] == 1


def test_a_run_may_be_renamed_and_its_model_moved(copy: Change, model: Path, never: None, tmp_path: Path) -> None:
    shutil.copytree(model, tmp_path / "moved")
    evaluate(copy(name="other", model=str(tmp_path / "moved")))
    assert evaluate(copy())["name"] == "other", "without --name it keeps the one it has"
    assert json.loads((copy().out / "results.json").read_text())["runs"][0]["name"] == "other"


def test_other_weights_in_the_same_place_are_another_model(model: Path, tmp_path: Path) -> None:
    first = run_folder.digest_of_model(describe_model(str(model)))
    other = eval_runs.save_model(tmp_path / "mine", seed=5)
    assert run_folder.digest_of_model(describe_model(str(other))) != first
    shutil.copytree(model, tmp_path / "same")
    assert run_folder.digest_of_model(describe_model(str(tmp_path / "same"))) == first


def test_a_large_file_is_told_by_any_stretch_of_64_kilobytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import hashlib

    monkeypatch.setattr(run_folder, "_STRETCHES", 4)
    digests = set()
    content = bytearray(9 * 2**16 + 5)
    for place in (None, 0, 3 * 2**16 - 1, len(content) - 1):
        changed = bytearray(content)
        if place is not None:
            changed[place] = 1
        (tmp_path / "file").write_bytes(changed)
        state = hashlib.sha256()
        run_folder._add_file(state, tmp_path / "file")
        digests.add(state.hexdigest())
    assert len(digests) == 4


@pytest.mark.slow
def test_a_metric_added_later_is_scored_alone(
    copy: Change, never: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbones = tiny_backbones.save_all(tmp_path / "models")
    models = {key: backbones[key] for key in ("clip", "dino")}
    evaluate(copy(metrics=("CLIP-I",), models=models))
    files = {path.name: path for path in (copy().out / "scores").iterdir()}
    assert set(files) == {"benchmark.json", "CLIP-I.json"}
    before = {name: (path.stat().st_ino, path.stat().st_mtime_ns) for name, path in files.items()}
    scored, real = [], score.score_metric

    def counting(metric: Any, *others: Any, **named: Any) -> None:
        scored.append(metric.name)
        real(metric, *others, **named)

    monkeypatch.setattr(score, "score_metric", counting)
    told = evaluate(copy(stage=Stage.SCORE, metrics=("CLIP-I", "DINO", "LPIPS"), models=models))
    assert scored == ["DINO"] or scored == ["DINO", "LPIPS"], "LPIPS runs where its package is installed"
    assert before == {name: (path.stat().st_ino, path.stat().st_mtime_ns) for name, path in files.items()}
    assert "report" not in told
    evaluate(copy(stage=Stage.REPORT))
    (run,) = json.loads((copy().out / "results.json").read_text())["runs"]
    assert {"world-error", "CLIP-I", "DINO"} <= {metric["name"] for metric in run["metrics"]}
    assert all({"CLIP-I", "DINO"} <= set(scores) for scores in run["scores"].values())


def test_a_metric_without_weights_is_skipped_with_the_reason_in_the_report(copy: Change, never: None) -> None:
    told = evaluate(copy(metrics=("DINO",), models={"dino": "nobody/has-this-one"}))
    assert "nobody/has-this-one" in told["skipped"]["DINO"]
    assert "nobody" in (copy().out / "results.md").read_text()


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"metrics": ("CLOP",)}, "CLOP: unknown metric; there are CLIP"),
        ({"models": {"clop": "x"}}, "clop: no metric has such a model"),
        ({"models": {"clip": "./nowhere"}}, "nowhere: no such directory"),
        ({"model": "./nowhere"}, "nowhere"),
        ({"model": None}, "--model"),
        ({"compare": (Path("nowhere"),)}, "nowhere: holds no evaluation"),
        ({"benchmark": "world:nowhere"}, "nowhere"),
        ({"device": "abacus"}, "abacus"),
        ({"generation": replace(FEW, settings=SamplingSettings(steps=1))}, "1 steps"),
        ({"stage": Stage.SCORE}, "holds no evaluation"),
    ],
)
def test_a_mistake_is_found_before_anything_is_made(
    changes: dict[str, Any], sentence: str, options: EvalOptions, never: None, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=sentence):
        evaluate(replace(options, out=tmp_path / "out", **changes))
    assert not (tmp_path / "out").exists()


def test_a_folder_of_others_or_in_use_is_refused(options: EvalOptions, copy: Change, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(ConfigError, match="is not empty and holds no evaluation"):
        evaluate(replace(options, out=tmp_path))
    with (copy().out / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(ConfigError, match="another evaluation is running there"):
            evaluate(copy())


@pytest.mark.slow
def test_two_runs_are_compared_on_the_same_items(whole: Path, copy: Change, tmp_path: Path) -> None:
    other = replace(
        copy(), out=tmp_path / "other", name="released order", generation=replace(FEW, order=Order.TEXT_FIRST)
    )
    evaluate(replace(other, compare=(whole,)))
    results = json.loads((tmp_path / "other" / "results.json").read_text())
    assert [run["name"] for run in results["runs"]] == ["mine", "released order"], "what is compared with comes first"
    assert [run["settings"]["layout"] for run in results["runs"]] == ["interleaved", "text-first"]
    assert (results["comparisons"][0]["first"], results["comparisons"][0]["second"]) == ("mine", "released order")
    assert results["comparisons"][0]["differences"]
    assert "released order" in (tmp_path / "other" / "report.html").read_text()


@pytest.mark.slow
def test_failures_are_told_and_reported_and_stay_in_the_count(
    options: EvalOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = sampling.generate_images
    broken: list[str] = []

    def fragile(loaded: Any, requests: Any, settings: Any, **_: Any) -> Any:
        if not broken:
            broken.append(requests[0].name)
        if any(request.name == broken[0] for request in requests):
            raise ConfigError("the sampler ended in numbers that are not finite")
        return real(loaded, requests, settings)

    monkeypatch.setattr(sampling, "generate_images", fragile)
    told = evaluate(replace(options, out=tmp_path / "out"))
    assert list(told["failed"]) == broken
    assert told["items"] == 6
    (run,) = json.loads((tmp_path / "out" / "results.json").read_text())["runs"]
    everything = run["families"][-1]
    assert (everything["items"], everything["failed"]) == (6, 1)
    assert [entry["item"] for entry in run["failures"]] == broken
    assert "not finite" in (tmp_path / "out" / "results.md").read_text()


@pytest.mark.slow
def test_a_benchmark_that_has_changed_is_not_scored_with_old_images(
    options: EvalOptions, world: Path, model: Path, tmp_path: Path
) -> None:
    place = tmp_path / "corpus"
    shutil.copytree(world, place)
    mine = replace(options, benchmark=f"world:{place}", out=tmp_path / "out", limit=1)
    evaluate(mine)
    shutil.rmtree(place)
    eval_runs.save_world(place, 9, seed=1)
    with pytest.raises(ConfigError, match="asks other questions now"):
        evaluate(replace(mine, stage=Stage.REPORT))
    with pytest.raises(ConfigError, match="items"):
        evaluate(mine)


def test_a_limit_takes_families_in_turn_in_the_order_of_the_items() -> None:
    items = [
        Item(f"{family}{n}", family, "x") for family, count in (("a", 5), ("b", 1), ("c", 3)) for n in range(count)
    ]
    assert [item.id for item in limited(items, 5)] == ["a0", "a1", "b0", "c0", "c1"]
    assert limited(items, None) == limited(items, 99) == items


def test_geneval_is_written_for_its_own_scorer(options: EvalOptions, tmp_path: Path) -> None:
    prompts = [
        {"tag": "single_object", "include": [{"class": "cup", "count": 1}], "prompt": "a photo of a cup"},
        {"tag": "colors", "include": [{"class": "cup", "count": 1, "color": "red"}], "prompt": "a red cup"},
    ]
    file = tmp_path / "evaluation_metadata.jsonl"
    file.write_text("".join(json.dumps(prompt) + "\n" for prompt in prompts))
    told = evaluate(
        replace(
            options,
            benchmark=f"geneval:{file}",
            out=tmp_path / "out",
            limit=3,
            metrics=(),
            generation=replace(FEW, batch=4),
        )
    )
    names = sorted(
        path.relative_to(tmp_path / "out" / scoring.GENEVAL).as_posix()
        for path in (tmp_path / "out").rglob("0*.png")
        if "samples" in path.parts
    )
    assert names == ["00000/samples/0000.png", "00000/samples/0001.png", "00001/samples/0000.png"]
    assert "no detector" in told["skipped"]["geneval-correct"]


def test_a_benchmark_of_text_is_answered_with_text_and_takes_no_metric_of_images(
    options: EvalOptions, tmp_path: Path
) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    row = {
        "idx": 0, "type": "2D", "task": "Count", "image": {"bytes": image_files.image_bytes("png", 1), "path": None},
        "question": "How many?", "choices": ["1", "2"], "answer": "(A)", "prompt": "How many? (A) 1 (B) 2",
        "source": "COCO", "filename": "x", "source_dataset": "COCO", "source_filename": "x", "target_class": None,
        "target_size": None, "bbox": None,
    }  # fmt: skip
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "test_2d.parquet")
    mine = replace(options, benchmark=f"cv-bench:{tmp_path / 'test_2d.parquet'}", out=tmp_path / "out")
    told = evaluate(replace(mine, generation=replace(FEW, max_tokens=4)))
    assert set(told["summary"]) == {"COCO", "pooled"}
    with pytest.raises(ConfigError, match="answered with text"):
        evaluate(replace(mine, metrics=("CLIP",)))


def test_a_rank_computes_with_one_thread_whatever_it_is_given_and_gives_the_others_back(
    options: EvalOptions, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    seen, real = set(), sampling.generate_images

    def looking(*arguments: Any, **named: Any) -> Any:
        seen.add(torch.get_num_threads())
        return real(*arguments, **named)

    monkeypatch.setattr(sampling, "generate_images", looking)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        evaluate(replace(options, out=tmp_path / "out", stage=Stage.GENERATE))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert seen == {1}, "with two threads sums are rounded otherwise"
    assert eval_runs.generated(tmp_path / "out") == eval_runs.generated(whole)
