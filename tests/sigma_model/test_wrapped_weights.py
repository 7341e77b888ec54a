"""Weights saved from inside a wrapper are recognised, and read on request; tied embeddings are read as they are meant."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.places import TESTS
from torch import Tensor

from sigma_data.errors import ConfigError
from sigma_model.checkpoint_io import Checkpoint, export_model, load_model, released_name
from sigma_model.config import ModelConfig

GOLDEN = TESTS / "golden"
HEAD, EMBEDDINGS = "language_model.lm_head.weight", "language_model.model.embed_tokens.weight"
Rename = Callable[[str], str]


@pytest.fixture(scope="module")
def golden() -> dict[str, Tensor]:
    return load_file(GOLDEN / "model.safetensors")


def folder(path: Path, tensors: dict[str, Tensor], *, name: str = "model.safetensors", **language: object) -> Path:
    path.mkdir()
    shutil.copy(GOLDEN / "vit_config.json", path)
    llm = json.loads((GOLDEN / "llm_config.json").read_text())
    (path / "llm_config.json").write_text(json.dumps({**llm, **language}))
    save_file({key: tensor.clone() for key, tensor in tensors.items()}, path / name)
    return path


def before(text: str) -> Rename:
    return lambda name: text + name


def inside(wrapper: str) -> Rename:
    """At the top and around every layer and its attention, as FSDP and torch.compile nest."""
    return lambda name: wrapper + re.sub(r"(layers\.\d+\.|self_attn\.)", rf"\1{wrapper}", name)


WRAPPED: dict[str, tuple[Rename, list[str]]] = {
    "DistributedDataParallel": (before("module."), ["module."]),
    "torch.compile": (before("_orig_mod."), ["_orig_mod."]),
    "compiled layers": (
        lambda name: re.sub(r"(language_model\.model\.layers\.\d+\.)", r"\1_orig_mod.", name),
        ["_orig_mod."],
    ),
    "compiled inside DDP": (before("module._orig_mod."), ["_orig_mod.", "module."]),
    "DDP inside compiled": (before("_orig_mod.module."), ["_orig_mod.", "module."]),
    "FSDP": (inside("_fsdp_wrapped_module."), ["_fsdp_wrapped_module."]),
    "FSDP with checkpointing": (
        lambda name: "_fsdp_wrapped_module." + re.sub(r"(layers\.\d+\.)", r"\1_checkpoint_wrapped_module.", name),
        ["_fsdp_wrapped_module.", "_checkpoint_wrapped_module."],
    ),
    "one more model": (before("model."), ["model."]),
    "peft": (before("base_model.model."), ["base_model.model."]),
    "an average": (before("ema_model.module."), ["ema_model.module."]),
}


@pytest.mark.parametrize("kind", WRAPPED)
def test_a_wrappers_prefix_is_named_and_what_the_error_says_makes_the_weights_load(
    kind: str, tmp_path: Path, golden: dict[str, Tensor]
) -> None:
    rename, prefixes = WRAPPED[kind]
    directory = folder(tmp_path / "model", {rename(name): tensor for name, tensor in golden.items()})
    listed = json.dumps(prefixes)
    for read in (load_model, ModelConfig.from_directory, Checkpoint):
        with pytest.raises(ConfigError) as caught:
            read(directory)
        message = str(caught.value)
        assert f'"strip_prefix": {listed} into {directory / "sigma.json"}' in message
        assert "\n" not in message
    (directory / "sigma.json").write_text(f'{{"strip_prefix": {listed}}}')
    model = load_model(directory, dtype=torch.float32)
    assert model.config.vision is not None, "what follows from names follows from the stripped ones"
    assert all(torch.equal(t, golden[released_name(name)]) for name, t in model.state_dict().items())
    export_model(model, tmp_path / "out")
    assert load_file(tmp_path / "out" / "model.safetensors").keys() == golden.keys()
    assert load_model(tmp_path / "out").config.strip_prefix == ()


def test_one_prefix_may_be_written_as_text(tmp_path: Path, golden: dict[str, Tensor]) -> None:
    directory = folder(tmp_path / "model", {f"module.{name}": tensor for name, tensor in golden.items()})
    (directory / "sigma.json").write_text('{"strip_prefix": "module."}')
    load_model(directory)


def test_the_counter_of_an_averaged_model_is_no_obstacle(tmp_path: Path, golden: dict[str, Tensor]) -> None:
    tensors = {f"module.{name}": tensor for name, tensor in golden.items()} | {"n_averaged": torch.tensor(7)}
    directory = folder(tmp_path / "model", tensors, name="ema.safetensors")
    (directory / "sigma.json").write_text('{"strip_prefix": "module."}')
    load_model(directory)


def test_names_that_become_one_are_refused(tmp_path: Path, golden: dict[str, Tensor]) -> None:
    directory = folder(tmp_path / "model", golden | {"module.llm2vae.bias": golden["llm2vae.bias"]})
    with pytest.raises(ConfigError, match="strip_prefix"):
        load_model(directory)
    (directory / "sigma.json").write_text('{"strip_prefix": "module."}')
    with pytest.raises(ConfigError, match=r"holds llm2vae\.bias"):
        load_model(directory)


def test_a_prefix_that_is_no_text_is_refused(tmp_path: Path, golden: dict[str, Tensor]) -> None:
    directory = folder(tmp_path / "model", golden)
    (directory / "sigma.json").write_text('{"strip_prefix": 3}')
    with pytest.raises(ConfigError, match="strip_prefix"):
        load_model(directory)


def test_names_of_a_peft_model_that_was_not_merged_say_so(tmp_path: Path, golden: dict[str, Tensor]) -> None:
    name = "language_model.model.layers.0.self_attn.q_proj"
    tensors = {key: tensor for key, tensor in golden.items() if key != f"{name}.weight"}
    tensors |= {f"{name}.base_layer.weight": golden[f"{name}.weight"], f"{name}.lora_A.default.weight": torch.ones(2)}
    with pytest.raises(ConfigError, match="merge_and_unload"):
        load_model(folder(tmp_path / "model", tensors))


# Tied embeddings


@pytest.mark.parametrize("stored", ["equal", "different"])
@pytest.mark.parametrize("tied", [True, False])
def test_a_text_head_that_is_stored_is_used_whatever_the_configuration_says(
    stored: str, tied: bool, tmp_path: Path, golden: dict[str, Tensor]
) -> None:
    head = golden[EMBEDDINGS] if stored == "equal" else golden[HEAD]
    directory = folder(tmp_path / "model", golden | {HEAD: head}, tie_word_embeddings=tied)
    assert torch.equal(load_model(directory, dtype=torch.float32).lm_head.weight, head)


def test_a_tied_text_head_is_the_embeddings_and_an_export_writes_it(tmp_path: Path, golden: dict[str, Tensor]) -> None:
    untied = {name: tensor for name, tensor in golden.items() if name != HEAD}
    model = load_model(folder(tmp_path / "model", untied, tie_word_embeddings=True), dtype=torch.float32)
    assert torch.equal(model.lm_head.weight, golden[EMBEDDINGS])
    assert model.lm_head.weight.data_ptr() != model.backbone.embed.weight.data_ptr(), "each may learn for itself"
    export_model(model, tmp_path / "out")
    again = load_model(tmp_path / "out", dtype=torch.float32)
    assert not again.config.language.tie_word_embeddings
    assert torch.equal(again.lm_head.weight, golden[EMBEDDINGS])


def test_a_text_head_that_is_neither_stored_nor_tied_is_missed_with_the_way_out(
    tmp_path: Path, golden: dict[str, Tensor]
) -> None:
    untied = {name: tensor for name, tensor in golden.items() if name != HEAD}
    with pytest.raises(ConfigError, match=r"1 tensor missing: language_model\.lm_head\.weight .*tie_word_embeddings"):
        load_model(folder(tmp_path / "model", untied))


@pytest.mark.parametrize("prefix", ["module.", "first_stage_model."])
def test_a_prefix_of_the_autoencoders_names_is_named(prefix: str, tmp_path: Path, golden: dict[str, Tensor]) -> None:
    directory = folder(tmp_path / "model", golden)
    autoencoder = load_file(GOLDEN / "ae.safetensors")
    save_file({f"{prefix}{name}": tensor for name, tensor in autoencoder.items()}, directory / "ae.safetensors")
    with pytest.raises(
        ConfigError, match=rf"but {prefix}encoder.conv_in.weight: rename its tensors without '{prefix}'"
    ):
        ModelConfig.from_directory(directory)
