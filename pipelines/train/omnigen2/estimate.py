"""What a run of OmniGen2 takes before anything is rented, from planned lengths and headers alone.

As for BAGEL's kind (`pipelines.train.estimate`), with the formulas of another network; every one stands in a docstring.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from pipelines.train.adamw import moment_bytes
from pipelines.train.config import TrainConfig
from pipelines.train.estimate.flops import peak_flops, vae_flops
from pipelines.train.estimate.memory import DEVICES, UTILISATION, Estimate
from pipelines.train.omnigen2.build import choose_trainable, rates_for, trains_mllm
from pipelines.train.omnigen2.cost import Counts, answer_counts, sample_counts
from pipelines.train.omnigen2.description import Omnigen2Description
from pipelines.train.omnigen2.model import Omnigen2Model
from sigma_data.planning.plan import Planner
from sigma_data.planning.segment_table import segment_table
from sigma_data.sequence.layout import Kind
from sigma_model.model_files import read_json
from sigma_model.omnigen2.checkpoint import empty_transformer
from sigma_model.omnigen2.conditioning import empty_mllm
from sigma_model.omnigen2.config import CONFIG_FILE

_PARTS = (
    ("LoRA adapters", ".lora_"),
    ("attribute tokens' rows", "embed_tokens.rows"),
    ("main layers", "transformer.layers."),
    ("refiners", "_refiner."),
    ("embedders and final layer", "transformer."),
    ("language model's vision encoder", "visual."),
    ("language model", ""),
)
"""Part -> what the names of its parameters hold; the first that fits."""


@dataclass(frozen=True)
class EpochCounts:
    """An epoch: its packs, and the counts of `looked_at` packs of it."""

    packs: int
    looked_at: int
    counts: Counts

    @classmethod
    def of(cls, planner: Planner, description: Omnigen2Description, *, most: int = 64) -> EpochCounts:
        """Look at `most` packs of the first epoch, evenly spread, by their lengths alone."""
        plan = planner.plan(0)
        tables = [segment_table(index, planner.geometry) for index in planner.indexes]
        chosen = np.unique(np.linspace(0, len(plan) - 1, min(most, len(plan))).round().astype(int)).tolist()
        counts = Counts()
        for pack in chosen:
            for entry in plan.ticket(pack).entries:
                table = tables[entry.corpus]
                first, last = int(table.first[entry.row]), int(table.first[entry.row + 1])
                lengths: dict[Kind, list[int]] = {kind: [] for kind in Kind}
                for kind, length in zip(
                    table.kind[first:last].tolist(), table.length[first:last].tolist(), strict=True
                ):
                    lengths[Kind(kind)].append(length)
                counts += _of_sample(lengths, description)
        return cls(len(plan), len(chosen), counts)


def _of_sample(lengths: Mapping[Kind, list[int]], description: Omnigen2Description) -> Counts:
    shapes = description.geometry
    text, seen, learnt = (sum(lengths[kind]) for kind in (Kind.TEXT, Kind.PATCH, Kind.ANSWER))
    if not lengths[Kind.TARGET]:
        return answer_counts(text + seen + learnt, learnt, [4 * (one + 1) for one in lengths[Kind.PATCH]])
    return sample_counts(
        text + (seen if shapes.route.keeps_image_states else 0),
        lengths[Kind.LATENT],
        lengths[Kind.TARGET][0],
        asked=text + seen,
        patches=[4 * one for one in lengths[Kind.PATCH]],
        stride=shapes.stride,
    )


@dataclass(frozen=True)
class Parameters:
    """Shapes of all parameters by name, and which of them are trained; `beside`: those of a frozen language model."""

    shapes: Mapping[str, tuple[int, ...]]
    trainable: frozenset[str]
    beside: int

    @classmethod
    def of(cls, config: TrainConfig, description: Omnigen2Description) -> Parameters:
        """From a network without numbers. Raises ConfigError as training does."""
        mllm = empty_mllm(description.mllm)
        trains = trains_mllm(config)
        model = Omnigen2Model(empty_transformer(description.config), mllm if trains else None)
        choose_trainable(model, config, description)
        shapes = {name: tuple(one.shape) for name, one in model.named_parameters()}
        trainable = frozenset(name for name, one in model.named_parameters() if one.requires_grad)
        return cls(shapes, trainable, 0 if trains else sum(one.numel() for one in mllm.parameters()))

    def by_part(self) -> dict[str, tuple[int, int]]:
        """Part -> (all, trainable)."""
        counts = {part: (0, 0) for part, _ in _PARTS}
        for name, shape in self.shapes.items():
            part = next(part for part, held in _PARTS if held in name)
            size, (whole, trainable) = math.prod(shape), counts[part]
            counts[part] = whole + size, trainable + size * (name in self.trainable)
        if self.beside:
            counts["language model"] = self.beside, 0
        return {part: found for part, found in counts.items() if found[0]}


def estimate(
    config: TrainConfig, description: Omnigen2Description, planned: EpochCounts, *, ranks: int, on_gpu: bool = True
) -> Estimate:
    """What a run on `ranks` devices takes. Steps and hours as `pipelines.train.estimate.memory.estimate` has them."""
    steps = config.steps
    if steps is None:
        assert config.epochs is not None
        steps = math.ceil(config.epochs * planned.packs / (ranks * config.accumulate))
    packs = ranks * config.accumulate / planned.looked_at
    rates, counts = rates_for(config, description), planned.counts
    flops, vae = rates.flops(counts) * packs, vae_flops(description.vae, counts.work) * packs
    parameters = Parameters.of(config, description)
    memory = _Memory(config, description, counts, parameters, ranks=ranks, on_gpu=on_gpu)
    hours = {
        device: steps * (flops + vae) / (ranks * peak * UTILISATION) / 3600
        for device in DEVICES
        if (peak := peak_flops(device, torch.bfloat16)) is not None
    }
    average = 4 * memory.trainable if config.ema is not None else 0
    return Estimate(
        parameters=parameters.by_part(),
        memory=memory.parts(),
        memory_peak=memory.peak(),
        host=memory.host(),
        checkpoint=memory.trainable_bytes + memory.moments + 4 * len(parameters.trainable) + average,
        checkpoints_kept=config.checkpoint.keep,
        ranks=ranks,
        steps=steps,
        tokens_per_step=(counts.asked + counts.latent + counts.target) * packs,
        flops=flops,
        hardware_flops=rates.hardware(counts) * packs,
        vae_flops=vae,
        hours=hours,
    )


class _Memory:
    """Bytes of one rank. A pack is one of `data.budget` tokens, made up as those that were looked at.

    D, K, I: widths of the transformer's hidden states, keys and MLPs; c bytes of a number in the forward pass, m of a
    trainable one (with LoRA: 4).
    """

    def __init__(
        self,
        config: TrainConfig,
        description: Omnigen2Description,
        counts: Counts,
        parameters: Parameters,
        *,
        ranks: int,
        on_gpu: bool,
    ) -> None:
        self._config, self._description, self._parameters = config, description, parameters
        self._shard = config.parallel.shard or ranks
        self._c = {"auto": 2 if on_gpu else 4, "float32": 4, "bfloat16": 2}[config.model.dtype]
        master = {"float32": 4, "bfloat16": 2}[config.model.master]
        sizes = {name: math.prod(shape) for name, shape in parameters.shapes.items()}
        self._sizes = sizes
        self.trainable = sum(sizes[name] for name in parameters.trainable)
        self.trainable_bytes = self.trainable * (4 if config.lora is not None else master)
        eight_bit = config.optimizer.states == "8bit"
        self.moments = sum(moment_bytes(parameters.shapes[name], eight_bit=eight_bit) for name in parameters.trainable)
        self._frozen = (sum(sizes.values()) - self.trainable) * self._c
        self._fsdp = ranks > 1 or master != self._c or config.parallel.offload
        planned = counts.asked + counts.latent + counts.target
        self._counts = counts.scaled(config.data.budget / max(1, planned))

    def parts(self) -> dict[str, float]:
        """Everything, by part; offloaded parts are left out."""
        kept, once = self._activations()
        return {
            **{part: size for part, size in self._states().items() if not self._moved(part)},
            **({"frozen language model": self._parameters.beside * self._c} if self._parameters.beside else {}),
            "gathered layers": self._gathered(),
            "activations": kept * self._c,
            "a layer computed again": once * self._c,
            "gradients within a layer": self._backward() * self._c,
            "logits": self._counts.learnt * self._vocabulary() * (8 + self._c),
            "autoencoder": 4.0 * self._autoencoder(),
            "encoding an image": self._encoding(),
        }

    def peak(self) -> float:
        """The most at one time: images are encoded before there are activations."""
        parts = self.parts()
        fleeting = (
            "gathered layers", "activations", "a layer computed again", "gradients within a layer", "logits",
        )  # fmt: skip
        encoding = parts.pop("encoding an image")
        stays = sum(size for part, size in parts.items() if part not in fleeting)
        return stays + max(encoding, sum(parts[part] for part in fleeting))

    def host(self) -> float:
        """Bytes that offloading puts into the CPU's memory."""
        if self._config.parallel.offload:
            return sum(self._states().values())
        return self.moments / self._shard if self._config.optimizer.offload else 0

    def _moved(self, part: str) -> bool:
        return self._config.parallel.offload or (self._config.optimizer.offload and part == "optimiser")

    def _states(self) -> dict[str, float]:
        """Parameters m each trainable one, c each frozen one; gradients m, moments 8, average 4 each trainable one.

        All divided by the ranks that share a copy. A frozen language model is no part of this: each rank has it whole.
        """
        trainable = self.trainable_bytes / self._shard
        return {
            "parameters": trainable + self._frozen / self._shard,
            "gradients": trainable,
            "optimiser": self.moments / self._shard,
            "average (EMA)": 4 * self.trainable / self._shard if self._config.ema is not None else 0,
        }

    def _gathered(self) -> float:
        """What FSDP has whole: all outside layers, two layers (c each), one layer's gradients (c, and 4 to reduce)."""
        if not self._fsdp:
            return 0
        layers: dict[str, int] = {}
        trainable: dict[str, int] = {}
        root = 0
        for name, size in self._sizes.items():
            place = next((one for one in (".layers.", "_refiner.", ".blocks.") if one in name), None)
            if place is None:
                root += size
                continue
            head, _, tail = name.partition(place)
            prefix = f"{head}{place}{tail.partition('.')[0]}"
            layers[prefix] = layers.get(prefix, 0) + size
            trainable[prefix] = trainable.get(prefix, 0) + size * (name in self._parameters.trainable)
        return (root + 2 * max(layers.values())) * self._c + max(trainable.values()) * (self._c + 4)

    def _activations(self) -> tuple[float, float]:
        """Numbers that are kept for the backward pass, and those of the largest layer that is computed again.

        A block keeps 19 D + 6 K + 4 I a token: inputs of its norms and linear layers, queries and keys before and after
        their norms, and the four scales and gates of each token. A layer of the language model, if gradients pass
        through it, keeps 9 of its widths, 3 K and 4 I; one of its vision encoder 9 and 4 of its widths a patch. A layer
        that is computed again keeps its inputs alone.
        """
        config, counts = self._description.config, self._counts
        width, keys, inner = config.hidden_size, config.num_kv_heads * config.head_dim, config.inner_width
        block = 19 * width + 6 * keys + 4 * inner
        tokens = [counts.joint] * config.num_layers
        tokens += [one for one in (counts.text, counts.latent, counts.target) for _ in range(config.num_refiner_layers)]
        layers: list[tuple[float, float]] = [(one * block, one * width) for one in tokens]
        if trains_mllm(self._config):
            layers += self._language_layers()
        every = {"none": 0, "selective": 2, "full": 1}[self._config.parallel.checkpointing]
        again = [every > 0 and number % every == 0 for number in range(len(layers))]
        kept = sum(small if repeated else full for (full, small), repeated in zip(layers, again, strict=True))
        return kept, max((full for (full, _), repeated in zip(layers, again, strict=True) if repeated), default=0)

    def _language_layers(self) -> list[tuple[float, float]]:
        values = read_json(self._description.mllm / CONFIG_FILE)
        text, vision = values.get("text_config") or values, values["vision_config"]
        width, inner = int(text["hidden_size"]), int(text["intermediate_size"])
        keys = width // int(text["num_attention_heads"]) * int(text["num_key_value_heads"])
        asked, patches = self._counts.asked, self._counts.patches
        wide = int(vision["hidden_size"])
        layer: tuple[float, float] = asked * (9 * width + 3 * keys + 4 * inner), asked * width
        block: tuple[float, float] = patches * (9 * wide + 4 * int(vision["intermediate_size"])), patches * wide
        learns = self._config.omnigen2.train_mllm and not self._config.freeze.vit
        return [layer] * int(text["num_hidden_layers"]) + ([block] * int(vision["depth"]) if learns else [])

    def _backward(self) -> float:
        """Gradients of one layer's activations, at most those of an MLP: n (2 D + 3 I)."""
        config = self._description.config
        return self._counts.joint * (2 * config.hidden_size + 3 * config.inner_width)

    def _vocabulary(self) -> int:
        values = read_json(self._description.mllm / CONFIG_FILE)
        return int((values.get("text_config") or values)["vocab_size"])

    def _autoencoder(self) -> int:
        from sigma_model.vae import Vae

        with torch.device("meta"):
            return sum(one.numel() for one in Vae(self._description.vae).parameters())

    def _encoding(self) -> float:
        """The largest image in float32: four maps of all pixels at its first width, or attention's scores."""
        pixels = min(self._description.geometry.max_side**2, self._description.geometry.max_pixels)
        vae = self._description.vae
        return 4 * max(4 * pixels * vae.ch, (pixels / vae.downsample**2) ** 2)
