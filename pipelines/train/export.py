"""`sigma export`: a checkpoint of a run -> a directory in the released layout, or an adapter.

A checkpoint holds the trainable parameters; the rest is taken from where the run started. So a model is put together
as the run did, and the checkpoint is read over it in place: there is never a second copy.
"""

from __future__ import annotations

import os
import shlex
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from pipelines.common.settings import load_settings
from pipelines.common.weights_progress import size_of, weights_progress
from pipelines.train.attribute_tokens import attribute_ids_in_order, choose_trainable
from pipelines.train.checkpoint import CHECKPOINTS, Checkpointer, complete_step
from pipelines.train.config import TrainConfig
from pipelines.train.distributed.process_group import ProcessGroup
from pipelines.train.lora import merge_lora, save_adapter
from pipelines.train.omnigen2 import export as omnigen2
from pipelines.train.omnigen2.description import Omnigen2Description
from pipelines.train.omnigen2.export import Layout
from pipelines.train.origin import origin_of
from pipelines.train.provenance import TRAINING, training_record
from pipelines.train.settings_history import CONFIG
from pipelines.train.start_description import Description, located, start_description, training_config
from pipelines.train.token_rows import merge_token_rows
from sigma_data.errors import ConfigError
from sigma_data.sequence.tokenizer_files import write_tokenizer
from sigma_data.storage.files import disk_error, dump_json, write_atomic
from sigma_data.storage.paths import no_folder
from sigma_model.checkpoint_io import DTYPES, Checkpoint, export_model, init_model, load_model
from sigma_model.config import PRESETS, VAE_FILE, WEIGHT_FILES, find_file, weight_files
from sigma_model.interop import export_sharded, write_configs
from sigma_model.loading import DType, ModelDescription
from sigma_model.model import SigmaModel
from sigma_model.omnigen2.files import PRESETS as OMNIGEN2_PRESETS
from sigma_model.run_directory import run_of

_AVERAGES, _RAW = WEIGHT_FILES


def export_run(
    run: Path,
    out: Path,
    *,
    step: int | None = None,
    ema: bool | None = True,
    adapter: bool = False,
    released_names: bool = False,
    dtype: DType = DType.AUTO,
    shard_bytes: int | None = None,
    layout: Layout = Layout.RELEASED,
    overrides: Sequence[str] = (),
) -> Path:
    """Export the checkpoint of `step`, or the newest one, of the run in folder `run`; returns `out`.

    With `ema` the averages become `ema.safetensors`, otherwise the weights as they are `model.safetensors`; None is the
    averages, if the run keeps them. LoRA is merged into them, and the attribute tokens' own rows into the embeddings.
    `adapter` writes the LoRA adapter alone, and these rows, for peft, under our names or released ones. `dtype` auto
    is that of the weights the run started from, or float32 where it started from none; an adapter's stays as it is.
    `shard_bytes` is the largest file of weights: more of them become several, with an index (`export_sharded`).
    `layout` is for OmniGen2, whose adapter is the LoRA file of diffusers. `overrides` are model.path=DIR and
    model.base=DIR, where the run's base has moved. Every number is rounded once, but those of layers with LoRA twice
    where `dtype` is narrower than what the run started from. `out` appears by rename, whole. Memory: one copy of the
    model, and its largest tensor twice.

    Raises ConfigError where the run has no such checkpoint, averages or LoRA, or something lies at `out`, and
    BuildError where `out` cannot be written.
    """
    config = located(load_settings(TrainConfig, _settings_of(run), _moved(overrides)), run)
    if ema is None:
        ema = config.ema is not None
    if ema and config.ema is None:
        raise ConfigError(f"{run}: keeps no averages (ema is null): export its weights with --raw")
    if adapter and config.lora is None:
        raise ConfigError(f"{run}: trains no LoRA, so it has no adapter: leave --adapter out")
    if released_names and not adapter:
        raise ConfigError("--released-names belongs to --adapter: a whole export has the released names anyway")
    if shard_bytes is not None and adapter:
        raise ConfigError("--max-shard-size belongs to a whole export: an adapter is one file")
    checkpointer = Checkpointer(run / CHECKPOINTS, ProcessGroup.single(), config.checkpoint)
    chosen = complete_step(run, step)
    refuse_taken(out)
    wanted = _Wanted(
        config=config,
        checkpointer=checkpointer,
        step=chosen,
        ema=ema,
        adapter=adapter,
        released_names=released_names,
        dtype=None if dtype is DType.AUTO else dtype.torch,
        layout=layout,
        shard_bytes=shard_bytes,
    )
    description = _base(config, run)
    if isinstance(description, Omnigen2Description):
        write = _omnigen2(description, wanted)
    else:
        write = _bagel(description, wanted)
    with written_whole(out) as folder:
        write(folder)
        data = checkpointer.read_extra(chosen).get("data") or {}
        record = training_record(config, description, run=run.absolute().name, step=chosen, ema=ema, data=data)
        write_atomic(folder / TRAINING, dump_json(record))
    return out


def refuse_taken(out: Path) -> None:
    """Raise ConfigError where something lies at `out`, other than an empty folder."""
    if out.is_symlink() or (out.exists() and not (out.is_dir() and not any(out.iterdir()))):
        raise ConfigError(f"--out {out}: is there already: choose another folder")


@contextmanager
def written_whole(out: Path) -> Iterator[Path]:
    """A folder to write into, which becomes `out` by rename at the end, or is removed. Raises BuildError."""
    temporary = out.absolute().with_name(f".{out.absolute().name}.{os.getpid()}.tmp")
    try:
        temporary.mkdir(parents=True)
        yield temporary
        temporary.rename(out)
    except OSError as error:
        raise disk_error(error, out) from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@dataclass(frozen=True)
class _Wanted:
    """What is exported, and how; `dtype` None is that of the weights the run started from."""

    config: TrainConfig
    checkpointer: Checkpointer
    step: int
    ema: bool
    adapter: bool
    released_names: bool
    dtype: torch.dtype | None
    layout: Layout
    shard_bytes: int | None


def _bagel(description: ModelDescription, wanted: _Wanted) -> Callable[[Path], None]:
    """What writes a model of BAGEL's kind into a folder. Raises ConfigError."""
    if wanted.layout is not Layout.RELEASED:
        raise ConfigError(f"--layout {wanted.layout} is for OmniGen2: leave it out")
    vae = find_file(VAE_FILE, *description.places)
    if not vae.is_file():
        raise ConfigError(f"{vae}: is not there any more, and belongs to the export: put it back")
    started = started_type(description)
    written = wanted.dtype or started
    with weights_progress("read", size_of(weight_files(description.directory))):
        model = _starting(wanted.config, description, max(started, written, key=lambda kind: kind.itemsize))
    _load_trained(model, description, wanted)

    def write(folder: Path) -> None:
        if wanted.adapter:
            base = wanted.config.start
            save_adapter(model, folder, base=base, dtype=wanted.dtype, released=wanted.released_names)
            return
        merge_lora(model)
        merge_token_rows(model)
        name = _AVERAGES if wanted.ema else _RAW
        write_released(model, description, folder, dtype=written, name=name, shard_bytes=wanted.shard_bytes)

    return write


def write_released(
    model: SigmaModel,
    description: ModelDescription,
    folder: Path,
    *,
    dtype: torch.dtype,
    name: str,
    shard_bytes: int | None,
) -> None:
    """Write a model in the released layout, with the autoencoder and tokenizer of its base. Raises OSError."""
    model.config = model.config.with_rows(description.tokenizer.attribute_ids)
    shutil.copyfile(find_file(VAE_FILE, *description.places), folder / VAE_FILE)
    with weights_progress("write", sum(one.numel() for one in model.state_dict().values()) * dtype.itemsize):
        if shard_bytes is None or not export_sharded(model, folder, dtype=dtype, shard_bytes=shard_bytes):
            export_model(model, folder, dtype=dtype, name=name)
    write_tokenizer(description.words, folder, description.tokenizer)
    write_configs(folder, model.config, description.tokenizer, dtype=dtype)


def _omnigen2(description: Omnigen2Description, wanted: _Wanted) -> Callable[[Path], None]:
    """What writes an OmniGen2 into a folder. Raises ConfigError."""
    if wanted.released_names:
        raise ConfigError("--released-names is for BAGEL: OmniGen2's LoRA file has one kind of names")
    started = omnigen2.started_type(description)
    written = wanted.dtype or started
    with weights_progress("read", size_of(description.weight_files())):
        model = omnigen2.starting(wanted.config, description, max(started, written, key=lambda kind: kind.itemsize))
    _load_trained(model, description, wanted)

    def write(folder: Path) -> None:
        if wanted.adapter:
            omnigen2.write_adapter(model, folder, dtype=wanted.dtype, base=wanted.config.start)
            return
        size = sum(one.numel() for one in model.state_dict().values()) * written.itemsize
        with weights_progress("write", size):
            omnigen2.write_model(
                model,
                wanted.config,
                description,
                folder,
                dtype=written,
                layout=wanted.layout,
                shard_bytes=wanted.shard_bytes,
            )

    return write


def _settings_of(run: Path) -> Path:
    """The settings of a run. Raises ConfigError where one of its checkpoints is named instead."""
    found = run_of(run)
    if found is not None and found[0] != run.absolute():
        at = f" --step {found[1]}" if found[1] is not None else ""
        raise ConfigError(f"{run}: is a part of a run: name the run, `sigma export {shlex.quote(str(found[0]))}{at}`")
    if not run.is_dir():
        raise ConfigError(f"{no_folder(run)}: name that of a run, which is `out` of `sigma train`")
    if not (run / CONFIG).is_file():
        raise ConfigError(f"{run}: is no run of `sigma train`, which has a {CONFIG}: name the folder that `out` named")
    return run / CONFIG


def _moved(overrides: Sequence[str]) -> Sequence[str]:
    """Settings that an export may be given. Raises ConfigError for others, which would make another model of it."""
    for override in overrides:
        if override.partition("=")[0] not in ("model.path", "model.base"):
            raise ConfigError(f"{override}: an export takes model.path=DIR and model.base=DIR alone, where they moved")
    return overrides


def _base(config: TrainConfig, run: Path) -> Description:
    """What the run started from. Raises ConfigError where it is not there any more."""
    try:
        return start_description(config.model_copy(update={"model": config.model.model_copy(update={"vision": True})}))
    except ConfigError as error:
        if (
            config.model.path in (*PRESETS, *OMNIGEN2_PRESETS)
            or Path(config.start).is_dir()
            or config.model.from_run is not None
        ):
            raise
        raise ConfigError(
            f"{error}: the run {run} started from there; where it lies elsewhere now, add model.path=DIR"
        ) from None


def started_type(description: ModelDescription) -> torch.dtype:
    """The widest type among the weights a run started from; float32 where there are none."""
    if not weight_files(description.directory):
        return torch.float32
    tensors = Checkpoint(description.directory, config=description.config).tensors.values()
    return max((DTYPES.get(tensor.dtype, torch.float32) for tensor in tensors), key=lambda kind: kind.itemsize)


def _starting(config: TrainConfig, description: ModelDescription, dtype: torch.dtype) -> SigmaModel:
    """The model with the weights that the run started from, frozen and with LoRA as in the run."""
    shape = training_config(description.config, config)
    if weight_files(description.directory):
        model = load_model(description.directory, dtype=dtype, config=shape, vision=config.model.vision)
    else:
        model = init_model(shape, seed=config.model.seed, dtype=dtype)
    choose_trainable(model, config, attribute_ids_in_order(description.tokenizer.attribute_ids))
    return model


def _load_trained(model: nn.Module, description: Description, wanted: _Wanted) -> None:
    """Replace the trainable parameters by those of a checkpoint, in the dtype they are stored in."""
    config = wanted.config
    trainable = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    master = DType(config.model.master).torch
    for parameter in trainable.values():
        kind = torch.float32 if wanted.ema or config.lora is not None else master
        parameter.data = torch.empty(parameter.shape, dtype=kind)  # the old memory is given back one by one
    extra = wanted.checkpointer.load(wanted.step, {"ema" if wanted.ema else "model": trainable}, part=True)
    before, now = extra.get("origin", {}).get("model.path"), origin_of(config, description)["model.path"]
    if before is not None and before != now:
        raise ConfigError(
            f"{description.directory}: holds other weights than those that the run was trained from: name theirs with "
            "model.path=DIR"
        )
