"""Which settings a run has trained with: `config.yaml` those of its newest steps, `config_history.jsonl` all, by step.

Both are written once a step has been trained, so a start that trains nothing leaves them as they are.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from pipelines.common.settings import dump_settings
from pipelines.train.config import TrainConfig
from sigma_data.planning.settings_diff import changed, flat
from sigma_data.storage.files import disk_error, dump_line, write_atomic
from sigma_data.version import sigma_version

CONFIG = "config.yaml"
"""The settings of the newest trained steps, in the folder of the run."""
HISTORY = "config_history.jsonl"
"""A line for each change of settings, ranks or versions: from which step on, and all of them."""


def record_settings(config: TrainConfig, *, step: int, ranks: int) -> None:
    """Note that `step`, counted from 1, was trained with these settings.

    Entries of this step and later ones are of a training that was lost, as its metrics are. Raises BuildError where
    the disk refuses.
    """
    text = dump_settings(config)
    entry = {
        "step": step,
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "ranks": ranks,
        "torch": version("torch"),
        "sigma": sigma_version(),
        "config": _plain(text),
    }
    try:
        before = _entries(config.out, step)
        kept = [line for line in before if line["step"] < step]
        last = kept[-1] if kept else {}
        changes = changed(_compared(last), _compared(entry)) if last else []
        if changes or not last:
            kept.append({**entry, "changes": changes})
        if kept != before or not (config.out / HISTORY).exists():
            write_atomic(config.out / HISTORY, "".join(map(dump_line, kept)))
        if not (config.out / CONFIG).exists() or (config.out / CONFIG).read_text("utf-8") != text:
            write_atomic(config.out / CONFIG, text)
    except OSError as error:
        raise disk_error(error, config.out, option="out=") from None


def _compared(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Settings by dotted name, and what else an entry is compared by."""
    return {**flat(entry["config"]), **{name: entry.get(name) for name in ("ranks", "torch", "sigma")}}


def _entries(out: Path, step: int) -> list[dict[str, Any]]:
    """What is noted so far; of a run that an older version began, its config.yaml from the first step on."""
    try:
        lines = (out / HISTORY).read_text("utf-8").split("\n")
    except FileNotFoundError:
        return _of_older_version(out) if step > 1 else []
    entries = []
    for line in filter(None, lines):
        try:
            entry = json.loads(line)
            _compared(entry)
            entries.append({**entry, "step": int(entry["step"])})
        except (ValueError, LookupError, TypeError, AttributeError):
            continue  # damaged by hand
    return entries


def _of_older_version(out: Path) -> list[dict[str, Any]]:
    try:
        config = _plain((out / CONFIG).read_text("utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return []
    known = {"ranks": None, "torch": None, "sigma": None}
    return [{"step": 1, "time": None, **known, "config": config, "changes": []}] if isinstance(config, dict) else []


def _plain(text: str) -> Any:
    """The values of a configuration that we wrote; libyaml reads it much faster than Python does."""
    return yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))  # noqa: S506 - a safe loader
