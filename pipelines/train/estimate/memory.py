"""What a run will take, before anything is rented: parameters, memory of a GPU, disk, arithmetic, hours.

Every number follows from a formula in the docstring of its function, the configuration, and the planned packs' lengths.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from pipelines.train.adamw import moment_bytes
from pipelines.train.config import TrainConfig
from pipelines.train.estimate.flops import Parameters, Work, parameters_of, peak_flops, training_flops, vae_flops
from pipelines.train.token_rows import ROWS
from sigma_data.loading.batch import Run
from sigma_data.planning.plan import Planner
from sigma_data.planning.segment_table import SegmentTable, segment_table
from sigma_data.sequence.layout import DELIMITERS, Geometry, Kind
from sigma_data.text_format import aligned, counted
from sigma_model.attention_mask import visible_pairs
from sigma_model.config import ModelConfig
from sigma_model.quantization import Quantization, is_quantised, stored_bytes

DEVICES = ("NVIDIA A100-SXM4-80GB", "NVIDIA H100 80GB HBM3")
"""Devices for which hours are estimated."""
UTILISATION = 0.4
"""Of a device's peak, that hours are estimated with."""

_PARTS = (
    ("LoRA adapters", ".lora_"),
    ("understanding expert", ".und."),
    ("understanding expert", "backbone.norm_und"),
    ("generation expert", ".gen."),
    ("generation expert", "backbone.norm_gen"),
    ("attribute tokens' rows", ROWS),
    ("embeddings", "backbone.embed"),
    ("text head", "lm_head"),
    ("vision encoder", "vision."),
    ("connector", "connector."),
    ("attribute projection", "attribute_projection"),
    ("latents and noise level", ""),
)
"""Part -> what the names of its parameters hold; the first that fits."""


@dataclass(frozen=True)
class EpochWork:
    """An epoch: its packs and samples, and the work of `looked_at` packs of it."""

    packs: int
    samples: int
    looked_at: int
    work: Work

    @classmethod
    def of(cls, planner: Planner, *, epoch: int = 0, most: int = 64) -> EpochWork:
        """Look at `most` packs of an epoch, evenly spread, by their lengths alone; no image is read.

        The pairs are those without the group mask, which hides but a few, and an image that is shown and asked for
        counts as encoded twice.
        """
        plan, geometry = planner.plan(epoch), planner.geometry
        assert isinstance(geometry, Geometry), "segments of BAGEL's kind"
        stride = geometry.vae.stride  # pixels a latent token covers on a side
        tables = [segment_table(index, geometry) for index in planner.indexes]
        chosen = np.unique(np.linspace(0, len(plan) - 1, min(most, len(plan))).round().astype(int)).tolist()
        work = Work()
        for pack in chosen:
            for entry in plan.ticket(pack).entries:
                index = planner.indexes[entry.corpus]
                dropped = planner.recipe.dropped(index, entry.row, entry.round, geometry)
                work += _work_of(tables[entry.corpus], entry.row, dropped, stride)
        return cls(len(plan), len(plan.draws.row), len(chosen), work)


def _work_of(table: SegmentTable, row: int, dropped: tuple[int, ...], stride: int) -> Work:
    """The work of one sample, segment by segment: what `flops.work_of` counts in a batch."""
    work, runs, start = Work(), [], 0
    first, last = int(table.first[row]), int(table.first[row + 1])
    for place, (number, length) in enumerate(
        zip(table.kind[first:last].tolist(), table.length[first:last].tolist(), strict=True)
    ):
        if place in dropped:
            continue
        kind = Kind(number)
        inner = length - DELIMITERS
        runs.append(Run(start, start + length, 0, place, kind.image, kind is Kind.TARGET, False, 0))
        start += length
        if not kind.image:
            work += Work(text=length, answer=length - 1 if kind is Kind.ANSWER else 0)
        elif kind is Kind.PATCH:
            work += Work(text=DELIMITERS, patch=inner, patch_pairs=inner**2)
        else:
            tokens = {"target" if kind is Kind.TARGET else "latent": inner}
            pixels = inner * stride**2
            work += Work(text=DELIMITERS, images=1, pixels=pixels, pixel_pairs=pixels**2, **tokens)
    return work + Work(pairs=visible_pairs(runs, group_mask=False))


@dataclass(frozen=True)
class Estimate:
    """What a run takes. Memory and disk in bytes, arithmetic in operations of all ranks together.

    `parameters`: part -> (all, trainable). `memory`: part -> bytes a GPU; parts that are never there at once add up
    to more than `memory_peak`. `host`: what a rank offloads to the CPU. `checkpoint`: bytes of one on disk.
    `flops` of a step: the model's, the hardware's with what is computed again, the VAE's.
    """

    parameters: Mapping[str, tuple[int, int]]
    memory: Mapping[str, float]
    memory_peak: float
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

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    def show(self) -> str:
        """A table for a person."""
        whole, trainable = (sum(counts[place] for counts in self.parameters.values()) for place in (0, 1))
        lines = [("parameters", f"{whole:,}", f"{trainable:,} trainable")]
        lines += [(f"  {part}", f"{counts[0]:,}", f"{counts[1]:,}") for part, counts in self.parameters.items()]
        lines += [("memory of a rank", _size(self.memory_peak), "at its peak, but for CUDA itself and fragments")]
        lines += [(f"  {part}", _size(size), "") for part, size in self.memory.items()]
        if self.host:
            lines += [("offloaded", _size(self.host), "to the memory of the CPU, a rank")]
        lines += [
            ("checkpoint", _size(self.checkpoint), f"on disk; {self.checkpoints_kept} are kept"),
            ("steps", f"{self.steps:,}", f"of {self.tokens_per_step:,.0f} tokens on {counted(self.ranks, 'rank')}"),
            ("a step", _flop(self.flops), f"{_flop(self.hardware_flops)} with what is computed again"),
            ("  VAE", _flop(self.vae_flops), "besides"),
            ("the run", _flop(self.steps * (self.flops + self.vae_flops)), ""),
        ]
        note = f"on {counted(self.ranks, 'device')} at {UTILISATION:.0%} of the peak"
        lines += [
            (f"  {device}", f"{hours:,.1f} h" if hours >= 1 else f"{hours * 60:,.1f} min", note)
            for device, hours in self.hours.items()
        ]
        return aligned(lines, right=(1,))


def estimate(
    config: TrainConfig, model_config: ModelConfig, planned: EpochWork, *, ranks: int, on_gpu: bool = True
) -> Estimate:
    """What a run on `ranks` devices takes. `on_gpu` settles what `model.dtype` auto means.

    `model_config` is the one that is trained, with or without vision as the run has it. Steps: as configured, or
    epochs x packs / (ranks x accumulate). Hours: steps x (model + VAE) / (ranks x peak x 0.4). A checkpoint
    holds what is trainable, two moments of it as `optimizer.states` says, and the average in float32.
    """
    parameters = parameters_of(model_config, config.freeze, config.lora)
    steps = config.steps
    if steps is None:
        assert config.epochs is not None
        steps = math.ceil(config.epochs * planned.packs / (ranks * config.accumulate))
    model, hardware = training_flops(
        model_config,
        planned.work,
        frozen=config.freeze,
        lora=config.lora,
        checkpointing=config.parallel.checkpointing,
    )
    packs = ranks * config.accumulate / planned.looked_at  # of those looked at, in a step
    flops, vae = model * packs, vae_flops(model_config.vae, planned.work) * packs
    memory = Memory(config, model_config, planned.work, parameters, ranks=ranks, on_gpu=on_gpu)
    hours = {
        device: steps * (flops + vae) / (ranks * peak * UTILISATION) / 3600
        for device in DEVICES
        if (peak := peak_flops(device, torch.bfloat16)) is not None
    }
    average = 4 * memory.trainable if config.ema is not None else 0
    return Estimate(
        parameters=_by_part(parameters),
        memory=memory.parts(),
        memory_peak=memory.peak(),
        host=memory.host(),
        checkpoint=memory.trainable_bytes + memory.moments + 4 * len(parameters.trainable) + average,
        checkpoints_kept=config.checkpoint.keep,
        ranks=ranks,
        steps=steps,
        tokens_per_step=planned.work.tokens * packs,
        flops=flops,
        hardware_flops=hardware * packs,
        vae_flops=vae,
        hours=hours,
    )


class Memory:
    """Bytes of one rank. A pack is one of `data.budget` tokens, made up as those that were looked at.

    D: hidden width, K: key/value heads x head width, I: MLP width, n: tokens of an expert, N: of both; c: bytes of a
    number in the forward pass, m: of a trainable one (with LoRA: 4).
    """

    def __init__(
        self,
        config: TrainConfig,
        model: ModelConfig,
        work: Work,
        parameters: Parameters,
        *,
        ranks: int,
        on_gpu: bool,
    ) -> None:
        self._config, self._model, self._parameters = config, model, parameters
        self._shard = config.parallel.shard or ranks
        self._c = {"auto": 2 if on_gpu else 4, "float32": 4, "bfloat16": 2}[config.model.dtype]
        master = {"float32": 4, "bfloat16": 2}[config.model.master]
        sizes = {name: math.prod(shape) for name, shape in parameters.shapes.items()}
        self.trainable = sum(sizes[name] for name in parameters.trainable)
        self.trainable_bytes = self.trainable * (4 if config.lora is not None else master)
        eight_bit = config.optimizer.states == "8bit"
        self.moments = sum(moment_bytes(parameters.shapes[name], eight_bit=eight_bit) for name in parameters.trainable)
        kind = Quantization(config.model.quantize) if config.model.quantize is not None else None
        few = [name for name in sizes if kind is not None and is_quantised(name)]
        self._quantised = sum((stored_bytes(kind, parameters.shapes[name]) for name in few if kind is not None), 0.0)
        self._restored = max((sizes[name] for name in few), default=0) * (
            self._c + (8 if kind is Quantization.FP8 else 0)
        )
        self._sizes = {name: size for name, size in sizes.items() if name not in few}
        self._frozen_bytes = (sum(self._sizes.values()) - self.trainable) * self._c
        self._fsdp = ranks > 1 or master != self._c or config.parallel.offload
        scale = config.data.budget / max(1, work.tokens)
        self._counts: dict[str, float] = {name: count * scale for name, count in asdict(work).items()}
        self._counts |= {"und": work.und_tokens * scale, "gen": work.gen_tokens * scale}

    def parts(self) -> dict[str, float]:
        """Everything, by part; offloaded parts are left out."""
        kept, once = self._activations()
        return {
            **{part: size for part, size in self._states().items() if not self._moved(part)},
            "position tables": self._tables(),
            "gathered layers": self._gathered(),
            "activations": kept * self._c,
            "a layer computed again": once * self._c,
            "gradients within a layer": self._backward() * self._c,
            **({"a weight restored": self._restored} if self._quantised else {}),
            "logits": self._counts["answer"] * self._model.language.vocab_size * (8 + self._c),
            "autoencoder": self._autoencoder(),
            "encoding an image": self._encoding(),
        }

    def peak(self) -> float:
        """The most at one time: images are encoded before there are activations."""
        parts = self.parts()
        fleeting = (
            "gathered layers", "activations", "a layer computed again", "gradients within a layer", "logits",
            "a weight restored",
        )  # fmt: skip
        encoding = parts.pop("encoding an image")
        stays = sum(size for part, size in parts.items() if part not in fleeting)
        return stays + max(encoding, sum(parts.get(part, 0) for part in fleeting))

    def host(self) -> float:
        """Bytes that offloading puts into the CPU's memory."""
        if self._config.parallel.offload:
            return sum(self._states().values())
        return self.moments / self._shard if self._config.optimizer.offload else 0

    def _moved(self, part: str) -> bool:
        """Whether a part of the states is offloaded."""
        return self._config.parallel.offload or (self._config.optimizer.offload and part == "optimiser")

    def _states(self) -> dict[str, float]:
        """What is kept from step to step, each divided by the ranks that share a copy, but for quantised weights.

        Parameters: m each trainable one, c each frozen one. Gradients m, two moments 8, average 4 each trainable one;
        moments of 8 bits are 2 and 8 for 256 of a row. Quantised weights as `stored_bytes` says, whole on every rank.
        """
        trainable = self.trainable_bytes / self._shard
        average = 4 * self.trainable / self._shard if self._config.ema is not None else 0
        return {
            "parameters": trainable + self._frozen_bytes / self._shard,
            **({"quantised weights": self._quantised} if self._quantised else {}),
            "gradients": trainable,
            "optimiser": self.moments / self._shard,
            "average (EMA)": average,
        }

    def _tables(self) -> float:
        """The fixed tables of positions, whole on every rank: D c a place."""
        vision = self._model.vision.grid**2 if self._model.vision is not None else 0
        return (self._model.latent.grid**2 + vision) * self._model.language.hidden_size * self._c

    def _gathered(self) -> float:
        """What FSDP has whole: all outside layers, two layers (c each), one layer's gradients (c, and 4 to reduce)."""
        if not self._fsdp:
            return 0
        layers: dict[str, int] = {}
        trainable: dict[str, int] = {}
        root = 0
        for name, size in self._sizes.items():
            if ".layers." not in name:
                root += size
                continue
            prefix = ".".join(name.split(".", name.split(".").index("layers") + 2)[:-1])
            layers[prefix] = layers.get(prefix, 0) + size
            trainable[prefix] = trainable.get(prefix, 0) + size * (name in self._parameters.trainable)
        return (root + 2 * max(layers.values())) * self._c + max(trainable.values()) * (self._c + 4)

    def _activations(self) -> tuple[float, float]:
        """Numbers that are kept for the backward pass, and those of the largest layer that is computed again.

        A layer: N (3 D + 2 K) for attention (queries, keys, values, result twice); for each expert that is recorded
        n (3 D + K) before it (input, normed, queries and keys before their norms) and n (2 D + 4 I) behind it (sum,
        normed, four of the MLP), the last layer for tokens with a loss alone. A layer that is computed again keeps
        its N D inputs. An expert that is recorded but frozen keeps no inputs of its linear layers: n (2 D + K) and
        n (D + 3 I). A ViT layer: 9 and 2 x its widths a patch. With LoRA less is kept than this; on a CPU about a
        quarter more, for its norms keep two tensors each.
        """
        count = self._model.language.num_hidden_layers
        layers = [self._layer(last=number == count - 1) for number in range(count)]
        inputs = [self._tokens * self._model.language.hidden_size] * count
        if self._model.vision is not None and self._parameters.trains("vision"):
            vision, patches = self._model.vision, self._counts["patch"]
            layers += [patches * (9 * vision.hidden_size + 2 * vision.intermediate_size)] * vision.num_hidden_layers
            inputs += [patches * vision.hidden_size] * vision.num_hidden_layers
        every = {"none": 0, "selective": 2, "full": 1}[self._config.parallel.checkpointing]
        again = [every > 0 and number % every == 0 for number in range(len(layers))]
        kept = sum(small if repeated else full for full, small, repeated in zip(layers, inputs, again, strict=True))
        return kept, max((full for full, repeated in zip(layers, again, strict=True) if repeated), default=0)

    @property
    def _tokens(self) -> float:
        return self._counts["und"] + self._counts["gen"]

    def _layer(self, *, last: bool) -> float:
        language = self._model.language
        width, inner = language.hidden_size, language.intermediate_size
        keys = language.num_key_value_heads * language.head_dim
        total = self._tokens * (3 * width + 2 * keys)
        for expert, with_loss in self._recorded().items():
            rows = self._counts[with_loss if last else expert]
            trained = int(any(f".{expert}." in name for name in self._parameters.trainable))
            total += self._counts[expert] * ((2 + trained) * width + keys)
            total += rows * ((1 + trained) * width + (3 + trained) * inner)
        return total

    def _backward(self) -> float:
        """Gradients of one layer's activations, at most those of an expert's MLP: n (2 D + 3 I)."""
        language = self._model.language
        most = max(self._counts[expert] for expert in self._recorded())
        return most * (2 * language.hidden_size + 3 * language.intermediate_size)

    def _recorded(self) -> dict[str, str]:
        """Experts through which gradients go -> which of their tokens carry a loss."""
        return {"gen": "target"} if not self._config.freeze.und_recorded else {"und": "answer", "gen": "target"}

    def _autoencoder(self) -> float:
        """Its weights in float32, whole on every rank."""
        from sigma_model.vae import Vae

        with torch.device("meta"):
            vae = Vae(self._model.vae)
        return 4.0 * sum(parameter.numel() for parameter in vae.parameters())

    def _encoding(self) -> float:
        """The largest image in float32: four maps of all pixels at its first width, or attention's scores."""
        pixels = min(self._model.vae_rule.max_size**2, self._model.vae_rule.max_pixels)
        return 4 * max(4 * pixels * self._model.vae.ch, (pixels / self._model.vae.downsample**2) ** 2)


def _by_part(parameters: Parameters) -> dict[str, tuple[int, int]]:
    counts = {part: (0, 0) for part, _ in reversed(_PARTS)}
    for name, shape in parameters.shapes.items():
        part = next(part for part, held in _PARTS if held in name)
        size = math.prod(shape)
        whole, trainable = counts[part]
        counts[part] = whole + size, trainable + size * (name in parameters.trainable)
    return {part: found for part, found in counts.items() if found[0]}


def _size(size: float) -> str:
    return f"{size / 2**30:,.2f} GiB" if size >= 2**28 or not size else f"{size / 2**20:,.2f} MiB"


def _flop(count: float) -> str:
    power = min(max(int(math.log10(max(count, 1))) // 3, 3), 8)
    return f"{count / 1000**power:,.1f} {'GTPEZY'[power - 3]}FLOP"
