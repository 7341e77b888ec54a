"""A corpus whose place is an object store: built in a folder of this machine, its shards uploaded as they are finished.

The store has no renames, so nothing in it depends on one: shards and tables first, `corpus.json` last, by which it
becomes a corpus. Until then it also keeps, in `.sigma`, the scan files and which shards it has: a build whose machine
is lost goes on from there on another one. What is written and not uploaded yet is on this machine alone.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import threading
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from pipelines.build_dataset.scan_files import KeptScan, is_whole
from sigma_data.corpus.corpus import CARD, COMMIT, MANIFEST, QUARANTINE, REPORT, WORK, is_shard_name
from sigma_data.corpus.places import copy_folder
from sigma_data.errors import BuildError, ConfigError
from sigma_data.storage.files import dump_json
from sigma_data.storage.store import Store

_UPLOADED = f"{WORK}/uploaded"
"""Holds an empty object SHARD/SHA256 for each shard that was uploaded."""
_TABLES = (MANIFEST, QUARANTINE, CARD, REPORT)
_LOCK = f"{WORK}/lock"
_STATE = f"{WORK}/config.json"
_BEAT, _FRESH = 20.0, 120.0
"""Seconds between signs of life of a build, and after which it counts as dead."""


def staging_folder(uri: str) -> Path:
    """Where a corpus for a store is built: in $SIGMA_CACHE, else ~/.cache/sigma; it needs room for the whole corpus."""
    return copy_folder(uri).parent.parent / "builds" / copy_folder(uri).name


class Publication:
    """The place of a corpus in a store, held for one build; a context manager.

    Raises ConfigError where another build holds it, or where something else lies there; BuildError where the store
    fails. With `overwrite` a corpus there is removed first.
    """

    def __init__(self, uri: str, config_digest: str, *, overwrite: bool = False, beat: float = _BEAT) -> None:
        self.uri = uri.rstrip("/")
        self.commit: dict[str, Any] | None = None
        """Of the corpus that is there already."""
        self._names: set[str] = set()
        """Objects that were there at the start."""
        self._store = Store(self.uri)
        self._digest, self._overwrite, self._beat = config_digest, overwrite, beat
        self._holder = {"host": socket.gethostname(), "pid": os.getpid(), "token": os.urandom(8).hex()}
        self._over = threading.Event()

    def __enter__(self) -> Self:
        self._refuse_others(set(self._store.sizes()))
        self._take_lock()
        try:
            self._names = set(self._store.sizes())
            if self._overwrite:
                self._clear()
            self._compare()
            if self.commit is not None:  # the build that finished it may have been killed before it removed its state
                self._store.remove_all(_state_of(self._names))
            else:
                orphans = {name for name in self._names if _is_orphan(name, self._names)}
                self._store.remove_all(sorted(orphans))
                self._names -= orphans
        except BaseException:
            self._release()
            raise
        threading.Thread(target=self._keep, name="lock in the store", daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._release()

    def kept_scan(self, path: Path) -> KeptScan | None:
        """What is to be done about a scan file that only one of store and machine has; None if neither or both do."""
        task = KeptScan(self.uri, str(path))
        return task if is_whole(path) != (task.name in self._names) else None

    def forget_scans(self) -> None:
        """Remove all scan files that the store keeps. Raises BuildError."""
        if found := [name for name in self._store.sizes() if name.startswith(f"{WORK}/scan/")]:
            self._store.remove_all(found)

    def digest_of(self, shard: str) -> str | None:
        """SHA-256 of a shard as the store has it since an earlier run, None if that is not known."""
        place = f"{_UPLOADED}/{shard}/"
        return next((name.removeprefix(place) for name in self._names if name.startswith(place)), None)

    def publish(self, folder: Path, shards: Mapping[str, tuple[int, str]]) -> None:
        """Upload what is not there yet of a committed corpus in `folder`, and `corpus.json` last; `folder` is removed.

        `shards` has the size and SHA-256 of each. Raises BuildError; what is uploaded is found again.
        """
        there = self._store.sizes()
        for name, (size, digest) in shards.items():
            if there.get(name) != size or f"{_UPLOADED}/{name}/{digest}" not in there:
                upload(folder, name, self.uri, digest, before=None)
        for name in _TABLES:
            self._store.put(folder / name, name)
        there = self._store.sizes()
        for name in there:
            if is_shard_name(name) and name not in shards:  # of a plan that a changed source has overtaken
                self._store.remove(name)
        lacking = [name for name, (size, _) in shards.items() if there.get(name) != size]
        if lacking or not self._is_ours():
            raise BuildError(
                f"{self.uri}: {f'{lacking[0]} has gone again' if lacking else 'another build has taken this place'}; "
                "run the same command again"
            )
        self._store.put(folder / COMMIT, COMMIT)
        self._store.remove_all(_state_of(there))
        shutil.rmtree(folder, ignore_errors=True)

    def _refuse_others(self, names: set[str]) -> None:
        others = [name for name in names if not name.startswith(f"{WORK}/")]
        if others and COMMIT not in names and _STATE not in names:
            raise ConfigError(f"{self.uri} is not empty and holds no corpus: choose another place with --out")

    def _compare(self) -> None:
        """Refuse a place that was begun or finished with another configuration."""
        for name in (COMMIT, _STATE):
            if (data := self._store.read(name)) is None:
                continue
            try:
                there = dict(json.loads(data))
            except ValueError:
                raise ConfigError(f"{self.uri}/{name} is damaged: add --overwrite to build anew") from None
            if there.get("config_digest") != self._digest:
                raise ConfigError(
                    f"{self.uri}: holds a build with another configuration: choose another --out, or add --overwrite "
                    "to build it anew"
                )
            if name == COMMIT:
                self.commit = there
                return
        self._store.write(_STATE, dump_json({"config_digest": self._digest}).encode())

    def _clear(self) -> None:
        if COMMIT in self._names:
            self._store.remove(COMMIT)
        ours = [name for name in sorted(self._names) if name in _TABLES or is_shard_name(name)]
        self._store.remove_all([*ours, *_state_of(self._names)])
        self._names.clear()

    def _take_lock(self) -> None:
        for _ in range(3):
            if self._store.create(_LOCK, self._record()):
                return
            data = self._store.read(_LOCK)
            if data is None:
                continue
            holder = _holder(data)
            if not _is_dead(holder):
                raise ConfigError(
                    f"{self.uri}: another build is running there (process {holder.get('pid')} on "
                    f"{holder.get('host')}); wait for it, or choose another --out; if it has died, try again in "
                    f"{_FRESH:.0f} seconds"
                )
            self._store.remove(_LOCK)
        raise ConfigError(f"{self.uri}: another build is starting there: try again")

    def _record(self) -> bytes:
        return dump_json({**self._holder, "time": time.time()}).encode()

    def _keep(self) -> None:
        while not self._over.wait(self._beat):
            try:
                if self._is_ours():
                    self._store.write(_LOCK, self._record())
            except BuildError:
                continue  # the build itself will say so

    def _is_ours(self) -> bool:
        return _holder(self._store.read(_LOCK) or b"").get("token") == self._holder["token"]

    def _release(self) -> None:
        self._over.set()
        try:
            if self._is_ours():
                self._store.remove(_LOCK)
        except BuildError:
            return  # it counts as dead soon


def upload(folder: Path, name: str, uri: str, digest: str, *, before: str | None) -> None:
    """Upload a finished shard, unless the store has it: `before` is the SHA-256 of what it has. Raises BuildError."""
    if before == digest:
        return
    store = Store(uri)
    if before is not None:  # first, so that no mark is ever wrong
        store.remove(f"{_UPLOADED}/{name}/{before}")
    store.put(folder / name, name)
    store.write(f"{_UPLOADED}/{name}/{digest}", b"")


def _is_orphan(name: str, names: set[str]) -> bool:
    """Whether it is the mark of a shard that has gone since."""
    return name.startswith(f"{_UPLOADED}/") and name[len(_UPLOADED) + 1 :].rpartition("/")[0] not in names


def _state_of(names: Iterable[str]) -> list[str]:
    """The objects that keep a build's state, its lock left out."""
    return sorted(name for name in names if name.startswith(f"{WORK}/") and name != _LOCK)


def _holder(data: bytes) -> dict[str, Any]:
    try:
        return dict(json.loads(data))
    except (ValueError, TypeError):
        return {}


def _is_dead(holder: dict[str, Any]) -> bool:
    """Whether a build shows no sign of life any more, or was a process of this machine that has ended."""
    if holder.get("host") == socket.gethostname():
        try:
            os.kill(int(holder["pid"]), 0)
        except ProcessLookupError:
            return True
        except (PermissionError, KeyError, TypeError, ValueError, OverflowError):
            pass
    try:
        return time.time() - float(holder.get("time", 0)) > _FRESH
    except (TypeError, ValueError):
        return True
