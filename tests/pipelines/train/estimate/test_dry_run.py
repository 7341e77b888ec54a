"""A dry run finds what would stop a run, in one sentence, by manifests and headers alone; and changes nothing."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.commands import sigma
from support.corpora import build
from support.places import TESTS
from support.planning import families, row_of, write_corpus
from support.training_data import planned

from pipelines.common.settings import dump_settings
from pipelines.train.checkpoint import Checkpointer
from pipelines.train.config import TrainConfig
from pipelines.train.distributed.process_group import ProcessGroup
from pipelines.train.estimate.dry_run import DryRun, dry_run
from sigma_data.errors import ConfigError, CorpusError, SigmaError
from sigma_data.sample import Family
from sigma_model.config import preset_directory

GOLDEN = TESTS / "golden"
BAGEL: dict[str, list[int]] = json.loads((GOLDEN / "bagel_7b_mot_keys.json").read_text())["keys"]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "corpus"
    build(folder, "world:40?size=64", splits={"train": 70, "val": 30})
    return folder


@pytest.mark.parametrize("model", [{"path": "tiny", "max_latent_size": 32}, {"path": "omnigen2-tiny"}])
def test_memory_for_encoding_is_that_of_the_largest_image_of_the_corpora(
    corpus: Path, small_corpus: Path, model: dict[str, Any]
) -> None:
    both = [{"path": str(corpus)}, {"path": str(small_corpus), "name": "other"}]
    first, other, mixed = (
        dry_run(settings(corpus, model=model, data={"corpora": corpora})) for corpora in (both[:1], both[1:], both)
    )
    assert [one.estimate.largest_image for one in (first, other, mixed)] == [64 * 64, 80 * 64, 80 * 64]
    needed = [one.estimate.memory["encoding an image"] for one in (first, other, mixed)]
    assert needed[0] < needed[1] == needed[2]
    assert "the largest of the corpora: 4,096 pixels" in first.show()


@pytest.fixture
def copy(corpus: Path, tmp_path: Path) -> Path:
    """A corpus that may be harmed."""
    return Path(shutil.copytree(corpus, tmp_path / "copy"))


def settings(corpus: Path, **given: Any) -> TrainConfig:
    data = {"corpora": [{"path": str(corpus)}], "budget": 2000, **given.pop("data", {})}
    return TrainConfig.model_validate({"steps": 20, "out": corpus.parent / "run", **given, "data": data})


def write_header(path: Path, shapes: dict[str, list[int]], kind: str = "BF16") -> None:
    """A safetensors file of the right size that takes no space: a header, then a hole."""
    header, end = {}, 0
    for name, shape in shapes.items():
        size = {"BF16": 2, "F32": 4}[kind]
        for side in shape:
            size *= side
        header[name] = {"dtype": kind, "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)


def released(folder: Path, change: Callable[[dict[str, list[int]]], object] = lambda shapes: None) -> Path:
    """BAGEL-7B-MoT's directory, but for the numbers, and with the tiny tokenizer, whose ids its table has as well."""
    folder.mkdir()
    for name in ("llm_config.json", "vit_config.json"):
        shutil.copyfile(preset_directory("bagel-7b-mot") / name, folder / name)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(preset_directory("tiny") / name, folder / name)
    autoencoder = json.loads((GOLDEN / "ae_keys.json").read_text())
    write_header(folder / "ae.safetensors", autoencoder.get("keys", autoencoder), "F32")
    shapes = dict(BAGEL)
    change(shapes)
    write_header(folder / "ema.safetensors", shapes)
    return folder


def tree(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*") if ".index" not in path.parts}


@pytest.mark.slow
def test_it_tells_what_is_there_what_an_epoch_is_and_what_it_takes_and_writes_nothing(copy: Path) -> None:
    before = tree(copy.parent)
    found = dry_run(settings(copy), ranks=2)
    assert tree(copy.parent).items() - {str(copy): 0}.items() >= before.items() - {(str(copy), before[str(copy)])}
    assert not (copy.parent / "run").exists()
    samples = json.loads((copy / "corpus.json").read_text())["sums"]["splits"]
    assert found.weights is None
    assert found.epoch.samples == found.corpora[0].samples == samples["train"]
    assert found.held_out is not None
    assert found.held_out.samples == samples["val"]
    assert found.corpora[0].shards == len(list(copy.rglob("*.tar")))
    assert found.resumed is None
    assert found.estimate.ranks == 2
    assert 0.5 < found.epoch.fill <= 1
    text = found.show()
    for words in (
        "starts from random numbers",
        "all there",
        "a new run",
        "2 GPUs",
        "memory of a rank",
        "all that is computed",
        "experts' MLPs",
        "H100",
    ):
        assert words in text
    assert sum(found.estimate.shares.values()) == pytest.approx(1.0)
    assert {"VAE", "attention"} <= found.estimate.shares.keys()
    assert json.loads(json.dumps(found.as_dict()))["epoch"]["packs"] == found.epoch.packs


@pytest.mark.slow
def test_the_14_b_model_is_looked_at_within_seconds_and_without_its_weights(corpus: Path, tmp_path: Path) -> None:
    model = released(tmp_path / "bagel")
    began = time.process_time()
    config = settings(
        corpus, model={"path": str(model)}, data={"budget": 12_000}, parallel={"checkpointing": "full"}, steps=50_000
    )
    found = dry_run(config, ranks=8)
    assert time.process_time() - began < 20
    assert found.weights is not None
    assert found.weights.tensors == len(BAGEL)
    assert found.weights.bytes > 29e9
    assert found.estimate.steps == 50_000
    assert "1,223 tensors of 27.2 GiB in 1 file" in found.show()


def refused(config: TrainConfig, kind: type[SigmaError] = ConfigError, *, ranks: int = 1) -> str:
    with pytest.raises(kind) as error:
        dry_run(config, ranks=ranks)
    sentence = str(error.value)
    assert "\n" not in sentence
    return sentence


@pytest.mark.slow
def test_weights_that_do_not_fit_are_named(corpus: Path, tmp_path: Path) -> None:
    lacking = released(tmp_path / "lacking", lambda shapes: shapes.pop("llm2vae.weight"))
    assert "llm2vae.weight" in refused(settings(corpus, model={"path": str(lacking)}))
    misshaped = released(tmp_path / "misshaped", lambda shapes: shapes.update({"llm2vae.bias": [63]}))
    assert "llm2vae.bias is [63], not [64]" in refused(settings(corpus, model={"path": str(misshaped)}))
    with (misshaped / "ema.safetensors").open("r+b") as file:
        file.truncate(10**9)
    assert "cut short" in refused(settings(corpus, model={"path": str(misshaped)}))


@pytest.mark.slow
def test_a_directory_without_weights_is_no_reason_to_start_from_random_ones(corpus: Path, tmp_path: Path) -> None:
    model = released(tmp_path / "bagel")
    (model / "ema.safetensors").unlink()
    assert "has no weights: ema.safetensors" in refused(settings(corpus, model={"path": str(model)}))
    assert "no such directory of a model" in refused(settings(corpus, model={"path": str(tmp_path / "nowhere")}))


@pytest.mark.slow
def test_weights_with_a_vision_encoder_serve_a_run_without_one(corpus: Path, tmp_path: Path) -> None:
    model = released(tmp_path / "bagel")
    config = settings(corpus, model={"path": str(model), "vision": False}, data={"budget": 12_000})
    found = dry_run(config)
    assert found.weights is not None
    assert found.weights.tensors < len(BAGEL)
    assert "vision encoder" not in found.estimate.parameters


def test_an_autoencoder_of_other_shapes_or_cut_short_is_refused(corpus: Path, tmp_path: Path) -> None:
    model = released(tmp_path / "bagel")
    with (model / "ae.safetensors").open("r+b") as file:
        file.truncate(10**6)
    assert "ae.safetensors" in refused(settings(corpus, model={"path": str(model)}))
    shutil.copyfile(preset_directory("tiny") / "ae.safetensors", model / "ae.safetensors")
    assert "ae.safetensors: makes 8 channels, and the model takes 16" in refused(
        settings(corpus, model={"path": str(model)})
    )
    (model / "ae.safetensors").unlink()
    assert "ae.safetensors" in refused(settings(corpus, model={"path": str(model)}))


def test_a_corpus_that_is_missing_or_lacks_a_part_of_a_shard_is_refused(copy: Path) -> None:
    assert "no such folder" in refused(settings(copy.parent / "nowhere"), CorpusError)
    shards = sorted(copy.rglob("*.tar"))
    size = shards[0].stat().st_size
    with shards[0].open("r+b") as file:
        file.truncate(size - 512)
    sentence = refused(settings(copy), CorpusError)
    assert f"{shards[0]}: has {size - 512:,} bytes, and {size:,} were committed: copy" in sentence
    shards[1].unlink()
    assert f"{shards[1]}: is not there (1 other shard besides): copy" in refused(settings(copy), CorpusError)


def test_shards_of_a_remote_corpus_are_looked_for_as_well(corpus: Path) -> None:
    import fsspec

    fsspec.filesystem("memory").put(str(corpus), "/dry-run/corpus", recursive=True)
    config = settings(corpus, data={"corpora": [{"path": "memory://dry-run/corpus"}]})
    assert dry_run(config).corpora[0].bytes == sum(p.stat().st_size for p in corpus.rglob("*.tar"))
    shard = next(corpus.rglob("*.tar")).relative_to(corpus)
    fsspec.filesystem("memory").rm(f"/dry-run/corpus/{shard}")
    assert f"{shard}: is not there" in refused(config, CorpusError)


def test_without_held_out_samples_it_says_why_there_is_no_validation(corpus: Path) -> None:
    found = dry_run(settings(corpus, validation={"split": "dev"}))
    assert found.held_out is None
    assert "no validation: no split 'dev' in corpus" in found.show()
    assert "no validation: validation.every is 0" in dry_run(settings(corpus, validation={"every": 0})).show()


def test_samples_that_fit_into_no_pack_are_counted_and_named(tmp_path: Path) -> None:
    cases = families({Family.COMPOSITIONAL: 30})
    folder = write_corpus(tmp_path / "corpus", [row_of(one, number) for number, one in enumerate(cases)])
    shards = {row_of(one, number)["shard"] for number, one in enumerate(cases)}
    for name in shards:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(bytes(5000))
    lengths = sorted(planned_lengths(folder))
    found = dry_run(settings(folder, data={"budget": lengths[20]}))
    assert len(found.left_out) == sum(length > lengths[20] for length in lengths)
    assert found.epoch.samples == 30 - len(found.left_out)
    assert f"{len(found.left_out)} samples fit into no pack" in found.show()
    assert "none of 30 samples fits into a pack" in refused(settings(folder, data={"budget": 5}))


def planned_lengths(folder: Path) -> list[int]:
    from support.training_data import index_of

    planner = planned(index_of(folder), budget=10**6, dropout={"text": 0, "latent": 0, "patch": 0})
    return planner.lengths(planner.plan(0).draws).tolist()


def saved(config: TrainConfig, corpus: Path, step: int, *, epoch: int = 1, next_pack: int = 3) -> None:
    """A checkpoint of a run, as far as its position goes."""
    from pipelines.common.planner import open_planner
    from sigma_model.loading import describe_model

    planner = open_planner(config.data, describe_model("tiny"))
    plan = {"digest": planner.digest, "fields": dict(planner.fields)}
    import torch

    alone = ProcessGroup.single()
    checkpointer = Checkpointer(config.out / "checkpoints", alone, config.checkpoint)
    data = {"plan": plan, "epoch": epoch, "next_pack": next_pack}
    checkpointer.save(step, {"model": {"a": torch.zeros(2)}}, {"step": step, "data": data})
    checkpointer.finish()


def test_the_checkpoint_that_would_be_resumed_is_named_if_its_position_fits(corpus: Path, tmp_path: Path) -> None:
    config = settings(corpus, out=tmp_path / "run")
    saved(config, corpus, 7)
    saved(config, corpus, 9)
    found: DryRun = dry_run(config)
    assert found.resumed is not None
    assert (found.resumed.step, found.resumed.epoch, found.resumed.pack) == (9, 1, 3)
    assert "goes on from step 9 (epoch 1)" in found.show()
    other = settings(corpus, out=tmp_path / "run", data={"budget": 2100})
    assert "budget was 2000 and is 2100" in refused(other)


def test_a_place_that_cannot_be_written_and_ranks_that_do_not_fit_are_refused(corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert "is a file" in refused(settings(corpus, out=tmp_path / "file" / "run"))
    sharded = settings(corpus, parallel={"shard": 4}, out=tmp_path / "run")
    assert "parallel.shard: 4 does not divide 6 ranks" in refused(sharded, ranks=6)
    assert dry_run(sharded, ranks=8).estimate.ranks == 8


def test_a_disk_that_is_too_small_for_the_checkpoints_is_told_of(corpus: Path) -> None:
    found = dry_run(settings(corpus))
    most = found.estimate.checkpoint * (found.estimate.checkpoints_kept + 1)
    assert "too few: checkpoints come to" in replace(found, free=int(most) - 1).show()
    assert "too few" not in replace(found, free=int(most) + 1).show()


def test_the_command_prints_json_or_one_sentence_and_2(corpus: Path, tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(dump_settings(settings(corpus, out=tmp_path / "run")))

    good = sigma("train", file, "--dry-run", "--json", "--ranks", "4")
    assert (good.returncode, good.stderr) == (0, "")
    assert json.loads(good.stdout)["estimate"]["ranks"] == 4
    bad = sigma("train", file, "--dry-run", f"data.corpora=[{{path: {tmp_path / 'nowhere'}}}]")
    assert (bad.returncode, bad.stdout) == (2, "")
    assert bad.stderr == f"sigma: {tmp_path / 'nowhere'}: no such folder\n"
