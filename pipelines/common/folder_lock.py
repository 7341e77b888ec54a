"""A folder that one process at a time works in.

The system's lock (flock) on a file in it, which ends with its holder however that dies, and holds over machines
where the file system passes locks on (NFS does). The file says who holds it, for the message. A file system that
knows no locks is served by that record alone, which its holder keeps fresh.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from sigma_data.errors import ConfigError

LOCK = ".lock"

_HELD = {errno.EAGAIN, errno.EWOULDBLOCK, errno.EACCES}
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}
_ORPHANS = 30.0
"""Seconds that workers of a killed holder, which have the lock with it, may take to notice."""
_BEAT, _FRESH = 10.0, 60.0
"""Seconds between signs of life where the record alone is the lock, and after which it counts as left behind."""
_TRIES, _PAUSE = 10, 0.02
"""How often the folder is made if it goes again before the file in it is open, and the seconds between."""


class FolderLock:
    """A lock on the file at `path`, taken when made; `release` gives it back and removes the file.

    For the message: `what` is at work in `place`, by default the file's folder, and `otherwise` says what to do
    instead of waiting. Raises ConfigError where another process has the lock, OSError where the file cannot be
    written. Folders that are not there are made, and removed again by `release` where nothing was put into them.
    """

    def __init__(
        self, path: Path, what: str, *, place: Path | None = None, otherwise: str = "choose another --out"
    ) -> None:
        self._path, self._what, self._otherwise = path, what, otherwise
        self._place = place or path.parent
        self._made: list[Path] = []
        self._over = threading.Event()
        self._file = self._take()

    def release(self) -> None:
        """Let others in; a second time nothing happens."""
        if self._file.closed:
            return
        self._over.set()
        with contextlib.suppress(OSError):
            if _same(self._file, self._path):  # the folder may have been removed, and made anew by somebody else
                self._path.unlink()
        self._file.close()
        for folder in reversed(self._made):
            with contextlib.suppress(OSError):  # something lies in it
                folder.rmdir()

    def _take(self) -> IO[str]:
        deadline = time.monotonic() + _ORPHANS
        while True:
            file = self._open()
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                ours = _same(file, self._path)  # else its last holder has removed it
            except OSError as error:
                if error.errno in _NO_LOCKS:
                    return self._take_record(file)
                holder = _holder(self._path)
                file.close()
                if error.errno not in _HELD:
                    raise
                if not _left_behind(holder) or time.monotonic() > deadline:
                    raise self._refusal(holder) from None
                time.sleep(0.1)
                continue
            if ours:
                self._record(file)
                return file
            file.close()

    def _open(self) -> IO[str]:
        """The file, in its folder. Raises FileNotFoundError where no folder can be made, such as in /proc."""
        for tried in range(1, _TRIES + 1):
            try:
                self._make_folders()
                return self._path.open("a+", encoding="utf-8")
            except FileNotFoundError:  # its last holder may just have removed the folder
                if tried == _TRIES:
                    raise
                time.sleep(_PAUSE)
        raise AssertionError("the last try returns or raises")

    def _take_record(self, file: IO[str]) -> IO[str]:
        """Take a folder of a file system without locks."""
        holder = _holder(self._path)
        fresh = time.time() - os.fstat(file.fileno()).st_mtime < _FRESH
        here = holder.get("host") == socket.gethostname()
        if holder and fresh and not (here and _left_behind(holder)):
            file.close()
            raise self._refusal(holder, f", or, if it has died, try again in {_FRESH:.0f} seconds")
        self._record(file)
        threading.Thread(target=self._beat, name="folder lock", daemon=True).start()
        return file

    def _beat(self) -> None:
        while not self._over.wait(_BEAT):
            with contextlib.suppress(OSError):
                os.utime(self._path)

    def _record(self, file: IO[str]) -> None:
        with contextlib.suppress(OSError):  # of a full disk, others will tell
            file.truncate(0)
            file.write(json.dumps({"host": socket.gethostname(), "pid": os.getpid()}) + "\n")
            file.flush()

    def _refusal(self, holder: dict[str, Any], more: str = "") -> ConfigError:
        who = f" (process {holder['pid']} on {holder['host']})" if holder else ""
        return ConfigError(
            f"{self._place}: another {self._what} is running there{who}; wait for it, or {self._otherwise}{more}"
        )

    def _make_folders(self) -> None:
        missing = [folder for folder in (self._path.parent, *self._path.parent.parents) if not folder.exists()]
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._made += [folder for folder in reversed(missing) if folder not in self._made]


@contextlib.contextmanager
def locked(folder: Path, what: str, *, otherwise: str = "choose another --out") -> Iterator[None]:
    """Hold a folder for the block; see `FolderLock`."""
    lock = FolderLock(folder / LOCK, what, otherwise=otherwise)
    try:
        yield
    finally:
        lock.release()


def refuse_other_settings(place: Path, differ: Sequence[str]) -> None:
    """Raise ConfigError if a folder was started with other settings; each is named with both its values."""
    if differ:
        raise ConfigError(
            f"{place}: was started with other settings: {', '.join(differ)}; give those that it was started with, "
            "or choose another place with --out"
        )


def _same(file: IO[str], path: Path) -> bool:
    """Whether the open file is still the one of that name."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _holder(path: Path) -> dict[str, Any]:
    """Who holds the lock; empty where it does not say."""
    try:
        holder = json.loads(path.read_text("utf-8"))
        return {"host": str(holder["host"]), "pid": int(holder["pid"])}
    except (OSError, ValueError, LookupError, TypeError):
        return {}


def _left_behind(holder: dict[str, Any]) -> bool:
    """Whether the holder was a process of this machine that has ended: what it started may still have its lock."""
    if holder.get("host") != socket.gethostname():
        return False
    try:
        os.kill(holder["pid"], 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    try:  # a zombie has ended, too
        return Path(f"/proc/{holder['pid']}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (OSError, IndexError):
        return False
