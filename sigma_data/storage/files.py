"""Files that appear whole or not at all, and the places sources are read from (fsspec)."""

from __future__ import annotations

import hashlib
import json
import math
import os
import posixpath
import re
import stat
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, cast

from sigma_data.errors import BuildError, SourceError
from sigma_data.storage.paths import is_uri, place
from sigma_data.storage.remote import LostError, Stream, connect, reaching, reason


def write_atomic(path: Path, content: bytes | str, *, durable: bool = False, scratch: Path | None = None) -> None:
    """Write a file by rename, so that it is never seen half-written."""
    data = content.encode() if isinstance(content, str) else content
    with_temporary(path, lambda temporary: _dump(temporary, data, durable=durable), scratch=scratch)


def with_temporary(path: Path, write: Callable[[Path], None], *, scratch: Path | None = None) -> None:
    """Let `write` fill a temporary file beside `path`, or in `scratch`, then rename it into place.

    A process that is killed leaves its temporary file behind: `scratch`, a folder on the same file
    system that is removed in the end, keeps such litter out of the place of `path`.
    """
    temporary = (scratch or path.parent) / f".{path.name}.{os.getpid()}.tmp"
    try:
        write(temporary)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def append(path: Path, text: str) -> None:
    """Add to the end of a file, all of it or, where the system refuses, nothing."""
    with path.open("ab", buffering=0) as file:
        before, data = file.tell(), text.encode()
        try:
            while data:  # a disk that is nearly full takes a part
                data = data[file.write(data) :]
        except OSError:
            file.truncate(before)
            raise


def dump_json(value: Any) -> str:
    """JSON as every file of a corpus has it: in the order given, newline at the end; see `finite`."""
    return _dumps(value, indent=1)


LFS_MESSAGE = "a Git LFS pointer where the file itself should be: run 'git lfs pull' in the clone"


def is_lfs_pointer(head: bytes | None) -> bool:
    """Whether a file that begins so is the pointer that a clone without git-lfs holds in place of a large file."""
    return (head or b"").startswith(
        (b"version https://git-lfs.github.com/spec/", b"version https://hawser.github.com/spec/")
    )


def dump_line(value: Any) -> str:
    """JSON as a line of a file of JSON lines; see `finite`. U+2028 and the like, where some split, are escaped."""
    return _dumps(value).replace("\u2028", "\\u2028").replace("\u2029", "\\u2029").replace("\x85", "\\u0085")


def finite(value: Any) -> Any:
    """The value with null for each number that is not finite: NaN and Infinity are no JSON."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: finite(one) for key, one in value.items()}
    return [finite(one) for one in value] if isinstance(value, list | tuple) else value


def _dumps(value: Any, indent: int | None = None) -> str:
    try:
        return json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=False) + "\n"
    except ValueError:  # seldom, so that looking for it costs nothing otherwise
        return json.dumps(finite(value), indent=indent, ensure_ascii=False, allow_nan=False) + "\n"


def disk_error(error: OSError, path: Path, *, option: str = "--out") -> BuildError:
    """One sentence for a write that the operating system refused. `option` is where the user said the place."""
    import errno

    again = "then run the same command again to continue"
    elsewhere = f"choose another place with {option}"
    reasons = {
        errno.ENOSPC: f"the disk is full: free some space, {again}",
        errno.EDQUOT: f"your disk quota is used up: free some space, {again}",
        errno.EFBIG: "the file system or a limit forbids files this large: use a smaller shard_bytes",
        errno.EIO: f"the disk or the network to it failed (input/output error): mend it, {again}",
        errno.EROFS: f"the file system is read-only: {elsewhere}",
        errno.EACCES: f"you may not write there: {elsewhere}",
        errno.EPERM: f"you may not write there: {elsewhere}",
        errno.ENOTDIR: f"a part of that path is a file: {elsewhere}",
        errno.EEXIST: f"a file of that name is in the way: {elsewhere}",
    }
    other = f"{error.strerror or error}: {elsewhere}"
    return BuildError(f"cannot write {path}: {reasons.get(error.errno or 0, other)}")


_WHOLE_BYTES = 4 * 2**20
_END_BYTES = 64 * 2**10


class Place:
    """A file or folder to read from, local or behind fsspec (s3://, gs://, memory://)."""

    def __init__(self, uri: str) -> None:
        self.remote = is_uri(uri)
        self.uri = place(uri)
        if self.remote:
            self._fs, self._root = connect(uri)

    @property
    def local(self) -> Path | None:
        """The path on this machine, or None."""
        return None if self.remote else Path(self.uri)

    def exists(self, location: str) -> bool:
        """Whether a file or folder lies there. Raises SourceError where the place cannot be asked."""
        if self.remote:
            return self._info(location) is not None
        return Path(self.uri, location).exists()

    def files(self, suffix: str) -> list[tuple[str, str]]:
        """(location, stamp) of every file below that ends so, or of the file itself.

        The location is relative to this place, with forward slashes; numbers in names sort as
        numbers, so that chunk_10 comes after chunk_9 and data added later comes later. Hidden files
        and folders are left out. Raises SourceError where there is nothing here.
        """
        if self.remote:
            return self._remote_files(suffix)
        root = Path(self.uri)
        if root.is_file():
            return [_listed(root, root.name)]
        if not root.is_dir():
            raise SourceError(f"{self.uri}: no such file or folder")

        def refuse(error: OSError) -> None:
            raise SourceError(f"{error.filename}: cannot be listed ({error.strerror or error})")

        found = []
        seen: set[str] = set()  # a link may lead back to where we came from
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

    def open(self, location: str) -> IO[bytes]:
        """Open a file by its location for reading.

        Raises SourceError where it cannot be opened; what is returned raises LostError where it cannot be read on.
        """
        root = Path(self.uri)
        alone = self._is_file(location)
        name = self.uri if alone else f"{self.uri.rstrip('/')}/{location}"
        try:
            if self.remote:
                file = self._fs.open(self._root if alone else f"{self._root}/{location}", "rb")
            else:
                file = open(root if alone else root / location, "rb")  # noqa: SIM115 - the caller closes it
        except Exception as error:
            raise SourceError(f"{name}: cannot be opened: {reason(error, name)}") from None
        return cast(IO[bytes], Stream(file, name))

    def beside(self, location: str, path: str, limit: int) -> bytes:
        """The content of a file that a file of this place names by a path of its own.

        A relative path counts from the folder of `location`, else from this place, else from a folder around it
        (for it may begin with names of this place: who wrote it stood outside). Raises ValueError, saying why, where
        no such file lies there, where it lies outside this place, links followed, or where it has more than
        `limit` bytes, and SourceError where a remote place fails.
        """
        if re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", path):
            raise ValueError("it is a URL, and nothing is fetched")
        if self.remote:
            return self._remote_beside(location, path, limit)
        root = Path(self.uri)
        root = (root.parent if root.is_file() else root).resolve()
        try:
            inside = False
            for folder in (root / Path(location).parent, root, *root.parents):
                there = (folder / path).resolve()
                if not there.is_relative_to(root):
                    continue
                inside = True
                if there.is_file():
                    with there.open("rb") as file:
                        return _at_most(file.read(limit + 1), limit)
        except OSError as error:
            raise ValueError(f"it cannot be read ({error.strerror or error})") from None
        raise ValueError("no such file is there" if inside else "it lies outside the source folder")

    def _remote_beside(self, location: str, path: str, limit: int) -> bytes:
        for folder in (posixpath.dirname(location), ""):
            there = posixpath.normpath(posixpath.join(folder, path))
            if there.startswith(("/", "..")):
                raise ValueError("it lies outside the source folder")
            found = self._info(there)
            if found is not None and found.get("type") != "directory":
                try:
                    return _at_most(self.read(there, 0, limit + 1), limit)
                except OSError as error:
                    raise LostError(f"{self.uri.rstrip('/')}/{there}: {error}") from None
        raise ValueError("no such file is there")

    def fingerprint(self, location: str, stamp: str) -> str:
        """What tells the content of a file from what stood there before; `stamp` is its own from `files`.

        A file of up to 4 MiB counts by all its bytes, so a copy is the same file. Of a larger one the size, the
        time of the last change and the first and last 64 KiB count: not noticed is only a change in between that
        leaves size and time as they were. A remote file counts by its size and what the place says of it (an ETag or
        a time). Raises SourceError where the file cannot be read.
        """
        size = stamp.partition(":")[0]
        if self.remote:
            return stamp
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

    def read(self, location: str, offset: int, size: int) -> bytes:
        """Up to `size` bytes of a remote file, by one request. Raises OSError where it cannot be read."""
        try:
            data: bytes = self._fs.cat_file(f"{self._root}/{location}", start=offset, end=offset + size)
        except FileNotFoundError:
            raise
        except Exception as error:
            raise OSError(reason(error, self.uri)) from None
        return data

    def _info(self, location: str) -> dict[str, Any] | None:
        """What a remote place says of a file; None where there is none. Raises SourceError.

        `exists` and `isfile` of fsspec are False, too, where the place cannot be reached.
        """
        with reaching(self.uri):
            try:
                found: dict[str, Any] = self._fs.info(f"{self._root}/{location}")
            except FileNotFoundError:
                return None
        return found

    def _is_file(self, location: str) -> bool:
        """Whether this place is the file itself."""
        if not self.remote:
            return Path(self.uri).is_file()
        if posixpath.basename(self._root) != location:  # asked first: to HTTP every folder is a file
            return False
        with reaching(self.uri):
            return bool(self._fs.isfile(self._root))

    def _remote_files(self, suffix: str) -> list[tuple[str, str]]:
        with reaching(self.uri):
            listing = self._fs.find(self._root, detail=True)
        root = self._root.rstrip("/")
        found = []
        for path, info in listing.items():
            location = path[len(root) :].lstrip("/") or path.rsplit("/", 1)[-1]
            stamp = f"{info.get('size')}:{info.get('ETag') or info.get('mtime') or info.get('LastModified') or ''}"
            hidden = path != root and any(name.startswith(".") for name in location.split("/"))
            if location.endswith(suffix) and not hidden:
                found.append((location, stamp))
        if not listing:
            raise SourceError(f"{self.uri}: no such file or folder")
        return sorted(found, key=_natural)


def _at_most(data: bytes, limit: int) -> bytes:
    if len(data) > limit:
        raise ValueError(f"it has more than {limit:,} bytes")
    return data


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
        facts = path.stat()
    except OSError as error:
        raise SourceError(f"{shown}: cannot be read ({error.strerror or error})") from None
    if not stat.S_ISREG(facts.st_mode):  # opening a pipe would wait for ever
        raise SourceError(f"{shown}: is not a regular file; move it away")
    return location, f"{facts.st_size}:{facts.st_mtime_ns}"


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _dump(path: Path, data: bytes, *, durable: bool) -> None:
    with path.open("wb") as file:
        file.write(data)
        if durable:
            file.flush()
            os.fsync(file.fileno())
