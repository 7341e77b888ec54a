"""An export in shards is the same weights, names them all in its index, and is read wherever a model's path goes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from transformers import AutoTokenizer, GenerationConfig, Qwen2Config, SiglipImageProcessor, SiglipVisionConfig

from sigma_data.errors import ConfigError
from sigma_data.sequence.tokenizer import Tokenizer
from sigma_data.sequence.tokenizer_files import write_tokenizer
from sigma_model.checkpoint_io import Checkpoint, export_model, init_model, load_model
from sigma_model.config import ModelConfig, preset, preset_directory
from sigma_model.interop import export_sharded, write_configs
from sigma_model.loading import load_for_inference
from sigma_model.model_files import weight_files
from sigma_model.sharded_files import parse_shard_size

MOST = 400_000
INDEX = "model.safetensors.index.json"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _exported(tmp_path_factory.mktemp("whole"), shard_bytes=None)


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _exported(tmp_path_factory.mktemp("sharded"), shard_bytes=MOST)


def _exported(out: Path, *, shard_bytes: int | None) -> Path:
    """What `export_run` writes of a model, without a run."""
    source = preset_directory("tiny")
    model = init_model(preset("tiny"), seed=5)
    tokenizer = Tokenizer.load(source, vocab_size=model.config.language.vocab_size, rows=model.config.rows)
    model.config = model.config.with_rows(tokenizer.attribute_ids)
    shutil.copyfile(source / "ae.safetensors", out / "ae.safetensors")
    if shard_bytes is None or not export_sharded(model, out, dtype=torch.bfloat16, shard_bytes=shard_bytes):
        export_model(model, out, dtype=torch.bfloat16, name="ema.safetensors")
    write_tokenizer(source, out, tokenizer)
    write_configs(out, model.config, tokenizer, dtype=torch.bfloat16)
    return out


def shapes(path: Path) -> dict[str, list[int]]:
    with safe_open(path, "pt") as file:
        return {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118 - not a mapping


def test_shards_hold_each_released_name_once_in_its_shape_and_no_file_is_larger_than_asked(
    whole: Path, sharded: Path
) -> None:
    files = sorted(sharded.glob("model-*.safetensors"))
    assert [path.name for path in files] == [
        f"model-{i:05d}-of-{len(files):05d}.safetensors" for i in range(1, len(files) + 1)
    ]
    assert len(files) > 2
    held = {path.name: shapes(path) for path in [*files, sharded / "ae.safetensors"]}
    together = {name: shape for path in files for name, shape in held[path.name].items()}
    assert sum(len(held[path.name]) for path in files) == len(together)
    assert together == shapes(whole / "ema.safetensors")
    index = json.loads((sharded / INDEX).read_text())
    assert index["weight_map"] == {name: file for file, of_file in held.items() for name in of_file}
    with safe_open(whole / "ae.safetensors", "pt") as vae:
        bytes_of_vae = sum(vae.get_tensor(name).nbytes for name in vae.keys())  # noqa: SIM118
    numbers = sum(torch.Size(shape).numel() for shape in together.values())
    assert index["metadata"]["total_size"] == 2 * numbers + bytes_of_vae
    large = {path.name for path in files if path.stat().st_size > MOST + 8192 * 8}
    assert all(len(held[name]) == 1 for name in large), "only a tensor that is larger itself"


def test_a_sharded_directory_is_the_same_model_to_load_train_and_generate(whole: Path, sharded: Path) -> None:
    first, second = (load_model(path, dtype=torch.bfloat16).state_dict() for path in (whole, sharded))
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
    assert ModelConfig.from_directory(sharded) == ModelConfig.from_directory(whole)
    assert load_for_inference(str(sharded)).trained
    assert {path.name for path in weight_files(sharded)} == {path.name for path in sharded.glob("model-*")}
    assert Checkpoint(whole).tensors.keys() == Checkpoint(sharded).tensors.keys()


def test_one_file_is_enough_for_a_model_that_fits(tmp_path: Path) -> None:
    shutil.copyfile(preset_directory("tiny") / "ae.safetensors", tmp_path / "ae.safetensors")
    assert not export_sharded(init_model(preset("tiny"), seed=5), tmp_path, dtype=None, shard_bytes=10**9)
    assert [path.name for path in tmp_path.iterdir()] == ["ae.safetensors"]


def _without_a_shard(folder: Path, index: dict[str, Any]) -> None:
    next(iter(sorted(folder.glob("model-*.safetensors")))).unlink()


def _name_twice(folder: Path, index: dict[str, Any]) -> None:
    first, second, *_ = sorted(folder.glob("model-*.safetensors"))
    shutil.copyfile(first, second)


def _name_of_nothing(folder: Path, index: dict[str, Any]) -> None:
    index["weight_map"]["language_model.model.layers.99.mlp.up_proj.weight"] = next(iter(index["weight_map"].values()))


def _in_another_shard(folder: Path, index: dict[str, Any]) -> None:
    first, second, *_ = sorted(folder.glob("model-*.safetensors"))
    index["weight_map"][next(iter(shapes(first)))] = second.name


def _without_the_autoencoder(folder: Path, index: dict[str, Any]) -> None:
    (folder / "ae.safetensors").unlink()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_without_a_shard, r"index\.json: names 'model-00001-of-\d+\.safetensors', which is not there: download it"),
        (_name_twice, r"model-00002-of-\d+\.safetensors: holds .* which model-00001-of-\d+\.safetensors holds as well"),
        (
            _name_of_nothing,
            r"index\.json: places language_model\.model\.layers\.99\.\S+ in model-\S+, which does not hold",
        ),
        (_in_another_shard, r"index\.json: places .* in model-00002-of-\d+\.safetensors, which does not hold it"),
        (_without_the_autoencoder, r"index\.json: names 'ae\.safetensors', which is not there"),
    ],
)
def test_shards_that_do_not_fit_their_index_are_one_line(
    sharded: Path, tmp_path: Path, damage: Callable[[Path, dict[str, Any]], None], message: str
) -> None:
    folder = tmp_path / "m"
    shutil.copytree(sharded, folder)
    index = json.loads((folder / INDEX).read_text())
    damage(folder, index)
    (folder / INDEX).write_text(json.dumps(index))
    for read in (ModelConfig.from_directory, load_model):
        with pytest.raises(ConfigError, match=message) as caught:
            read(folder)
        assert "\n" not in str(caught.value)


def test_shards_without_their_index_are_one_line(sharded: Path, tmp_path: Path) -> None:
    shutil.copytree(sharded, tmp_path / "m")
    (tmp_path / "m" / INDEX).unlink()
    with pytest.raises(ConfigError, match=r"holds model-00001-of-\S+ and no model\.safetensors\.index\.json: download"):
        load_model(tmp_path / "m")


def test_the_index_of_a_release_beside_its_one_file_changes_nothing(whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "m"
    shutil.copytree(whole, folder)
    files = ("ema.safetensors", "ae.safetensors")
    index = {"weight_map": {name: file for file in files for name in shapes(folder / file)}}
    (folder / INDEX).write_text(json.dumps(index))
    assert [path.name for path in weight_files(folder)] == ["ema.safetensors"]
    assert load_model(folder, dtype=torch.bfloat16).state_dict().keys() == load_model(whole).state_dict().keys()


def test_transformers_reads_the_configurations_that_other_programs_build_a_bagel_of(sharded: Path) -> None:
    config, ours = json.loads((sharded / "config.json").read_text()), preset("tiny")
    assert (config["model_type"], config["architectures"]) == ("bagel", ["BagelForConditionalGeneration"])
    assert config["vae_config"] == {"z_channels": ours.vae.z_channels, "downsample": ours.vae.downsample}
    assert (config["latent_patch_size"], config["max_latent_size"]) == (ours.latent.patch_size, ours.latent.grid)
    language = Qwen2Config(**config["llm_config"])
    assert (language.hidden_size, language.vocab_size) == (ours.language.hidden_size, ours.language.vocab_size)
    assert language.pad_token_id is not None and 0 <= language.pad_token_id < ours.language.vocab_size, (
        "NeMo's is 151643"
    )
    assert ours.vision is not None
    vision = SiglipVisionConfig(**config["vit_config"])
    assert vision.num_hidden_layers == ours.vision.num_hidden_layers + 1, "the release counts one more than is used"
    assert config["vit_max_num_patch_per_side"] == ours.vision.grid
    side = ours.vision.grid * ours.vision.patch_size
    size = SiglipImageProcessor.from_pretrained(sharded, local_files_only=True).size
    assert (size["height"], size["width"]) == (side, side)
    tokenizer = AutoTokenizer.from_pretrained(sharded, local_files_only=True)
    generation = GenerationConfig.from_pretrained(sharded, local_files_only=True)
    assert generation.eos_token_id == tokenizer.convert_tokens_to_ids("<|im_end|>") == config["eos_token_id"]


@pytest.mark.parametrize(
    ("text", "size"), [("5GB", 5 * 10**9), ("500MB", 5 * 10**8), ("1.5g", 1_500_000_000), ("123", 123)]
)
def test_shard_sizes_are_decimal(text: str, size: int) -> None:
    assert parse_shard_size(text) == size


@pytest.mark.parametrize("text", ["", "0GB", "-1GB", "5 apples", "GB"])
def test_a_shard_size_of_nothing_is_one_line(text: str) -> None:
    with pytest.raises(ConfigError, match="e.g. 5GB"):
        parse_shard_size(text)
