"""Writing into an object store behind fsspec: objects appear whole or not at all, and a fault is one error message.

Nothing is renamed and no folder is made. A large object goes up in parts, and those of one that fails are aborted.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from sigma_data.errors import BuildError
from sigma_data.storage.remote import connect, is_passing, lacks_bucket, reason

Result = TypeVar("Result")

PART = 16 * 2**20
"""Bytes of a part; a worker holds one."""
TRIES = 4
_PATIENCE = 300.0
"""Seconds after which nothing is tried again: a client has its own tries, each of which may wait a minute."""
_PAUSE = 0.5
"""Seconds before the second try; each further one waits twice as long."""


class StoreError(BuildError):
    """A store refuses, or fails again and again."""


class Store:
    """A place to write to, e.g. s3://bucket/corpus. A name is a path in it, with forward slashes.

    Every method raises StoreError where the store refuses, or fails again and again.
    """

    def __init__(self, uri: str, *, pause: float = _PAUSE) -> None:
        self.uri = uri.rstrip("/")
        if self.uri.lower().rpartition("::")[2].startswith(("http://", "https://")):
            raise StoreError(f"{uri}: can be read and not written to: write here, or to s3:// or gs://")
        self._fs, self._root = connect(self.uri)
        self._pause = pause

    def put(self, path: Path, name: str) -> None:
        """Write a file of this machine as an object."""
        self._tried(name, lambda: self._put(path, name))

    def write(self, name: str, data: bytes) -> None:
        """Write an object."""
        self._tried(name, lambda: self._fs.pipe_file(self._path(name), data))

    def create(self, name: str, data: bytes) -> bool:
        """Write an object if there is none of the name: of several that try it, one succeeds. False if there is one.

        A store whose fsspec client knows no exclusive writes is asked first, which leaves a moment in between.
        """

        def once() -> bool:
            try:
                self._fs.pipe_file(self._path(name), data, mode="create")
            except FileExistsError:
                return False
            except (TypeError, NotImplementedError, ValueError):
                if self._fs.exists(self._path(name)):
                    return False
                self._fs.pipe_file(self._path(name), data)
            return True

        return self._tried(name, once)

    def read(self, name: str) -> bytes | None:
        """An object, None if there is none."""

        def once() -> bytes | None:
            self._fs.invalidate_cache()
            try:
                data: bytes = self._fs.cat_file(self._path(name))
            except FileNotFoundError as error:
                if lacks_bucket(error):
                    raise
                return None
            return data

        return self._tried(name, once, doing="read")

    def remove(self, name: str) -> None:
        """Remove an object, if it is there."""

        def once() -> None:
            try:
                self._fs.rm_file(self._path(name))
            except FileNotFoundError:
                return

        self._tried(name, once)

    def remove_all(self, names: Sequence[str]) -> None:
        """Remove objects, in few requests where the store allows it; each must be there."""

        def once() -> None:
            with contextlib.suppress(FileNotFoundError):
                self._fs.rm([self._path(name) for name in names])

        if names:
            self._tried("", once)

    def sizes(self) -> dict[str, int]:
        """Name -> bytes of every object."""

        def once() -> dict[str, int]:
            self._fs.invalidate_cache()
            try:
                found = self._fs.find(self._root, detail=True)
            except FileNotFoundError as error:
                if lacks_bucket(error):
                    raise
                return {}
            root = self._root.rstrip("/") + "/"
            return {path[len(root) :]: int(info["size"] or 0) for path, info in found.items() if path.startswith(root)}

        return self._tried("", once, doing="read")

    def _path(self, name: str) -> str:
        return f"{self._root.rstrip('/')}/{name}"

    def _put(self, path: Path, name: str) -> None:
        size = path.stat().st_size
        with path.open("rb") as file:
            if size <= PART:
                self._fs.pipe_file(self._path(name), file.read())
                return
            upload = self._fs.open(self._path(name), "wb", block_size=PART)
            try:
                while data := file.read(PART):
                    upload.write(data)
            except BaseException:
                _abort(upload)
                raise
            try:
                upload.close()
            except BaseException:
                _abort(upload)
                raise

    def _tried(self, name: str, once: Callable[[], Result], *, doing: str = "written") -> Result:
        """What `once` returns; what passes by itself (throttling, a lost connection) is tried again."""
        where = f"{self.uri}/{name}".rstrip("/")
        start = time.monotonic()
        for tried in range(1, TRIES + 1):
            try:
                return once()
            except Exception as error:
                if tried == TRIES or not is_passing(error) or time.monotonic() - start > _PATIENCE:
                    raise StoreError(f"{where}: {reason(error, self.uri, doing=doing)}") from None
                time.sleep(self._pause * 2 ** (tried - 1))
        raise AssertionError("the last try returns or raises")


def _abort(upload: Any) -> None:
    """Give the parts of an unfinished upload up, and never let its file finish it."""
    with contextlib.suppress(Exception):  # the fault that is reported is the one before
        upload.discard()
    upload.closed = True
