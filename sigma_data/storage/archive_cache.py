"""A folder of unpacked archives and of archives' indexes, bounded in size and shared by processes.

An entry is a folder that gets its name only when it is whole, so that a killed process leaves nothing that counts.
Whoever reads an entry holds its lock; entries used longest ago are removed for new ones, never one that is being read.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from sigma_data.errors import SourceError
from sigma_data.storage.paths import local_path

DEFAULT_LIMIT = 200 * 10**9
"""Bytes that the cache may hold by default."""
_PARTIAL = ".partial"
_STEP = 2**26
"""Bytes that are written between two looks at the size of the cache."""


def default_folder() -> Path:
    """`archives` in `$SIGMA_CACHE`, else in ~/.cache/sigma."""
    return local_path(os.environ.get("SIGMA_CACHE") or "~/.cache/sigma") / "archives"


class CacheEntry:
    """A folder in the cache that stays as it is until `close`."""

    def __init__(self, folder: Path, lock: IO[bytes]) -> None:
        self.folder = folder
        self._lock = lock

    def close(self) -> None:
        """Allow its removal."""
        self._lock.close()


class Room:
    """Asked by a writer for the bytes that it is about to write into a new entry."""

    def __init__(self, cache: ArchiveCache, what: str, own: str) -> None:
        self._cache, self._what, self._own = cache, what, own
        self._asked = self._granted = 0

    def need(self, size: int) -> None:
        """Make room for `size` more bytes. Raises SourceError where the cache may not hold them."""
        self._asked += size
        if self._asked > self._granted:
            self._granted = self._cache.make_room(self._asked + _STEP, self._own)
        if self._asked > self._granted:
            raise SourceError(
                f"{self._what}: unpacked it does not fit into the cache {self._cache.folder}, which may hold "
                f"{self._cache.limit / 1e9:g} GB, what is being read included: give a larger cache_gb, another disk by "
                "cache, or unpack the archive beside its parts"
            )


class ArchiveCache:
    """The cache in `folder`, which may hold `limit` bytes; nothing is touched before the first entry is opened."""

    def __init__(self, folder: Path | None = None, limit: int = DEFAULT_LIMIT) -> None:
        self.folder = folder or default_folder()
        self.limit = limit

    def open(self, key: str, what: str, fill: Callable[[Path, Room], None]) -> CacheEntry:
        """The entry of a key; `fill` writes it into an empty folder if it is not there. Waits for who fills it already.

        `what` names it in messages. Raises SourceError where the folder cannot be written or the entry is too large,
        and whatever `fill` raises.
        """
        name = hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()[:24]
        entry = self.folder / name
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            while True:
                lock = self._lock(name, fcntl.LOCK_SH)
                if entry.is_dir():
                    os.utime(entry)
                    return CacheEntry(entry, lock)
                lock.close()
                with self._lock(name, fcntl.LOCK_EX):
                    if not entry.is_dir():
                        self._fill(name, what, fill)
        except (OSError, sqlite3.Error) as error:
            raise SourceError(f"{self.folder}: {_disk_reason(error)} (for {what}); the option cache names it") from None

    def make_room(self, size: int, own: str) -> int:
        """Remove entries until `size` bytes of the entry `own` fit; returns how many bytes it may have at most."""
        entries = [(name, path) for name, path in self._entries() if name != own]
        others = sum(_size(path) for _, path in entries)
        for name, path in entries:
            if others + size <= self.limit:
                break
            held = _size(path)
            if self._remove(name, path):
                others -= held
        return min(size, self.limit - others)

    def _fill(self, name: str, what: str, fill: Callable[[Path, Room], None]) -> None:
        partial = self.folder / f"{name}{_PARTIAL}"
        shutil.rmtree(partial, ignore_errors=True)  # of a process that was killed
        partial.mkdir()
        try:
            fill(partial, Room(self, what, name))
            for path in partial.iterdir():
                with path.open("rb") as file:
                    os.fsync(file.fileno())
            partial.rename(self.folder / name)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise

    def _entries(self) -> list[tuple[str, Path]]:
        """(name, folder) of every entry, those used longest ago first, unfinished ones before all."""
        found = []
        for path in self.folder.iterdir():
            with contextlib.suppress(FileNotFoundError):
                if path.is_dir():
                    unfinished = path.suffix == _PARTIAL
                    found.append((not unfinished, path.stat().st_mtime_ns, path.name.removesuffix(_PARTIAL), path))
        return [(name, path) for _, _, name, path in sorted(found)]

    def _remove(self, name: str, path: Path) -> bool:
        """Remove an entry, unless it is being read or written."""
        try:
            lock = self._lock(name, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        with lock:
            shutil.rmtree(path, ignore_errors=True)
        return True

    def _lock(self, name: str, kind: int) -> IO[bytes]:
        lock = (self.folder / f"{name}.lock").open("ab")
        try:
            fcntl.flock(lock, kind)
        except BaseException:
            lock.close()
            raise
        return lock


def _size(folder: Path) -> int:
    return sum(size for size in _sizes(folder))


def _sizes(folder: Path) -> Iterator[int]:
    with contextlib.suppress(FileNotFoundError):  # removed by another process meanwhile
        for path in folder.iterdir():
            with contextlib.suppress(FileNotFoundError):
                yield path.stat().st_size


def _disk_reason(error: OSError | sqlite3.Error) -> str:
    if isinstance(error, sqlite3.Error):
        return f"the index in the cache cannot be written: {error}"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "the disk of the cache is full: free some space, or name another folder"
    if error.errno in (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP):
        return "the cache's file system has no locks: name a folder on a local disk"
    return f"the cache cannot be written: {error.strerror or error}"
