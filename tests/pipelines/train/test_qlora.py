"""Additions over quantised weights learn, nothing else changes, and what is saved is as without quantising."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from support import ranks
from support.sequences import generator, one_thread  # noqa: F401
from support.training_runs import apart, lines, run, same, saved, settings_of
from torch import Tensor, nn

from pipelines.train.bagel_backbone import forward
from pipelines.train.checkpoint import CHECKPOINTS
from pipelines.train.config import TrainConfig
from pipelines.train.distributed.process_group import ProcessGroup
from pipelines.train.estimate.dry_run import dry_run
from pipelines.train.export import export_run
from pipelines.train.lora import is_lora
from pipelines.train.qlora import QuantizedLinear, QuantizedLora, QuantizedWeight, quantized_numel
from pipelines.train.run import TrainingRun, make_run
from pipelines.train.token_rows import ROWS
from pipelines.train.trainer import Trainer
from sigma_data.errors import ConfigError
from sigma_model.checkpoint_io import export_model, init_model, load_model
from sigma_model.config import preset, preset_directory
from sigma_model.quantization import Quantization, converter, is_quantised, restored, stored_bytes

ALONE = ProcessGroup.single()
LIBRARY = {"nf4": "bitsandbytes", "int8": "bitsandbytes", "fp8": "torchao"}
OFF = {"nf4": 0.12, "int8": 0.02, "fp8": 0.04}
"""Greatest relative error (norm) of what passes a layer: about half a step of each format."""
QLORA: dict[str, Any] = {
    "lora": {"rank": 4, "alpha": 8.0},
    "freeze": {"und": True, "except_attribute_tokens": True},
    "loss": {"text": 0.0},
    "optimizer": {"lr": 5e-3},
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights whose output layer is not zero, so that additions learn from the first step."""
    folder = tmp_path_factory.mktemp("base") / "tiny"
    shutil.copytree(preset_directory("tiny"), folder)
    model = init_model(preset("tiny"), seed=5)
    with torch.no_grad():
        model.latent_out.weight += 0.1 * torch.randn(model.latent_out.weight.shape, generator=generator("out"))
    export_model(model, folder)
    return folder


def settings(out: Path, corpus: Path, base: Path, kind: str | None, **changes: Any) -> dict[str, Any]:
    return settings_of(out, corpus, model={"path": str(base), "quantize": kind}, **{**QLORA, **changes})


def assembled(values: dict[str, Any]) -> TrainingRun:
    return make_run(TrainConfig.model_validate(values), ALONE)


def frozen(run: TrainingRun) -> dict[str, Tensor]:
    """Copies of all that must stay as it is, quantised weights and their scales included."""
    model = run.parts.model
    found = {name: p.detach().clone() for name, p in model.named_parameters() if not p.requires_grad}
    for path, layer in model.named_modules():
        if isinstance(layer, QuantizedLinear | QuantizedLora):
            assert layer.quantized is not None
            found[f"{path} as it computes"] = layer.quantized.dequantized(torch.float32)
            weight = layer.quantized.layer.weight
            found[f"{path} as it is kept"] = getattr(weight, "qdata", weight).detach().clone()
    return found


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", LIBRARY)
def test_gradients_pass_a_quantised_weight_as_they_pass_the_weight_it_stands_for(kind: str, dtype: torch.dtype) -> None:
    """To the rounding of the type against float64 with the same weight; within the format's step of the original."""
    pytest.importorskip(LIBRARY[kind])
    linear = nn.Linear(128, 160)
    for parameter in linear.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator(parameter.shape)).to(dtype) / 10
    original = linear.weight.detach().double()
    layer = QuantizedLinear(linear)
    plain = nn.Linear(128, 160, bias=False, device="meta")
    plain.weight = nn.Parameter(linear.weight.detach().clone(), requires_grad=False)
    layer.quantized = QuantizedWeight(converter(Quantization(kind))(plain))
    weight = restored(layer.quantized.layer, torch.float32).double()
    x = torch.randn(3, 5, 128, generator=generator("x")).to(dtype).requires_grad_()
    out = layer(x)
    gradient = torch.randn(out.shape, generator=generator("g")).to(dtype)
    out.backward(gradient)
    assert out.dtype == x.dtype == dtype
    wide, bias = x.detach().double(), layer.bias.detach().double()
    assert x.grad is not None and layer.bias.grad is not None
    for found, wanted, unquantised in (
        (out.detach(), F.linear(wide, weight, bias), F.linear(wide, original, bias)),
        (x.grad, gradient.double() @ weight, gradient.double() @ original),
        (layer.bias.grad, gradient.double().flatten(0, 1).sum(0), gradient.double().flatten(0, 1).sum(0)),
    ):
        assert (found - wanted).norm() / wanted.norm() < {torch.float32: 1e-6, torch.bfloat16: 5e-3}[dtype]
        assert (found - unquantised).norm() / unquantised.norm() < OFF[kind]
    nothing = layer(x[:0, 0])
    assert nothing.shape == (0, 160) and nothing.requires_grad, "an expert may have no tokens"


@pytest.mark.slow
@pytest.mark.parametrize("kind", LIBRARY)
def test_additions_and_attribute_rows_alone_learn_and_the_loss_falls(
    kind: str, base: Path, tmp_path: Path, training_corpus: Path
) -> None:
    pytest.importorskip(LIBRARY[kind])
    validation = {"every": 6, "packs": 1, "images": 1, "image_steps": 2}
    changes = {"steps": 12, "parallel": {"checkpointing": "full"}, "validation": validation}
    made = assembled(settings(tmp_path / "run", training_corpus, base, kind, **changes))
    model = made.parts.model
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trainable == {ROWS, *(name for name, _ in model.named_parameters() if is_lora(name))}
    assert len(trainable) == 1 + 2 * 7 * preset("tiny").language.num_hidden_layers
    assert quantized_numel(model) == sum(
        tensor.numel() for name, tensor in init_model(preset("tiny"), seed=0).named_parameters() if is_quantised(name)
    )
    before = frozen(made)
    batch = next(iter(made.loader())).batch
    for _ in range(2):  # B is zero at first, so that nothing reaches A
        out = forward(model, made.parts.vae, batch, made.config)
        out.mse.mean().backward()
        made.optimizer.step()
    assert {name for name, parameter in model.named_parameters() if parameter.grad is not None} == trainable
    assert all(parameter.grad.any() for parameter in model.parameters() if parameter.grad is not None)
    made.optimizer.zero_grad()
    assert Trainer(made).run()["steps"] == 12
    after = frozen(made)
    assert same(before, after)
    losses = [line["loss"] for line in lines(tmp_path / "run") if "loss" in line]
    assert all(loss == loss for loss in losses)
    assert sum(losses[-4:]) < 0.95 * sum(losses[:4])


@pytest.mark.slow
def test_a_run_that_is_resumed_is_the_run_that_was_not_to_the_bit(
    base: Path, tmp_path: Path, training_corpus: Path
) -> None:
    pytest.importorskip("bitsandbytes")
    values = settings(tmp_path / "whole", training_corpus, base, "nf4", checkpoint={"every": 3})
    assert run(values)["steps"] == 6
    cut = tmp_path / "cut"
    shutil.copytree(tmp_path / "whole", cut)
    shutil.rmtree(cut / CHECKPOINTS / "step-00000006")
    done = run({**values, "out": cut})
    assert (done["steps"], done["new"]) == (6, 3)
    found = saved(cut)
    assert same(found, saved(tmp_path / "whole"))
    assert {name for name in found if name.startswith("model/") and not is_lora(name)} == {f"model/{ROWS}"}
    with pytest.raises(ConfigError, match=r"model\.quantize was nf4 and is not there"):
        run({**values, "out": cut, "steps": 7, "model": {"path": str(base)}})
    assert same(saved(cut), found)


@pytest.mark.slow
def test_an_export_adds_what_was_learnt_to_the_weights_as_they_are_stored(
    base: Path, tmp_path: Path, training_corpus: Path
) -> None:
    pytest.importorskip("bitsandbytes")
    run(settings(tmp_path / "run", training_corpus, base, "nf4", ema=None, steps=3))
    learnt = {name.removeprefix("model/"): tensor for name, tensor in saved(tmp_path / "run").items()}
    stored, merged = load_model(base, dtype=torch.float32).state_dict(), None
    export_run(tmp_path / "run", tmp_path / "merged", ema=False)
    merged = load_model(tmp_path / "merged", dtype=torch.float32).state_dict()
    for path in ("backbone.layers.0.gen.q", "backbone.layers.1.gen.mlp.down"):
        addition = 2 * learnt[f"{path}.lora_B.weight"] @ learnt[f"{path}.lora_A.weight"]
        assert addition.any()
        torch.testing.assert_close(merged[f"{path}.weight"], stored[f"{path}.weight"] + addition, rtol=0, atol=1e-6)
    assert torch.equal(merged["backbone.layers.0.und.q.weight"], stored["backbone.layers.0.und.q.weight"])
    export_run(tmp_path / "run", tmp_path / "adapter", ema=False, adapter=True)
    adapter = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    for name, tensor in learnt.items():
        if is_lora(name):
            assert torch.equal(adapter[f"base_model.model.{name}"], tensor)
    assert not [name for name in adapter if ".weight" in name and ".lora_" not in name]


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_two_ranks_with_a_copy_each_of_the_quantised_weights_learn_what_one_does(
    dtype: str, base: Path, tmp_path: Path, training_corpus: Path
) -> None:
    """Everything else is sharded, the additions included; sums in another order differ as for unquantised weights."""
    pytest.importorskip("bitsandbytes")
    model = {"path": str(base), "quantize": "nf4", "dtype": dtype}
    changes: dict[str, Any] = {"optimizer": {"lr": 1e-4, "eps": 1e-6}, "steps": 4}
    one, two = (
        {**settings(tmp_path / str(size), training_corpus, base, "nf4", **changes), "model": model} for size in (1, 2)
    )
    run({**one, "accumulate": 2})
    ranks.run(run, 2, two, timeout_s=120)
    found, wanted = saved(tmp_path / "2"), saved(tmp_path / "1")
    assert apart(found, wanted, "model") < (1e-5 if dtype == "float32" else 4e-4)
    for alone, on_all_ranks in zip(lines(tmp_path / "1"), lines(tmp_path / "2"), strict=True):
        assert on_all_ranks["loss"] == pytest.approx(alone["loss"], rel=1e-4 if dtype == "float32" else 1e-2)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"lora": None}, r"model\.quantize=nf4 .* without lora .*: add lora"),
        ({"parallel": {"offload": True}}, r"model\.quantize=nf4 .*parallel\.offload"),
        (
            {"lora": {"train": [r"gen\.q\.weight"], "targets": [r"gen\.k$"]}},
            r"lora\.train matches backbone\.layers\.0\.gen\.q\.weight",
        ),
    ],
)
def test_what_would_have_to_learn_or_lie_elsewhere_is_refused_with_the_reason(
    changes: dict[str, Any], words: str, base: Path, tmp_path: Path, training_corpus: Path
) -> None:
    config = TrainConfig.model_validate(settings(tmp_path / "run", training_corpus, base, "nf4", **changes))
    with pytest.raises(ConfigError, match=words):
        dry_run(config)
    with pytest.raises(ConfigError, match=words):
        run(settings(tmp_path / "run", training_corpus, base, "nf4", **changes))
    assert not (tmp_path / "run" / CHECKPOINTS).exists()


@pytest.mark.parametrize("kind", LIBRARY)
def test_a_library_that_is_not_installed_is_named_with_the_extra(
    kind: str, base: Path, tmp_path: Path, training_corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, LIBRARY[kind], None)
    monkeypatch.setitem(sys.modules, f"{LIBRARY[kind]}.quantization", None)
    values = settings(tmp_path / "run", training_corpus, base, kind)
    with pytest.raises(ConfigError, match=rf"model\.quantize {kind}: needs {LIBRARY[kind]}.*\[quant\]"):
        run(values)
    whole = dry_run(TrainConfig.model_validate(values)).estimate
    assert whole.memory["quantised weights"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("kind", LIBRARY)
def test_the_dry_run_reckons_with_the_bytes_that_quantised_weights_take(
    kind: str, base: Path, tmp_path: Path, training_corpus: Path
) -> None:
    """But for NF4's fixed tables of 1,092 bytes a layer, and blocks of scales that are not full."""
    pytest.importorskip(LIBRARY[kind])
    values = settings(tmp_path / "run", training_corpus, base, kind)
    few, plain = (
        dry_run(TrainConfig.model_validate({**values, "model": {"path": str(base), "quantize": one}}))
        for one in (kind, None)
    )
    model = assembled(values).parts.model
    found = 0
    for layer in model.modules():
        if isinstance(layer, QuantizedLinear | QuantizedLora):
            assert layer.quantized is not None
            found += _bytes(layer.quantized.layer.weight)
    assert few.estimate.memory["quantised weights"] == pytest.approx(found, rel=2e-3)
    kept = sum(parameter.nbytes for parameter in model.parameters())
    assert few.estimate.memory["parameters"] == pytest.approx(kept * 0.5, rel=0.5)
    gone = plain.estimate.memory["parameters"] - few.estimate.memory["parameters"]
    assert gone == 2 * quantized_numel(model), "bfloat16 on a GPU"
    assert few.estimate.parameters == plain.estimate.parameters
    shared = dry_run(TrainConfig.model_validate(values), ranks=2).estimate
    assert shared.memory["quantised weights"] == few.estimate.memory["quantised weights"], "every rank has all"
    assert shared.memory["parameters"] == few.estimate.memory["parameters"] / 2


def _bytes(weight: Any) -> int:
    if hasattr(weight, "quant_state"):
        state = weight.quant_state
        return int(weight.nbytes + state.absmax.nbytes + state.state2.absmax.nbytes)
    if hasattr(weight, "SCB"):
        return int(weight.CB.nbytes + weight.SCB.nbytes)
    return int(weight.qdata.nbytes + weight.scale.nbytes)


def test_weights_of_the_released_size_take_4_bits_and_an_eighth() -> None:
    assert stored_bytes(Quantization.NF4, (18944, 3584)) * 8 / (18944 * 3584) == pytest.approx(4.127, abs=1e-3)
