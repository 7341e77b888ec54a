"""The folder of a training run, told from that of a model: what to say where one is given for the other."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from sigma_data.errors import ConfigError

RUN_CONFIG, RUN_CHECKPOINTS = "config.yaml", "checkpoints"
"""What the trainer leaves in the folder of a run."""
_STEP = re.compile(r"step-(\d+)")


def run_of(path: Path) -> tuple[Path, int | None] | None:
    """The run that a folder is, or is the checkpoints of, and the step where it is one checkpoint; None otherwise."""
    path = path.absolute()
    match = _STEP.fullmatch(path.name)
    run, step = path, None
    if match is not None and path.parent.name == RUN_CHECKPOINTS:
        run, step = path.parent.parent, int(match[1])
    elif path.name == RUN_CHECKPOINTS:
        run = path.parent
    return (run, step) if (run / RUN_CONFIG).is_file() and (run / RUN_CHECKPOINTS).is_dir() else None


def refuse_run(path: Path) -> None:
    """Raise ConfigError, with the command that makes a model of it, where a model is wanted and a run is given."""
    found = run_of(path) if path.is_dir() and not (path / "llm_config.json").exists() else None
    if found is None:
        return
    run, step = found
    above = path.parent if step is None else path.parent.parent
    shown = path if step is None and path.name != RUN_CHECKPOINTS else above
    out = f"{shown}-model"
    what = "is the folder of a training run" if run == path.absolute() else "is a checkpoint of a training run"
    at = "" if step is None else f" --step {step}"
    again = f"{shown}@{step}" if step is not None else str(shown)
    raise ConfigError(
        f"{path}: {what} and no model: export it first, `sigma export {shlex.quote(str(shown))}{at} --out "
        f"{shlex.quote(out)}`, and use {out}; `sigma train` also starts from it with model.from_run={again}"
    )
