"""What a run of OmniGen2 takes before anything is rented, from planned lengths and headers alone.

As for BAGEL's kind (`pipelines.train.estimate`), with the formulas of another network; every one stands in a docstring.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from pipelines.train.config import TrainConfig
from pipelines.train.estimate.flops import vae_flops
from pipelines.train.estimate.rank_memory import Layer, RankMemory, largest_encoded
from pipelines.train.estimate.run_estimate import Estimate, LookedAt, by_part
from pipelines.train.estimate.tape import Tape, Value
from pipelines.train.omnigen2.build import choose_trainable, rates_for, trains_mllm
from pipelines.train.omnigen2.cost import Counts, answer_counts, padding_of, sample_counts
from pipelines.train.omnigen2.description import Omnigen2Description
from pipelines.train.omnigen2.model import Omnigen2Model
from sigma_data.planning.plan import Planner
from sigma_data.planning.segment_table import segment_table
from sigma_data.sequence.layout import Kind
from sigma_model.answer_loss import LOGIT_ROWS
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
    """An epoch: packs, counts of `looked_at` of them, pixels of the largest image (None: as in `EpochWork`)."""

    packs: int
    looked_at: int
    counts: Counts
    largest_image: int | None = None

    @classmethod
    def of(cls, planner: Planner, description: Omnigen2Description, *, most: int = 64) -> EpochCounts:
        """Look at `most` packs of the first epoch, evenly spread, by their lengths alone."""
        plan = planner.plan(0)
        tables = [segment_table(index, planner.geometry) for index in planner.indexes]
        chosen = np.unique(np.linspace(0, len(plan) - 1, min(most, len(plan))).round().astype(int)).tolist()
        counts = Counts()
        for pack in chosen:
            prompts: list[int] = []
            answers: list[int] = []
            for entry in plan.ticket(pack).entries:
                table = tables[entry.corpus]
                first, last = int(table.first[entry.row]), int(table.first[entry.row + 1])
                lengths: dict[Kind, list[int]] = {kind: [] for kind in Kind}
                for kind, length in zip(
                    table.kind[first:last].tolist(), table.length[first:last].tolist(), strict=True
                ):
                    lengths[Kind(kind)].append(length)
                sample = _of_sample(lengths, description)
                (prompts if lengths[Kind.TARGET] else answers).append(sample.asked)
                counts += sample
            counts += padding_of(prompts, answers)
        largest = largest_encoded(tables, stride=description.geometry.stride, delimiters=0)
        return cls(len(plan), len(chosen), counts, largest)


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
    largest = planned.largest_image
    memory = Omnigen2Memory(config, description, counts, parameters, ranks=ranks, on_gpu=on_gpu, largest_image=largest)
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
        largest_image: int | None = None,
    ) -> None:
        if largest_image is None:
            largest_image = min(description.geometry.max_side**2, description.geometry.max_pixels)
        super().__init__(
            config, parameters.shapes, parameters.trainable, description.vae, ranks=ranks, on_gpu=on_gpu,
            largest_image=largest_image,
        )  # fmt: skip
        self._description, self._beside = description, parameters.beside
        self._counts = counts.scaled(config.data.budget / max(1, counts.planned))

    def _whole(self) -> dict[str, float]:
        return {"frozen language model": self._beside * self._c} if self._beside else {}

    def _layers(self) -> tuple[list[Layer], float]:
        """What each layer keeps for the backward pass, by the rules of `Tape`; and what is kept outside of them.

        With everything trained a block keeps 18 D + 3 K + 4 I a token: inputs of its norms and linear layers, queries
        and keys before and after their norms, values, the result of attention twice, the four scales and gates of each
        token and what they scale (the text's refiner has none: 10 D + 3 K + 4 I). Frozen linear layers without an
        adapter keep no inputs, frozen scales not what they scale. A layer of the language model, if gradients pass
        through it, keeps 10 of its widths and 4 I, keys and values repeated for each query head among them. A layer
        that is computed again keeps its inputs. Outside: the embedders, the final layer, rotary angles.
        """
        config, counts, outside = self._description.config, self._counts, self._tape()
        time = outside.trains("transformer.time_caption_embed.timestep_embedder")
        language, text = self._language(outside) if trains_mllm(self._config) else ([], False)
        states = Value(counts.text, config.text_feat_dim, text)
        embed = "transformer.time_caption_embed.caption_embedder"
        caption = outside.linear(f"{embed}.1", outside.norm(f"{embed}.0", states))
        of_images = [
            outside.linear(f"transformer.{name}", Value(rows, config.features, False)).needs
            for name, rows in (("x_embedder", counts.target), ("ref_image_patch_embedder", counts.latent))
        ]
        numbered = "transformer.image_index_embedding" in self._trained
        refined, stages = (
            [],
            (
                ("context_refiner", counts.text, caption.needs),
                ("noise_refiner", counts.target, of_images[0]),
                ("ref_image_refiner", counts.latent, of_images[1] or numbered),
            ),
        )
        layers = []
        for name, rows, needs in stages:
            x, of_stage = self._stack(
                f"transformer.{name}", config.num_refiner_layers, Value(rows, config.hidden_size, needs), time
            )
            layers += of_stage
            refined.append(x.needs)
        joint = Value(counts.joint, config.hidden_size, any(refined))
        joint, main = self._stack("transformer.layers", config.num_layers, joint, time)
        wanted = joint.copy(rows=counts.target)
        scale = Value(counts.target, config.hidden_size, time or outside.trains("transformer.norm_out.linear_1"))
        normed = outside.norm("transformer.norm_out", wanted)
        outside.linear("transformer.norm_out.linear_2", outside.product(normed, scale))
        angles = config.head_dim * 2 * counts.joint  # each token's twice: in its refiner and in the main layers
        return [*main, *layers, *language], outside.numbers + angles

    def _stack(self, name: str, count: int, x: Value, time: bool) -> tuple[Value, list[Layer]]:
        """Blocks one behind another. `time`: a gradient of the time's embedding is wanted."""
        layers = []
        for number in range(count):
            tape, inputs = self._tape(), x.rows * x.width
            x = _block(tape, f"{name}.{number}", x, None if "context" in name else time)
            layers.append(self._layer_of(tape, inputs))
        return x, layers

    def _language(self, outside: Tape) -> tuple[list[Layer], bool]:
        """The language model's layers, then its vision encoder's; and whether gradients of its states are wanted.

        Its norms are computed in float32: four bytes a number, whatever c is.
        """
        values = read_json(self._description.mllm / CONFIG_FILE)
        text, vision = values.get("text_config") or values, values["vision_config"]
        wide = 4 / self._c
        model, visual = "mllm.model.language_model", "mllm.model.visual"
        x = Value(self._counts.patches, int(vision["hidden_size"]), outside.trains(f"{visual}.patch_embed"))
        blocks, layers = [], []
        for number in range(int(vision["depth"])):
            tape, inputs = self._tape(), x.rows * x.width
            x = _vision_block(tape, f"{visual}.blocks.{number}", x, wide)
            blocks.append(self._layer_of(tape, inputs))
        seen = x.needs or outside.trains(f"{visual}.merger")
        rows = self._counts.asked + self._counts.padding
        x = Value(rows, int(text["hidden_size"]), seen or outside.trains(f"{model}.embed_tokens"))
        for number in range(int(text["num_hidden_layers"])):
            tape, inputs = self._tape(), x.rows * x.width
            x = _language_layer(tape, f"{model}.layers.{number}", x, wide)
            layers.append(self._layer_of(tape, inputs))
        normed = outside.norm_in_parts(f"{model}.norm", x, wide=wide)
        return layers + blocks, normed.needs

    def _backward(self) -> float:
        config = self._description.config
        return self._counts.joint * (2 * config.hidden_size + 3 * config.inner_width)

    def _logits(self) -> float:
        values = read_json(self._description.mllm / CONFIG_FILE)
        return min(self._counts.learnt, LOGIT_ROWS) * int((values.get("text_config") or values)["vocab_size"])


def _block(tape: Tape, name: str, x: Value, time: bool | None) -> Value:
    """A block of the transformer; `time` None: not modulated."""
    scale = time or (time is not None and tape.trains(f"{name}.norm1.linear"))

    def scaled(normed: Value) -> Value:
        return normed if time is None else tape.product(normed, Value(x.rows, x.width, scale))

    attn, mlp = f"{name}.attn", f"{name}.feed_forward"
    normed = scaled(tape.norm(f"{name}.norm1" if time is None else f"{name}.norm1.norm", x))
    q, k, v = (tape.linear(f"{attn}.to_{part}", normed) for part in "qkv")
    attended = tape.attention(tape.norm(f"{attn}.norm_q", q), tape.norm(f"{attn}.norm_k", k), v)
    brought = tape.linear(f"{attn}.to_out.0", attended.copy())  # the samples' results, joined
    x = tape.sum(x, scaled(tape.norm(f"{name}.norm2", brought)))
    normed = scaled(tape.norm(f"{name}.ffn_norm1", x))
    brought = tape.gated_mlp(f"{mlp}.linear_1", f"{mlp}.linear_3", f"{mlp}.linear_2", normed)
    return tape.sum(x, scaled(tape.norm(f"{name}.ffn_norm2", brought)))


def _language_layer(tape: Tape, name: str, x: Value, wide: float) -> Value:
    attn, mlp = f"{name}.self_attn", f"{name}.mlp"
    normed = tape.norm_in_parts(f"{name}.input_layernorm", x, wide=wide)
    q, k, v = (tape.linear(f"{attn}.{part}_proj", normed) for part in "qkv")
    repeated = (Value(q.rows, q.width, one.needs) for one in (k, v))
    x = tape.sum(x, tape.linear(f"{attn}.o_proj", tape.attention(q.copy(), *repeated)))
    normed = tape.norm_in_parts(f"{name}.post_attention_layernorm", x, wide=wide)
    return tape.sum(x, tape.gated_mlp(f"{mlp}.gate_proj", f"{mlp}.up_proj", f"{mlp}.down_proj", normed))


def _vision_block(tape: Tape, name: str, x: Value, wide: float) -> Value:
    normed = tape.norm_in_parts(f"{name}.norm1", x, wide=wide)
    joint = tape.linear(f"{name}.attn.qkv", normed)  # values are a part of it, which keeps the whole
    q, k = (Value(x.rows, x.width, joint.needs) for _ in "qk")
    attended = tape.attention(q, k, joint)
    x = tape.sum(x, tape.linear(f"{name}.attn.proj", attended.copy()))
    normed = tape.norm_in_parts(f"{name}.norm2", x, wide=wide)
    mlp = f"{name}.mlp"
    return tape.sum(x, tape.gated_mlp(f"{mlp}.gate_proj", f"{mlp}.up_proj", f"{mlp}.down_proj", normed))
