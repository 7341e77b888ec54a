"""What a run of BAGEL's kind will take before anything is rented: parameters, memory of a GPU, disk, arithmetic, hours.

Every number follows from a formula in the docstring of its function, the configuration, and the planned packs' lengths.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass

import numpy as np

from pipelines.train.config import TrainConfig
from pipelines.train.estimate.flops import (
    Parameters,
    Work,
    gradients_enter,
    parameters_of,
    training_flops,
    training_flops_by_module,
    vae_flops,
)
from pipelines.train.estimate.rank_memory import Layer, RankMemory, largest_encoded
from pipelines.train.estimate.run_estimate import Estimate, LookedAt, by_part
from pipelines.train.estimate.tape import Tape, Value
from pipelines.train.token_rows import ROWS
from sigma_data.loading.batch import Run
from sigma_data.planning.plan import Planner
from sigma_data.planning.segment_table import SegmentTable, segment_table
from sigma_data.sequence.layout import DELIMITERS, Geometry, Kind
from sigma_model.answer_loss import LOGIT_ROWS
from sigma_model.attention_mask import visible_pairs
from sigma_model.config import ModelConfig

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
    """An epoch: its packs and samples, the work of `looked_at` packs of it, pixels of the largest image it encodes.

    The latter is None where no corpus is known: the largest that the model takes is assumed.
    """

    packs: int
    samples: int
    looked_at: int
    work: Work
    largest_image: int | None = None

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
        largest = largest_encoded(tables, stride=stride, delimiters=DELIMITERS)
        return cls(len(plan), len(plan.draws.row), len(chosen), work, largest)


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


def estimate(
    config: TrainConfig, model_config: ModelConfig, planned: EpochWork, *, ranks: int, on_gpu: bool = True
) -> Estimate:
    """What a run on `ranks` devices takes, as `Estimate.of` has it. `on_gpu` settles what `model.dtype` auto means.

    `model_config` is the one that is trained, with or without vision as the run has it.
    """
    parameters = parameters_of(model_config, config.freeze, config.lora)
    work, frozen, lora, checkpointing = planned.work, config.freeze, config.lora, config.parallel.checkpointing
    model, hardware = training_flops(model_config, work, frozen=frozen, lora=lora, checkpointing=checkpointing)
    modules = training_flops_by_module(model_config, work, frozen=frozen, lora=lora, checkpointing=checkpointing)
    largest = planned.largest_image
    memory = Memory(config, model_config, work, parameters, ranks=ranks, on_gpu=on_gpu, largest_image=largest)
    found = by_part(_PARTS, parameters.shapes, parameters.trainable)
    vae = vae_flops(model_config.vae, work)
    looked_at = LookedAt(planned.packs, planned.looked_at, work.tokens, model, hardware, vae, modules)
    return Estimate.of(config, memory, {part: found[part] for part in reversed(found)}, looked_at)


class Memory(RankMemory):
    """Bytes of one rank.

    D: hidden width, K: key/value heads x head width, I: MLP width, n: tokens of an expert, N: of both.
    """

    _layer_names = (".layers.",)

    def __init__(
        self,
        config: TrainConfig,
        model: ModelConfig,
        work: Work,
        parameters: Parameters,
        *,
        ranks: int,
        on_gpu: bool,
        largest_image: int | None = None,
    ) -> None:
        if largest_image is None:
            largest_image = min(model.vae_rule.max_size**2, model.vae_rule.max_pixels)
        super().__init__(
            config, parameters.shapes, parameters.trainable, model.vae, ranks=ranks, on_gpu=on_gpu,
            largest_image=largest_image,
        )  # fmt: skip
        self._model, self._parameters = model, parameters
        scale = config.data.budget / max(1, work.tokens)
        self._counts: dict[str, float] = {name: count * scale for name, count in asdict(work).items()}
        self._counts |= {"und": work.und_tokens * scale, "gen": work.gen_tokens * scale}

    def _whole(self) -> dict[str, float]:
        return {"position tables": self._tables()}

    def _tables(self) -> float:
        """The fixed tables of positions, whole on every rank: D c a place."""
        vision = self._model.vision.grid**2 if self._model.vision is not None else 0
        return (self._model.latent.grid**2 + vision) * self._model.language.hidden_size * self._c

    def _layers(self) -> tuple[list[Layer], float]:
        """What each layer keeps for the backward pass, by the rules of `Tape`; and what is kept outside of them.

        With everything trained a layer keeps N (3 D + 2 K) for attention (queries, keys, values, result twice); for
        each expert n (3 D + K) before it (input, normed, queries and keys before their norms) and n (2 D + 4 I)
        behind it (sum, normed, four of the MLP), the last layer for tokens with a loss alone. A ViT layer: 9 and 2 x
        its widths a patch. Frozen linear layers without an adapter keep no inputs, an expert that is not recorded
        nothing of its own. A layer that is computed again keeps its inputs. Outside: the final norms and heads over
        tokens with a loss, the connector, rotary angles. On a CPU all norms keep a second tensor.
        """
        language, outside = self._model.language, self._tape()
        entering = gradients_enter(self._model, self._parameters, self._config.freeze)
        states = {
            expert: Value(self._counts[expert], language.hidden_size, needs)
            for expert, needs in zip(("und", "gen"), entering, strict=True)
        }
        layers: list[Layer] = []
        for number in range(language.num_hidden_layers):
            tape, last = self._tape(), number == language.num_hidden_layers - 1
            states = self._layer(tape, f"backbone.layers.{number}", states, last=last)
            layers.append(self._layer_of(tape, self._tokens * language.hidden_size))
        for expert, head in (("und", "lm_head"), ("gen", "latent_out")):
            if expert in self._recorded():
                outside.linear(head, outside.norm(f"backbone.norm_{expert}", states[expert]))
        layers += self._vision(outside)
        return layers, outside.numbers + 2 * language.head_dim * self._tokens

    @property
    def _tokens(self) -> float:
        return self._counts["und"] + self._counts["gen"]

    def _layer(self, tape: Tape, name: str, states: Mapping[str, Value], *, last: bool) -> dict[str, Value]:
        """Both experts around one attention."""
        parts = [self._project(tape, f"{name}.{expert}", x) for expert, x in states.items()]
        q, k, v = (
            Value(self._tokens, one[0].width, any(part.needs for part in one)) for one in zip(*parts, strict=True)
        )
        attended = tape.attention(q, k, v).copy()  # the samples' results, joined
        found = {}
        for expert, x in states.items():
            if expert not in self._recorded():
                found[expert] = x
                continue
            if last:
                rows = self._counts[self._recorded()[expert]]
                x, mine = x.copy(rows=rows), attended.copy(rows=rows)
            else:
                mine = attended  # a part of it, which keeps the whole
            x = tape.sum(x, tape.linear(f"{name}.{expert}.o", mine))
            normed = tape.norm(f"{name}.{expert}.post_norm", x)
            mlp = f"{name}.{expert}.mlp"
            found[expert] = tape.sum(x, tape.gated_mlp(f"{mlp}.gate", f"{mlp}.up", f"{mlp}.down", normed))
        return found

    @staticmethod
    def _project(tape: Tape, name: str, x: Value) -> tuple[Value, Value, Value]:
        normed = tape.norm(f"{name}.input_norm", x)
        q, k, v = _queries_keys_values(tape, name, normed)
        return tape.norm(f"{name}.q_norm", q), tape.norm(f"{name}.k_norm", k), v

    def _vision(self, outside: Tape) -> list[Layer]:
        """The vision encoder's layers; its last norm and the connector go on the tape `outside`."""
        vision, trains = self._model.vision, self._parameters.trains
        if vision is None:
            return []
        entering = trains("vision.patch_embedding") or trains("vision.position_embedding")
        x, layers = Value(self._counts["patch"], vision.hidden_size, entering), []
        for number in range(vision.num_hidden_layers):
            tape, name = self._tape(), f"vision.layers.{number}"
            q, k, v = _queries_keys_values(tape, name, tape.norm(f"{name}.norm1", x))
            x = tape.sum(x, tape.linear(f"{name}.out", tape.attention(q, k, v).copy()))
            inner = tape.linear(f"{name}.fc1", tape.norm(f"{name}.norm2", x))
            x = tape.sum(x, tape.linear(f"{name}.fc2", tape.activation(inner)))
            layers.append(self._layer_of(tape, x.rows * x.width))
        inner = outside.linear("connector.fc1", outside.norm("vision.norm", x))
        outside.linear("connector.fc2", outside.activation(inner))
        return layers

    def _backward(self) -> float:
        """Of an expert's MLP."""
        language = self._model.language
        most = max(self._counts[expert] for expert in self._recorded())
        return most * (2 * language.hidden_size + 3 * language.intermediate_size)

    def _recorded(self) -> dict[str, str]:
        """Experts through which gradients go -> which of their tokens carry a loss."""
        return {"gen": "target"} if not self._config.freeze.und_recorded else {"und": "answer", "gen": "target"}

    def _logits(self) -> float:
        return min(self._counts["answer"], LOGIT_ROWS) * self._model.language.vocab_size


def _queries_keys_values(tape: Tape, name: str, x: Value) -> tuple[Value, Value, Value]:
    return tape.linear(f"{name}.q", x), tape.linear(f"{name}.k", x), tape.linear(f"{name}.v", x)
