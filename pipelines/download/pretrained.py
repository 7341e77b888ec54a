"""A model by name from Python, as diffusers has it: a directory, a preset, or the hub through `sigma download`."""

from __future__ import annotations

import logging
from os import PathLike
from pathlib import Path
from typing import Any

from pipelines.download.catalog import find_entry
from pipelines.download.run import download, plan_download
from sigma_data.errors import ConfigError, SourceError
from sigma_data.storage.paths import model_path
from sigma_model.api import Model, load
from sigma_model.config import PRESETS

_log = logging.getLogger(__name__)


def from_pretrained(
    name: str | PathLike[str],
    *,
    folder: str | PathLike[str] | None = None,
    revision: str | None = None,
    local_files_only: bool = False,
    base: str | PathLike[str] | None = None,
    **options: Any,
) -> Model:
    """Load a model by a directory's path, a preset's name, a name of `sigma download`, or OWNER/NAME on the hub.

    What is there already is not fetched again: downloads go to `folder`, by default where `sigma download` puts them
    (models/NAME), are resumed, and are checked by their hashes. Asking for a model by its name accepts its license,
    which is logged with its size. `revision` is a branch, tag or commit. With `local_files_only`, or HF_HUB_OFFLINE,
    the hub is not asked, and where it does not answer, a model that is there is used with a warning. `base`, by any
    such name, has what the model lacks; `options` are those of `sigma_model.load`.

    Raises ConfigError for what is no model or not there, SourceError where the hub fails.
    """
    offline = local_files_only or _hub_is_off()
    where = model_directory(name, folder=folder, revision=revision, offline=offline)
    return load(where, base=None if base is None else model_directory(base, offline=offline), **options)


def model_directory(
    name: str | PathLike[str],
    *,
    folder: str | PathLike[str] | None = None,
    revision: str | None = None,
    offline: bool = False,
) -> str:
    """A preset's name, or the directory in which the model lies now. Raises as `from_pretrained`."""
    text = model_path(str(name))
    if Path(text).is_dir() or text in PRESETS:
        return text
    if not isinstance(name, str) or text.startswith((".", "/")):
        raise ConfigError(f"{text}: no such directory of a model")
    entry = find_entry(text)
    if entry.kind != "model":
        raise ConfigError(f"{text}: is a data set and no model: `sigma download {text}` fetches it")
    target = Path(folder) if folder is not None else entry.folder
    there = target.is_dir() and any(target.rglob("*.safetensors"))
    if offline:
        if not there:
            raise ConfigError(
                f"{text}: is not in {target}, and nothing is fetched offline: "
                f"`sigma download {text} --out {target}` where the hub can be reached"
            )
        return str(target)
    try:
        plan = plan_download(entry, target, revision=revision)
    except SourceError as error:
        if not there:
            raise
        _log.warning("%s; using what is in %s", error, target)
        return str(target)
    if plan.missing:
        _log.info("%s", plan.show())
    download(plan)
    return str(target)


def _hub_is_off() -> bool:
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)
