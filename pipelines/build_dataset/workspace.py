"""The folder of a build: taken by one process at a time, and by one configuration only."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from pydantic import BaseModel, TypeAdapter

from pipelines.build_dataset.config import NOT_RECORDED
from pipelines.build_dataset.plan import Unstable
from pipelines.common.folder_lock import FolderLock
from sigma_data.corpus.corpus import CARD, COMMIT, MANIFEST, QUARANTINE, REPORT, WORK, is_shard_name, open_corpus
from sigma_data.errors import ConfigError, CorpusError
from sigma_data.storage.files import disk_error, dump_json, write_atomic


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
        self._unstable = self.root / "unstable.json"
        self._config = json.loads(config.model_dump_json(exclude=NOT_RECORDED))
        fields = type(config).model_fields.items()
        anything: TypeAdapter[Any] = TypeAdapter(Any)
        self._default = {  # of settings that an older version did not have
            name: json.loads(anything.dump_json(field.default, exclude=NOT_RECORDED.get(name)))
            for name, field in fields
            if not field.is_required()
        }
        self._digest = digest
        self._overwrite = overwrite
        self._lock: FolderLock | None = None

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

    def written(self, fragment: int | str) -> Path:
        """The marker that the samples of a fragment, or of another task of writing, are in place."""
        return self._writes / str(fragment)

    def forget_writes(self) -> None:
        """Remove all markers of written fragments."""
        shutil.rmtree(self._writes, ignore_errors=True)
        self._writes.mkdir(parents=True)

    def forget_scans(self) -> None:
        """Remove all scan files, and what was injected into them."""
        for folder in (self.scan, self.root / "injected"):
            shutil.rmtree(folder, ignore_errors=True)
        self.scan.mkdir()

    def unstable(self, scans: Sequence[Path]) -> list[Unstable]:
        """The samples that earlier write passes found not to be as scanned. A changed source has other scans."""
        if not self._unstable.exists():
            return []
        there = json.loads(self._unstable.read_text("utf-8"))
        return [
            Unstable(fragment, position, message)
            for fragment, scan in enumerate(scans)
            for position, message in there.get(scan.name, ())
        ]

    def add_unstable(self, scans: Sequence[Path], found: Sequence[Unstable]) -> None:
        """Remember samples that are not as scanned, for this build and after an interruption."""
        there: dict[str, list[tuple[int, str]]] = {}
        for one in sorted([*self.unstable(scans), *found], key=lambda one: (one.fragment, one.position)):
            there.setdefault(scans[one.fragment].name, []).append((one.position, one.message))
        write_atomic(self._unstable, dump_json(there), durable=True)

    def enter_plan(self, digest: str) -> None:
        """Make sure that what lies here was written for this plan; else remove it.

        Pages of a killed process reach the disk, those of a crashed machine may not: so what was
        written before the last boot counts as not written.
        """
        plan_file = self.root / "plan"
        state = f"{digest} {_boot_id()}\n"
        if not plan_file.exists() or plan_file.read_text() != state:
            plan_file.unlink(missing_ok=True)
            remove_corpus_files(self.out)
            shutil.rmtree(self.partial, ignore_errors=True)
            self.forget_writes()
            write_atomic(plan_file, state)
        self._writes.mkdir(parents=True, exist_ok=True)

    def done(self) -> None:
        """The corpus is committed: remove the state."""
        self.committed = True
        self._release()

    def _claim(self) -> None:
        if self.out.exists() and not self.out.is_dir():
            raise ConfigError(f"{self.out} is a file: choose another place with --out")
        if (self.out / COMMIT).exists():
            try:
                open_corpus(self.out)  # what we may remove or finish must be ours
            except CorpusError as error:
                raise ConfigError(f"{error}: choose another place with --out, or remove it by hand") from None
        elif self._has_foreign_files():
            raise ConfigError(f"{self.out} is not empty and holds no corpus: choose another place with --out")
        self._lock = FolderLock(self.root / "lock", "build", place=self.out)
        if self._overwrite:
            self._clear()
        self.committed = (self.out / COMMIT).exists()
        self._compare()
        self.scan.mkdir(exist_ok=True)

    def _has_foreign_files(self) -> bool:
        """Whether a folder without a commit holds anything, and no build of ours was begun there."""
        if not self.out.exists() or (self.root / "config.json").is_file():
            return False
        inside = {path.name for path in self.root.iterdir()} if self.root.is_dir() else set()
        ours = {
            name for name in inside if name == "lock" or name.startswith(".config.json.")
        }  # killed before its first
        return bool({path.name for path in self.out.iterdir()} - {WORK} or inside - ours)

    def _compare(self) -> None:
        """Refuse a folder that was begun or finished with another configuration."""
        state = self.root / "config.json"
        ours = {"config_digest": self._digest, "config": self._config}
        there: dict[str, Any] = ours
        if (self.out / COMMIT).exists():
            there = dict(open_corpus(self.out).commit)
        elif state.exists():
            try:
                there = dict(json.loads(state.read_text()))
            except ValueError:
                raise ConfigError(f"{self.out}: the state of the build there is damaged: add --overwrite") from None
        if there.get("config_digest") != self._digest:
            theirs = self._default | (there.get("config") or {})
            differ = sorted(name for name in {**self._config, **theirs} if self._config.get(name) != theirs.get(name))
            raise ConfigError(
                f"{self.out}: holds a build with another configuration (it differs in "
                f"{', '.join(differ) or 'the version of sigma'}): choose another --out, or add --overwrite to build "
                "it anew"
            )
        write_atomic(state, dump_json(ours), durable=True)

    def _clear(self) -> None:
        remove_corpus_files(self.out)
        for path in self.root.iterdir():
            if path.name != "lock":
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    def _release(self) -> None:
        if self._lock is None:
            return
        if self.committed:  # before the lock is free for others
            shutil.rmtree(self.root, ignore_errors=True)
        self._lock.release()
        self._lock = None


def remove_corpus_files(out: Path) -> None:
    """Remove what a build writes, by name, and nothing else that may lie there; the commit first."""
    for name in (COMMIT, MANIFEST, QUARANTINE, CARD, REPORT):
        (out / name).unlink(missing_ok=True)
    for folder in out.iterdir():
        if not folder.is_dir() or folder.is_symlink() or folder.name == WORK:
            continue
        for path in folder.iterdir():
            if is_shard_name(f"{folder.name}/{path.name}"):
                path.unlink()
        with contextlib.suppress(OSError):
            folder.rmdir()  # only where nothing else lies in it


def refuse_overlap(out: Path, source: Path, name: str) -> None:
    """Raise ConfigError where a corpus would be written over, into or around what it is made from."""
    there, place = source.resolve(), out.resolve()
    if there == place or there in place.parents or place in there.parents:
        raise ConfigError(f"--out {out} and the source {name} overlap: choose a place outside the source")


def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return "unknown"
