"""Weights go in and out byte for byte, every name is used or named, and one copy of the model is all it takes."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors
import torch
from safetensors.torch import load_file, save_file
from support.places import ROOT, TESTS
from torch import Tensor

from sigma_data.errors import ConfigError
from sigma_model import checkpoint_io
from sigma_model.checkpoint_io import (
    expected,
    export_model,
    init_model,
    load_model,
    load_weights,
    our_name,
    released_name,
    write_tensors,
)
from sigma_model.config import ModelConfig, preset, preset_directory, weight_files
from sigma_model.model import SigmaModel

GOLDEN = TESTS / "golden"
RELEASED: dict[str, list[int]] = json.loads((GOLDEN / "bagel_7b_mot_keys.json").read_text())["keys"]
VISION = ("vit_model.", "connector.", "vit_pos_embed.")
PATCHES = "vit_model.vision_model.embeddings.patch_embedding.weight"

PAIRS = """
backbone.embed.weight                   language_model.model.embed_tokens.weight
backbone.layers.0.und.input_norm.weight language_model.model.layers.0.input_layernorm.weight
backbone.layers.1.und.post_norm.weight  language_model.model.layers.1.post_attention_layernorm.weight
backbone.layers.2.und.q.bias            language_model.model.layers.2.self_attn.q_proj.bias
backbone.layers.2.und.k.weight          language_model.model.layers.2.self_attn.k_proj.weight
backbone.layers.0.und.v.bias            language_model.model.layers.0.self_attn.v_proj.bias
backbone.layers.0.und.o.weight          language_model.model.layers.0.self_attn.o_proj.weight
backbone.layers.1.und.q_norm.weight     language_model.model.layers.1.self_attn.q_norm.weight
backbone.layers.1.und.k_norm.weight     language_model.model.layers.1.self_attn.k_norm.weight
backbone.layers.1.und.mlp.gate.weight   language_model.model.layers.1.mlp.gate_proj.weight
backbone.layers.1.und.mlp.up.weight     language_model.model.layers.1.mlp.up_proj.weight
backbone.layers.1.und.mlp.down.weight   language_model.model.layers.1.mlp.down_proj.weight
backbone.layers.0.gen.input_norm.weight language_model.model.layers.0.input_layernorm_moe_gen.weight
backbone.layers.1.gen.post_norm.weight  language_model.model.layers.1.post_attention_layernorm_moe_gen.weight
backbone.layers.2.gen.q.weight          language_model.model.layers.2.self_attn.q_proj_moe_gen.weight
backbone.layers.2.gen.k.bias            language_model.model.layers.2.self_attn.k_proj_moe_gen.bias
backbone.layers.0.gen.v.weight          language_model.model.layers.0.self_attn.v_proj_moe_gen.weight
backbone.layers.0.gen.o.weight          language_model.model.layers.0.self_attn.o_proj_moe_gen.weight
backbone.layers.1.gen.q_norm.weight     language_model.model.layers.1.self_attn.q_norm_moe_gen.weight
backbone.layers.1.gen.k_norm.weight     language_model.model.layers.1.self_attn.k_norm_moe_gen.weight
backbone.layers.0.gen.mlp.gate.weight   language_model.model.layers.0.mlp_moe_gen.gate_proj.weight
backbone.layers.0.gen.mlp.up.weight     language_model.model.layers.0.mlp_moe_gen.up_proj.weight
backbone.layers.0.gen.mlp.down.weight   language_model.model.layers.0.mlp_moe_gen.down_proj.weight
backbone.norm_und.weight                language_model.model.norm.weight
backbone.norm_gen.weight                language_model.model.norm_moe_gen.weight
lm_head.weight                          language_model.lm_head.weight
latent_in.weight                        vae2llm.weight
latent_out.bias                         llm2vae.bias
time_embedder.fc1.weight                time_embedder.mlp.0.weight
time_embedder.fc2.bias                  time_embedder.mlp.2.bias
latent_positions                        latent_pos_embed.pos_embed
patch_positions                         vit_pos_embed.pos_embed
vision.patch_embedding.bias             vit_model.vision_model.embeddings.patch_embedding.bias
vision.position_embedding.weight        vit_model.vision_model.embeddings.position_embedding.weight
vision.layers.0.norm1.weight            vit_model.vision_model.encoder.layers.0.layer_norm1.weight
vision.layers.0.norm2.bias              vit_model.vision_model.encoder.layers.0.layer_norm2.bias
vision.layers.1.q.weight                vit_model.vision_model.encoder.layers.1.self_attn.q_proj.weight
vision.layers.1.k.bias                  vit_model.vision_model.encoder.layers.1.self_attn.k_proj.bias
vision.layers.1.v.weight                vit_model.vision_model.encoder.layers.1.self_attn.v_proj.weight
vision.layers.2.out.bias                vit_model.vision_model.encoder.layers.2.self_attn.out_proj.bias
vision.layers.2.fc1.weight              vit_model.vision_model.encoder.layers.2.mlp.fc1.weight
vision.layers.2.fc2.weight              vit_model.vision_model.encoder.layers.2.mlp.fc2.weight
vision.norm.weight                      vit_model.vision_model.post_layernorm.weight
connector.fc1.bias                      connector.fc1.bias
connector.fc2.weight                    connector.fc2.weight
"""


@pytest.fixture(scope="module")
def golden() -> dict[str, Tensor]:
    """The tensors of the tiny released checkpoint, under released names. Never change them."""
    return load_file(GOLDEN / "model.safetensors")


def meta(config: ModelConfig) -> SigmaModel:
    with torch.device("meta"):
        return SigmaModel(config)


def released(folder: Path, tensors: dict[str, Tensor], *, name: str = "model.safetensors") -> Path:
    """A directory in the released layout with these tensors."""
    folder.mkdir(exist_ok=True)
    for config in ("llm_config.json", "vit_config.json"):
        shutil.copy(GOLDEN / config, folder)
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, folder / name, {"format": "pt"})
    return folder


def same_bytes(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a.view(torch.uint8), b.view(torch.uint8))


# Names


def test_the_full_model_has_exactly_the_released_names_and_shapes() -> None:
    assert len(RELEASED) == 1223
    assert {name: list(shape) for name, shape in expected(meta(preset("bagel-7b-mot"))).items()} == RELEASED


def test_names_are_a_bijection_over_the_full_model() -> None:
    ours = {name: our_name(name) for name in RELEASED}
    assert len(set(ours.values())) == len(RELEASED)
    assert all(name is not None and released_name(name) == theirs for theirs, name in ours.items())
    assert set(ours.values()) == set(meta(preset("bagel-7b-mot")).state_dict())


@pytest.mark.parametrize(
    "name", ["", "backbone", "vision.layers.0.q", "latent_in.scale", "backbone.layers.00.und.q.bias"]
)
def test_a_name_we_do_not_have_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="no parameter or buffer"):
        released_name(name)


@pytest.mark.parametrize(
    "name",
    [
        "",
        "model.embed_tokens.weight",
        "language_model.model.layers.01.self_attn.q_proj.bias",
        "language_model.model.layers.{i}.self_attn.q_proj.bias",
        "language_model.model.layers.1.self_attn.o_proj.bias",
        "xlanguage_model.lm_head.weight",
        "language_model.lm_head.weight.more",
    ],
)
def test_a_name_no_release_has_is_none(name: str) -> None:
    assert our_name(name) is None


# Loading


def test_every_tensor_lands_where_the_model_means_it(golden: dict[str, Tensor]) -> None:
    state = load_model(GOLDEN, dtype=torch.float32).state_dict()
    pairs = dict(line.split() for line in PAIRS.strip().splitlines())
    assert all(torch.equal(state[ours], golden[theirs]) for ours, theirs in pairs.items())
    kinds = {"".join(c for c in theirs if not c.isdigit()).rpartition(".")[0] for theirs in golden}
    assert kinds == {"".join(c for c in theirs if not c.isdigit()).rpartition(".")[0] for theirs in pairs.values()}


@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("wanted", [torch.bfloat16, torch.float32])
def test_loading_casts_as_torch_casts(
    tmp_path: Path, golden: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch, stored: torch.dtype, wanted: torch.dtype
) -> None:
    monkeypatch.setattr(checkpoint_io, "CHUNK", 1024)  # so that these small tensors take several chunks
    folder = released(tmp_path / "model", {name: tensor.to(stored) for name, tensor in golden.items()})
    model = load_model(folder, dtype=wanted)
    for name, tensor in model.state_dict().items():
        assert same_bytes(tensor, golden[released_name(name)].to(stored).to(wanted)), name


def test_loaded_memory_is_the_models_own_and_not_the_files(tmp_path: Path, golden: dict[str, Tensor]) -> None:
    folder = released(tmp_path / "model", golden)
    model = load_model(folder, dtype=torch.float32)
    file = folder / "model.safetensors"
    file.write_bytes(bytes(file.stat().st_size))
    assert torch.equal(model.lm_head.weight, golden["language_model.lm_head.weight"])
    with torch.no_grad():
        model.lm_head.weight.fill_(1.0)
    assert not any(file.read_bytes())


def test_a_frozen_parameter_stays_frozen_and_buffers_stay_buffers() -> None:
    model = meta(ModelConfig.from_directory(GOLDEN))
    model.backbone.requires_grad_(False)
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    buffers = {name for name, _ in model.named_buffers()}
    load_weights(model, GOLDEN, dtype=torch.float32)
    assert frozen
    assert {name for name, parameter in model.named_parameters() if not parameter.requires_grad} == frozen
    assert {name for name, _ in model.named_buffers()} == buffers == {"latent_positions", "patch_positions"}


def test_the_averaged_weights_come_first(tmp_path: Path, golden: dict[str, Tensor]) -> None:
    folder = released(tmp_path / "model", golden)
    released(folder, {name: tensor + 1 for name, tensor in golden.items()}, name="ema.safetensors")
    model = load_model(folder, dtype=torch.float32)
    assert torch.equal(model.latent_out.bias, golden["llm2vae.bias"] + 1)


def test_weights_in_parts_load_as_one(tmp_path: Path, golden: dict[str, Tensor]) -> None:
    folder = in_parts(tmp_path / "model", golden)
    state = load_model(folder, dtype=torch.float32).state_dict()
    assert all(torch.equal(tensor, golden[released_name(name)]) for name, tensor in state.items())


def test_weights_without_a_vision_encoder_give_a_model_that_only_generates(
    tmp_path: Path, golden: dict[str, Tensor]
) -> None:
    folder = released(tmp_path / "model", {n: t for n, t in golden.items() if not n.startswith(VISION)})
    model = load_model(folder, dtype=torch.float32)
    assert model.config.vision is None
    assert not any(name.startswith(VISION) for name in expected(model))
    assert torch.equal(model.latent_in.weight, golden["vae2llm.weight"])


def test_a_patch_embedding_stored_as_a_convolution_computes_the_same(tmp_path: Path, golden: dict[str, Tensor]) -> None:
    width = golden[PATCHES].shape[0]
    kernel = torch.randn(width, 3, 14, 14, generator=torch.Generator().manual_seed(0))
    folder = released(tmp_path / "model", golden | {PATCHES: kernel})
    model = load_model(folder, dtype=torch.float32)
    assert model.vision is not None
    picture = torch.randn(3, 14, 14, generator=torch.Generator().manual_seed(1))
    by_convolution = torch.nn.functional.conv2d(picture[None], kernel).flatten()
    by_us = model.vision.patch_embedding.weight @ picture.permute(1, 2, 0).flatten()
    torch.testing.assert_close(by_us, by_convolution, rtol=1e-4, atol=1e-4)


def test_an_attribute_projection_the_file_lacks_is_zero_and_one_it_has_is_read(
    tmp_path: Path, golden: dict[str, Tensor]
) -> None:
    config = ModelConfig.from_directory(GOLDEN).model_copy(update={"attribute_projection": True})
    fresh = load_model(GOLDEN, dtype=torch.float32, config=config)
    assert fresh.attribute_projection is not None
    assert not fresh.attribute_projection.weight.any()
    with torch.no_grad():
        fresh.attribute_projection.weight.fill_(0.5)
    export_model(fresh, tmp_path / "out")
    again = load_model(tmp_path / "out", dtype=torch.float32)
    assert again.attribute_projection is not None
    assert bool((again.attribute_projection.weight == 0.5).all())


# What does not fit


def in_parts(folder: Path, tensors: dict[str, Tensor]) -> Path:
    names = sorted(tensors)
    halves = {"model-1.safetensors": names[::2], "model-2.safetensors": names[1::2]}
    for part, of_part in halves.items():
        released(folder, {name: tensors[name] for name in of_part}, name=part)
    index = {"weight_map": {name: part for part, of_part in halves.items() for name in of_part}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def without(*names: str) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda tensors: {name: tensor for name, tensor in tensors.items() if not name.startswith(names)}


def plus(**changes: Tensor) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda tensors: tensors | changes


FAULTS: dict[str, tuple[Callable[[dict[str, Tensor]], dict[str, Tensor]], str]] = {
    "missing": (without("llm2vae.bias"), "1 tensor missing: llm2vae.bias"),
    "many missing": (
        without("language_model.model.layers.1."),
        "28 tensors missing: language_model.model.layers.1.input_layernorm.weight, language_model.",
    ),
    "extra": (plus(surplus=torch.zeros(2)), "1 tensor unexpected: surplus"),
    "misshaped": (
        plus(**{"llm2vae.bias": torch.zeros(7)}),
        "1 tensor of another shape: llm2vae.bias is [7], not [16]",
    ),
    "two at once": (
        lambda tensors: without("llm2vae.bias")(tensors) | {"surplus": torch.zeros(2)},
        "1 tensor missing: llm2vae.bias; 1 tensor unexpected: surplus",
    ),
    "a layer more": (
        plus(**{"language_model.model.layers.3.input_layernorm.weight": torch.ones(64)}),
        "unexpected: language_model.model.layers.3.input_layernorm.weight",
    ),
    "a convolution of another size": (
        plus(**{PATCHES: torch.zeros(48, 3, 7, 7)}),
        f"{PATCHES} is [48, 3, 7, 7], not [48, 588]",
    ),
    "not floating": (plus(**{"llm2vae.bias": torch.zeros(16, dtype=torch.int64)}), "llm2vae.bias is stored as I64"),
    "the vision encoder without its connector": (without("connector."), "4 tensors missing: connector.fc1.weight, "),
    "the vision encoder without one tensor": (
        without("vit_pos_embed."),
        "vit_pos_embed.pos_embed (the tensors of the vision encoder must be there all or not at all)",
    ),
    "a connector without a vision encoder": (
        without("vit_model."),
        "connector.fc2.bias, ... (the tensors of the vision encoder must be there all or not at all)",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_weights_that_do_not_fit_are_refused_by_name_and_file(
    tmp_path: Path, golden: dict[str, Tensor], fault: str
) -> None:
    change, message = FAULTS[fault]
    folder = released(tmp_path / "model", change(golden))
    with pytest.raises(ConfigError) as caught:
        load_model(folder)
    assert str(folder / "model.safetensors") in str(caught.value)
    assert message in str(caught.value)


def test_no_data_is_read_before_every_name_fits(
    tmp_path: Path, golden: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = released(tmp_path / "model", golden | {"surplus": torch.zeros(2)})
    monkeypatch.setattr(checkpoint_io.Checkpoint, "read", lambda *_, **__: pytest.fail("read before the check"))
    with pytest.raises(ConfigError, match="surplus"):
        load_model(folder)


def test_a_missing_vit_config_is_suspected_where_the_vision_encoder_is_unexpected(tmp_path: Path) -> None:
    folder = released(tmp_path / "model", load_file(GOLDEN / "model.safetensors"))
    (folder / "vit_config.json").unlink()
    with pytest.raises(ConfigError, match=r"is vit_config.json missing"):
        load_model(folder)


def test_weights_without_a_vision_encoder_are_refused_for_a_configuration_with_one(
    tmp_path: Path, golden: dict[str, Tensor]
) -> None:
    folder = released(tmp_path / "model", without(*VISION)(golden))
    with pytest.raises(ConfigError, match="these weights only generate"):
        load_model(folder, config=ModelConfig.from_directory(GOLDEN))


@pytest.mark.parametrize("kept", [0.99, 0.5, 0.01, 0.0])
def test_a_truncated_file_is_refused(tmp_path: Path, golden: dict[str, Tensor], kept: float) -> None:
    folder = released(tmp_path / "model", golden)
    file = folder / "model.safetensors"
    os.truncate(file, int(file.stat().st_size * kept))
    with pytest.raises(ConfigError, match=r"model\.safetensors: (is cut short|not a safetensors file)"):
        load_model(folder)


@pytest.mark.parametrize(
    "header",
    [
        b"[]",
        b"{",
        b"\xff",
        b'{"llm2vae.bias": 3}',
        b'{"llm2vae.bias": {"dtype": "F32", "shape": [1e999], "data_offsets": [0, 4]}}',
        b'{"llm2vae.bias": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}',
        b'{"llm2vae.bias": {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}}',
        b'{"llm2vae.bias": {"dtype": "F32", "shape": [1], "data_offsets": [-4, 0]}}',
        b'{"llm2vae.bias": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4, 8]}}',
        b"[" * 100_000,
    ],
)
def test_a_damaged_header_is_refused(tmp_path: Path, header: bytes) -> None:
    config = ModelConfig.from_directory(GOLDEN)
    (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(16))
    with pytest.raises(ConfigError, match=r"model\.safetensors: not a safetensors file"):
        load_model(tmp_path, config=config)


@pytest.mark.slow
def test_a_tensor_with_fewer_bytes_than_its_shape_needs_is_refused(tmp_path: Path, golden: dict[str, Tensor]) -> None:
    file = released(tmp_path / "model", golden) / "model.safetensors"
    content = file.read_bytes()
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    header["llm2vae.bias"]["data_offsets"][1] -= 4
    text = json.dumps(header, separators=(",", ":")).encode().ljust(size)
    file.write_bytes(content[:8] + text + content[8 + size :])
    with pytest.raises(ConfigError, match=r"llm2vae\.bias a wrong number of bytes"):
        load_model(file.parent)


def test_an_index_that_names_a_part_that_is_not_there_is_refused(tmp_path: Path, golden: dict[str, Tensor]) -> None:
    folder = in_parts(tmp_path / "model", golden)
    (folder / "model-2.safetensors").unlink()
    with pytest.raises(ConfigError, match=r"index\.json: names 'model-2\.safetensors'"):
        load_model(folder)


def test_a_tensor_in_two_parts_is_refused(tmp_path: Path, golden: dict[str, Tensor]) -> None:
    folder = in_parts(tmp_path / "model", golden)
    released(folder, golden, name="model-2.safetensors")
    with pytest.raises(ConfigError, match=r"model-2\.safetensors: holds .* which model-1\.safetensors holds"):
        load_model(folder)


def test_a_directory_without_weights_is_refused(tmp_path: Path) -> None:
    folder = released(tmp_path / "model", {})
    (folder / "model.safetensors").unlink()
    with pytest.raises(ConfigError, match="has no ema.safetensors or model.safetensors"):
        load_model(folder)


# Export


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_importing_a_release_and_exporting_it_gives_the_same_file(
    tmp_path: Path, golden: dict[str, Tensor], dtype: torch.dtype
) -> None:
    folder = released(tmp_path / "in", {name: tensor.to(dtype) for name, tensor in golden.items()})
    export_model(load_model(folder, dtype=dtype), tmp_path / "out")
    exported = load_file(tmp_path / "out" / "model.safetensors")
    assert exported.keys() == golden.keys()
    assert all(same_bytes(exported[name], tensor.to(dtype)) for name, tensor in golden.items())
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()


def test_an_export_is_read_by_the_safetensors_library_with_the_released_names(tmp_path: Path) -> None:
    model = init_model(preset("tiny"), seed=3)
    export_model(model, tmp_path / "out", dtype=torch.bfloat16, name="ema.safetensors")
    with safetensors.safe_open(tmp_path / "out" / "ema.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "pt"}
        assert set(file.keys()) == set(expected(model))
        for name, tensor in model.state_dict().items():
            assert same_bytes(file.get_tensor(released_name(name)), tensor.to(torch.bfloat16))


@pytest.mark.parametrize("vision", [True, False])
def test_export_then_import_returns_the_model(tmp_path: Path, vision: bool) -> None:
    config = preset("tiny") if vision else preset("tiny").model_copy(update={"vision": None})
    model = init_model(config, seed=5, dtype=torch.bfloat16)
    export_model(model, tmp_path / "out")
    again = load_model(tmp_path / "out", dtype=torch.bfloat16)
    assert again.config == config
    theirs = again.state_dict()
    assert theirs.keys() == model.state_dict().keys()
    assert all(same_bytes(tensor, theirs[name]) for name, tensor in model.state_dict().items())


def test_tensors_of_several_types_and_in_strides_are_written_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint_io, "CHUNK", 64)
    tensors = {
        "a": torch.arange(7, dtype=torch.bfloat16),
        "b": torch.randn(5, 9).T,
        "c": torch.tensor(2.5, dtype=torch.float64),
        "d": torch.zeros(0, 3),
    }
    checkpoint_io.write_tensors(tmp_path / "x.safetensors", tensors)
    found = load_file(tmp_path / "x.safetensors")
    assert found.keys() == tensors.keys()
    assert all(found[name].dtype == t.dtype and torch.equal(found[name], t) for name, t in tensors.items())


def test_an_export_that_fails_leaves_the_file_before_it_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export_model(init_model(preset("tiny"), seed=1), tmp_path / "out")
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ConfigError, match="No space left on device"):
        export_model(init_model(preset("tiny"), seed=2), tmp_path / "out")
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before


# Memory

MEASURE = """
import sys, torch
from pathlib import Path
torch.set_num_threads(1)
from sigma_model import checkpoint_io

def status(key):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(key)) * 1024

checkpoint_io.load_model(Path(sys.argv[2]), dtype=torch.float32)
Path("/proc/self/clear_refs").write_text("5")
before = status("VmRSS")
model = checkpoint_io.load_model(Path(sys.argv[1]), dtype=getattr(torch, sys.argv[3]))
size = sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())
print(status("VmHWM") - before, size)
Path("/proc/self/clear_refs").write_text("5")
before = status("VmRSS")
checkpoint_io.export_model(model, Path(sys.argv[1]) / "out", dtype=torch.bfloat16)
print(status("VmHWM") - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads peak memory from /proc")
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_loading_takes_one_copy_of_the_model_and_exporting_next_to_nothing(tmp_path: Path, dtype: str) -> None:
    tiny = preset("tiny")
    language = tiny.language.model_copy(update={"hidden_size": 768, "intermediate_size": 5120, "vocab_size": 20_000})
    config = tiny.model_copy(update={"language": language})
    model = meta(config).to(torch.bfloat16).to_empty(device="cpu")
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.fill_(0.5)
    export_model(model, tmp_path / "model")
    del model
    command = [sys.executable, "-c", MEASURE, str(tmp_path / "model"), str(GOLDEN), dtype]
    found = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT)
    load, size, export = (int(word) for word in found.stdout.split())
    assert size > 250e6
    assert load <= 1.1 * size
    assert export <= 80e6


def test_an_export_that_older_weights_would_hide_is_refused(tmp_path: Path) -> None:
    model = init_model(preset("tiny"), seed=0)
    export_model(model, tmp_path, name="ema.safetensors")
    before = (tmp_path / "ema.safetensors").read_bytes()
    with pytest.raises(ConfigError, match="read instead"):
        export_model(model, tmp_path)
    assert (tmp_path / "ema.safetensors").read_bytes() == before
    assert not (tmp_path / "model.safetensors").exists()
    export_model(model, tmp_path, name="ema.safetensors")
    (tmp_path / "ema.safetensors").unlink()
    export_model(model, tmp_path)
    export_model(model, tmp_path, name="ema.safetensors")  # beside it, as SIGMA's release has both


@pytest.mark.parametrize("shape", [[], [4]])
def test_shapes_that_make_no_model_are_one_sentence(tmp_path: Path, shape: list[int]) -> None:
    shutil.copytree(preset_directory("tiny"), tmp_path / "m")
    (tmp_path / "m" / "ae.safetensors").unlink(missing_ok=True)
    tensor = torch.zeros(shape)
    write_tensors(
        tmp_path / "m" / "model.safetensors", {"latent_pos_embed.pos_embed": tensor, "vae2llm.weight": tensor}
    )
    with pytest.raises(ConfigError, match="does not fit a model"):
        ModelConfig.from_directory(tmp_path / "m")


@pytest.mark.parametrize("named", [None, [], ["a"], {"a": 1}])
def test_an_index_without_files_is_one_sentence(tmp_path: Path, named: object) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": named}))
    with pytest.raises(ConfigError, match="weight_map"):
        weight_files(tmp_path)
