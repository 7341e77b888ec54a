"""Starting a run from the weights that another one has trained, with an optimiser, a schedule and data of its own.

The other run's checkpoint is exported into the folder of this one, and this one starts from there: exactly as from an
export made by hand, also when it is resumed and the other run is gone.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from pipelines.train.checkpoint import complete_step
from pipelines.train.config import START, TrainConfig
from pipelines.train.distributed.process_group import ProcessGroup, on_all_ranks
from pipelines.train.export import export_run
from pipelines.train.merge_adapter import export_adapter
from pipelines.train.start_description import TAKEN, source, source_config
from sigma_data.errors import ConfigError
from sigma_data.storage.files import dump_json, write_atomic


def take_start(config: TrainConfig, group: ProcessGroup) -> TrainConfig:
    """Export `model.from_run` to OUT/start unless it lies there; returns the configuration with the step it was.

    All ranks must call this together; rank 0 does the work. Raises SigmaError for what cannot be exported, and
    ConfigError where OUT/start was made from another run.
    """
    start = config.out / START
    if config.model.adapter is not None:
        return _take_adapter(config, config.model.adapter, start, group)
    if config.model.from_run is None:
        return config
    on_all_ranks(group, lambda: _export(config, start) if group.rank == 0 else None)
    taken: dict[str, Any] = json.loads((start / TAKEN).read_bytes())
    run, step = source(config)
    wanted = {"run": str(run.absolute()), "step": step, "weights": config.model.from_weights}
    for name, value in wanted.items():
        if value not in (None, "auto", taken[name]):
            raise ConfigError(
                f"{start}: was made from {taken['run']}@{taken['step']} ({taken['weights']}), and model.from_run asks "
                f"for {name} {value}: choose another `out`, or set them as they were"
            )
    settled = {"from_run": f"{run}@{taken['step']}", "from_weights": taken["weights"]}
    return config.model_copy(update={"model": config.model.model_copy(update=settled)})


def _take_adapter(config: TrainConfig, adapter: Path, start: Path, group: ProcessGroup) -> TrainConfig:
    """Merge `model.adapter` into `model.path` at OUT/start unless that was done. Raises as `take_start`."""
    taken = {"adapter": str(adapter.absolute()), "path": config.model.path}

    def merge() -> None:
        if (start / TAKEN).exists():
            there = json.loads((start / TAKEN).read_bytes())
            if there != taken:
                raise ConfigError(
                    f"{start}: was made from {there.get('path')} and {there.get('adapter')}: choose another `out`, or "
                    "set model.path and model.adapter as they were"
                )
            return
        if start.exists():
            shutil.rmtree(start)
        export_adapter(adapter, start, base=config.model.path, files=config.model.base)
        write_atomic(start / TAKEN, dump_json(taken))

    on_all_ranks(group, lambda: merge() if group.rank == 0 else None)
    return config


def _export(config: TrainConfig, start: Path) -> None:
    if (start / TAKEN).exists():
        return
    run, step = source(config)
    before = source_config(run)
    weights = config.model.from_weights
    ema = before.ema is not None if weights == "auto" else weights == "ema"
    chosen = complete_step(run, step)
    if start.exists():  # left by an export that was cut off before it was whole
        shutil.rmtree(start)
    export_run(run, start, step=chosen, ema=ema)
    taken = {"run": str(run.absolute()), "step": chosen, "weights": "ema" if ema else "raw"}
    write_atomic(start / TAKEN, dump_json(taken))
