"""Writing files atomically, JSON as files hold it, and error messages of failed writes."""

from __future__ import annotations

import json
import math
import os
import socket
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sigma_data.errors import BuildError

_HOST = f"{zlib.crc32(socket.gethostname().encode()):08x}"
"""Processes of several machines that write into one folder may have the same number."""


def write_atomic(path: Path, content: bytes | str, *, durable: bool = False, scratch: Path | None = None) -> None:
    """Write a file by rename, so that it is never seen incomplete."""
    data = content.encode() if isinstance(content, str) else content
    with_temporary(path, lambda temporary: _dump(temporary, data, durable=durable), scratch=scratch)


def with_temporary(path: Path, write: Callable[[Path], None], *, scratch: Path | None = None) -> None:
    """Let `write` fill a temporary file beside `path`, or in `scratch`, then rename it.

    A killed process leaves its temporary file behind: `scratch` is a folder on the same file system that is removed in
    the end anyway.
    """
    temporary = (scratch or path.parent) / f".{path.name}.{os.getpid()}-{_HOST}.tmp"
    try:
        write(temporary)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def append(path: Path, text: str) -> None:
    """Append to a file: all of the text or, if that fails, nothing."""
    with path.open("ab", buffering=0) as file:
        before, data = file.tell(), text.encode()
        try:
            while data:  # a disk that is nearly full accepts a part
                data = data[file.write(data) :]
        except OSError:
            file.truncate(before)
            raise


def dump_json(value: Any) -> str:
    """JSON as in every file of a corpus: keys in the order given, newline at the end; see `finite`."""
    return _dumps(value, indent=1)


LFS_MESSAGE = "a Git LFS pointer where the file itself should be: run 'git lfs pull' in the clone"


def is_lfs_pointer(head: bytes | None) -> bool:
    """Whether a file begins like a Git LFS pointer, which a clone without git-lfs holds in place of a large file."""
    return (head or b"").startswith(
        (b"version https://git-lfs.github.com/spec/", b"version https://hawser.github.com/spec/")
    )


def dump_line(value: Any) -> str:
    """A line of a JSON Lines file; see `finite`. U+2028 and other line separators are escaped."""
    return _dumps(value).replace("\u2028", "\\u2028").replace("\u2029", "\\u2029").replace("\x85", "\\u0085")


def finite(value: Any) -> Any:
    """The value with null for each non-finite number, which JSON does not have."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: finite(one) for key, one in value.items()}
    return [finite(one) for one in value] if isinstance(value, list | tuple) else value


def _dumps(value: Any, indent: int | None = None) -> str:
    try:
        return json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=False) + "\n"
    except ValueError:  # rare: checked only after the fast path failed
        return json.dumps(finite(value), indent=indent, ensure_ascii=False, allow_nan=False) + "\n"


def disk_error(error: OSError, path: Path, *, option: str = "--out") -> BuildError:
    """The error for a write that the operating system refused; `option` is the option that set the path."""
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


def _dump(path: Path, data: bytes, *, durable: bool) -> None:
    with path.open("wb") as file:
        file.write(data)
        if durable:
            file.flush()
            os.fsync(file.fileno())
