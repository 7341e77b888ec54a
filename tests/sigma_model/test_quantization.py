"""Quantised layers compute nearly what they did, nothing else is touched, and what is missing is said."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest
import torch
from support.sequences import generator, one_thread  # noqa: F401
from torch import nn

from sigma_data.errors import ConfigError
from sigma_model import quantization as quantization_module
from sigma_model.checkpoint_io import export_model, init_model, load_model
from sigma_model.config import preset, preset_directory
from sigma_model.loading import load_for_inference
from sigma_model.model import SigmaModel
from sigma_model.quantization import Quantization, load_quantized, quantised
from sigma_model.sampling.generate import Request, describe, generate_images
from sigma_model.sampling.settings import SamplingSettings

LIBRARY = {Quantization.NF4: "bitsandbytes", Quantization.INT8: "bitsandbytes", Quantization.FP8: "torchao"}
OFF = {Quantization.NF4: 0.12, Quantization.INT8: 0.02, Quantization.FP8: 0.04}
"""Greatest relative error (norm) of a layer's output: about half a step of each format."""


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("quantised") / "tiny"
    shutil.copytree(preset_directory("tiny"), folder)
    export_model(init_model(preset("tiny"), seed=5), folder)
    return folder


def test_the_linear_layers_of_both_experts_are_quantised_and_nothing_else() -> None:
    with torch.device("meta"):
        model = SigmaModel(preset("tiny"))
    layers = preset("tiny").language.num_hidden_layers
    names = quantised(model)
    assert len(names) == layers * 2 * 7
    assert not [name for name in names if "norm" in name or not name.startswith("backbone.layers.")]


@pytest.mark.parametrize("kind", Quantization)
def test_a_quantised_model_computes_nearly_the_same_and_is_smaller(kind: Quantization, weights: Path) -> None:
    pytest.importorskip(LIBRARY[kind])
    config = preset("tiny")
    plain = load_model(weights, dtype=torch.float32, config=config)
    model = load_quantized(weights, kind, config=config, dtype=torch.float32)
    x = torch.randn(64, config.language.hidden_size, generator=generator("x"))
    for name in ("backbone.layers.0.und.q", "backbone.layers.1.gen.mlp.up", "backbone.layers.3.gen.k"):
        found, wanted = model.get_submodule(name)(x), plain.get_submodule(name)(x)
        assert found.dtype == torch.float32
        error = (found - wanted).norm() / wanted.norm()
        assert 0 < error < OFF[kind], name
        assert model.get_submodule(name)(x[:0]).shape == (0, wanted.shape[1]), "an expert may have no tokens"
    chosen = set(quantised(plain))
    for name, module in plain.named_modules():
        if isinstance(module, nn.Linear | nn.Embedding | nn.RMSNorm | nn.LayerNorm) and name not in chosen:
            assert torch.equal(model.get_submodule(name).weight, module.weight), name
    for name in chosen:
        assert type(model.get_submodule(name).weight) is not nn.Parameter


@pytest.mark.slow
@pytest.mark.parametrize("kind", Quantization)
def test_a_quantised_model_makes_an_image_that_says_so(kind: Quantization, weights: Path) -> None:
    pytest.importorskip(LIBRARY[kind])
    bundle = load_for_inference(str(weights), quantization=kind)
    request = Request("a red circle", [], [], (32, 32))
    images = [generate_images(bundle, [request], SamplingSettings(steps=3))[0] for _ in range(2)]
    assert images[0].tobytes() == images[1].tobytes()
    assert describe(bundle, request, SamplingSettings(), (32, 32))["dtype"] == f"float32, {kind}"


def stand_in(linear: nn.Linear) -> nn.Module:
    """A quantised layer of the same interface: weights on a grid of 1/16."""
    coarse = nn.Linear(linear.in_features, linear.out_features, bias=linear.bias is not None, device="meta")
    coarse.weight = nn.Parameter((linear.weight.data * 16).round() / 16)
    coarse.bias = linear.bias
    return coarse


def test_weights_are_quantised_one_by_one_as_they_are_read(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[nn.Linear] = []
    monkeypatch.setattr(
        quantization_module, "converter", lambda _kind: lambda linear: (made.append(linear), stand_in(linear))[1]
    )
    model = load_quantized(weights, Quantization.NF4, config=preset("tiny"), dtype=torch.float32)
    plain = load_model(weights, dtype=torch.float32)
    for name in quantised(plain):
        assert torch.equal(model.get_submodule(name).weight, (plain.get_submodule(name).weight * 16).round() / 16)
        bias = plain.get_submodule(name).bias
        assert bias is None or torch.equal(model.get_submodule(name).bias, bias)
    assert len(made) == len(quantised(plain))
    assert not [name for name, tensor in model.named_parameters() if tensor.is_meta or tensor.requires_grad]


def test_what_a_library_cannot_do_is_a_sentence(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def cannot(_linear: nn.Linear) -> nn.Module:
        raise RuntimeError("no kernel\nfor this machine")

    monkeypatch.setattr(quantization_module, "converter", lambda _kind: cannot)
    with pytest.raises(ConfigError, match=r"nf4 weights cannot be made on cpu: bitsandbytes: no kernel for this"):
        load_quantized(weights, Quantization.NF4, config=preset("tiny"), dtype=torch.float32)


def test_rows_that_bitsandbytes_would_restore_wrongly_on_a_cpu_are_refused() -> None:
    pytest.importorskip("bitsandbytes")
    convert = quantization_module.converter(Quantization.NF4)
    with pytest.raises(ConfigError, match="nf4 weights cannot be made on cpu: bitsandbytes: restores rows of 96"):
        quantization_module.quantise(nn.Linear(96, 160), Quantization.NF4, convert)


@pytest.mark.parametrize("kind", Quantization)
def test_a_library_that_is_not_installed_is_named_with_the_extra(
    kind: Quantization, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, LIBRARY[kind], None)
    monkeypatch.setitem(sys.modules, f"{LIBRARY[kind]}.quantization", None)
    with pytest.raises(ConfigError, match=rf"--quantize {kind}: needs {LIBRARY[kind]}.*\[quant\]"):
        load_for_inference(str(weights), quantization=kind)


def test_options_that_exclude_one_another_are_refused_before_work(weights: Path) -> None:
    with pytest.raises(ConfigError, match="exclude each other"):
        load_for_inference(str(weights), quantization=Quantization.NF4, device_map="disk")
    with pytest.raises(ConfigError, match="--quantize: tiny has no weights"):
        load_for_inference("tiny", quantization=Quantization.NF4)
