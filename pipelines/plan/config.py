"""Settings of `sigma plan`: the parts of a training run's configuration that decide what the model is shown."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from pydantic import Field

from pipelines.common.settings import load_settings
from pipelines.train.config import ModelSettings, Omnigen2Settings
from sigma_data.errors import ConfigError
from sigma_data.loading.loader import LoaderSettings
from sigma_data.planning.plan import PlanSettings
from sigma_data.settings_base import StrictModel


class PlanConfig(StrictModel, extra="ignore"):
    """What `sigma train` reads from the same file; its other settings are ignored."""

    accumulate: int = Field(1, ge=1)
    model: ModelSettings = ModelSettings()
    omnigen2: Omnigen2Settings = Omnigen2Settings()
    loader: LoaderSettings = LoaderSettings()
    data: PlanSettings


def plan_config(
    corpora: Sequence[str] = (),
    overrides: Sequence[str] = (),
    config: Path | None = None,
    *,
    model: str | None = None,
    base: str | None = None,
    accumulate: int | None = None,
) -> PlanConfig:
    """Settings as they were typed; None is what the configuration says.

    `overrides` are name=value, with or without `data.` in front. Raises ConfigError.
    """
    if not corpora and config is None:
        raise ConfigError("name a corpus, e.g. `sigma plan corpus`, or a training run's YAML with --config")
    typed = {f"data.{override.removeprefix('data.')}": override for override in overrides}
    if corpora and any(override.startswith("data.corpora") for override in typed):
        raise ConfigError("corpora are named twice: give them by their paths, or by settings data.corpora=...")
    for setting, option, value in (("path", "--model", model), ("base", "--base", base)):
        if value is not None:
            typed[f"model.{setting}={json.dumps(value)}"] = f"{option} {value}"
    return load_settings(
        PlanConfig,
        config,
        list(typed),
        accumulate=accumulate,
        typed=typed,
        data={"corpora": [{"path": corpus} for corpus in corpora]} if corpora else None,
    )
