"""Bytes of one rank, as far as they are the same for both backbones: states, sharding, the autoencoder, the peak."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence, Set
from typing import ClassVar

import numpy as np
import torch

from pipelines.train.adamw import moment_bytes
from pipelines.train.config import TrainConfig
from pipelines.train.estimate.tape import Tape
from sigma_data.planning.segment_table import SegmentTable
from sigma_data.sequence.layout import Kind
from sigma_model.config import VaeConfig
from sigma_model.quantization import Quantization, is_quantised, stored_bytes

Layer = tuple[float, float]
"""Numbers that a layer keeps for its backward pass, and those of its input alone, which it keeps if computed again."""


def largest_encoded(tables: Iterable[SegmentTable], *, stride: int, delimiters: int) -> int:
    """Pixels of the largest image that the autoencoder encodes of these corpora; `stride`: of a token's side.

    `delimiters`: tokens of a segment besides the image's. Samples that are in no plan do not count.
    """
    most = 0
    for table in tables:
        planned = np.repeat(table.total > 0, np.diff(table.first))
        encoded = table.length[planned & np.isin(table.kind, (Kind.LATENT, Kind.TARGET))]
        most = max(most, int(encoded.max(initial=delimiters)) - delimiters)
    return most * stride**2


class RankMemory(ABC):
    """Bytes of one rank. A pack is one of `data.budget` tokens, made up as those that were looked at.

    c: bytes of a number in the forward pass, m: of a trainable one (with LoRA: 4). `shapes` are those of all
    parameters, of which those named in `trained` are trainable. `largest_image`: pixels of the largest that is encoded.
    """

    _layer_names: ClassVar[Sequence[str]]
    """What stands before the number of a layer in the names of its parameters."""

    def __init__(
        self,
        config: TrainConfig,
        shapes: Mapping[str, tuple[int, ...]],
        trained: Set[str],
        vae: VaeConfig,
        *,
        ranks: int,
        on_gpu: bool,
        largest_image: int,
    ) -> None:
        self.ranks, self.largest_image = ranks, largest_image
        self._config, self._vae, self._shapes, self._trained = config, vae, shapes, trained
        self._shard = config.parallel.shard or ranks
        self._c = {"auto": 2 if on_gpu else 4, "float32": 4, "bfloat16": 2}[config.model.dtype]
        master = {"float32": 4, "bfloat16": 2}[config.model.master]
        sizes = {name: math.prod(shape) for name, shape in shapes.items()}
        self.trainable = sum(sizes[name] for name in trained)
        self.trainable_tensors = len(trained)
        self.trainable_bytes = self.trainable * (4 if config.lora is not None else master)
        eight_bit = config.optimizer.states == "8bit"
        self.moments = sum(moment_bytes(shapes[name], eight_bit=eight_bit) for name in trained)
        kind = Quantization(config.model.quantize) if config.model.quantize is not None else None
        few = [name for name in sizes if kind is not None and is_quantised(name)]
        self._quantised = sum((stored_bytes(kind, shapes[name]) for name in few if kind is not None), 0.0)
        self._restored = max((sizes[name] for name in few), default=0) * (
            self._c + (8 if kind is Quantization.FP8 else 0)
        )
        self._sizes = {name: size for name, size in sizes.items() if name not in few}
        self._frozen_bytes = (sum(self._sizes.values()) - self.trainable) * self._c
        self._fsdp = ranks > 1 or master != self._c or config.parallel.offload

    def parts(self) -> dict[str, float]:
        """Everything, by part; offloaded parts are left out."""
        kept, once = self._activations()
        return {
            **{part: size for part, size in self._states().items() if not self._moved(part)},
            **self._whole(),
            "gathered layers": self._gathered(),
            "activations": kept * self._c,
            "a layer computed again": once * self._c,
            "gradients within a layer": self._backward() * self._c,
            **({"a weight restored": self._restored} if self._quantised else {}),
            "logits": self._logits() * (8 + self._c),
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

    def _gathered(self) -> float:
        """What FSDP has whole: all outside layers, two layers (c each), one layer's gradients (c, and 4 to reduce)."""
        if not self._fsdp:
            return 0
        layers: dict[str, int] = {}
        trainable: dict[str, int] = {}
        root = 0
        for name, size in self._sizes.items():
            place = next((one for one in self._layer_names if one in name), None)
            if place is None:
                root += size
                continue
            head, _, tail = name.partition(place)
            prefix = f"{head}{place}{tail.partition('.')[0]}"
            layers[prefix] = layers.get(prefix, 0) + size
            trainable[prefix] = trainable.get(prefix, 0) + size * (name in self._trained)
        return (root + 2 * max(layers.values())) * self._c + max(trainable.values()) * (self._c + 4)

    def _activations(self) -> tuple[float, float]:
        """Numbers that are kept for the backward pass, and those of the largest layer that is computed again."""
        layers, outside = self._layers()
        every = {"none": 0, "selective": 2, "full": 1}[self._config.parallel.checkpointing]
        again = [every > 0 and number % every == 0 for number in range(len(layers))]
        kept = sum(small if repeated else full for (full, small), repeated in zip(layers, again, strict=True))
        return kept + outside, max(
            (full for (full, _), repeated in zip(layers, again, strict=True) if repeated), default=0
        )

    def _tape(self) -> Tape:
        return Tape(self._shapes, self._trained)

    @staticmethod
    def _layer_of(tape: Tape, inputs: float) -> Layer:
        """A layer that keeps what is on the tape; through which no gradient goes, it keeps no inputs either."""
        return tape.numbers, inputs if tape.numbers else 0

    def _autoencoder(self) -> float:
        """Its weights in float32, whole on every rank."""
        from sigma_model.vae import Vae

        with torch.device("meta"):
            return 4.0 * sum(one.numel() for one in Vae(self._vae).parameters())

    def _encoding(self) -> float:
        """The largest image in float32: four maps of all pixels at its first width, or attention's scores."""
        pixels = self.largest_image
        return 4 * max(4 * pixels * self._vae.ch, (pixels / self._vae.downsample**2) ** 2)

    @abstractmethod
    def _whole(self) -> dict[str, float]:
        """Bytes of what each rank has whole besides, by part."""

    @abstractmethod
    def _layers(self) -> tuple[Sequence[Layer], float]:
        """What each layer keeps for the backward pass, and numbers that are kept outside of layers."""

    @abstractmethod
    def _backward(self) -> float:
        """Gradients of one layer's activations, at most those of an MLP: n (2 D + 3 I)."""

    @abstractmethod
    def _logits(self) -> float:
        """Numbers of the answers' logits that are held at a time."""
