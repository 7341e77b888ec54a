"""LoRA trains its additions alone, starts as the model it was added to, and merges into what it computes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support.sequences import Case, case, generator, one_thread, pack, tiny_config, tiny_model  # noqa: F401
from torch import Tensor, nn

from pipelines.train.config import FreezeSettings, LoraSettings, OptimizerSettings
from pipelines.train.freeze import apply_freeze
from pipelines.train.lora import add_lora, init_lora, is_lora, merge_lora, save_adapter
from pipelines.train.optimizer import make_optimizer
from sigma_data.errors import ConfigError
from sigma_data.loading.batch import PackedBatch
from sigma_data.sample import Turn
from sigma_model.checkpoint_io import expected, released_name
from sigma_model.model import SigmaModel

COMPOSED = case("<subject> a <image_1> <style> b <image_2>", pictures=3)
ASKED = case(Turn("what is <image_1>", response="a red cat"), pictures=1)
EVERY_KIND = LoraSettings(rank=3, alpha=6.0, targets=(r"gen\.(q|mlp\.down)$", r"und\.v$", "vision.*fc1$", "^llm2vae$"))


def batch(cases: tuple[Case, ...] = (COMPOSED, ASKED)) -> PackedBatch:
    return pack(cases)


def outputs(model: SigmaModel) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        inputs = batch()
        out = model(inputs, model.clean_latents(inputs, inputs.known_latents))
    return out.velocity, out.ce


def trainable(model: SigmaModel) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def trained(settings: LoraSettings = EVERY_KIND, steps: int = 3) -> SigmaModel:
    model = tiny_model()
    add_lora(model, settings, seed=5)
    optimizer = make_optimizer(model, OptimizerSettings(lr=0.02))
    inputs = batch()
    latents = model.clean_latents(inputs, inputs.known_latents)
    for _ in range(steps):
        out = model(inputs, latents)
        (out.mse.mean() + out.ce.mean()).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


def test_training_changes_the_additions_and_what_is_named_beside_them_and_nothing_else() -> None:
    before = tiny_model().state_dict()
    model = trained(EVERY_KIND.model_copy(update={"train": ("time_embedder", r"model\.norm_moe_gen")}))
    changed = {name for name, tensor in model.state_dict().items() if name in before and not tensor.equal(before[name])}
    assert changed == {
        *(f"time_embedder.fc{i}.{p}" for i in (1, 2) for p in ("weight", "bias")),
        "backbone.norm_gen.weight",
    }
    fresh = tiny_model()
    add_lora(fresh, EVERY_KIND, seed=5)
    additions = {name: tensor for name, tensor in fresh.state_dict().items() if is_lora(name)}
    assert trainable(model) == changed | additions.keys()
    assert len(additions) == 2 * (2 * 2 + 2 + 2 + 1)
    assert not [name for name, tensor in additions.items() if model.state_dict()[name].equal(tensor)]


def test_a_model_with_fresh_additions_computes_the_same_to_the_bit() -> None:
    model = tiny_model()
    before = outputs(model)
    add_lora(model, EVERY_KIND, seed=0)
    assert all(torch.equal(a, b) for a, b in zip(outputs(model), before, strict=True))


def test_names_of_the_weights_stay_as_they_were() -> None:
    plain, model = tiny_model(), tiny_model()
    add_lora(model, EVERY_KIND, seed=0)
    names = [name for name in model.state_dict() if not is_lora(name)]
    assert names == list(plain.state_dict())


def test_additions_are_drawn_by_seed_and_name_whatever_else_there_is() -> None:
    torch.manual_seed(1)
    state = torch.random.get_rng_state()
    first, second, other = tiny_model(), tiny_model(), tiny_model()
    add_lora(first, EVERY_KIND, seed=0)
    assert torch.equal(torch.random.get_rng_state(), state)
    add_lora(second, EVERY_KIND.model_copy(update={"targets": (r"layers\.1\.gen\.q$",)}), seed=0)
    add_lora(other, EVERY_KIND, seed=1)
    one, two, three = first.state_dict(), second.state_dict(), other.state_dict()
    name = "backbone.layers.1.gen.q.lora_A.weight"
    assert torch.equal(one[name], two[name])
    assert not torch.equal(one[name], three[name])
    assert not torch.equal(one[name], one["backbone.layers.0.gen.q.lora_A.weight"])
    assert 0.9 < one[name].abs().max() * 32**0.5 <= 1


def test_a_model_on_the_meta_device_gets_the_same_additions_later() -> None:
    here = tiny_model()
    add_lora(here, EVERY_KIND, seed=3)
    with torch.device("meta"):
        later = SigmaModel(tiny_config())
    add_lora(later, EVERY_KIND, seed=3)
    assert all(parameter.is_meta for parameter in later.parameters())
    later.to_empty(device="cpu")
    init_lora(later, seed=3)
    state = later.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in here.state_dict().items() if is_lora(name))
    assert trainable(later) == trainable(here)


def test_what_is_frozen_stays_frozen() -> None:
    model = tiny_model()
    apply_freeze(model, FreezeSettings(und=True, patterns=(r"layers\.0\.",)))
    add_lora(model, LoraSettings(targets=(r"\.[qkv]$",), train=("norm",)), seed=0)
    assert model.freeze_und
    additions = {f"backbone.layers.1.gen.{p}.lora_{side}.weight" for p in "qkv" for side in "AB"}
    norms = {f"backbone.layers.1.gen.{norm}_norm.weight" for norm in ("input", "post", "q", "k")}
    assert trainable(model) == additions | norms | {"backbone.norm_gen.weight"}


@pytest.mark.parametrize(
    ("frozen", "settings", "words"),
    [
        ({}, {"targets": ("norm_gen",)}, "lora.targets: 'norm_gen' matches nothing"),
        ({}, {"train": ("nothing",)}, "lora.train: 'nothing' matches nothing"),
        ({"llm": True}, {}, "lora.targets: .* matches only what `freeze` holds fast"),
        ({}, {"train": (r"gen\.q\.bias",)}, "gen.q is matched by lora.targets as well"),
        ({"vit": True}, {"train": ("vision",)}, "lora.train: 'vision' matches only what `freeze` holds fast"),
    ],
)
def test_a_pattern_without_effect_or_of_two_minds_is_an_error(
    frozen: dict[str, bool], settings: dict[str, object], words: str
) -> None:
    model = tiny_model()
    apply_freeze(model, FreezeSettings(**frozen))
    with pytest.raises(ConfigError, match=words):
        add_lora(model, LoraSettings(**settings), seed=0)


def test_additions_of_a_half_precision_model_are_float32_and_compute_in_its_type() -> None:
    model = tiny_model(dtype=torch.bfloat16)
    add_lora(model, EVERY_KIND, seed=0)
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    out = model(batch(), model.clean_latents(batch(), batch().known_latents))
    assert out.gen.dtype == torch.bfloat16
    out.mse.mean().backward()
    gradient = model.backbone.layers[0].gen.q.lora_B.weight.grad
    assert gradient is not None and gradient.dtype == torch.float32 and gradient.any()


def test_merged_weights_compute_what_the_additions_did() -> None:
    model = trained()
    wanted, untrained = outputs(model), outputs(tiny_model())
    merge_lora(model)
    assert model.state_dict().keys() == tiny_model().state_dict().keys()
    assert expected(model) == expected(tiny_model())
    for found, want, before in zip(outputs(model), wanted, untrained, strict=True):
        torch.testing.assert_close(found, want, rtol=0, atol=1e-5)
        assert (want - before).abs().max() > 1e-2, "training did something"


@pytest.mark.slow
@pytest.mark.parametrize("train", [(), ("time_embedder.fc1.weight", "norm_gen", "patch_embedding")])
def test_peft_applies_the_adapter_to_the_starting_weights(tmp_path: Path, train: tuple[str, ...]) -> None:
    from peft import PeftModel

    model = trained(EVERY_KIND.model_copy(update={"train": train}))
    save_adapter(model, tmp_path, base="tiny")
    adapted = PeftModel.from_pretrained(tiny_model(), str(tmp_path))
    for found, want in zip(outputs(adapted.get_base_model()), outputs(model), strict=True):
        torch.testing.assert_close(found, want, rtol=0, atol=1e-5)
    stored = load_file(tmp_path / "adapter_model.safetensors")
    modules = {name.rpartition(".")[0] for name in trainable(model)}
    assert {name.removeprefix("base_model.model.").rpartition(".")[0] for name in stored} == modules, "and no other"


def in_released_names(model: SigmaModel) -> nn.Module:
    """A plain tree of modules with the released names, as BAGEL's own model has; it holds weights and no more."""
    root = nn.Module()
    for path, module in model.named_modules():
        if not isinstance(module, nn.Linear | nn.Embedding | nn.RMSNorm | nn.LayerNorm):
            continue
        parent, names = root, released_name(f"{path}.weight").removesuffix(".weight").split(".")
        for name in names[:-1]:
            if not hasattr(parent, name):
                parent.add_module(name, nn.Module())
            parent = parent.get_submodule(name)
        parent.add_module(names[-1], module)
    return root


@pytest.mark.slow
@pytest.mark.parametrize("train", [(), ("time_embedder.fc1.weight", "norm_gen")])
@pytest.mark.parametrize("released", [False, True])
def test_peft_merges_the_adapter_to_the_bits_of_our_own_merge(
    tmp_path: Path, train: tuple[str, ...], released: bool
) -> None:
    from peft import PeftModel

    model = trained(EVERY_KIND.model_copy(update={"train": train}))
    save_adapter(model, tmp_path, base="tiny", released=released)
    merge_lora(model)
    start = in_released_names(tiny_model()) if released else tiny_model()
    merged = PeftModel.from_pretrained(start, str(tmp_path)).merge_and_unload().state_dict()
    wanted = (in_released_names(model) if released else model).state_dict()
    assert merged.keys() == wanted.keys()
    assert all(torch.equal(merged[name], wanted[name]) for name in wanted)
