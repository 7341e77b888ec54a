"""What a run of either backbone takes: the figures that a dry run shows, and how they follow from planned work."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence, Set
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from pipelines.train.config import TrainConfig
from pipelines.train.estimate.flops import peak_flops
from pipelines.train.estimate.rank_memory import RankMemory
from sigma_data.text_format import aligned, counted

DEVICES = ("NVIDIA A100-SXM4-80GB", "NVIDIA H100 80GB HBM3")
"""Devices for which hours are estimated."""
UTILISATION = 0.4
"""Of a device's peak, that hours are estimated with."""

_SHOWN = 0.001
"""Least share of a step that has a line."""


@dataclass(frozen=True)
class LookedAt:
    """What `looked_at` of an epoch's packs hold and cost.

    Tokens; operations of the model, of the hardware (with what is computed again), and of the VAE; the hardware's by
    kind of module, where they are told apart.
    """

    packs: int
    looked_at: int
    tokens: float
    flops: float
    hardware_flops: float
    vae_flops: float
    by_module: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Estimate:
    """What a run takes. Memory and disk in bytes, arithmetic in operations of all ranks together.

    `parameters`: part -> (all, trainable). `memory`: part -> bytes a GPU; parts that are never there at once add up
    to more than `memory_peak`. `largest_image`: pixels of the one that memory for encoding is for. `host`: what a rank
    offloads to the CPU. `checkpoint`: bytes of one on disk.
    `flops` of a step: the model's, the hardware's with what is computed again, the VAE's. `shares`: kind of module ->
    its share of the hardware's and the VAE's together, where they are told apart.
    """

    parameters: Mapping[str, tuple[int, int]]
    memory: Mapping[str, float]
    memory_peak: float
    largest_image: int
    host: float
    checkpoint: float
    checkpoints_kept: int
    ranks: int
    steps: int
    tokens_per_step: float
    flops: float
    hardware_flops: float
    vae_flops: float
    hours: Mapping[str, float]
    shares: Mapping[str, float]

    @classmethod
    def of(
        cls, config: TrainConfig, memory: RankMemory, parameters: Mapping[str, tuple[int, int]], epoch: LookedAt
    ) -> Estimate:
        """From the memory of a rank, the parameters by part, and an epoch's packs.

        Steps: as configured, or epochs x packs / (ranks x accumulate). Hours: steps x (model + VAE) / (ranks x peak x
        0.4). A checkpoint holds what is trainable, two moments of it as `optimizer.states` says, and the average in
        float32.
        """
        ranks, steps = memory.ranks, config.steps
        if steps is None:
            assert config.epochs is not None
            steps = math.ceil(config.epochs * epoch.packs / (ranks * config.accumulate))
        packs = ranks * config.accumulate / epoch.looked_at  # of those looked at, in a step
        flops, vae = epoch.flops * packs, epoch.vae_flops * packs
        whole = epoch.hardware_flops + epoch.vae_flops
        modules = {**epoch.by_module, "VAE": epoch.vae_flops} if epoch.by_module else {}
        average = 4 * memory.trainable if config.ema is not None else 0
        return cls(
            parameters=parameters,
            memory=memory.parts(),
            memory_peak=memory.peak(),
            largest_image=memory.largest_image,
            host=memory.host(),
            checkpoint=memory.trainable_bytes + memory.moments + 4 * memory.trainable_tensors + average,
            checkpoints_kept=config.checkpoint.keep,
            ranks=ranks,
            steps=steps,
            tokens_per_step=epoch.tokens * packs,
            flops=flops,
            hardware_flops=epoch.hardware_flops * packs,
            vae_flops=vae,
            hours={
                device: steps * (flops + vae) / (ranks * peak * UTILISATION) / 3600
                for device in DEVICES
                if (peak := peak_flops(device, torch.bfloat16)) is not None
            },
            shares={module: count / whole for module, count in modules.items()},
        )

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    def show(self) -> str:
        """A table for a person."""
        whole, trainable = (sum(counts[place] for counts in self.parameters.values()) for place in (0, 1))
        lines = [("parameters", f"{whole:,}", f"{trainable:,} trainable")]
        lines += [(f"  {part}", f"{counts[0]:,}", f"{counts[1]:,}") for part, counts in self.parameters.items()]
        lines += [("memory of a rank", _size(self.memory_peak), "at its peak, but for CUDA itself and fragments")]
        notes = {"encoding an image": f"the largest of the corpora: {self.largest_image:,} pixels"}
        lines += [(f"  {part}", _size(size), notes.get(part, "")) for part, size in self.memory.items()]
        if self.host:
            lines += [("offloaded", _size(self.host), "to the memory of the CPU, a rank")]
        lines += [
            ("checkpoint", _size(self.checkpoint), f"on disk; {self.checkpoints_kept} are kept"),
            ("steps", f"{self.steps:,}", f"of {self.tokens_per_step:,.0f} tokens on {counted(self.ranks, 'rank')}"),
            ("a step", _flop(self.flops), f"{_flop(self.hardware_flops)} with what is computed again"),
            ("  VAE", _flop(self.vae_flops), "besides"),
            ("  all that is computed", _flop(self.hardware_flops + self.vae_flops), "of it" if self.shares else ""),
            *((f"    {module}", f"{share:.1%}", "") for module, share in self.shares.items() if share >= _SHOWN),
            ("the run", _flop(self.steps * (self.flops + self.vae_flops)), ""),
        ]
        note = f"on {counted(self.ranks, 'device')} at {UTILISATION:.0%} of the peak"
        lines += [
            (f"  {device}", f"{hours:,.1f} h" if hours >= 1 else f"{hours * 60:,.1f} min", note)
            for device, hours in self.hours.items()
        ]
        return aligned(lines, right=(1,))


def by_part(
    parts: Sequence[tuple[str, str]], shapes: Mapping[str, tuple[int, ...]], trainable: Set[str]
) -> dict[str, tuple[int, int]]:
    """Part -> parameters (all, trainable). `parts`: each with what names of its parameters hold; the first fits."""
    counts = {part: (0, 0) for part, _ in parts}
    for name, shape in shapes.items():
        part = next(part for part, held in parts if held in name)
        size, (whole, learning) = math.prod(shape), counts[part]
        counts[part] = whole + size, learning + size * (name in trainable)
    return {part: found for part, found in counts.items() if found[0]}


def _size(size: float) -> str:
    return f"{size / 2**30:,.2f} GiB" if size >= 2**28 or not size else f"{size / 2**20:,.2f} MiB"


def _flop(count: float) -> str:
    power = min(max(int(math.log10(max(count, 1))) // 3, 3), 8)
    return f"{count / 1000**power:,.1f} {'GTPEZY'[power - 3]}FLOP"
