"""Find the images that rows name: bytes in the row, files of a tree, members of archives.

The order of the rules is fixed, and the one that hit is noted: bytes in the row; the path as written, under each folder
given; the path with a declared prefix taken off or replaced; by name, only where the map says so and no other image has
the name. A path is never followed out of the source.
"""

from __future__ import annotations

import errno
import os
import posixpath
import re
import stat
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from sigma_data.errors import SourceError
from sigma_data.sources.field_map.schema import ImagesMap
from sigma_data.sources.field_map.values import RowFault, is_unicode
from sigma_data.storage.data_folder import DataFolder

MOST_IMAGE_BYTES = 2**28
"""Largest image file that is read."""

_KEPT_FOLDERS = 10_000
_OPEN = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK  # opening a pipe would wait for ever
_DRIVE = re.compile(r"[A-Za-z]:[\\/]")
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")


@dataclass(frozen=True)
class Scope:
    """Where the images of a rows' file lie: folders in which paths begin, globs of archives, all below the source.

    `folder` is that of the rows' file. Among files of a tree names are looked for in `named_in`, if given.
    """

    folders: tuple[str, ...] = (".",)
    archives: tuple[str, ...] = ()
    folder: str = ""
    named_in: tuple[str, ...] = ()


@dataclass(slots=True)  # not frozen: several are made of every row
class FoundImage:
    """An image, the rule that found it, and where it lies in the source."""

    data: bytes
    rule: str
    location: str


class ImageStore(ABC):
    """Images by their path. An implementation says what lies where; the rules of `find` are the same for all."""

    def __init__(self, images: ImagesMap) -> None:
        self.images = images

    @abstractmethod
    def read(self, location: str, scope: Scope) -> tuple[bytes, str] | None:
        """The bytes of an image at a clean relative path and where they lie, or None if there is none.

        Raises RowFault: `unsafe_path` for what leads out of the source, `part_missing`, `truncated`.
        """

    @abstractmethod
    def exists(self, location: str, scope: Scope) -> bool:
        """Whether `read` would give something, without reading it. Raises RowFault as `read` does."""

    @abstractmethod
    def named(self, tail: str, scope: Scope) -> list[str]:
        """All locations in the scope that end in `tail`, a name or FOLDER/NAME, as `read` takes them."""

    def find(self, path: str, scope: Scope) -> FoundImage:
        """Find an image. Raises RowFault `missing_picture`, `unsafe_path`, `ambiguous_name` or what `read` raises."""
        for location, rule in self._tries(path, scope):
            if (found := self.read(location, scope)) is not None:
                return FoundImage(found[0], rule, found[1])
        raise self._missing(path, scope)

    def locate(self, path: str, scope: Scope) -> str:
        """Where `find` would find an image, without reading it. Raises RowFault as `find` does."""
        for location, _ in self._tries(path, scope):
            if self.exists(location, scope):
                return location
        raise self._missing(path, scope)

    def _tries(self, path: str, scope: Scope) -> Iterator[tuple[str, str]]:
        """The locations to try, in the order of the rules."""
        for written, rule in written_paths(path, self.images):
            for folder in scope.folders:
                if folder in (".", ""):
                    yield written, rule
                else:
                    yield posixpath.normpath(posixpath.join(folder, written)), f"{rule} under {folder}"
        if self.images.match == "path":
            return
        parts = [part for part in re.split(r"[/\\]", path) if part not in ("", ".")]
        tail = "/".join(parts[-2:] if self.images.match == "tail2" else parts[-1:])
        found = self.named(tail, scope) if tail else []
        if len(found) > 1:
            raise RowFault("ambiguous_name", f"{len(found)} images are named {tail}: {found[0]} and {found[1]}")
        if found:
            yield found[0], self.images.match

    def _missing(self, path: str, scope: Scope) -> RowFault:
        if _ADDRESS.match(path):
            return RowFault("missing_picture", f"{path[:200]} is an address, and nothing is fetched")
        written = list(written_paths(path, self.images))
        if not written and self.images.match == "path":
            return RowFault("unsafe_path", f"{path[:200]!r} is an absolute path, which is never followed")
        where = ", ".join(dict.fromkeys(scope.archives or scope.folders))
        return RowFault("missing_picture", f"no image {path[:200]!r} in {where}")


def written_paths(path: str, images: ImagesMap) -> Iterator[tuple[str, str]]:
    """The relative paths that a written one may mean, with the rule of each.

    Raises RowFault `unsafe_path` for one that climbs (`..`) or holds a null character, `bad_fields` for no text at all.
    """
    if not is_unicode(path):
        raise RowFault("bad_fields", f"{path[:200]!r} has half of a surrogate pair")
    if "\0" in path:
        raise RowFault("unsafe_path", f"{path[:200]!r} leaves the source")
    for new, rule in _changed(path, images):
        if ".." in new and ".." in re.split(r"[/\\]", new):
            raise RowFault("unsafe_path", f"{path[:200]!r} leaves the source")
        if new and not _is_absolute(new) and not _is_absolute(clean := posixpath.normpath(new)):
            yield clean, rule


def _changed(path: str, images: ImagesMap) -> Iterator[tuple[str, str]]:
    """The path as written, then by each rule; the first is mostly right, and the rest not asked for."""
    yield path, "as written"
    for one in images.strip_prefix:
        if path.startswith(one):
            yield path[len(one) :].lstrip("/"), f"strip_prefix {one}"
    for pattern, replacement in images.replace:
        new, count = re.subn(pattern, replacement, path, count=1)
        if count and new != path:
            yield new, f"replace {pattern}"


def _is_absolute(path: str) -> bool:
    return path.startswith(("/", "\\", "~")) or (":" in path and bool(_DRIVE.match(path) or _ADDRESS.match(path)))


class RowStore(ImageStore):
    """Images that lie in the rows: none elsewhere."""

    def read(self, location: str, scope: Scope) -> tuple[bytes, str] | None:
        return None

    def exists(self, location: str, scope: Scope) -> bool:
        return False

    def named(self, tail: str, scope: Scope) -> list[str]:
        return []


class TreeStore(ImageStore):
    """Images as files below the folder of the source, which may be remote."""

    def __init__(self, images: ImagesMap, folder: DataFolder) -> None:
        super().__init__(images)
        self._folder = folder
        local = folder.local
        self._root = (local.parent if local and local.is_file() else local) if local else None
        self._real = os.path.realpath(self._root) if self._root else ""
        self._inside: set[str] = set()
        """Folders that were found to lie in the source."""

    def read(self, location: str, scope: Scope) -> tuple[bytes, str] | None:
        if self._root is None:
            return self._read_remote(location)
        path = os.path.join(self._root, location)  # noqa: PTH118 - many thousand times, and Path is slow
        try:
            data = self._read_local(path, location)
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            return None
        except OSError as error:
            if os.path.lexists(path):
                raise SourceError(f"{path}: cannot be read ({error.strerror or error})") from None
            return None  # a name longer than file systems have
        return data, location

    def _read_local(self, path: str, location: str) -> bytes:
        """The content of a file in the source; raises OSError. A file whose name is no link lies in its folder."""
        folder = os.path.dirname(path)  # noqa: PTH120
        try:
            number = os.open(path, _OPEN | os.O_NOFOLLOW)
        except OSError as error:
            if error.errno != errno.ELOOP:
                raise
            self._check_inside(path, location)
            number = os.open(path, _OPEN)
        try:
            if folder not in self._inside:
                self._check_inside(folder, location)
                if len(self._inside) >= _KEPT_FOLDERS:
                    self._inside.clear()
                self._inside.add(folder)
            status = os.fstat(number)
            if not stat.S_ISREG(status.st_mode):
                raise FileNotFoundError
            if status.st_size > MOST_IMAGE_BYTES:  # asked first: a read sets aside what it is told to
                raise RowFault("undecodable", f"{location} has more than {MOST_IMAGE_BYTES:,} bytes")
            return _content(number, status.st_size)
        finally:
            os.close(number)

    def exists(self, location: str, scope: Scope) -> bool:
        if self._root is None:
            return self._folder.exists(location)
        path = self._root / location
        if not path.is_file():
            return False
        self._check_inside(str(path), location)
        return True

    def named(self, tail: str, scope: Scope) -> list[str]:
        if self._root is None:
            return []
        name = tail.rpartition("/")[2]
        places = [
            place
            for folder in dict.fromkeys(posixpath.normpath(folder) for folder in scope.named_in or scope.folders)
            for place in _names_below(str(self._root), folder).get(name, ())
        ]
        return [place for place in dict.fromkeys(places) if f"/{place}".endswith(f"/{tail}")]

    def _check_inside(self, path: str, location: str) -> None:
        """Raise RowFault for a link that leads out of the source."""
        if not f"{os.path.realpath(path)}/".startswith(f"{self._real.rstrip('/')}/"):
            raise RowFault("unsafe_path", f"{location} is a link out of the source's folder")

    def _read_remote(self, location: str) -> tuple[bytes, str] | None:
        if not self._folder.exists(location):
            return None
        with self._folder.open(location) as file:
            data = file.read(MOST_IMAGE_BYTES + 1)
        if len(data) > MOST_IMAGE_BYTES:
            raise RowFault("undecodable", f"{location} has more than {MOST_IMAGE_BYTES:,} bytes")
        return data, location


def _content(number: int, size: int) -> bytes:
    """All of a file of `size` bytes, mostly by one read; files that grow or read in pieces are read to their end."""
    data = os.read(number, size + 1)
    if len(data) == size:
        return data
    pieces = [data]
    while data:
        data = os.read(number, size + 1)
        pieces.append(data)
    return b"".join(pieces)


@lru_cache(maxsize=8)
def _names_below(root: str, folder: str) -> dict[str, list[str]]:
    """Names of files below a folder -> their locations; kept, for a process reads many rows of one tree."""
    found: dict[str, list[str]] = {}
    top = Path(root, folder)
    for place, folders, names in os.walk(top):
        folders.sort()
        below = os.path.relpath(place, root)
        for name in sorted(names):
            found.setdefault(name, []).append(posixpath.normpath(posixpath.join(below, name)))
    return found
