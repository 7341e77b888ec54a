"""The folder of a quickstart: for one process at a time and one set of options.

The journal keeps the result of each finished stage, so that nothing is opened again to print it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from pipelines.common.folder_lock import LOCK, FolderLock, refuse_other_settings
from sigma_data.errors import ConfigError, reason_of
from sigma_data.storage.files import disk_error, dump_json, write_atomic

JOURNAL = "quickstart.json"

StageResult = dict[str, Any]
"""The result of a stage: `told` is its line for people, the rest is for machines and the final result."""


class Journal:
    """The settings of a quickstart folder and the results of its stages; a context manager that holds the folder.

    Raises ConfigError where the folder belongs to something else: another process, other options, files that are
    not ours; BuildError where it cannot be written.
    """

    def __init__(self, out: Path, settings: Mapping[str, Any]) -> None:
        self.stages: dict[str, StageResult] = {}
        self._out, self._path, self._settings = out, out / JOURNAL, dict(settings)

    def __enter__(self) -> Self:
        try:
            self._out.mkdir(parents=True, exist_ok=True)
            if not self._path.exists() and any(not path.name.startswith(".") for path in self._out.iterdir()):
                raise ConfigError(f"{self._out}: is not empty and holds no quickstart: choose another place with --out")
            self._lock = FolderLock(self._out / LOCK, "quickstart")
        except OSError as error:
            raise disk_error(error, self._out) from None
        try:
            if self._path.exists():
                self._read()
            else:
                self._write()
        except BaseException:
            self._lock.release()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def add(self, stage: str, result: StageResult) -> None:
        """Record the result of a finished stage."""
        self.stages[stage] = result
        self._write()

    def forget(self, stages: Sequence[str]) -> None:
        """Count stages as not done, before anything of them is changed."""
        kept = {name: result for name, result in self.stages.items() if name not in stages}
        if kept != self.stages:
            self.stages = kept
            self._write()

    def _read(self) -> None:
        try:
            kept = json.loads(self._path.read_text("utf-8"))
            settings, self.stages = {"--recipe": "sigma", **kept["asked"]}, dict(kept["stages"])  # of before: no recipe
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise ConfigError(
                f"{self._path}: cannot be read ({reason_of(error)}): choose another place with --out"
            ) from None
        differ = [
            f"{name} (changed since then)"
            if name.endswith(".yaml")
            else f"{name} ({settings.get(name)} there, {value} now)"
            for name, value in self._settings.items()
            if settings.get(name) != value and not (name.endswith(".yaml") and name not in settings)
        ]
        refuse_other_settings(self._out, differ)

    def _write(self) -> None:
        try:
            write_atomic(self._path, dump_json({"asked": self._settings, "stages": self.stages}))
        except OSError as error:
            raise disk_error(error, self._out) from None
