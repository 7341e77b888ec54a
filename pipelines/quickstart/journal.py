"""The folder of a quickstart: taken by one process at a time, and by one set of options only.

The journal keeps what each stage that is done had to tell, so that nothing is opened again to say it once more.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from pipelines.common.folder_lock import LOCK, FolderLock, refuse_other_settings
from sigma_data.errors import ConfigError
from sigma_data.storage.files import disk_error, dump_json, write_atomic

JOURNAL = "quickstart.json"

Facts = dict[str, Any]
"""What a stage has to tell: `told` for a person, the rest for machines and for the result."""


class Journal:
    """What was asked for in a folder, and what its stages had to tell; a context manager that holds the folder.

    Raises ConfigError where the folder belongs to something else: another process, other options, files that are
    not ours; BuildError where it cannot be written.
    """

    def __init__(self, out: Path, asked: Mapping[str, Any]) -> None:
        self.stages: dict[str, Facts] = {}
        self._out, self._path, self._asked = out, out / JOURNAL, dict(asked)

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

    def add(self, stage: str, facts: Facts) -> None:
        """Keep what a stage that is done had to tell."""
        self.stages[stage] = facts
        self._write()

    def forget(self, stages: Sequence[str]) -> None:
        """Count stages as not done, before anything of them is changed."""
        kept = {name: facts for name, facts in self.stages.items() if name not in stages}
        if kept != self.stages:
            self.stages = kept
            self._write()

    def _read(self) -> None:
        try:
            kept = json.loads(self._path.read_text("utf-8"))
            asked, self.stages = dict(kept["asked"]), dict(kept["stages"])
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise ConfigError(f"{self._path}: cannot be read ({error}): choose another place with --out") from None
        differ = [
            f"{name} ({asked.get(name)} there, {value} now)"
            for name, value in self._asked.items()
            if asked.get(name) != value
        ]
        refuse_other_settings(self._out, differ)

    def _write(self) -> None:
        try:
            write_atomic(self._path, dump_json({"asked": self._asked, "stages": self.stages}))
        except OSError as error:
            raise disk_error(error, self._out) from None
