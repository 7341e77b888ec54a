"""`sigma train --dry-run`: validates data, weights and checkpoints against the configuration, and estimates the cost.

It reads manifests and headers alone, so it takes seconds, whatever the model's size, and needs neither a GPU nor the
weights in memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from pipelines.common.planner import open_planner
from pipelines.train.attribute_tokens import RowSimilarity, check_token_init, start_rows_similarity
from pipelines.train.checkpoint import CHECKPOINTS, Checkpointer
from pipelines.train.config import TrainConfig
from pipelines.train.distributed.process_group import ProcessGroup
from pipelines.train.estimate.flops import parameters_of
from pipelines.train.estimate.memory import EpochWork, estimate
from pipelines.train.estimate.run_estimate import Estimate
from pipelines.train.omnigen2.description import Omnigen2Description
from pipelines.train.omnigen2.estimate import EpochCounts
from pipelines.train.omnigen2.estimate import estimate as estimate_omnigen2
from pipelines.train.omnigen2.settings_checks import check_learns, check_run, unlikely
from pipelines.train.preflight import check_autoencoder, check_optimizer, check_out, check_shards, has_weights
from pipelines.train.settings_checks import (
    EpochContent,
    Tokens,
    check_machine,
    check_projection,
    check_quantized,
    check_settings,
    check_trainable,
    model_warnings,
    warnings,
)
from pipelines.train.start_description import Description, start_description, training_config
from pipelines.train.token_rows import ROWS, TABLE
from pipelines.train.validation import validation_planner
from sigma_data.errors import ConfigError
from sigma_data.loading.loader import check_state
from sigma_data.planning.plan import Planner
from sigma_data.text_format import aligned, counted, format_bytes
from sigma_model.attention import flash_available
from sigma_model.checkpoint_io import Checkpoint, expected
from sigma_model.config import ModelConfig
from sigma_model.loading import ModelDescription
from sigma_model.model import SigmaModel
from sigma_model.model_files import stored_tensors
from sigma_model.omnigen2.vae_files import load_vae

_LISTED = 5
"""Samples without a pack that are printed; --json has all."""


@dataclass(frozen=True)
class WeightFiles:
    """The files a run starts from, as their headers describe them."""

    tensors: int
    files: int
    bytes: int


@dataclass(frozen=True)
class CorpusShards:
    """A corpus whose shards are all there. `samples`: of the first epoch."""

    name: str
    path: str
    samples: int
    shards: int
    bytes: int


@dataclass(frozen=True)
class PlanSummary:
    """A plan in short. `used`: packs that are worked off, all of an epoch or those of a validation."""

    samples: int
    packs: int
    used: int
    fill: float


@dataclass(frozen=True)
class ResumePoint:
    """The checkpoint that a run would go on from, and the next pack there."""

    step: int
    epoch: int
    pack: int


@dataclass(frozen=True)
class DryRun:
    """What a dry run has found; `weights` None is a model drawn anew, and so `tokens` None.

    `held_out` None is a run without validation; `not_held_out` says why there is none, or less than one may expect.
    """

    model: str
    weights: WeightFiles | None
    tokens: RowSimilarity | None
    autoencoder: str
    corpora: tuple[CorpusShards, ...]
    budget: int
    epoch: PlanSummary
    held_out: PlanSummary | None
    not_held_out: str
    left_out: tuple[Mapping[str, Any], ...]
    out: str
    free: int
    resumed: ResumePoint | None
    estimate: Estimate
    warnings: tuple[str, ...] = ()
    """What is possible and hardly meant, and what this machine could not carry out."""

    def as_dict(self) -> dict[str, Any]:
        """For JSON; its keys are those of earlier versions."""
        found = asdict(self)
        if self.tokens is not None:
            found["tokens"]["learn"] = found["tokens"].pop("trainable")
        return found

    def show(self) -> str:
        """What is there, what an epoch is, and the estimate, for a person."""
        rows = [("model", self.model), ("weights", self._weights()), ("VAE", f"{self.autoencoder}: fits")]
        if self.tokens is not None:
            rows.append(("attribute tokens", self.tokens.show()))
            rows += [("  warning", self.tokens.warning)] if self.tokens.warning else []
        rows += [("corpus", _corpus(one)) for one in self.corpora]
        rows += [("held out", self._held_out()), ("epoch", self._epoch()), ("writes to", self._writes())]
        rows.append(("estimated for", f"{counted(self.estimate.ranks, 'GPU')}; --ranks N for another number"))
        lines = "".join(f"warning: {line}\n" for line in self.warnings)
        return f"{aligned(rows)}\n{self._unfit()}\n{self.estimate.show()}\n{lines}"

    def _weights(self) -> str:
        if self.weights is None:
            return "none: it starts from random numbers"
        found = self.weights
        held = f"{found.tensors:,} tensors of {format_bytes(found.bytes)}"
        return f"{held} in {counted(found.files, 'file')}: names and shapes fit"

    def _held_out(self) -> str:
        if self.held_out is None:
            return f"nothing, so no validation: {self.not_held_out}"
        found = self.held_out
        but = f"; {self.not_held_out}" if self.not_held_out else ""
        return f"{counted(found.samples, 'sample')} in {counted(found.packs, 'pack')}, {found.used:,} of them used{but}"

    def _epoch(self) -> str:
        plan, whole = self.epoch, self.estimate
        epochs = whole.steps * whole.tokens_per_step / (plan.packs * plan.fill * self.budget)
        return (
            f"{counted(plan.samples, 'sample')} in {counted(plan.packs, 'pack')} of at most {self.budget:,} tokens, "
            f"{100 * plan.fill:.2f} % full; {counted(whole.steps, 'step')} are about {epochs:,.2f} epochs"
        )

    def _writes(self) -> str:
        found = self.resumed
        begins = "a new run" if found is None else f"goes on from step {found.step:,} (epoch {found.epoch})"
        # One more than are kept: the oldest goes once the newest is whole.
        most = self.estimate.checkpoint * (self.estimate.checkpoints_kept + 1)
        short = f", too few: checkpoints come to {format_bytes(most)}" if self.free < most else ""
        return f"{self.out}: {begins}; {format_bytes(self.free)} are free there{short}"

    def _unfit(self) -> str:
        if not self.left_out:
            return ""
        lines = [f"{counted(len(self.left_out), 'sample')} fit into no pack, and are left out:"]
        lines += [f"  {one['corpus']} {one['sample']}: {one['reason']}" for one in self.left_out[:_LISTED]]
        if len(self.left_out) > _LISTED:
            lines.append(f"  and {len(self.left_out) - _LISTED:,} more (--json lists all)")
        return "\n".join([*lines, ""])


def _corpus(seen: CorpusShards) -> str:
    shards = f"{counted(seen.shards, 'shard')} of {format_bytes(seen.bytes)}, all there"
    return f"{seen.path}: {counted(seen.samples, 'sample')} an epoch; {shards}"


def dry_run(config: TrainConfig, *, ranks: int = 1) -> DryRun:
    """Check all that a run needs, and estimate what it takes on `ranks` GPUs.

    Indexes of corpora that are not there yet are made, with progress; nothing else is written.
    Raises SigmaError for what would stop the run.
    """
    check_settings(config)
    _check_ranks(config, ranks)
    check_optimizer(config, ranks)
    free = check_out(config.out)
    description = start_description(config)
    parts = look_at_model(config, description)
    planner = open_planner(config.data, description, cache=config.loader.cache)
    sizes = [check_shards(index) for index in planner.indexes]
    kinds = planner.kinds()
    parts.check(kinds)
    held, not_held_out = validation_planner(config, planner)
    resumed = _resumed(config, planner)
    plan = planner.plan(0)
    drawn = np.bincount(plan.draws.corpus, minlength=len(sizes)).tolist()
    whole = parts.estimate(planner, ranks)
    epoch = EpochContent(kinds, len(plan.draws.row), len(plan), len(planner.unfit))
    return DryRun(
        model=description.directory.resolve().name,
        weights=parts.weights,
        tokens=parts.tokens,
        autoencoder=str(parts.autoencoder),
        corpora=tuple(
            CorpusShards(corpus.title, corpus.path, samples, *shards)
            for corpus, samples, shards in zip(config.data.corpora, drawn, sizes, strict=True)
        ),
        budget=config.data.budget,
        epoch=_plan_summary(planner, len(plan)),
        held_out=None if held is None else _plan_summary(held, config.validation.packs),
        not_held_out=not_held_out,
        left_out=tuple(vars(unfit) for unfit in planner.unfit),
        out=str(config.out),
        free=free,
        resumed=resumed,
        estimate=whole,
        warnings=(
            *warnings(config, epoch, steps=whole.steps, ranks=ranks),
            *parts.warnings,
            *_here(config),
        ),
    )


class _Bagel:
    """What is known of BAGEL's kind from headers. Raises ConfigError for what does not fit."""

    def __init__(self, config: TrainConfig, description: ModelDescription) -> None:
        self._config, self._description = config, description
        self._shape = training_config(description.config, config)
        self.autoencoder = check_autoencoder(description, self._shape)
        self.weights = check_weights(config, description, self._shape)
        self._parameters = parameters_of(self._shape, config.freeze, config.lora)
        rows = not self._parameters.trainable.isdisjoint((ROWS, TABLE))
        check_token_init(config, trainable=rows)
        self.tokens = start_rows_similarity(
            config, description.directory, self._shape, description.tokenizer, trainable=rows
        )
        self.warnings = model_warnings(config, self._parameters, trained=self.weights is not None)

    def check(self, kinds: Tokens) -> None:
        """Raise ConfigError where nothing would be trained."""
        trainable = self._parameters.trainable
        check_quantized(self._config, trainable)
        check_trainable(self._config, trainable, kinds)
        check_projection(self._config, trainable, released=self._description.config.attribute_projection)

    def estimate(self, planner: Planner, ranks: int) -> Estimate:
        """What the run takes."""
        return estimate(self._config, self._shape, EpochWork.of(planner), ranks=ranks)


class _Omnigen2:
    """The same of OmniGen2."""

    tokens = None

    def __init__(self, config: TrainConfig, description: Omnigen2Description) -> None:
        self._config, self._description = config, description
        check_run(config)
        load_vae(description.files.need("vae"), device="meta")
        self.autoencoder = description.files.need("vae")
        files = description.weight_files()
        self.weights = None
        if files:
            count = sum(len(stored_tensors(path)) for path in files)
            self.weights = WeightFiles(count, len(files), sum(path.stat().st_size for path in files))
        self.warnings = unlikely(config, trained=description.trained)

    def check(self, kinds: Tokens) -> None:
        """Raise ConfigError where nothing would be trained."""
        check_learns(self._config, kinds)

    def estimate(self, planner: Planner, ranks: int) -> Estimate:
        """What the run takes."""
        planned = EpochCounts.of(planner, self._description)
        return estimate_omnigen2(self._config, self._description, planned, ranks=ranks)


def look_at_model(config: TrainConfig, description: Description) -> _Bagel | _Omnigen2:
    """What the headers of the starting model say. Raises ConfigError for what does not fit the run."""
    if isinstance(description, Omnigen2Description):
        return _Omnigen2(config, description)
    return _Bagel(config, description)


def _here(config: TrainConfig) -> list[str]:
    """Why this machine could not train with these settings; another one may."""
    on_gpu = torch.cuda.is_available()
    try:
        check_machine(config, on_gpu=on_gpu, flash=on_gpu and flash_available())
    except ConfigError as error:
        return [f"on this machine: {error}"]
    return []


def _check_ranks(config: TrainConfig, ranks: int) -> None:
    shard = config.parallel.shard
    if shard is not None and ranks % shard:
        raise ConfigError(f"parallel.shard: {shard} does not divide {counted(ranks, 'rank')}: set it, or --ranks")


def check_weights(config: TrainConfig, description: ModelDescription, shape: ModelConfig) -> WeightFiles | None:
    """The weights' names and shapes; None for a preset that has none. Raises ConfigError where they do not fit."""
    directory = description.directory
    if not has_weights(config, description):
        return None
    stored = Checkpoint(directory, vision=config.model.vision, config=shape)
    with torch.device("meta"):
        stored.check(expected(SigmaModel(shape)))
    return WeightFiles(len(stored.tensors), len(stored.files), sum(path.stat().st_size for path in stored.files))


def _plan_summary(planner: Planner, most: int) -> PlanSummary:
    """The first epoch of a plan in short, `most` packs of which are used."""
    plan = planner.plan(0)
    fill = float(plan.fills.sum() / (len(plan) * planner.settings.budget))
    return PlanSummary(len(plan.draws.row), len(plan), min(most, len(plan)), round(fill, 5))


def _resumed(config: TrainConfig, planner: Planner) -> ResumePoint | None:
    """Where the run would go on. Raises ConfigError where the data is not what the checkpoint was trained on."""
    checkpointer = Checkpointer(config.out / CHECKPOINTS, ProcessGroup.single(), config.checkpoint)
    step = checkpointer.latest()
    if step is None:
        return None
    extra = checkpointer.load(step, {}, part=True)
    position = check_state(extra["data"], planner)
    return ResumePoint(step, position.epoch, position.pack)
