"""Starting a run from the weights that another one has trained, with an optimiser, a schedule and data of its own.

The other run's checkpoint is exported into the folder of this one, and this one starts from there: exactly as from an
export made by hand, also when it is resumed and the other run is gone.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from pipelines.common.settings import load_settings
from pipelines.train.config import START, TrainConfig
from pipelines.train.distributed.process_group import ProcessGroup, on_all_ranks
from sigma_data.errors import ConfigError
from sigma_data.storage.files import dump_json, write_atomic
from sigma_model.loading import ModelDescription, read_blueprint
from sigma_model.run_directory import RUN_CONFIG, run_of

TAKEN = "run.json"
"""In OUT/start: the run, the step and the weights that it was made from."""


def take_start(config: TrainConfig, group: ProcessGroup) -> TrainConfig:
    """Export `model.from_run` to OUT/start unless it lies there; returns the configuration with the step it was.

    All ranks must call this together; rank 0 does the work. Raises SigmaError for what cannot be exported, and
    ConfigError where OUT/start was made from another run.
    """
    if config.model.from_run is None:
        return config
    start = config.out / START
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


def source(config: TrainConfig) -> tuple[Path, int | None]:
    """The folder of `model.from_run` and the step asked for; None is the newest."""
    text = config.model.from_run or ""
    folder, at, number = text.rpartition("@")
    stepped = bool(at) and number.isdecimal() and not Path(text).is_dir()  # a folder may have an @ in its name
    run, step = (Path(folder), int(number)) if stepped else (Path(text), None)
    run = run.expanduser()
    found = run_of(run)
    if found is None or found[0] == run.absolute():
        return run, step
    return found[0], found[1] if step is None else step


def start_description(config: TrainConfig) -> ModelDescription:
    """What the run's starting model says, larger where `model.max_latent_size` says so. Raises ConfigError.

    Of a run that is not exported yet, as in a dry run, that is what it started from itself.
    """
    model = config.model
    if model.from_run is not None and not (config.out / START / TAKEN).exists():
        from pipelines.train.export import complete_step

        run, step = source(config)
        before = source_config(run)
        complete_step(run, step)
        changes = {
            "vision": model.vision and before.model.vision,
            "max_latent_size": model.max_latent_size or before.model.max_latent_size,
        }
        return start_description(before.model_copy(update={"model": before.model.model_copy(update=changes)}))
    return read_blueprint(config.start, base=model.base, vision=model.vision, max_latent_size=model.max_latent_size)


def source_config(run: Path) -> TrainConfig:
    """The configuration of a run, where it lies now. Raises ConfigError if it is not a run."""
    if run_of(run) is None:
        raise ConfigError(f"{run}: is not the folder of a training run: it has no {RUN_CONFIG} and checkpoints")
    return located(load_settings(TrainConfig, run / RUN_CONFIG, ()), run)


def located(config: TrainConfig, run: Path) -> TrainConfig:
    """The configuration of a run that may have been moved since it was written."""
    return config.model_copy(update={"out": run})


def _export(config: TrainConfig, start: Path) -> None:
    from pipelines.train.export import complete_step, export_run

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
