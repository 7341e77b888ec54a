"""A model's configuration: what a released directory says, what follows from its tensors, what does not fit."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from support.places import TESTS

from sigma_data.errors import ConfigError
from sigma_model.checkpoint_io import export_model, init_model
from sigma_model.config import PRESETS, ModelConfig, header_shapes, preset, preset_directory
from sigma_model.loading import load_for_inference

GOLDEN = TESTS / "golden"


def test_what_the_json_files_do_not_say_follows_from_the_tensors() -> None:
    config = ModelConfig.from_directory(GOLDEN)
    assert (config.latent.grid, config.latent.channels) == (16, 4)
    assert config.vision is not None
    assert (config.vision.grid, config.vision.num_hidden_layers) == (10, 3), "one layer fewer than the file counts"
    assert (config.vae.ch, config.vae.mult, config.vae.num_res_blocks, config.vae.z_channels) == (32, (1, 2, 2), 1, 4)


def test_the_real_preset_is_bagels() -> None:
    config = preset("bagel-7b-mot")
    assert (config.language.head_dim, config.latent.features, config.latent.stride) == (128, 64, 16)
    assert config.vision is not None
    assert (config.vision.num_hidden_layers, config.vision.grid) == (26, 70)
    assert (config.vae.downsample, config.vae.scale_factor, config.vae.shift_factor) == (8, 0.3611, 0.1159)


@pytest.mark.parametrize("name", PRESETS)
def test_what_is_written_is_read_back(name: str, tmp_path: Path) -> None:
    config = preset(name).model_copy(update={"attribute_projection": True})
    config.write(tmp_path)
    assert ModelConfig.from_directory(tmp_path) == config
    blind = config.model_copy(update={"vision": None})
    blind.write(tmp_path / "blind")
    assert ModelConfig.from_directory(tmp_path / "blind") == blind


def test_headers_tell_names_and_shapes_without_reading_data() -> None:
    path = GOLDEN / "model.safetensors"
    assert header_shapes(path) == {name: list(tensor.shape) for name, tensor in load_file(path).items()}


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return Path(shutil.copytree(preset_directory("tiny"), tmp_path / "tiny"))


@pytest.mark.parametrize(
    ("file", "change", "words"),
    [
        ("llm_config.json", {"hidden_size": None}, "hidden_size"),
        ("llm_config.json", {"num_attention_heads": 3}, "heads must divide"),
        ("sigma.json", {"latnet": {}}, "latnet"),
        ("sigma.json", {"vae": {"ch": "many"}}, "vae.ch|not fit"),
        ("vit_config.json", {"image_size": None}, "not fit a model"),
        ("vit_config.json", {"image_size": 1e999}, "not fit a model"),
        ("vit_config.json", {"patch_size": 0}, "not fit a model"),
        ("vit_config.json", {"patch_size": 16}, "vit_rule.stride"),
        ("llm_config.json", {"num_key_value_heads": 0}, "num_key_value_heads"),
        ("llm_config.json", {"rope_scaling": {"type": "yarn"}}, "scaled rotary"),
        ("llm_config.json", {"tie_word_embeddings": True}, "tied"),
        ("sigma.json", {"vae_rule": {"max_size": 64, "min_size": 32, "stride": 16}}, "vae_rule.stride"),
        ("sigma.json", {"latent": {"channels": 8, "downsample": 8, "patch_size": 1}}, "latent.downsample"),
    ],
)
def test_what_does_not_fit_is_named(tiny: Path, file: str, change: dict[str, object], words: str) -> None:
    path = tiny / file
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(ConfigError, match=words) as caught:
        ModelConfig.from_directory(tiny)
    assert str(tiny) in str(caught.value)


@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 100_000])
def test_a_file_that_is_no_json_object_is_one_sentence(tiny: Path, text: str) -> None:
    (tiny / "sigma.json").write_text(text)
    with pytest.raises(ConfigError, match=r"sigma\.json"):
        ModelConfig.from_directory(tiny)


def test_an_unknown_preset_names_those_there_are() -> None:
    with pytest.raises(ConfigError, match="tiny, tiny-base, bagel-7b-mot"):
        preset("huge")


def test_weights_alone_are_read_beside_the_model_they_came_from(tmp_path: Path) -> None:
    """SIGMA's release: model.safetensors without a vision encoder, and nothing else."""
    config = preset("tiny").model_copy(update={"vision": None})
    export_model(init_model(config, seed=3), tmp_path / "full")
    (tmp_path / "sigma").mkdir()
    shutil.move(tmp_path / "full" / "model.safetensors", tmp_path / "sigma" / "model.safetensors")
    with pytest.raises(ConfigError, match="base"):
        load_for_inference(str(tmp_path / "sigma"))
    bundle = load_for_inference(str(tmp_path / "sigma"), base="tiny")
    assert bundle.trained
    assert bundle.model.vision is None
    assert bundle.geometry.vit is None, "generation only"
    assert bundle.geometry.vae == preset("tiny").vae_rule


def test_an_autoencoder_of_another_model_is_refused(tiny: Path) -> None:
    settings = json.loads((tiny / "sigma.json").read_text())
    settings["latent"]["channels"] += 1
    (tiny / "sigma.json").write_text(json.dumps(settings))
    with pytest.raises(ConfigError, match="autoencoder that belongs"):
        load_for_inference(str(tiny))


def test_a_directory_without_an_autoencoder_says_so(tiny: Path) -> None:
    (tiny / "ae.safetensors").unlink()
    with pytest.raises(ConfigError, match=r"has no ae\.safetensors"):
        load_for_inference(str(tiny))


def test_a_tokenizer_too_large_for_the_embeddings_is_refused(tiny: Path) -> None:
    llm = json.loads((tiny / "llm_config.json").read_text())
    (tiny / "llm_config.json").write_text(json.dumps({**llm, "vocab_size": 512}))
    save_file({"lm_head.weight": load_file(GOLDEN / "vae_io.safetensors")["x"]}, tiny / "model.safetensors")
    with pytest.raises(ConfigError, match="512 rows"):
        load_for_inference(str(tiny))


@pytest.mark.slow
@pytest.mark.parametrize("left", [None, "model.safetensors.incomplete", "model-00001-of-00001.safetensors"])
def test_a_directory_without_weights_is_no_random_network(tiny: Path, left: str | None) -> None:
    if left:
        (tiny / left).write_bytes(b"partial")
    with pytest.raises(ConfigError, match="has no weights|download the index"):
        load_for_inference(str(tiny))
    with pytest.raises(ConfigError, match="has no weights|download the index"):
        load_for_inference(str(tiny), base="tiny")
    assert not load_for_inference("tiny").trained


def test_a_torn_weights_file_is_named(tiny: Path) -> None:
    save_file({"a": load_file(GOLDEN / "vae_io.safetensors")["x"]}, tiny / "model.safetensors")
    (tiny / "model.safetensors").write_bytes((tiny / "model.safetensors").read_bytes()[:20])
    with pytest.raises(ConfigError, match=r"model\.safetensors"):
        load_for_inference(str(tiny))
