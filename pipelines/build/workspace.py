"""The folder of a build: taken by one process at a time, and by one configuration only."""

from __future__ import annotations

import fcntl
import json
import shutil
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from pydantic import BaseModel

from sigma_data.corpus import COMMIT, WORK, open_corpus
from sigma_data.errors import ConfigError
from sigma_data.files import disk_error, dump_json, write_atomic


class Workspace:
    """The state of an unfinished build in `OUT/.sigma`; a context manager that holds its lock.

    Raises ConfigError where the folder belongs to something else: another configuration, another
    process, or files that are not ours. With `overwrite` a corpus there is removed first.
    """

    def __init__(self, out: Path, config: BaseModel, digest: str, *, overwrite: bool = False) -> None:
        self.out = out
        self.root = out / WORK
        self.scan = self.root / "scan"
        self.partial = self.root / "partial"
        self.committed = False
        self._writes = self.root / "write"
        self._config = json.loads(config.model_dump_json())
        self._digest = digest
        self._overwrite = overwrite
        self._lock: IO[str] | None = None

    def __enter__(self) -> Self:
        try:
            self._claim()
        except OSError as error:
            self._release()
            raise disk_error(error, self.out) from None
        except BaseException:
            self._release()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._release()

    def written(self, fragment: int) -> Path:
        """The marker that a fragment's samples are in place."""
        return self._writes / str(fragment)

    def forget_writes(self) -> None:
        """Remove all markers of written fragments."""
        shutil.rmtree(self._writes, ignore_errors=True)
        self._writes.mkdir(parents=True)

    def enter_plan(self, digest: str) -> None:
        """Make sure that what lies here was written for this plan; else remove it.

        Pages of a killed process reach the disk, those of a crashed machine may not: so what was
        written before the last boot counts as not written.
        """
        plan_file = self.root / "plan"
        state = f"{digest} {_boot_id()}\n"
        if not plan_file.exists() or plan_file.read_text() != state:
            plan_file.unlink(missing_ok=True)
            for path in self.out.iterdir():
                if path.is_dir() and path != self.root:
                    shutil.rmtree(path, ignore_errors=True)
            shutil.rmtree(self.partial, ignore_errors=True)
            self.forget_writes()
            write_atomic(plan_file, state)
        self._writes.mkdir(parents=True, exist_ok=True)

    def done(self) -> None:
        """The corpus is committed: remove the state."""
        self._release()
        shutil.rmtree(self.root, ignore_errors=True)

    def _claim(self) -> None:
        if self.out.exists() and not self.out.is_dir():
            raise ConfigError(f"{self.out} is a file: choose another place with --out")
        committed = (self.out / COMMIT).exists()
        if not committed and not self.root.exists() and self.out.exists() and any(self.out.iterdir()):
            raise ConfigError(f"{self.out} is not empty and holds no corpus: choose another place with --out")
        self.root.mkdir(parents=True, exist_ok=True)
        self._lock = (self.root / "lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ConfigError(
                f"{self.out}: another build is running there; wait for it, or choose another --out"
            ) from None
        if self._overwrite:
            self._clear()
        self.committed = (self.out / COMMIT).exists()
        self._compare()
        self.scan.mkdir(exist_ok=True)

    def _compare(self) -> None:
        """Refuse a folder that was begun or finished with another configuration."""
        state = self.root / "config.json"
        ours = {"config_digest": self._digest, "config": self._config}
        there: dict[str, Any] = ours
        if (self.out / COMMIT).exists():
            there = dict(open_corpus(self.out).commit)
        elif state.exists():
            there = json.loads(state.read_text())
        if there.get("config_digest") != self._digest:
            theirs = there.get("config") or {}
            differ = sorted(name for name in {**self._config, **theirs} if self._config.get(name) != theirs.get(name))
            raise ConfigError(
                f"{self.out}: holds a build with another configuration (it differs in "
                f"{', '.join(differ) or 'the version of sigma'}): choose another --out, or add --overwrite to build "
                "it anew"
            )
        write_atomic(state, dump_json(ours))

    def _clear(self) -> None:
        (self.out / COMMIT).unlink(missing_ok=True)  # first, so that a half-removed corpus is none
        for path in self.out.iterdir():
            if path != self.root:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        for path in self.root.iterdir():
            if path.name != "lock":
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    def _release(self) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None
        if self.committed:
            shutil.rmtree(self.root, ignore_errors=True)


def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return "unknown"
