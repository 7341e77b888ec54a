"""Files that publishers cut into parts (`NAME.tar.split.000`, `NAME.tar.gz.part10`): found by name, read as one.

Parts are joined by their number, never in text order, and a hole in the numbers is told before a byte is read.
"""

from __future__ import annotations

import bisect
import io
import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import IO

from sigma_data.errors import SourceError
from sigma_data.storage.data_folder import DataFolder
from sigma_data.storage.random_access import RandomAccess

_PART = re.compile(r"(?P<name>.+?)(?P<mark>[._-](?:part|split|chunk|piece)[._-]?|\.)(?P<number>\d{1,9}|[a-z]{2,8})")
"""A part's name: the file's own, a mark, a number (10, 010) or letters (ab). Letters need a mark other than a dot."""
_ARCHIVE = re.compile(r".+\.(?:tar|tar\.gz|tgz|zip|gz)", re.IGNORECASE)
_OPEN_PARTS = 8
"""Most parts of one file that are held open."""


@dataclass(frozen=True)
class Part:
    """One file on disk; `stamp` changes with it, `size` is in bytes."""

    location: str
    size: int
    stamp: str


@dataclass(frozen=True)
class SplitFile:
    """A file in one or several parts, in order. `missing` says which part is not there, None where all are."""

    location: str
    parts: tuple[Part, ...]
    missing: str | None = None

    @property
    def size(self) -> int:
        """Bytes of all parts together."""
        return sum(part.size for part in self.parts)


def find_split_files(
    listing: Iterable[tuple[str, str]], wanted: Callable[[str], bool] = lambda _: True
) -> list[SplitFile]:
    """The files, joined from their parts, among `listing` ((location, stamp) as of `DataFolder.files`).

    `wanted` is asked for the location of the joined file (`Singleturn/a.tar`) and for those of its parts.
    """
    found: dict[str, Part | dict[tuple[str, str], Part]] = {}
    for location, stamp in listing:
        size = stamp.partition(":")[0]
        part = Part(location, int(size) if size.isdecimal() else -1, stamp)
        if not (named := _part_of(location)):
            if wanted(location):
                found[location] = part
        elif wanted(named[0]) or wanted(location):
            parts = found.setdefault(named[0], {})
            if isinstance(parts, dict):  # else parts that were joined, and not removed
                parts[named[1:]] = part
    return [_split_file(location, parts) for location, parts in found.items()]


class JoinedFile(RandomAccess):
    """The parts of a file as one seekable file; nothing is copied. Reading raises what the folder's files raise."""

    def __init__(self, folder: DataFolder, parts: tuple[Part, ...]) -> None:
        super().__init__()
        self._folder = folder
        self._parts = tuple(part if part.size >= 0 else _measured(folder, part) for part in parts)
        self._ends = list(accumulate(part.size for part in self._parts))
        self._open: dict[int, IO[bytes]] = {}

    @property
    def size(self) -> int:
        """Bytes of all parts together."""
        return self._ends[-1] if self._ends else 0

    def read_at(self, offset: int, size: int) -> bytes:
        if offset < 0 or size <= 0 or offset >= self.size:
            return b""
        size = min(size, self.size - offset)  # asked first: a read sets aside as much memory as it is told
        index = bisect.bisect_right(self._ends, offset)
        data = self._read_part(index, offset, size)
        if len(data) == size:
            return data
        pieces = [data]
        got = len(data)
        while got < size and index + 1 < len(self._parts):
            if offset + got < self._ends[index]:  # the part has become shorter
                break
            index += 1
            pieces.append(self._read_part(index, offset + got, size - got))
            got += len(pieces[-1])
        return b"".join(pieces)

    def close(self) -> None:
        while self._open:
            self._open.popitem()[1].close()
        super().close()

    def _read_part(self, index: int, offset: int, size: int) -> bytes:
        part = self._parts[index]
        start = self._ends[index] - part.size
        size = min(size, self._ends[index] - offset)
        try:
            file = self._opened(index)
            if isinstance(file, io.FileIO):
                return os.pread(file.fileno(), size, offset - start)
            file.seek(offset - start)
            return file.read(size)
        except OSError as error:
            raise SourceError(f"{part.location}: cannot be read ({error.strerror or error})") from None

    def _opened(self, index: int) -> IO[bytes]:
        file = self._open.get(index)
        if file is None:
            if len(self._open) >= _OPEN_PARTS:
                self._open.pop(next(iter(self._open))).close()
            local, location = self._folder.local, self._parts[index].location
            if local is None:
                file = self._folder.open(location)
            else:
                file = (local if local.is_file() else local / location).open("rb", buffering=0)
            self._open[index] = file
        return file


def _measured(folder: DataFolder, part: Part) -> Part:
    """The part with its size, which not every remote store lists."""
    with folder.open(part.location) as file:
        return Part(part.location, file.seek(0, io.SEEK_END), part.stamp)


def _part_of(location: str) -> tuple[str, str, str] | None:
    """(location of the joined file, mark, number) of a part's location; None for what is not a part."""
    folder, slash, base = location.rpartition("/")
    match = _PART.fullmatch(base)
    if match is None:
        return None
    if match["mark"] == "." and not (match["number"].isdecimal() and _ARCHIVE.fullmatch(match["name"])):
        return None  # a year, a version or an ending, not a part
    return folder + slash + match["name"], match["mark"], match["number"]


def _split_file(location: str, parts: Part | dict[tuple[str, str], Part]) -> SplitFile:
    if isinstance(parts, Part):
        return SplitFile(location, (parts,))
    if len(marks := sorted({mark for mark, _ in parts})) > 1:
        message = f"{location}: is there in parts of several kinds ({', '.join(marks)}): leave those of one kind"
        return SplitFile(location, tuple(parts.values()), message)
    order = sorted(parts, key=lambda part: _number(part[1]))
    return SplitFile(location, tuple(parts[part] for part in order), _hole(location, [part[1] for part in order]))


def _hole(name: str, order: list[str]) -> str | None:
    """Which part is missing by the numbers of those there, None if none is. A file may begin at part 0 or 1."""
    first, letters = order[0], not order[0].isdecimal()
    if (letters and set(first) != {"a"}) or (not letters and int(first) > 1):
        return f"{name}: the parts begin with {first}, so those before it are missing: download them"
    for one, other in pairwise(order):
        if not _follows(one, other):
            return f"{name}: part {_next(one)} is missing (there are {one} and {other}): download it"
    return None


def _follows(one: str, other: str) -> bool:
    return _number(other) == _number(_next(one)) or other == _widened(one)


def _widened(number: str) -> str | None:
    """What `split` of GNU writes after 89 or yz, where it keeps the last digit or letter for longer numbers: 9000."""
    first, before, last = ("0", "8", "9") if number.isdecimal() else ("a", "y", "z")
    half = len(number) // 2
    if len(number) % 2 or number != last * (half - 1) + before + last * half:
        return None
    return last * half + first * (half + 2)


def _next(number: str) -> str:
    if number.isdecimal():
        return str(int(number) + 1).zfill(len(number))
    head = number.rstrip("z")
    if not head:
        return "a" * (len(number) + 1)
    return head[:-1] + chr(ord(head[-1]) + 1) + "a" * (len(number) - len(head))


def _number(number: str) -> tuple[int, int | str]:
    """Sort key of a part's number, equal for 1 and 01; letters sort as `split` counts, by length first."""
    return (0, int(number)) if number.isdecimal() else (len(number), number)
