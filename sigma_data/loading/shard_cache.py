"""Remote shards kept on this machine: whole files, the least recently used given up first.

Any number of processes share a folder without a server: whoever holds a shard's lock fetches it, and
space is promised under one lock for all before a byte is fetched, so the limit holds at every moment.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from sigma_data.errors import ConfigError, CorpusError
from sigma_data.storage.data_folder import data_folder

_SPACE = ".space"
"""The file whose lock is held while shards are counted, and space is promised or used."""

_FILE = re.compile(r"[0-9a-f]{20}-(?P<size>[0-9]+)\.(?P<kind>tar|part)")
"""What of the folder is the cache's; nothing else in it is touched."""

_WAIT = 0.05
"""Seconds between two looks for space, while other processes fetch."""


@dataclass(frozen=True)
class ShardCache:
    """A folder of at most `limit` bytes of shards.

    `KEY-SIZE.tar` is a shard, `KEY-SIZE.part` one that is being fetched, `KEY-SIZE.lock` stays behind, empty.
    """

    folder: Path
    limit: int

    def open(self, uri: str, name: str, size: int, *, version: str = "") -> int:
        """A descriptor of the shard `name` of the corpus at `uri`, fetched where it is not here; the caller closes it.

        `size` is what was committed, `version` tells corpora apart that lay at one place one after another.
        Raises FileNotFoundError where the shard is not there any more, CorpusError where it has another size
        or cannot be fetched, ConfigError where the cache is too small for it or cannot be written.
        """
        if size > self.limit:
            raise ConfigError(
                f"{uri}/{name} has {size:,} bytes, and the cache {self.folder} may hold {self.limit:,}: "
                "set a larger cache_bytes"
            )
        key = hashlib.sha256(f"{uri}\x1f{version}\x1f{name}".encode()).hexdigest()[:20]
        shard = self.folder / f"{key}-{size}.tar"
        try:
            with suppress(FileNotFoundError):
                return _used(shard)
            self.folder.mkdir(parents=True, exist_ok=True)
            with _locked(shard.with_suffix(".lock")):
                with suppress(FileNotFoundError):  # fetched by somebody else meanwhile
                    return _used(shard)
                return self._fetch(uri, name, size, shard)
        except FileNotFoundError:
            raise
        except OSError as error:
            raise ConfigError(
                f"{self.folder}: {uri}/{name} cannot be kept there ({error.strerror or error}): "
                "free some space, or set another cache"
            ) from None

    def _fetch(self, uri: str, name: str, size: int, shard: Path) -> int:
        part = shard.with_suffix(".part")
        self._promise(size, part)
        try:
            _download(uri, name, part)
            found = part.stat().st_size
            if found != size:
                raise CorpusError(
                    f"{uri}/{name}: has {found:,} bytes, and {size:,} were committed; copy the corpus there again"
                )
            descriptor = _used(part)  # opened before others see it, and may evict it
            with _locked(self.folder / _SPACE):  # or whoever counts meanwhile might see neither name
                part.replace(shard)
        except BaseException:
            part.unlink(missing_ok=True)
            raise
        return descriptor

    def _promise(self, size: int, part: Path) -> None:
        """Make room for `size` bytes and hold it with an empty `part`; waits for others where they hold all."""
        while True:
            with _locked(self.folder / _SPACE):
                room = self.limit - size
                shards = []
                for path in self.folder.iterdir():
                    named = _FILE.fullmatch(path.name)
                    if named is None or path == part or (named["kind"] == "part" and _abandoned(path)):
                        continue
                    room -= int(named["size"])
                    if named["kind"] == "tar":
                        shards.append((path.stat().st_mtime_ns, int(named["size"]), path))
                for _, freed, path in sorted(shards):
                    if room >= 0:
                        break
                    path.unlink()
                    room += freed
                if room >= 0:
                    part.touch()
                    return
            time.sleep(_WAIT)


def _used(shard: Path) -> int:
    """A descriptor of a shard, which counts as used now."""
    descriptor = os.open(shard, os.O_RDONLY)
    now = time.time_ns()  # the system's own stamps are milliseconds coarse
    os.utime(descriptor, ns=(now, now))
    return descriptor


def _abandoned(part: Path) -> bool:
    """Whether whoever fetched this was killed; it is removed then."""
    descriptor = os.open(part.with_suffix(".lock"), os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    else:
        part.unlink(missing_ok=True)
        return True
    finally:
        os.close(descriptor)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold the lock of a file; the system gives it back when this process dies."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _download(uri: str, name: str, part: Path) -> None:
    """Raises FileNotFoundError, CorpusError, or OSError where `part` cannot be written."""
    with part.open("wb") as file:
        try:
            folder = data_folder(uri)
            if not folder.exists(name):
                raise FileNotFoundError(errno.ENOENT, "no such shard", f"{uri}/{name}")
            with folder.open(name) as stream:
                shutil.copyfileobj(stream, file, 2**20)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.ENOENT):
                raise
            raise CorpusError(f"{uri}/{name}: cannot be fetched ({error.strerror or error})") from None
        except Exception as error:  # some clients have errors of their own
            raise CorpusError(f"{uri}/{name}: cannot be fetched ({error})") from None
