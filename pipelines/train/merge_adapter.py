"""An adapter and its base as one model: what `sigma export ADAPTER` writes, and what `model.adapter` starts from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from pipelines.train.config import TrainConfig
from pipelines.train.export import refuse_taken, started_type, write_released, written_whole
from pipelines.train.omnigen2 import export as omnigen2
from pipelines.train.omnigen2.description import Omnigen2Description
from pipelines.train.start_description import describe
from sigma_data.errors import ConfigError
from sigma_model.checkpoint_io import init_model, load_model
from sigma_model.config import WEIGHT_FILES, weight_files
from sigma_model.loading import DType
from sigma_model.omnigen2.lora import load_adapter
from sigma_model.peft_adapter import is_peft, merge_peft, peft_settings


def export_adapter(
    adapter: Path,
    out: Path,
    *,
    base: str | None = None,
    files: str | None = None,
    dtype: DType = DType.AUTO,
    shard_bytes: int | None = None,
    overrides: Sequence[str] = (),
) -> Path:
    """Write the base of an adapter with it merged, as `export_run` writes a model; returns `out`.

    The base is `base`, or model.path=DIR of `overrides`, or what `adapter_config.json` names; `files` (model.base=DIR)
    has what it lacks. Raises ConfigError for an adapter of another model, BuildError where `out` cannot be written.
    """
    given = dict(one.split("=", 1) for one in overrides if "=" in one)
    if unknown := [one for one in overrides if one.partition("=")[0] not in ("model.path", "model.base")]:
        raise ConfigError(f"{unknown[0]}: with an adapter, model.path=DIR and model.base=DIR alone can be set")
    named = peft_settings(adapter).base if is_peft(adapter) else None
    start = base or given.get("model.path") or named
    if start is None:
        raise ConfigError(f"{adapter}: does not say what its base is: add model.path=DIR")
    refuse_taken(out)
    model = {"path": start, "base": files or given.get("model.base")}
    # A run's settings say where a model's parts are; nothing of it is trained here.
    config = TrainConfig.model_validate(
        {"out": out, "steps": 1, "data": {"corpora": [{"path": "none"}], "budget": 1024}, "model": model}
    )
    description = describe(start, config.model, config.omnigen2)
    asked = None if dtype is DType.AUTO else dtype.torch
    if isinstance(description, Omnigen2Description):
        kind = asked or omnigen2.started_type(description)
        whole = omnigen2.starting(config, description, max(kind, torch.float32, key=lambda one: one.itemsize))
        load_adapter(whole.transformer, adapter)
        with written_whole(out) as folder:
            omnigen2.write_model(
                whole, config, description, folder, dtype=kind, layout=omnigen2.Layout.RELEASED, shard_bytes=shard_bytes
            )
        return out
    started = started_type(description)
    kind = asked or started
    wide = max(kind, started, key=lambda one: one.itemsize)
    if weight_files(description.directory):
        network = load_model(description.directory, dtype=wide, config=description.config)
    else:
        network = init_model(description.config, seed=config.model.seed, dtype=wide)
    merge_peft(network, adapter)
    with written_whole(out) as folder:
        write_released(network, description, folder, dtype=kind, name=WEIGHT_FILES[0], shard_bytes=shard_bytes)
    return out
