"""All parts of a run, put together from its configuration: data, model, optimiser, what is saved of them.

The order matters: freeze and add LoRA on the meta device, spread over ranks, then fill with numbers, so
that no rank ever holds what is not its own.
"""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pipelines.common.planner import open_planner
from pipelines.train.attribute_tokens import (
    RowSimilarity,
    attribute_ids_in_order,
    choose_trainable,
    start_rows,
    start_rows_similarity,
)
from pipelines.train.backbone import Backbone
from pipelines.train.bagel_backbone import BagelBackbone
from pipelines.train.checkpoint import CHECKPOINTS, Checkpointer
from pipelines.train.config import TrainConfig
from pipelines.train.distributed.materialize import init_weights_sharded, load_weights_sharded, write_rows
from pipelines.train.distributed.parallelize import parallelize
from pipelines.train.distributed.process_group import ProcessGroup, on_all_ranks, rank0_first
from pipelines.train.distributed.rank_agreement import compare
from pipelines.train.ema import Ema
from pipelines.train.estimate.flops import parameters_of
from pipelines.train.latent_cache import LatentCache
from pipelines.train.lora import init_lora
from pipelines.train.omnigen2.build import build_backbone, dataset_of
from pipelines.train.omnigen2.description import Omnigen2Description
from pipelines.train.omnigen2.settings_checks import check_learns, check_run, unlikely
from pipelines.train.optimizer import Optimizers, make_optimizer
from pipelines.train.origin import check_origin, origin_of
from pipelines.train.preflight import check_autoencoder, check_optimizer, check_out, check_shards, has_weights
from pipelines.train.qlora import detach_weights, quantize_weights, weight_reader
from pipelines.train.settings_checks import check_projection, check_quantized, check_trainable, model_warnings
from pipelines.train.start_description import Description, start_description, training_config
from pipelines.train.token_rows import TokenRows, rows_trainable
from pipelines.train.validation import ValidationSet, validation_planner
from sigma_data.loading.loader import START, Loader, Position, check_state
from sigma_data.loading.pack_dataset import PackDataset, PackReader
from sigma_data.planning.plan import Planner
from sigma_data.storage.files import disk_error
from sigma_model.config import VAE_FILE, ModelConfig, find_file, weight_files
from sigma_model.dtypes import DType
from sigma_model.loading import LoadedModel, ModelDescription
from sigma_model.model import SigmaModel, widths
from sigma_model.quantization import Quantization
from sigma_model.vae import Vae

logger = logging.getLogger(__name__)


@dataclass
class TrainingRun:
    """The parts of a run. `skipped` counts steps that were not taken, `bad` those of them in a row at the end.

    `total` steps are its length, those before a resume included.
    """

    config: TrainConfig
    group: ProcessGroup
    parts: Backbone
    optimizer: Optimizers
    ema: Ema | None
    planner: Planner
    dataset: PackReader
    validation: ValidationSet | None
    checkpointer: Checkpointer
    position: Position = START
    step: int = 0
    skipped: int = 0
    bad: int = 0
    total: int = 0
    resumed: bool = False
    origin: Mapping[str, str] = field(default_factory=dict)
    """What a checkpoint leaves out, and a resumed run must have as before: by name, as `origin_of` says."""
    tokens: RowSimilarity | None = None
    """Of the rows that the attribute tokens started from."""
    warnings: Sequence[str] = ()
    """What is possible but hardly meant, a line each."""

    def state(self) -> dict[str, dict[str, Any]]:
        """What a checkpoint holds: the trainable parameters, and the optimiser's and the EMA's state of them."""
        trainable = {name: p for name, p in self.parts.model.named_parameters() if p.requires_grad}
        state: dict[str, dict[str, Any]] = {
            "model": {name: parameter.detach() for name, parameter in trainable.items()},
            "optimizer": {
                f"{name}.{what}": value
                for name, parameter in trainable.items()
                for what, value in self.optimizer.state[parameter].items()
            },
        }
        if self.ema is not None:
            state["ema"] = self.ema.state_dict()
        return state

    def save(self, data: dict[str, Any]) -> None:
        """Save a checkpoint of this step; `data` is the loader's state."""
        length = {"total": self.total, "of": self._length()}
        extra = {
            "step": self.step, "skipped": self.skipped, "bad": self.bad, "length": length, "data": data,
            "origin": dict(self.origin),
        }  # fmt: skip
        self.checkpointer.save(self.step, self.state(), extra)

    def resume(self) -> None:
        """Go on from the newest checkpoint, if any; otherwise from the start."""
        try:
            self.checkpointer.tidy()
        except OSError as error:
            raise disk_error(error, self.config.out, option="out=") from None
        step = self.checkpointer.latest()
        length: dict[str, Any] = {}
        if step is not None:
            extra = self.checkpointer.read_extra(
                step
            )  # first, for it says in words what shapes of tensors only hint at
            check_origin(extra.get("origin", {}), self.origin)
            self.position = check_state(extra["data"], self.planner)
            self.checkpointer.load(step, self.state())
            self.resumed = True
            self.step, self.skipped, self.bad, length = (extra[key] for key in ("step", "skipped", "bad", "length"))
        # Epochs differ by a few packs: counted anew in the middle, the total and with it the schedule would change.
        same = length.get("of") == self._length()
        self.total = length["total"] if same else self._total_steps()

    def _length(self) -> list[float | None]:
        """All that decides the length of a run, but for its data."""
        return [self.config.steps, self.config.epochs, self.group.size * self.config.accumulate]

    def loader(self) -> Loader:
        """This rank's packs from here on."""
        settings = self.config.loader
        if self.config.parallel.offload and settings.start_method == "auto":
            # A forked worker would keep a copy of every page of the parameters that a step changes.
            settings = settings.model_copy(update={"start_method": "spawn"})
        return Loader(
            self.planner,
            self.dataset,
            rank=self.group.rank,
            world=self.group.size,
            settings=settings,
            position=self.position,
        )

    def _total_steps(self) -> int:
        """Steps so far and those that are left; every epoch is taken to be as long as the one that is under way."""
        if self.config.steps is not None:
            return self.config.steps
        assert self.config.epochs is not None
        packs = len(self.planner.plan(self.position.epoch))
        left = (self.config.epochs - self.position.epoch) * packs - self.position.pack
        return self.step + max(0, math.ceil(left / (self.group.size * self.config.accumulate)))


@dataclass(frozen=True)
class _Kind:
    """What a kind of model brings to a run."""

    dataset: Callable[[Planner], PackReader]
    build: Callable[[], Backbone]
    tokens: Callable[[nn.Module], RowSimilarity | None]
    warnings: Sequence[str]


def make_run(config: TrainConfig, group: ProcessGroup) -> TrainingRun:
    """Put a run together and resume it from its checkpoint, if any. Raises SigmaError for what does not fit."""
    description = on_all_ranks(group, lambda: _checked_description(config, group))
    planner = rank0_first(group, lambda: open_planner(config.data, description, cache=config.loader.cache))
    on_all_ranks(group, lambda: [check_shards(index) for index in planner.indexes] if group.rank == 0 else [])
    origin = origin_of(config, description)
    if group.store is not None:
        facts = {**origin, **read_facts(description, planner)}
        compare(group.store, rank=group.rank, size=group.size, stage="files", facts=facts)
    if isinstance(description, Omnigen2Description):
        kind = _omnigen2(config, description, planner, group)
    else:
        kind = _bagel(config, description, planner, group)
    held, note = validation_planner(config, planner)
    if config.validation.every and note and group.rank == 0:
        logger.warning("train: validation: %s: set validation.split, or validation.every=0", note)
    dataset = kind.dataset(planner)
    validation = None if held is None else ValidationSet(config, group, held, kind.dataset(held))
    parts = kind.build()
    if config.loader.latent_cache and config.loader.workers and group.device.type == "cpu":
        # A step takes as long as it trains: images are encoded beside it, to the same bits, for each is by itself.
        dataset.encode = LatentCache(parts.vae, config.loader.latent_cache // config.loader.workers).encoded
    ema = Ema(parts.model.named_parameters(), config.ema.decay) if config.ema is not None else None
    run = TrainingRun(
        config=config,
        group=group,
        parts=parts,
        optimizer=make_optimizer(parts.model, config.optimizer),
        ema=ema,
        planner=planner,
        dataset=dataset,
        validation=validation,
        checkpointer=Checkpointer(config.out / CHECKPOINTS, group, config.checkpoint),
        origin=origin,
        tokens=kind.tokens(parts.model),
        warnings=kind.warnings,
    )
    run.resume()
    return run


def _bagel(config: TrainConfig, description: ModelDescription, planner: Planner, group: ProcessGroup) -> _Kind:
    """BAGEL's kind. Raises ConfigError for settings and data that do not go together."""
    shape, tokenizer = training_config(description.config, config), description.tokenizer
    trained = has_weights(config, description)
    parameters = parameters_of(shape, config.freeze, config.lora)
    check_quantized(config, parameters.trainable)
    check_trainable(config, parameters.trainable, planner.kinds())
    check_projection(config, parameters.trainable, released=description.config.attribute_projection)

    def dataset(one: Planner) -> PackReader:
        cache = config.loader.shard_cache()
        return PackDataset(one.indexes, one.recipe, tokenizer, description.geometry, widths(shape), cache=cache)

    def build() -> Backbone:
        vae = Vae.load(find_file(VAE_FILE, *description.places), shape.vae, device=group.device)
        model = build_model(config, description, shape, group)
        name = description.directory.name
        return BagelBackbone(config, LoadedModel(name, model, vae, tokenizer, description.geometry, trained=trained))

    def tokens(model: nn.Module) -> RowSimilarity | None:
        assert isinstance(model, SigmaModel)
        return start_rows_similarity(config, description.directory, shape, tokenizer, trainable=rows_trainable(model))

    return _Kind(dataset, build, tokens, model_warnings(config, parameters, trained=trained))


def _omnigen2(config: TrainConfig, description: Omnigen2Description, planner: Planner, group: ProcessGroup) -> _Kind:
    """OmniGen2. Raises ConfigError as `_bagel` does."""
    check_learns(config, planner.kinds())
    return _Kind(
        dataset=lambda one: dataset_of(config, description, one),
        build=lambda: build_backbone(config, description, group, dtype=compute_dtype(config, group.device)),
        tokens=lambda _model: None,
        warnings=unlikely(config, trained=description.trained),
    )


def _checked_description(config: TrainConfig, group: ProcessGroup) -> Description:
    """The model's description, once all that can be seen without its weights has been looked at."""
    description = start_description(config)
    check_out(config.out)
    check_optimizer(config, group.size)
    if isinstance(description, Omnigen2Description):
        check_run(config)
        return description
    has_weights(config, description)
    check_autoencoder(description, training_config(description.config, config))
    return description


def read_facts(description: Description, planner: Planner) -> dict[str, str]:
    """What a rank has read besides the weights, to be compared with the others: model files, corpora, packs."""
    digest = hashlib.sha256()
    plan = planner.plan(0)
    for array in (plan.draws.corpus, plan.draws.row, plan.draws.round, plan.lengths, plan.fills):
        digest.update(array.tobytes())
    if isinstance(description, Omnigen2Description):
        vae_files = sorted(description.files.need("vae").glob("*.safetensors"))
    else:
        vae_files = [find_file(VAE_FILE, *description.places)]
    return {
        "the model's configuration": hashlib.sha256(description.config.model_dump_json().encode()).hexdigest()[:12],
        "the tokenizer": description.tokenizer.digest[:12],
        "the VAE": " ".join(_file_digest(path) for path in vae_files),
        **{f"corpus {number}": f"of manifest {index.digest[:12]}" for number, index in enumerate(planner.indexes, 1)},
        "the plan of the packs": digest.hexdigest()[:12],
    }


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:12]


def build_model(
    config: TrainConfig, description: ModelDescription, shape: ModelConfig, group: ProcessGroup
) -> SigmaModel:
    """The network of a run, spread over the ranks, with its starting weights.

    Trainable parameters are kept in `model.master`, with LoRA in float32; frozen ones in the dtype of the layers, or
    as `model.quantize` says.
    """
    compute = compute_dtype(config, group.device)
    master = torch.float32 if config.lora is not None else DType(config.model.master).torch
    with torch.device("meta"):
        model = SigmaModel(shape)
    ids = attribute_ids_in_order(description.tokenizer.attribute_ids)
    choose_trainable(model, config, ids)
    kind, left_out = config.model.quantize, dict[str, torch.Size]()
    if kind is not None:
        left_out = detach_weights(model)
    parallelize(model, group, config.parallel, dtype=compute)
    vision, seed = config.model.vision, config.model.seed
    directory = description.directory if weight_files(description.directory) else None
    if directory is not None:
        load_weights_sharded(model, directory, group, dtype=compute, trainable=master, vision=vision, left_out=left_out)
    else:
        init_weights_sharded(model, seed, group, dtype=compute, trainable=master)
    if kind is not None:
        read = weight_reader(model, directory, dtype=compute, device=group.device, vision=vision, seed=seed)
        quantize_weights(model, Quantization(kind), read)
    if config.lora is not None:
        init_lora(model, seed=config.model.seed)
    embed, init = model.backbone.embed, config.model.token_init
    if isinstance(embed, TokenRows) or init != "keep":
        rows = start_rows(description.directory, shape, description.tokenizer, init=init, seed=config.model.seed)
        if isinstance(embed, TokenRows):
            write_rows(embed.rows, range(len(ids)), rows)
        else:
            write_rows(embed.weight, ids, rows)
    return model.train()


def compute_dtype(config: TrainConfig, device: torch.device) -> torch.dtype:
    """What layers compute in."""
    if config.model.dtype == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return DType(config.model.dtype).torch


def computes_otherwise(config: TrainConfig) -> bool:
    """Whether layers compute in another dtype than trainable parameters have, wherever this machine runs them.

    LoRA adapters and the attribute tokens' rows beside them do not count: they turn into the dtype of what passes
    through them by themselves.
    """
    if config.lora is not None and not config.lora.train:
        return False
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return compute_dtype(config, device) != DType(config.model.master).torch
