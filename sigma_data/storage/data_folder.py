"""Folders that sources and corpora are read from: local, or remote behind fsspec (s3://, gs://, http://, memory://).

Local folders do not go through fsspec: its listing takes pipes and link cycles for files.
"""

from __future__ import annotations

import hashlib
import os
import posixpath
import re
import stat
from abc import ABC, abstractmethod
from pathlib import Path
from typing import IO, Any, cast

from sigma_data.errors import SourceError, reason_of
from sigma_data.storage.paths import home, is_uri
from sigma_data.storage.remote import LostError, Stream, connect, every_file, is_absent, lacks_bucket, reaching, reason

_WHOLE_BYTES = 4 * 2**20
_END_BYTES = 64 * 2**10


def data_folder(uri: str) -> DataFolder:
    """The folder at a path or URI. Raises SourceError for a URI that no installed package reads."""
    return RemoteFolder(uri) if is_uri(uri) else LocalFolder(uri)


class DataFolder(ABC):
    """A folder to read from, or a single file. A location is a path relative to it, with forward slashes."""

    def __init__(self, uri: str) -> None:
        self.uri = uri

    @property
    def local(self) -> Path | None:
        """The path on this machine, if any."""
        return None

    @abstractmethod
    def exists(self, location: str) -> bool:
        """Whether there is a file or folder. Raises SourceError if a remote folder does not answer."""

    @abstractmethod
    def files(self, suffix: str | tuple[str, ...]) -> list[tuple[str, str]]:
        """(location, stamp) of every file below with this suffix (or one of these), or of the single file itself.

        Numbers in names sort as numbers, so that chunk_10 follows chunk_9 and data added later comes later. Hidden
        files and folders are left out. Raises SourceError if there is nothing.
        """

    @abstractmethod
    def children(self, location: str) -> tuple[list[str], list[tuple[str, str]]]:
        """The names of the folders directly in a folder ("" is the folder itself), and (location, stamp) of the files.

        In the order of `files`; hidden ones are left out, and nothing is in a folder that is not there. Raises
        SourceError.
        """

    def open(self, location: str) -> IO[bytes]:
        """Open a file for reading. Raises SourceError; reading from the result raises LostError."""
        alone = self._is_file(location)
        name = self.uri if alone else f"{self.uri.rstrip('/')}/{location}"
        try:
            return cast(IO[bytes], Stream(self._open("" if alone else location), name))
        except Exception as error:
            raise SourceError(f"{name}: cannot be opened: {reason(error, name)}") from None

    def beside(self, location: str, path: str, limit: int) -> bytes:
        """The content of a file that the file at `location` names by a path.

        The path is relative to the folder of `location`, else to this folder, else to a parent of it (it may begin with
        names of this folder). Raises ValueError with the reason if there is no such file inside this folder, links
        followed, or if it has more than `limit` bytes, and SourceError if a remote folder fails.
        """
        if re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", path):
            raise ValueError("it is a URL, and nothing is fetched")
        data = self._beside(location, path, limit + 1)
        if len(data) > limit:
            raise ValueError(f"it has more than {limit:,} bytes")
        return data

    def fingerprint(self, location: str, stamp: str) -> str:
        """Changes with the content of a file; `stamp` is its own from `files`. Raises SourceError.

        A local file of up to 4 MiB counts by all its bytes; a larger one by size, modification time and its first and
        last 64 KiB. A remote file counts by its stamp: size, and ETag or time.
        """
        return stamp

    @abstractmethod
    def _is_file(self, location: str) -> bool:
        """Whether this is the single file `location` itself."""

    @abstractmethod
    def _open(self, location: str) -> IO[bytes]:
        """Open a file, or the single file itself for an empty location."""

    @abstractmethod
    def _beside(self, location: str, path: str, size: int) -> bytes:
        """Up to `size` bytes of the file of `beside`."""


class LocalFolder(DataFolder):
    """A folder or file on this machine."""

    def __init__(self, path: str) -> None:
        super().__init__(home(path))
        self._root = Path(self.uri)

    @property
    def local(self) -> Path:
        """The path."""
        return self._root

    def exists(self, location: str) -> bool:
        return (self._root / location).exists()

    def files(self, suffix: str | tuple[str, ...]) -> list[tuple[str, str]]:
        root = self._root
        if root.is_file():
            return [_listed(root, root.name)]
        if not root.is_dir():
            raise SourceError(f"{self.uri}: no such file or folder")

        def refuse(error: OSError) -> None:
            raise SourceError(f"{error.filename}: cannot be listed ({error.strerror or error})")

        found = []
        seen: set[str] = set()  # a link may lead back to a parent
        for folder, folders, names in os.walk(root, onerror=refuse, followlinks=True):
            real = os.path.realpath(folder)
            if real in seen:
                folders[:] = []
                continue
            seen.add(real)
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            for name in names:
                if name.endswith(suffix) and not name.startswith("."):
                    path = Path(folder, name)
                    found.append(_listed(path, path.relative_to(root).as_posix()))
        return sorted(found, key=_natural)

    def children(self, location: str) -> tuple[list[str], list[tuple[str, str]]]:
        folder = self._root / location
        try:
            entries = [entry for entry in os.scandir(folder) if not entry.name.startswith(".")]
        except (FileNotFoundError, NotADirectoryError):
            return [], []
        except OSError as error:
            raise SourceError(f"{folder}: cannot be listed ({error.strerror or error})") from None
        folders = sorted(entry.name for entry in entries if entry.is_dir())
        paths = [Path(entry.path) for entry in entries if not entry.is_dir()]
        return folders, sorted((_listed(path, path.relative_to(self._root).as_posix()) for path in paths), key=_natural)

    def fingerprint(self, location: str, stamp: str) -> str:
        size = stamp.partition(":")[0]
        digest = hashlib.sha256()
        with self.open(location) as file:
            try:
                if int(size) <= _WHOLE_BYTES:
                    digest.update(file.read())
                    return f"{size}:{digest.hexdigest()}"
                digest.update(file.read(_END_BYTES))
                file.seek(-_END_BYTES, os.SEEK_END)
                digest.update(file.read())
            except OSError as error:
                raise SourceError(f"{self.uri}: {location} cannot be read ({error.strerror or error})") from None
        return f"{stamp}:{digest.hexdigest()}"

    def _is_file(self, location: str) -> bool:
        return self._root.is_file()

    def _open(self, location: str) -> IO[bytes]:
        return (self._root / location).open("rb")

    def _beside(self, location: str, path: str, size: int) -> bytes:
        root = (self._root.parent if self._root.is_file() else self._root).resolve()
        try:
            inside = False
            for folder in (root / Path(location).parent, root, *root.parents):
                there = (folder / path).resolve()
                if not there.is_relative_to(root):
                    continue
                inside = True
                if there.is_file():
                    with there.open("rb") as file:
                        return file.read(size)
        except OSError as error:
            raise ValueError(f"it cannot be read ({error.strerror or error})") from None
        raise ValueError("no such file is there" if inside else "it lies outside the source folder")


class RemoteFolder(DataFolder):
    """A folder or file behind fsspec. Raises SourceError if no installed package reads its protocol."""

    def __init__(self, uri: str) -> None:
        super().__init__(uri)
        self._fs, self._root = connect(uri)

    def exists(self, location: str) -> bool:
        return self._info(location) is not None

    def files(self, suffix: str | tuple[str, ...]) -> list[tuple[str, str]]:
        with reaching(self.uri):
            listing = every_file(self._fs, self._root)
        root = self._root.rstrip("/")
        found = []
        for path, info in listing.items():
            location = path[len(root) :].lstrip("/") or path.rsplit("/", 1)[-1]
            stamp = _remote_stamp(info)
            hidden = path != root and any(name.startswith(".") for name in location.split("/"))
            if location.endswith(suffix) and not hidden:
                found.append((location, stamp))
        if not listing:
            with reaching(self.uri):  # clients may list nothing where they could not ask
                self._fs.info(self._root)
            raise SourceError(f"{self.uri}: no such file or folder")
        return sorted(found, key=_natural)

    def children(self, location: str) -> tuple[list[str], list[tuple[str, str]]]:
        place = f"{self._root.rstrip('/')}/{location}".rstrip("/")
        with reaching(self.uri):
            try:
                listing = self._fs.ls(place, detail=True)
            except (FileNotFoundError, NotADirectoryError):
                return [], []
        folders, files = [], []
        for info in listing:
            name = str(info["name"]).rstrip("/").rpartition("/")[2]
            if name.startswith("."):
                continue
            if info.get("type") == "directory":
                folders.append(name)
            else:
                files.append((posixpath.join(location, name), _remote_stamp(info)))
        return sorted(folders), sorted(files, key=_natural)

    def read(self, location: str, offset: int, size: int) -> bytes:
        """Up to `size` bytes of a file, by one request. Raises OSError if it cannot be read."""
        try:
            data: bytes = self._fs.cat_file(f"{self._root}/{location}", start=offset, end=offset + size)
        except FileNotFoundError:
            raise
        except Exception as error:
            raise OSError(reason(error, self.uri)) from None
        return data

    def size(self, location: str) -> int | None:
        """Bytes of a file, None if it is not there. Raises SourceError."""
        found = self._info(location)
        return None if found is None or found.get("type") == "directory" else int(found.get("size") or 0)

    def _info(self, location: str) -> dict[str, Any] | None:
        """Fsspec's info of a file, None if there is none: `exists` of fsspec is False if the store fails, too."""
        with reaching(self.uri):
            try:
                found: dict[str, Any] = self._fs.info(f"{self._root}/{location}")
            except FileNotFoundError as error:
                if not is_absent(error) or lacks_bucket(error):
                    raise
                return None
        return found

    def _is_file(self, location: str) -> bool:
        if posixpath.basename(self._root) != location:  # asked first: to HTTP every folder is a file
            return False
        with reaching(self.uri):
            return bool(self._fs.isfile(self._root))

    def _open(self, location: str) -> IO[bytes]:
        file: IO[bytes] = self._fs.open(f"{self._root}/{location}" if location else self._root, "rb")
        return file

    def _beside(self, location: str, path: str, size: int) -> bytes:
        for folder in (posixpath.dirname(location), ""):
            there = posixpath.normpath(posixpath.join(folder, path))
            if there.startswith(("/", "..")):
                raise ValueError("it lies outside the source folder")
            found = self._info(there)
            if found is not None and found.get("type") != "directory":
                try:
                    return self.read(there, 0, size)
                except OSError as error:
                    raise LostError(f"{self.uri.rstrip('/')}/{there}: {reason_of(error)}") from None
        raise ValueError("no such file is there")


def _remote_stamp(info: dict[str, Any]) -> str:
    return f"{info.get('size')}:{info.get('ETag') or info.get('mtime') or info.get('LastModified') or ''}"


def _natural(item: tuple[str, str]) -> list[tuple[int, int, str]]:
    """Sort key of a location in which runs of digits count as numbers."""
    words = re.split(r"(\d+)", item[0])
    return [(1, int(word), word) if word.isdecimal() else (0, 0, word) for word in words]


def _listed(path: Path, location: str) -> tuple[str, str]:
    """(location, stamp) of a local file. Raises SourceError for what cannot be read like a file."""
    shown = str(path).encode("utf-8", "backslashreplace").decode()
    if not _is_text(location):
        raise SourceError(f"{shown}: the name is not UTF-8, and a manifest could not hold it; rename the file")
    try:
        status = path.stat()
    except OSError as error:
        raise SourceError(f"{shown}: cannot be read ({error.strerror or error})") from None
    if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for ever
        raise SourceError(f"{shown}: is not a regular file; move it away")
    return location, f"{status.st_size}:{status.st_mtime_ns}"


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
