"""Arithmetic as counted is arithmetic as done: products by dispatch, pairs by the dense mask."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.sequences import FIRST_ATTRIBUTE, Case, case, cases, one_thread, pack, tiny_config, tiny_model  # noqa: F401
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import flop_registry

from pipelines.train.config import FreezeSettings, LoraSettings
from pipelines.train.estimate.flops import (
    Work,
    peak_flops,
    training_flops,
    training_flops_by_module,
    vae_flops,
    work_of,
)
from pipelines.train.freeze import apply_freeze
from pipelines.train.lora import add_lora
from pipelines.train.token_rows import add_token_rows
from sigma_data.loading.batch import Run
from sigma_data.sample import Turn
from sigma_model.attention_mask import dense_mask, visible_pairs
from sigma_model.config import VaeConfig
from sigma_model.vae import Vae

PACK = [
    case("paint <style> a <image_1> red <image_2> <id>", pictures=3),
    case(Turn("what is it <image_1>", response="a cat dog man"), pictures=1),
    case(Turn("old <image_1>", target=2), Turn("<pose> red <image_2>", target=3), pictures=3),
]


class Counted(TorchDispatchMode):
    """Adds up operations as torch's own formulas give them, attention's apart."""

    def __init__(self) -> None:
        super().__init__()
        self.products = 0
        self.attention = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if count := flop_registry.get(func._overloadpacket):
            operations = count(*args, **(kwargs or {}), out_val=out)
            if "attention" in str(func):
                self.attention += operations
            else:
                self.products += operations
        return out


FREEZES = {
    "nothing frozen": (FreezeSettings(), None),
    "und": (FreezeSettings(und=True), None),
    "und but for the attribute tokens": (FreezeSettings(und=True, except_attribute_tokens=True), None),
    "all but the attribute tokens": (FreezeSettings(und=True, patterns=(".",), except_attribute_tokens=True), None),
    "vit": (FreezeSettings(vit=True), None),
    "llm": (FreezeSettings(llm=True), None),
    "a layer": (FreezeSettings(patterns=(r"layers\.0\.",)), None),
    "all that enters": (FreezeSettings(patterns=("embed", "vision", "connector", "time", "latent_in")), None),
    "all matrices of the text side": (FreezeSettings(patterns=(r"und\.(q|k|v|o|mlp)", "embed", "vision")), None),
    "lora": (FreezeSettings(), LoraSettings(rank=3)),
    "lora without und": (
        FreezeSettings(und=True),
        LoraSettings(rank=3, targets=("gen.q", "mlp.up"), train=("latent",)),
    ),
    "lora and the attribute tokens": (
        FreezeSettings(und=True, except_attribute_tokens=True),
        LoraSettings(rank=3, targets=("gen.q", "mlp.up")),
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", ["none", "selective", "full"])
@pytest.mark.parametrize("projection", [False, True])
@pytest.mark.parametrize("name", FREEZES)
def test_products_are_counted_exactly_whatever_learns_and_is_computed_again(
    name: str, projection: bool, checkpointing: str
) -> None:
    frozen, lora = FREEZES[name]
    model = tiny_model(attribute_projection=projection)
    apply_freeze(model, frozen)
    if lora is not None:
        add_lora(model, lora, seed=0)
    if frozen.except_attribute_tokens:
        add_token_rows(model, range(FIRST_ATTRIBUTE, FIRST_ATTRIBUTE + 15))
    every = {"none": 0, "selective": 2, "full": 1}[checkpointing]
    assert model.vision is not None
    for number, layer in enumerate([*model.backbone.layers, *model.vision.layers]):
        if every and number % every == 0:
            layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)  # type: ignore[method-assign]
    batch = pack(PACK)
    latents = model.clean_latents(batch, batch.known_latents)
    with Counted() as counted:
        out = model(batch, latents)
        (out.mse.mean() + out.ce.mean()).backward()
    work = replace(work_of(batch, group_mask=True), pairs=0, patch_pairs=0)
    found = training_flops(model.config, work, frozen=frozen, lora=lora, checkpointing=checkpointing)
    assert found[1] == counted.products
    assert (found[0] == found[1]) == (checkpointing == "none")


@pytest.mark.parametrize("checkpointing", ["none", "full"])
def test_modules_operations_add_up_to_the_hardwares_and_are_told_apart_by_what_they_depend_on(
    checkpointing: str,
) -> None:
    config = tiny_config()
    count: dict[str, Any] = {"frozen": FreezeSettings(), "lora": None, "checkpointing": checkpointing}
    work = Work(text=40, patch=30, latent=50, target=20, answer=5, images=3, pairs=900, patch_pairs=450)
    found = training_flops_by_module(config, work, **count)
    assert sum(found.values()) == training_flops(config, work, **count)[1]
    assert list(found.values()) == sorted(found.values(), reverse=True)
    layers, language = config.language.num_hidden_layers, config.language
    gen = 3 * 3 * 2 * language.hidden_size * language.intermediate_size
    with_latents = training_flops_by_module(config, replace(work, latent=150), **count)
    assert with_latents["experts' MLPs"] - found["experts' MLPs"] == 100 * gen * (layers - 1)
    assert with_latents["attention"] == found["attention"] == 900 * 12 * language.hidden_size * layers
    assert ("computed again" in found) == (checkpointing == "full")


def test_attention_is_four_operations_a_pair_and_width_forward_and_eight_backward_in_every_layer() -> None:
    config = tiny_config()
    count = partial(training_flops, config, lora=None, checkpointing="none")
    width, layers = config.language.hidden_size, config.language.num_hidden_layers
    assert count(Work(pairs=7), frozen=FreezeSettings())[0] == 7 * 12 * width * layers
    assert config.vision is not None
    vision = config.vision.hidden_size * config.vision.num_hidden_layers
    assert count(Work(patch_pairs=7), frozen=FreezeSettings())[0] == 7 * 12 * vision
    assert count(Work(patch_pairs=7), frozen=FreezeSettings(und=True))[0] == 7 * 4 * vision


def test_attention_of_full_pairs_is_what_torch_counts_for_a_full_mask() -> None:
    q = torch.zeros(1, 4, 30, 8, device="meta", requires_grad=True)
    with Counted() as counted:
        out = torch.ops.aten._scaled_dot_product_flash_attention(q, q, q)[0]
    assert out.shape == q.shape
    assert counted.attention == 30 * 30 * 4 * (4 * 8)


def test_freezing_the_understanding_expert_leaves_its_forward_pass_alone() -> None:
    count = partial(training_flops, tiny_config(), lora=None, checkpointing="none")
    answers, frozen = Work(text=100), FreezeSettings(und=True)
    assert count(answers, frozen=FreezeSettings())[0] == pytest.approx(3 * count(answers, frozen=frozen)[0])
    targets = Work(target=100)
    assert count(targets, frozen=frozen) == count(targets, frozen=FreezeSettings())


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(st.lists(cases(max_turns=3, max_references=3), min_size=1, max_size=3), st.booleans())
def test_visible_pairs_are_the_sum_of_the_dense_mask(packed: Sequence[Case], group_mask: bool) -> None:
    batch = pack(packed)
    expected = int(dense_mask(batch.tags, group_mask=group_mask).sum())
    assert visible_pairs(batch.runs, group_mask=group_mask) == expected


def test_a_pack_without_tokens_has_no_pairs() -> None:
    assert visible_pairs((), group_mask=True) == 0


def test_a_pack_of_thirty_thousand_tokens_is_counted_in_ten_milliseconds() -> None:
    runs: list[Run] = []
    at, segment = 0, 0
    for sample in range(300):  # 100 tokens each, a fifth of the runs attribute tokens
        for start, stop, image, attribute in (
            (0, 9, 0, 0),
            (9, 10, 0, 1),
            (10, 60, 1, 0),
            (60, 69, 0, 0),
            (69, 70, 0, 1),
            (70, 100, 1, 0),
        ):
            runs.append(
                Run(
                    at + start,
                    at + stop,
                    sample,
                    segment + (start >= 10) + (start >= 60) + (start >= 70),
                    bool(image),
                    start == 70,
                    bool(attribute),
                    1 + (start == 69) if attribute or image else 0,
                )
            )
        at, segment = at + 100, segment + 4
    seconds = []
    for _ in range(5):
        begin = time.perf_counter()
        visible_pairs(runs, group_mask=True)
        seconds.append(time.perf_counter() - begin)
    assert at == 30_000
    assert min(seconds) < 0.010


def test_work_is_what_the_batch_holds_and_adds_up() -> None:
    batch = pack(PACK)
    work = work_of(batch, group_mask=True)
    assert (work.und_tokens, work.gen_tokens) == (batch.n_und, batch.n_gen)
    assert work.tokens == batch.tokens
    assert (work.target, work.answer) == (len(batch.target_slots), len(batch.labels))
    both = work + work_of(pack(PACK[:1]), group_mask=True)
    assert both.pairs == work.pairs + int(dense_mask(pack(PACK[:1]).tags, group_mask=True).sum())
    assert work.pixels == 0  # its latents were given


@pytest.mark.parametrize(
    "config",
    [
        VaeConfig(ch=8, mult=(1, 2, 2), num_res_blocks=1, z_channels=4),
        VaeConfig(ch=16, mult=(1, 2, 4, 4), num_res_blocks=2, z_channels=4),
    ],
)
def test_the_autoencoder_is_counted_exactly_at_every_size(config: VaeConfig) -> None:
    vae = Vae(config)
    pictures = [torch.zeros(3, 32, 48), torch.zeros(3, 64, 64)]
    with Counted() as counted:
        vae.encode(pictures)
    pixels = [32 * 48, 64 * 64]
    work = Work(pixels=sum(pixels), pixel_pairs=sum(count**2 for count in pixels))
    attention = sum((count // config.downsample**2) ** 2 for count in pixels) * 4 * config.ch * config.mult[-1]
    assert vae_flops(config, work) - attention == counted.products


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA A100 80GB PCIe", 312e12),
        ("NVIDIA H100 80GB HBM3", 989.4e12),
        ("NVIDIA H100 PCIe", 756.5e12),
        ("NVIDIA H100 NVL", 835.5e12),
        ("NVIDIA H200", 989.4e12),
        ("NVIDIA B200", 2250e12),
        ("NVIDIA L40S", 362.05e12),
        ("NVIDIA GeForce RTX 4090", 165.2e12),
        ("AMD Instinct MI300X", 1307.4e12),
    ],
)
def test_known_devices_have_their_dense_peak(name: str, peak: float) -> None:
    assert peak_flops(name, torch.bfloat16) == pytest.approx(peak)


@pytest.mark.parametrize(
    "name",
    [
        "NVIDIA H100 80GB HBM3 MIG 1g.10gb",
        "NVIDIA GeForce RTX 4090 Laptop GPU",
        "NVIDIA GeForce RTX 4090 D",
        "NVIDIA A10G",
        "Tesla V100-SXM2-32GB",
        "cpu",
        "",
    ],
)
def test_a_slice_a_variant_and_an_unknown_device_have_none(name: str) -> None:
    assert peak_flops(name, torch.bfloat16) is None


def test_no_peak_is_claimed_for_float32() -> None:
    assert peak_flops("NVIDIA H100 80GB HBM3", torch.float32) is None
