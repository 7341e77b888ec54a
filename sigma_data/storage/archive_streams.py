"""Archives as streams: a plain tar passed over by seeking, a gzip unpacked as it is read, a member as a file."""

from __future__ import annotations

import gzip
import io
import zlib

from sigma_data.storage.archive_cache import Room
from sigma_data.storage.random_access import RandomAccess
from sigma_data.storage.split_files import JoinedFile

CHUNK = 2**20
"""Bytes that are read at a time."""
NOT_COMPLETE = ": the download is not complete, or a part is missing at the end; fetch it again"
_MOST_RATIO, _RATIO_FROM = 200, 2**26
"""A gzip whose content is so many times larger, once it is large at all, holds no images but is a bomb."""


class SeekingTar:
    """A plain tar from `start` on: content is passed over without being read."""

    def __init__(self, file: JoinedFile, start: int = 0) -> None:
        self._file = file
        self._start = self._position = start

    def take(self, size: int) -> bytes:
        data = self._file.read_at(self._position, size)
        self._position += len(data)
        return data

    def skip_to(self, offset: int) -> bool:
        self._position = self._start + offset
        return self._position <= self._file.size


class UnpackedGzip:
    """A gzip that is unpacked as it is read. `fault` says why it ended, if not properly."""

    def __init__(self, stream: gzip.GzipFile, packed: JoinedFile, room: Room) -> None:
        self.room = room
        self.fault: str | None = None
        self._stream = stream
        self._packed = packed
        self._position = 0

    def take(self, size: int) -> bytes:
        if self.fault is not None:
            return b""
        try:
            data = self._stream.read(size)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            self.fault = f"its gzip stream is broken ({error}){NOT_COMPLETE}"
            return b""
        self._position += len(data)
        if self._position > max(_RATIO_FROM, _MOST_RATIO * self._packed.tell()):
            self.fault = f"it unpacks to more than {_MOST_RATIO} times its size, which images never do"
            return b""
        return data

    def skip_to(self, offset: int) -> bool:
        while self._position < offset:
            if not self.take(min(offset - self._position, CHUNK)):
                return False
        return True


class Slice(RandomAccess):
    """A range of a file as a file."""

    def __init__(self, file: io.RawIOBase, offset: int, size: int) -> None:
        super().__init__()
        self._file, self._offset, self._size = file, offset, size

    @property
    def size(self) -> int:
        return self._size

    def read_at(self, offset: int, size: int) -> bytes:
        self._file.seek(self._offset + offset)
        return self._file.read(max(0, min(size, self._size - offset))) or b""
