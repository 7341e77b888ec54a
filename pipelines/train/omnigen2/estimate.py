"""What a run of OmniGen2 takes before anything is rented, from planned lengths and headers alone.

As for BAGEL's kind (`pipelines.train.estimate`), with the formulas of another network; every one stands in a docstring.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from pipelines.train.config import TrainConfig
from pipelines.train.estimate.flops import vae_flops
from pipelines.train.estimate.rank_memory import Layer, RankMemory
from pipelines.train.estimate.run_estimate import Estimate, LookedAt, by_part
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
        counts = by_part(_PARTS, self.shapes, self.trainable)
        return counts | ({"language model": (self.beside, 0)} if self.beside else {})


def estimate(
    config: TrainConfig, description: Omnigen2Description, planned: EpochCounts, *, ranks: int, on_gpu: bool = True
) -> Estimate:
    """What a run on `ranks` devices takes, as `Estimate.of` has it."""
    rates, counts = rates_for(config, description), planned.counts
    parameters = Parameters.of(config, description)
    memory = Omnigen2Memory(config, description, counts, parameters, ranks=ranks, on_gpu=on_gpu)
    vae = vae_flops(description.vae, counts.work)
    looked_at = LookedAt(
        planned.packs, planned.looked_at, counts.planned, rates.flops(counts), rates.hardware(counts), vae
    )
    return Estimate.of(config, memory, parameters.by_part(), looked_at)


class Omnigen2Memory(RankMemory):
    """Bytes of one rank. D, K, I: widths of the transformer's hidden states, keys and MLPs.

    A frozen language model is no part of the states: each rank has it whole.
    """

    _layer_names = (".layers.", "_refiner.", ".blocks.")

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
        super().__init__(config, parameters.shapes, parameters.trainable, description.vae, ranks=ranks, on_gpu=on_gpu)
        self._description, self._beside = description, parameters.beside
        self._counts = counts.scaled(config.data.budget / max(1, counts.planned))

    def _whole(self) -> dict[str, float]:
        return {"frozen language model": self._beside * self._c} if self._beside else {}

    def _layers(self) -> list[Layer]:
        """What each layer keeps for the backward pass.

        A block keeps 19 D + 6 K + 4 I a token: inputs of its norms and linear layers, queries and keys before and after
        their norms, and the four scales and gates of each token. A layer of the language model, if gradients pass
        through it, keeps 9 of its widths, 3 K and 4 I; one of its vision encoder 9 and 4 of its widths a patch. A layer
        that is computed again keeps its inputs alone. With LoRA less is kept than this (frozen linear layers and scales
        keep no inputs): about two thirds at tiny size.
        """
        config, counts = self._description.config, self._counts
        width, keys, inner = config.hidden_size, config.num_kv_heads * config.head_dim, config.inner_width
        block = 19 * width + 6 * keys + 4 * inner
        tokens = [counts.joint] * config.num_layers
        tokens += [one for one in (counts.text, counts.latent, counts.target) for _ in range(config.num_refiner_layers)]
        layers: list[Layer] = [(one * block, one * width) for one in tokens]
        return layers + (self._language_layers() if trains_mllm(self._config) else [])

    def _language_layers(self) -> list[Layer]:
        values = read_json(self._description.mllm / CONFIG_FILE)
        text, vision = values.get("text_config") or values, values["vision_config"]
        width, inner = int(text["hidden_size"]), int(text["intermediate_size"])
        keys = width // int(text["num_attention_heads"]) * int(text["num_key_value_heads"])
        asked, patches = self._counts.asked, self._counts.patches
        wide = int(vision["hidden_size"])
        layer: Layer = asked * (9 * width + 3 * keys + 4 * inner), asked * width
        block: Layer = patches * (9 * wide + 4 * int(vision["intermediate_size"])), patches * wide
        learns = self._config.omnigen2.train_mllm and not self._config.freeze.vit
        return [layer] * int(text["num_hidden_layers"]) + ([block] * int(vision["depth"]) if learns else [])

    def _backward(self) -> float:
        config = self._description.config
        return self._counts.joint * (2 * config.hidden_size + 3 * config.inner_width)

    def _logits(self) -> float:
        values = read_json(self._description.mllm / CONFIG_FILE)
        return self._counts.learnt * int((values.get("text_config") or values)["vocab_size"])

    def _largest_image(self) -> int:
        return min(self._description.geometry.max_side**2, self._description.geometry.max_pixels)
