"""What a run is built on and its checkpoints do not hold: a resumed run must have it as before."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping

from pipelines.train.config import TrainConfig
from pipelines.train.omnigen2.description import Omnigen2Description
from sigma_data.errors import ConfigError
from sigma_data.planning.settings_diff import shown
from sigma_model.config import weight_files
from sigma_model.loading import ModelDescription

_SINCE = frozenset({"optimizer.kind", "ema", "model.master"})
"""Parts of an origin that checkpoints of older versions do not have."""


def origin_of(config: TrainConfig, description: ModelDescription | Omnigen2Description) -> dict[str, str]:
    """What a run is built on and its checkpoints do not hold, in a few words each."""
    digest = hashlib.sha256()
    omnigen2 = isinstance(description, Omnigen2Description)
    if isinstance(description, Omnigen2Description):
        files = description.weight_files()
    else:
        files = weight_files(description.directory)
    for path in files:
        with path.open("rb") as file:
            head = file.read(2**20)  # names, shapes and places of all tensors, and the first numbers
            size = file.seek(0, 2)
            file.seek(max(0, size - 2**20))
            digest.update(f"{path.name} {size} ".encode() + head + file.read())
    weights = digest.hexdigest()[:16] if files else f"random, seed {config.model.seed}"
    return {
        "model.path": weights,
        "model.vision": str(config.model.vision),
        "model.group_mask": str(config.model.group_mask),
        "model.attribute_projection": str(config.model.attribute_projection),
        "freeze": config.freeze.model_dump_json(exclude=_unset(config)),
        "lora": config.lora.model_dump_json() if config.lora is not None else "none",
        "optimizer.kind": config.optimizer.kind,
        "ema": "kept" if config.ema is not None else "none",
        "model.master": config.model.master,
        **({"model.quantize": config.model.quantize} if config.model.quantize is not None else {}),
        **({"omnigen2": _omnigen2_settings(config)} if omnigen2 else {}),
    }


def _unset(config: TrainConfig) -> set[str]:
    """Settings that older checkpoints do not know, where they say nothing new."""
    return set() if config.freeze.except_attribute_tokens else {"except_attribute_tokens"}


def check_origin(saved: Mapping[str, str], found: Mapping[str, str]) -> None:
    """Raise ConfigError, naming what differs, where a checkpoint belongs to another model than the run's."""
    changes = []
    for name in sorted({*saved, *found}):
        was, now = saved.get(name), found.get(name)
        if was == now or (was is None and name in _SINCE):
            continue
        if name == "model.path" and not any("random" in (value or "random") for value in (was, now)):
            changes.append("the weights at model.path are other ones than the run started from")
        else:
            changes.append(f"{name} was {_words(was)} and is {_words(now)}")
    if changes:
        raise ConfigError(
            f"the model is not the one that the checkpoint was trained from: {'; '.join(changes)}: resume with the "
            "settings and weights it was started with, or choose another `out` for a new run"
        )


def _words(value: str | None) -> str:
    """A part of an origin, which may be settings as JSON, as a person reads it: what is set, without what is not."""
    if value is None:
        return "not there"
    if not value.startswith("{"):
        return value
    there = {name: one for name, one in json.loads(value).items() if one not in (False, None, [], "")}
    return ", ".join(name if one is True else f"{name} {shown(one)}" for name, one in there.items()) or "nothing"


def _omnigen2_settings(config: TrainConfig) -> str:
    """OmniGen2's settings; those that are younger than version 0.2 only where they are not as by default."""
    default = type(config.omnigen2)()
    younger = {"drop_openings"} if config.omnigen2.drop_openings == default.drop_openings else None
    return config.omnigen2.model_dump_json(exclude=younger)
