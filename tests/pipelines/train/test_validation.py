"""Validation repeats itself exactly, changes nothing, and never ends a run."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from support import ranks
from support.corpora import build
from support.sequences import one_thread  # noqa: F401
from support.training_data import index_of
from support.training_runs import lines, run, same, saved, settings_of
from torch import Tensor

from pipelines.train import validation as validation_module
from pipelines.train.config import TrainConfig
from pipelines.train.distributed.process_group import ProcessGroup
from pipelines.train.run import TrainingRun, make_run
from sigma_data.loading.shard_reader import ShardReader
from sigma_model.vae import Vae

ALONE = ProcessGroup.single()
EVERY = {"every": 3, "packs": 3, "images": 2, "image_steps": 3}


def put_together(out: Path, corpus: Path, **changes: Any) -> TrainingRun:
    settings = settings_of(out, corpus, **{"validation": EVERY, **changes})
    return make_run(TrainConfig.model_validate(settings), ALONE)


def losses(run_: TrainingRun) -> dict[str, float]:
    assert run_.validation is not None
    return run_.validation.losses(run_.parts)


@pytest.mark.slow
def test_losses_repeat_to_the_bit_and_depend_on_the_seed_alone(tmp_path: Path, training_corpus: Path) -> None:
    one = put_together(tmp_path, training_corpus)
    first = losses(one)
    assert first["image"] > 0 and first["text"] > 0
    torch.manual_seed(123)
    assert losses(one) == first
    again = put_together(tmp_path, training_corpus, data={"seed": 9, "dropout": {"text": 0.5}})
    assert losses(again) == first, "the training's own draws have no part in it"
    other = put_together(tmp_path, training_corpus, validation={**EVERY, "seed": 1})
    assert losses(other) != first


@pytest.mark.slow
def test_held_out_images_are_encoded_once_where_latents_are_kept(
    tmp_path: Path, training_corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded: list[int] = []
    encode = Vae.encode

    def counting(self: Vae, images: Sequence[Tensor]) -> list[Tensor]:
        encoded.append(len(images))
        return encode(self, images)

    monkeypatch.setattr(Vae, "encode", counting)
    found = []
    for room in (0, 2**30):
        encoded.clear()
        run_ = put_together(tmp_path / str(room), training_corpus, loader={"workers": 0, "latent_cache": room})
        found.append([losses(run_), sum(encoded), losses(run_), sum(encoded)])
    (plain, count, _, twice), kept = found
    assert count and twice == 2 * count
    assert kept == [plain, count, plain, count]


@pytest.mark.slow
def test_with_and_without_validation_a_run_learns_the_same_to_the_bit(tmp_path: Path, training_corpus: Path) -> None:
    for name, validation in (("with", EVERY), ("without", {"every": 0})):
        run(settings_of(tmp_path / name, training_corpus, validation=validation))
    assert same(saved(tmp_path / "with"), saved(tmp_path / "without"))
    steps = [line for line in lines(tmp_path / "with") if "loss" in line]
    assert steps == lines(tmp_path / "without")
    checks = [line for line in lines(tmp_path / "with") if "loss" not in line]
    assert [line["step"] for line in checks] == [0, 3, 6]
    assert all({"val/image", "val/text", "val_ema/image"} <= line.keys() for line in checks)
    assert checks[0]["val/image"] == checks[0]["val_ema/image"], "the average starts as the weights"
    assert checks[2]["val/image"] != checks[2]["val_ema/image"]


@pytest.mark.slow
def test_two_ranks_find_the_losses_and_draw_the_pictures_of_one(tmp_path: Path, training_corpus: Path) -> None:
    """Losses to 1e-5: the order of sums. Weights before the first step are the same to the bit, and so pictures."""
    validation = {**EVERY, "image_steps": 2}
    run({**settings_of(tmp_path / "1", training_corpus, validation=validation, steps=1), "accumulate": 2})
    ranks.run(run, 2, settings_of(tmp_path / "2", training_corpus, validation=validation, steps=1), timeout_s=120)
    for alone, on_all_ranks in zip(lines(tmp_path / "1"), lines(tmp_path / "2"), strict=True):
        assert {name: pytest.approx(value, abs=1e-5) for name, value in alone.items()} == on_all_ranks
    folders = [sorted((tmp_path / str(size) / "images" / "00000000").iterdir()) for size in (1, 2)]
    assert [path.name for path in folders[0]] == [path.name for path in folders[1]] == ["sample-1.png", "sample-2.png"]
    for one, two in zip(*folders, strict=True):
        assert one.read_bytes() == two.read_bytes()


@pytest.mark.slow
def test_pictures_show_references_answer_and_what_is_made_of_one_family_each(
    tmp_path: Path, training_corpus: Path
) -> None:
    one = put_together(tmp_path, training_corpus)
    assert one.validation is not None
    losses(one)
    made = one.validation.images(one.parts, 2)
    index = one.validation._dataset.indexes[0]
    rows = {index.ids[row].decode(): row for row in range(len(index.ids))}
    families = [index.families[rows[name]] for name in made]
    assert len(made) == len(set(families)) == 2
    for name, data in made.items():
        pictures = int(index.image_first[rows[name] + 1] - index.image_first[rows[name]])
        with Image.open(io.BytesIO(data)) as shown:
            assert shown.size == ((pictures + 1) * 264 - 8, 256)
    assert one.validation.images(one.parts, 2) == made


@pytest.mark.slow
def test_a_prompt_or_a_picture_that_cannot_be_used_costs_that_sample_alone(
    tmp_path: Path, training_corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = put_together(tmp_path, training_corpus)
    assert one.validation is not None
    losses(one)
    usual = list(one.validation.images(one.parts, 3))
    whole, pictures = ShardReader.sample, ShardReader.images

    def spoilt(self: ShardReader, row: int) -> Any:
        sample = whole(self, row)
        turn = replace(sample.turns[0], instruction="paint <nonsense> it")
        return replace(sample, turns=(turn,)) if sample.id == usual[0] else sample

    def broken(self: ShardReader, row: int, numbers: Any) -> Any:
        data = pictures(self, row, numbers)
        return dict.fromkeys(data, b"no picture") if whole(self, row).id == usual[1] else data

    monkeypatch.setattr(ShardReader, "sample", spoilt)
    monkeypatch.setattr(ShardReader, "images", broken)
    found = list(one.validation.images(one.parts, 3))
    assert len(found) >= 2 and not {usual[0], usual[1]} & set(found) and usual[2] in found


@pytest.mark.slow
def test_a_model_that_makes_no_numbers_makes_no_pictures_and_a_note(
    tmp_path: Path, training_corpus: Path, caplog: pytest.LogCaptureFixture
) -> None:
    one = put_together(tmp_path, training_corpus)
    assert one.validation is not None
    with torch.no_grad():
        one.parts.model.latent_out.bias.fill_(float("nan"))
    assert one.validation.images(one.parts, 1) == {}
    assert caplog.messages[0].startswith("train: no sample images: ")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"validation": {**EVERY, "split": "dev"}}, "no split 'dev' in corpus: set validation.split"),
        ({"data": {"budget": 200}}, "none of"),
    ],
)
def test_nothing_to_validate_on_is_said_and_stops_nothing(
    tmp_path: Path, training_corpus: Path, caplog: pytest.LogCaptureFixture, changes: dict[str, Any], says: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    if "data" in changes:  # in training there are samples that fit, among those held out there are none
        settings = validation_module.validation_settings
        monkeypatch.setattr(
            "pipelines.train.validation.validation_settings", lambda c: settings(c).model_copy(update={"budget": 3})
        )
    one = put_together(tmp_path, training_corpus, **changes)
    assert one.validation is None and len(one.planner.plan(0))
    assert f"train: validation: {says}" in caplog.text


@pytest.mark.slow
def test_of_several_corpora_those_that_hold_something_out_are_validated_on(
    tmp_path: Path, training_corpus: Path, caplog: pytest.LogCaptureFixture
) -> None:
    build(tmp_path / "all", "world:6?size=64", splits={"train": 1})
    index_of(tmp_path / "all")
    both = [{"path": str(tmp_path / "all")}, {"path": str(training_corpus)}]
    one = put_together(tmp_path / "out", training_corpus, data={"corpora": both})
    alone = put_together(tmp_path / "out", training_corpus)
    assert "no split 'val' in all:" in caplog.text
    assert losses(one) == losses(alone)
