"""The model a run starts from, as its files describe it: a preset, a directory, or another run, exported or not yet."""

from __future__ import annotations

from pathlib import Path

from pipelines.common.settings import load_settings
from pipelines.train.checkpoint import complete_step
from pipelines.train.config import START, ModelSettings, Omnigen2Settings, TrainConfig
from pipelines.train.omnigen2.description import Omnigen2Description, describe_omnigen2
from pipelines.train.omnigen2.settings_checks import check_for_omnigen2
from sigma_data.errors import ConfigError
from sigma_model.config import PRESETS, ModelConfig
from sigma_model.loading import ModelDescription, describe_model
from sigma_model.omnigen2.files import is_omnigen2
from sigma_model.run_directory import RUN_CONFIG, run_of

TAKEN = "run.json"
"""In OUT/start: the run, the step and the weights that it was made from."""


Description = ModelDescription | Omnigen2Description


def start_description(config: TrainConfig) -> Description:
    """What the run's starting model says, larger where `model.max_latent_size` says so. Raises ConfigError.

    Of a run that is not exported yet, as in a dry run, that is what it started from itself.
    """
    model = config.model
    if model.from_run is not None and not (config.out / START / TAKEN).exists():
        run, step = source(config)
        before = source_config(run)
        complete_step(run, step)
        changes = {
            "vision": model.vision and before.model.vision,
            "max_latent_size": model.max_latent_size or before.model.max_latent_size,
        }
        return start_description(before.model_copy(update={"model": before.model.model_copy(update=changes)}))
    if model.adapter is not None and not (config.out / START / TAKEN).exists():
        return describe(model.path, model, config.omnigen2)
    return describe(config.start, model, config.omnigen2)


def describe(where: str, model: ModelSettings, omnigen2: Omnigen2Settings) -> Description:
    """A directory or preset of either kind, with the settings of a run. Raises ConfigError.

    Settings that the model has no use for are refused.
    """
    if is_omnigen2(Path(where)):
        check_for_omnigen2(model)
        return describe_omnigen2(where, omnigen2, base=model.base)
    if omnigen2 != Omnigen2Settings() and (where in PRESETS or Path(where).is_dir()):
        changed = next(name for name, value in Omnigen2Settings() if getattr(omnigen2, name) != value)
        raise ConfigError(f"omnigen2.{changed}: {where} is not an OmniGen2 model: leave it out")
    return describe_model(where, base=model.base, vision=model.vision, max_latent_size=model.max_latent_size)


def training_config(released: ModelConfig, config: TrainConfig) -> ModelConfig:
    """The model's configuration with what the run changes of it."""
    vision = released.vision if config.model.vision else None
    projection = released.attribute_projection or config.model.attribute_projection
    return released.model_copy(update={"vision": vision, "attribute_projection": projection})


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


def source_config(run: Path) -> TrainConfig:
    """The configuration of a run, where it lies now. Raises ConfigError if it is not a run."""
    if run_of(run) is None:
        raise ConfigError(f"{run}: is not the folder of a training run: it has no {RUN_CONFIG} and checkpoints")
    return located(load_settings(TrainConfig, run / RUN_CONFIG, ()), run)


def located(config: TrainConfig, run: Path) -> TrainConfig:
    """The configuration of a run that may have been moved since it was written."""
    return config.model_copy(update={"out": run})
