"""Training steps of layers as wide as bagel-7b-mot's on one GPU: tokens a second, utilisation, peak memory.

As many layers as fit beside their optimiser states, on a pack of 30K tokens, exactly as `sigma train` runs them:
float32 parameters, bfloat16 layers under FSDP2, full activation checkpointing, fused AdamW, with and without
compilation; beside them the plain way, whose layers gather and scatter the tokens of either expert
(benchmarks/gathered.py) around compiled flex attention, in the same settings. Operations are counted by
pipelines/train/estimate/flops.py: what the mask shows, nothing computed twice.
"""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from gathered import FlexOrder, SequenceOrder, install_layers, velocity_error
from packs import Delimiters, item, sample
from targets import check
from torch import nn

from pipelines.train.config import FreezeSettings, OptimizerSettings, ParallelSettings
from pipelines.train.distributed.clip import clip_grad_norm
from pipelines.train.distributed.materialize import init_weights_sharded
from pipelines.train.distributed.parallelize import parallelize
from pipelines.train.distributed.process_group import ProcessGroup, start_process_group, stop_process_group
from pipelines.train.estimate.flops import peak_flops, training_flops, work_of
from pipelines.train.optimizer import make_optimizer
from sigma_data.loading.batch import PackedBatch
from sigma_data.loading.collate import collate
from sigma_data.sequence.layout import Segment
from sigma_model.config import ModelConfig, preset
from sigma_model.experts import Layer
from sigma_model.model import SigmaModel, widths

MFU_TARGET = 0.45
PLAIN_TARGET = 1.3
"""Times as fast as the plain way, as it comes: its layers are not compiled."""
SAME_LOSS = 0.02
"""Relative difference of the first step's loss that rounding to bfloat16 leaves between the ways."""
BYTES_A_PARAMETER = 4 + 4 + 8 + 2
"""Parameter, gradient, two moments; and its bfloat16 copy while a layer runs."""
RESERVE = 18 * 2**30
"""Bytes for activations of 30K tokens (one layer's, and every layer's input) and one layer's gradients twice."""


@dataclass(frozen=True)
class Measured:
    """A step's median seconds, operations (the model's, and with what is computed again), peak bytes, first loss."""

    seconds: float
    model_flops: float
    hardware_flops: float
    peak_bytes: int
    first_loss: float


def main(*, tiny: bool = False) -> bool:
    """Measure on this machine's GPU; True where there is none, or utilisation reaches the target."""
    if tiny:
        config = preset("tiny")
        batch = whole_pack(config, [sample([((8, 8), (5, 5))] * 2, (8, 8), words=20)] * 2)
        return report(config, batch, device="cpu", dtype=torch.float32, rounds=2)
    if not torch.cuda.is_available():
        print("gpu: no CUDA device here, nothing measured; --tiny runs the same code on the CPU\n")
        return True
    full = preset("bagel-7b-mot")
    free, _ = torch.cuda.mem_get_info()
    config = shallow(full, layers=fitting_layers(full, free))
    batch = whole_pack(config, [sample([((48, 64), (28, 37))] * 6, (64, 64), words=60)])
    return report(config, batch, device="cuda", dtype=torch.bfloat16, rounds=8)


@dataclass(frozen=True)
class Arm:
    """A way to run the layers."""

    name: str
    plain: bool
    compiled: bool


ARMS = (
    Arm("ours, not compiled", plain=False, compiled=False),
    Arm("ours, compiled", plain=False, compiled=True),
    Arm("gather and scatter", plain=True, compiled=False),
    Arm("the same, compiled", plain=True, compiled=True),
)


def report(config: ModelConfig, batch: PackedBatch, *, device: str, dtype: torch.dtype, rounds: int) -> bool:
    """Print a row for each way; whether ours reaches the targets, as far as they are known for this device."""
    name = torch.cuda.get_device_name() if device == "cuda" else "CPU"
    peak = peak_flops(name, dtype)
    layers, width = config.language.num_hidden_layers, config.language.hidden_size
    print(
        f"gpu: {name}; {layers} layers, width {width}, {batch.tokens:,} tokens, float32 parameters, {dtype}, full "
        f"checkpointing, clipping and AdamW\n  {'':<20}{'ms a step':>10}{'tokens/s':>10}{'TFLOP/s':>9}{'MFU':>7}"
        f"{'with recomputation':>20}{'peak GB':>9}"
    )
    batch = batch.to(device)
    seconds: dict[Arm, float] = {}
    losses: list[float] = []
    best = 0.0
    for arm in ARMS:
        settings = ParallelSettings(checkpointing="full", compile=arm.compiled)
        # Made here, for `start_process_group` would refuse to compile on a CPU.
        group = start_process_group(ParallelSettings(), device=device, mixed=True)
        try:
            found = measure(config, batch, group, settings, dtype=dtype, rounds=rounds, plain=arm.plain)
        finally:
            stop_process_group()
            gc.collect()  # the next row's model must find the memory free
            torch.cuda.empty_cache()
        rates = [flops / found.seconds for flops in (found.model_flops, found.hardware_flops)]
        shares = [f"{rate / peak:.1%}" if peak else "-" for rate in rates]
        seconds[arm] = found.seconds
        losses.append(found.first_loss)
        assert math.isclose(losses[-1], losses[0], rel_tol=SAME_LOSS), f"{arm.name} computes something else: {losses}"
        best = max(best, 0.0 if arm.plain or not peak else rates[0] / peak)
        print(
            f"  {arm.name:<20}{found.seconds * 1e3:>10.1f}"
            f"{batch.tokens / found.seconds:>10,.0f}{rates[0] / 1e12:>9.2f}{shares[0]:>7}{shares[1]:>20}"
            f"{found.peak_bytes / 1e9:>9.1f}"
        )
    ours, ours_compiled, plain, plain_compiled = (seconds[arm] for arm in ARMS)
    print(f"  like for like: {plain / ours:.2f} times as fast, compiled {plain_compiled / ours_compiled:.2f}")
    ratio = plain / min(ours, ours_compiled)
    if device != "cuda":
        print(f"  {ratio:.2f} times as fast as the plain way as it comes; targets are a GPU's\n")
        return True
    kept = check("layers of BAGEL's width", "gather, scatter and flex", ratio, least=PLAIN_TARGET, unit="times as fast")
    if peak is None:
        print("  no utilisation: the peak of this device is not known\n")
        return kept
    return check("model FLOPs utilisation of the blocks", "", 100 * best, least=100 * MFU_TARGET, unit="%") and kept


def measure(
    config: ModelConfig,
    batch: PackedBatch,
    group: ProcessGroup,
    settings: ParallelSettings,
    *,
    dtype: torch.dtype,
    rounds: int,
    plain: bool = False,
) -> Measured:
    """Time whole steps, after three that warm up; `plain`: with layers that gather and scatter."""
    on_gpu = group.device.type == "cuda"
    with torch.device("meta"):
        model = SigmaModel(config)
    if plain:
        order = partial(FlexOrder, batch) if on_gpu else partial(SequenceOrder, batch, group_mask=True)
        install_layers(model.backbone)
        network: nn.Module = model
        network.forward = partial(velocity_error, model, order=order, installed=True)
    parallelize(model, group, settings, dtype=dtype)
    init_weights_sharded(model, 0, group, dtype=dtype, trainable=torch.float32)
    optimizer = make_optimizer(model, OptimizerSettings())
    latents = model.clean_latents(batch, batch.known_latents)
    wait: Callable[[], None] = torch.cuda.synchronize if on_gpu else lambda: None

    losses = []

    def step() -> None:
        out = model(batch, latents)
        loss = out.mean() if plain else out.mse.mean() + 0.0 * out.ce.sum()
        loss.backward()
        losses.append(loss.detach())
        clip_grad_norm(model.parameters(), group, 1.0)
        optimizer.step()
        optimizer.zero_grad()

    seconds = []
    for number in range(3 + rounds):
        if on_gpu and number == 3:
            torch.cuda.reset_peak_memory_stats()
        wait()
        begin = time.perf_counter()
        step()
        wait()
        seconds.append(time.perf_counter() - begin)
    work = work_of(batch, group_mask=True)
    flops = training_flops(config, work, frozen=FreezeSettings(), lora=None, checkpointing=settings.checkpointing)
    peak = torch.cuda.max_memory_allocated() if on_gpu else 0
    return Measured(statistics.median(seconds[3:]), *flops, peak, losses[0].item())


def shallow(config: ModelConfig, *, layers: int) -> ModelConfig:
    """A model of full width with few layers, one in its vision encoder, and a small vocabulary."""
    assert config.vision is not None
    language = config.language.model_copy(update={"num_hidden_layers": layers, "vocab_size": 1024})
    vision = config.vision.model_copy(update={"num_hidden_layers": 1})
    return config.model_copy(update={"language": language, "vision": vision})


def fitting_layers(config: ModelConfig, free: int) -> int:
    """As many layers as `free` bytes hold, at least one and at most all."""
    with torch.device("meta"):
        each = sum(parameter.numel() for parameter in Layer(config.language).parameters()) * BYTES_A_PARAMETER
    return min(config.language.num_hidden_layers, max(1, (free - RESERVE) // each))


def whole_pack(config: ModelConfig, samples: list[list[Segment]]) -> PackedBatch:
    """Samples in one batch for a model; its random pictures are known as latents, so nothing is encoded."""
    shown = [item(segments, widths(config), seed=number) for number, segments in enumerate(samples)]
    return collate(shown, Delimiters(), widths(config))
