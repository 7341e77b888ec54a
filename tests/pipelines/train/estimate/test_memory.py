"""An estimate is what is measured: states to the byte, activations within a twentieth, planned work to the pair."""

from __future__ import annotations

import json
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from support.corpora import build
from support.places import TESTS
from support.sequences import FIRST_ATTRIBUTE, SPECIALS, VOCABULARY, case, item, one_thread, tiny_config  # noqa: F401
from support.training_data import dataset_of, index_of, planned, tiny
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pipelines.train.attribute_tokens import choose_trainable
from pipelines.train.config import TrainConfig
from pipelines.train.ema import Ema
from pipelines.train.estimate.flops import Work, parameters_of, peak_flops, training_flops, work_of
from pipelines.train.estimate.memory import EpochWork, Memory, estimate
from pipelines.train.estimate.run_estimate import Estimate
from pipelines.train.lora import LoraLinear
from pipelines.train.optimizer import make_optimizer
from pipelines.train.qlora import QuantizedLinear, QuantizedLora, QuantizedWeight
from sigma_data.loading.batch import PackedBatch
from sigma_data.loading.collate import collate
from sigma_data.planning.plan import Planner
from sigma_data.sample import Turn
from sigma_model.checkpoint_io import init_model
from sigma_model.config import LanguageConfig, ModelConfig, preset
from sigma_model.model import SigmaModel, geometry, widths
from sigma_model.quantization import quantised

WORK = Work(text=2000, patch=8000, latent=12000, target=8000, answer=50, images=5, pairs=10**8, pixels=5 * 2**20)
KINDS = ("float32", "bfloat16")
PLANNED = EpochWork(packs=1000, samples=4000, looked_at=1, work=WORK)


def settings(budget: int = 30_000, **given: Any) -> TrainConfig:
    values = {"out": "run", "steps": 10, "data": {"corpora": [{"path": "x"}], "budget": budget}, **given}
    return TrainConfig.model_validate(values)


def bytes_of(*tensors: Tensor) -> int:
    return sum(tensor.nbytes for tensor in tensors)


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"freeze": {"und": True}},
        {"freeze": {"und": True, "except_attribute_tokens": True}},
        {"lora": {"rank": 4}},
        {"lora": {"rank": 4}, "freeze": {"und": True, "except_attribute_tokens": True}},
        {"ema": None},
        {"freeze": {"patterns": ["lm_head"]}},
        {"optimizer": {"states": "8bit"}},
    ],
    ids=["all", "und frozen", "attribute tokens", "lora", "lora, tokens", "no average", "pattern", "8 bits"],
)
def test_states_on_one_cpu_are_as_many_bytes_as_estimated(given: dict[str, Any]) -> None:
    config = settings(**given)
    model = init_model(tiny_config(), seed=0)
    choose_trainable(model, config, range(FIRST_ATTRIBUTE, FIRST_ATTRIBUTE + 15))
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = make_optimizer(model, config.optimizer)
    for parameter in trainable:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    moments = [value for state in optimizer.state.values() for name, value in state.items() if name != "step"]
    found = estimate(config, tiny_config(), PLANNED, ranks=1, on_gpu=False)
    assert found.memory["parameters"] == bytes_of(*model.parameters())
    assert found.memory["gradients"] == bytes_of(*trainable)
    assert found.memory["optimiser"] == bytes_of(*moments)
    assert found.memory["position tables"] == bytes_of(*model.buffers())
    average = Ema(model.named_parameters(), config.ema.decay).state_dict().values() if config.ema else ()
    assert found.memory["average (EMA)"] == bytes_of(*average)
    steps = [state["step"] for state in optimizer.state.values()]
    assert found.checkpoint == bytes_of(*trainable, *moments, *steps, *average)
    assert found.memory["gathered layers"] == 0
    assert sum(counts[0] for counts in found.parameters.values()) == sum(p.numel() for p in model.parameters())
    assert sum(counts[1] for counts in found.parameters.values()) == sum(p.numel() for p in trainable)


def test_sharding_divides_the_states_and_offloading_moves_them() -> None:
    alone, shared = (estimate(settings(), tiny_config(), PLANNED, ranks=ranks) for ranks in (1, 4))
    for part in ("parameters", "gradients", "optimiser", "average (EMA)"):
        assert shared.memory[part] == alone.memory[part] / 4
    copies = estimate(settings(parallel={"shard": 2}), tiny_config(), PLANNED, ranks=4)
    assert copies.memory["optimiser"] == alone.memory["optimiser"] / 2
    moved = estimate(settings(parallel={"offload": True}), tiny_config(), PLANNED, ranks=4)
    assert "optimiser" not in moved.memory
    assert moved.host == sum(shared.memory[part] for part in ("parameters", "gradients", "optimiser", "average (EMA)"))
    assert alone.host == 0
    moments = estimate(settings(optimizer={"offload": True}), tiny_config(), PLANNED, ranks=4)
    assert "optimiser" not in moments.memory
    assert (moments.host, moments.memory["parameters"]) == (shared.memory["optimiser"], shared.memory["parameters"])


def test_bfloat16_masters_halve_parameters_and_gradients_and_nothing_that_is_added_up() -> None:
    wide, narrow = (estimate(settings(model={"master": kind}), tiny_config(), PLANNED, ranks=1) for kind in KINDS)
    for part, factor in (("parameters", 2), ("gradients", 2), ("optimiser", 1), ("average (EMA)", 1)):
        assert wide.memory[part] == factor * narrow.memory[part]


def test_on_a_gpu_what_learns_is_float32_and_the_rest_as_it_computes() -> None:
    found = estimate(settings(freeze={"und": True}), tiny_config(), PLANNED, ranks=1)
    trainable = sum(counts[1] for counts in found.parameters.values())
    whole = sum(counts[0] for counts in found.parameters.values())
    assert found.memory["parameters"] == 4 * trainable + 2 * (whole - trainable)


class FusedNorm(torch.autograd.Function):
    """Keeps of a norm what a GPU's kernel keeps: its input. On a CPU PyTorch keeps a second tensor."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        ctx.save_for_backward(x, weight)
        return F.rms_norm(x, (x.shape[-1],), weight, eps)


def kept_by(model: SigmaModel, batch: PackedBatch) -> int:
    """Bytes of different memory that the forward pass keeps, without the model's and the batch's own, and masks.

    Attention on a CPU makes numbers [1, 1, n, n] of a mask.
    """
    latents = model.clean_latents(batch, batch.known_latents)
    known = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    known |= {value.untyped_storage().data_ptr() for value in vars(batch).values() if isinstance(value, Tensor)}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        pointer = tensor.untyped_storage().data_ptr()
        if pointer not in known and tensor.dtype != torch.bool and tensor.shape[:2] != (1, 1):
            kept[pointer] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(batch, latents)
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


ATTENTION = {"rank": 4, "targets": [r"layers\.\d+\.gen\.(q|k|v|o)$"]}
RECIPE = {"und": True, "except_attribute_tokens": True}
"""What `sigma-lora` freezes."""

KEPT: dict[str, dict[str, Any]] = {
    "all": {},
    "und frozen": {"freeze": {"und": True}},
    "attribute tokens": {"freeze": RECIPE},
    "attribute tokens alone": {"freeze": {"und": True, "llm": True, "except_attribute_tokens": True}},
    "llm frozen": {"freeze": {"llm": True}},
    "vit frozen": {"freeze": {"vit": True}},
    "lora": {"freeze": {"und": True}, "lora": {"rank": 4}},
    "lora, as the recipe": {"freeze": RECIPE, "lora": {"rank": 4}},
    "lora, nothing else frozen": {"lora": {"rank": 4}},
    "lora in attention": {"freeze": RECIPE, "lora": ATTENTION},
    "lora in attention, und frozen": {"freeze": {"und": True}, "lora": ATTENTION},
    "lora in queries": {"freeze": {"und": True}, "lora": ATTENTION | {"targets": [r"gen\.q$"]}},
    "qlora": {"freeze": RECIPE, "lora": {"rank": 4}, "model": {"quantize": "nf4"}},
    "qlora in attention": {"freeze": RECIPE, "lora": ATTENTION, "model": {"quantize": "nf4"}},
}


class Restored(QuantizedWeight):
    """A weight that is hidden from its layer as a quantised one is, and restored to what it was."""

    def __init__(self, weight: Tensor) -> None:
        self.weight = weight

    def dequantized(self, dtype: torch.dtype) -> Tensor:
        return self.weight.to(dtype)


def hide_weights(model: SigmaModel) -> None:
    for path in quantised(model):
        linear = model.get_submodule(path)
        assert isinstance(linear, nn.Linear)
        made = QuantizedLora(linear) if isinstance(linear, LoraLinear) else QuantizedLinear(linear)
        made.quantized = Restored(linear.weight)
        model.set_submodule(path, made)


@pytest.mark.parametrize("mode", ["none", "selective"])
@pytest.mark.parametrize("chosen", KEPT)
def test_kept_activations_are_those_estimated_within_a_twentieth(
    chosen: str, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nn.RMSNorm, "forward", lambda self, x: FusedNorm.apply(x, self.weight, self.eps))
    language = LanguageConfig(
        vocab_size=VOCABULARY, hidden_size=128, intermediate_size=384, num_hidden_layers=4,
        num_attention_heads=4, num_key_value_heads=2,
    )  # fmt: skip
    config = tiny_config().model_copy(update={"language": language})
    sizes = dict.fromkeys(range(1, 4), (40, 40))
    packed = [
        case("paint a <image_1> red <image_2>", pictures=3, sizes=sizes),
        case(Turn("what is it <image_1>", response="a cat dog man"), pictures=1, sizes=sizes),
        case("old <image_1>", pictures=2, sizes=sizes),
    ] * 3
    batch = collate([item(one.layout(), config, seed=n) for n, one in enumerate(packed)], SPECIALS, widths(config))
    model = init_model(config, seed=0)
    run = settings(budget=batch.tokens, parallel={"checkpointing": mode}, **KEPT[chosen])
    choose_trainable(model, run, range(FIRST_ATTRIBUTE, FIRST_ATTRIBUTE + 15))
    if run.model.quantize is not None:
        hide_weights(model)
    assert model.vision is not None
    if mode == "selective":
        for layer in [*model.backbone.layers, *model.vision.layers][::2]:
            layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)  # type: ignore[method-assign]
    work = work_of(batch, group_mask=True)
    parameters = parameters_of(config, run.freeze, run.lora)
    parts = Memory(run, config, work, parameters, ranks=1, on_gpu=False).parts()
    assert parts["activations"] == pytest.approx(kept_by(model, batch), rel=0.05)


def test_checkpointing_keeps_less_and_needs_one_layer_again() -> None:
    modes = ("none", "selective", "full")
    parts = [
        estimate(settings(parallel={"checkpointing": mode}), preset("bagel-7b-mot"), PLANNED, ranks=4).memory
        for mode in modes
    ]
    none, selective, full = (part["activations"] for part in parts)
    assert none > 1.5 * selective > 3 * full
    assert parts[0]["a layer computed again"] == 0
    assert parts[2]["a layer computed again"] == pytest.approx(none / 28, rel=0.1)


@pytest.mark.slow
def test_planned_work_is_that_of_the_packs_when_they_are_read(tmp_path: Path) -> None:
    build(tmp_path / "corpus", "world:40?size=64")
    planner = planned(index_of(tmp_path / "corpus"), budget=2000)
    found = EpochWork.of(planner, most=3)
    plan = planner.plan(0)
    chosen = sorted({round(number * (len(plan) - 1) / 2) for number in range(3)})
    dataset = dataset_of(planner)
    read = sum((work_of(dataset[plan.ticket(pack)].batch, group_mask=False) for pack in chosen), Work())
    counted = {**vars(found.work), "hints": read.hints}  # lengths do not tell of hints
    assert counted == vars(read)
    assert (found.packs, found.samples, found.looked_at) == (len(plan), len(plan.draws.row), len(chosen))
    assert tiny()[1].vae.stride == 8


@pytest.mark.slow
def test_a_latent_token_stands_for_all_pixels_under_it(tmp_path: Path) -> None:
    """BAGEL's covers two by two of the VAE's, 16 by 16 pixels."""
    build(tmp_path / "corpus", "world:12?size=64")
    whole = planned(index_of(tmp_path / "corpus"), budget=20_000)
    planner = Planner(whole.settings, whole.indexes, geometry(preset("bagel-7b-mot")), tokenizer="any")
    work = EpochWork.of(planner).work
    assert work.pixels == 16**2 * (work.latent + work.target) > 0


def test_steps_flops_and_hours_follow_from_the_plan() -> None:
    given = {"steps": None, "epochs": 2.5, "accumulate": 3}
    config = preset("tiny")
    found = estimate(settings(**given), config, PLANNED, ranks=4)
    assert found.steps == 209  # 2.5 x 1000 / 12, rounded up
    one = training_flops(config, WORK, frozen=settings().freeze, lora=None, checkpointing="none")[0]
    assert found.flops == pytest.approx(12 * one)
    assert found.tokens_per_step == 12 * WORK.tokens
    device = "NVIDIA H100 80GB HBM3"
    peak = peak_flops(device, torch.bfloat16)
    assert peak is not None
    hours = 209 * (found.flops + found.vae_flops) / (4 * 0.4 * peak) / 3600
    assert found.hours[device] == pytest.approx(hours)


def recipe(ranks: int, **given: Any) -> Estimate:
    return estimate(settings(freeze={"und": True}, **given), preset("bagel-7b-mot"), PLANNED, ranks=ranks)


def test_the_released_model_has_its_parameters_and_the_recipe_fits_four_gpus_of_80_gb() -> None:
    found = recipe(4, parallel={"checkpointing": "full"})
    # The release holds the two fixed tables as well: 64 x 64 and 70 x 70 places.
    tables = (64 * 64 + 70 * 70) * 3584
    assert sum(counts[0] for counts in found.parameters.values()) + tables == released_size()
    assert found.parameters["understanding expert"][1] == found.parameters["vision encoder"][1] == 0
    assert found.memory_peak < 80e9 < recipe(1, parallel={"checkpointing": "full"}).memory_peak


def released_size() -> int:
    keys = json.loads((TESTS / "golden" / "bagel_7b_mot_keys.json").read_text())
    return sum(prod(shape) for shape in keys["keys"].values())


def test_the_table_shows_every_part_and_the_dictionary_is_json() -> None:
    found = recipe(4)
    text = found.show()
    for part in (*found.parameters, *found.memory, *found.hours):
        assert part in text
    assert "on 4 devices" in text
    assert json.loads(json.dumps(found.as_dict()))["steps"] == 10


@pytest.mark.slow
def test_a_model_without_vision_is_estimated_without_it() -> None:
    config = ModelConfig.model_validate(tiny_config(vision=False).model_dump())
    found = estimate(settings(), config, PLANNED, ranks=1)
    assert "vision encoder" not in found.parameters
