"""One file from the hub: goes on where it was stopped, and counts only with the right hash.

`hf_hub_download` begins a file anew after a kill, and BAGEL's weights are one file of 29 GB.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import IO, BinaryIO, cast

from pipelines.download.hub import Hub, RemoteFile, Repository, hub_errors
from sigma_data.errors import SourceError
from sigma_data.storage.files import write_atomic

RECORD = ".sigma-download.json"
"""Files that were checked, by size and time: their bytes are not read again."""
_BLOCK = 2**20
_OVER_HTTP = 50_000_000_000
"""Bytes of a file past which the hub gives it to its own client only."""

_UNFINISHED = ".unfinished"

Add = Callable[[int], None]


class Record:
    """What lies in a folder and was checked."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / RECORD
        self._known: dict[str, list[object]] = {}
        try:
            read = json.loads(self._path.read_text("utf-8"))
        except (OSError, ValueError):
            return  # none yet, or damaged: then files are hashed again
        if isinstance(read, dict):
            self._known = {name: value for name, value in read.items() if isinstance(value, list)}

    def holds(self, file: RemoteFile, path: Path) -> bool:
        """Whether this very file was checked, and not touched since."""
        return path.is_file() and self._known.get(file.path) == _state(file, path)

    def add(self, file: RemoteFile, path: Path) -> None:
        """The file is there and right."""
        self._known[file.path] = _state(file, path)
        write_atomic(self._path, json.dumps(self._known, indent=0, sort_keys=True))


def unfinished_mark(folder: Path, name: str) -> Path:
    """What lies in a folder until all files of a download are there."""
    return folder / f".{name}{_UNFINISHED}"


def unfinished(folder: Path) -> Path | None:
    """The mark of a download to this folder that was stopped or is at work; None where there is none."""
    return next(iter(sorted(folder.glob(f".*{_UNFINISHED}"))), None) if folder.is_dir() else None


def partial_path(folder: Path, file: RemoteFile) -> Path:
    """Where the bytes of a file are gathered; of another content elsewhere."""
    path = folder / file.path
    return path.with_name(f".{path.name}.{file.digest[:12]}.part")


def fetch(hub: Hub, repository: Repository, file: RemoteFile, folder: Path, add: Add) -> Path:
    """Bring a file, through a partial one beside it that the next run goes on with; `add` counts new bytes.

    Raises SourceError where the hub or the network fails, or the bytes have another hash twice; OSError of the disk.
    """
    path = folder / file.path
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_file() and path.stat().st_size == file.size and hash_of(path, file) == file.digest:
        add(file.size)
        return path
    part = partial_path(folder, file)
    for attempt in (1, 2):
        if file.size > _OVER_HTTP and not part.exists():
            _by_client(hub, repository, file, part)
            add(file.size)
        else:
            _by_http(hub, repository, file, part, add)
        if part.stat().st_size == file.size and hash_of(part, file) == file.digest:
            part.replace(path)
            return path
        part.unlink()
        if attempt == 1:
            add(-file.size)
    raise SourceError(
        f"{repository.name}/{file.path}: arrived twice with another hash than {hub.endpoint} names: try later, or "
        "another HF_ENDPOINT"
    )


def hash_of(path: Path, file: RemoteFile) -> str:
    """The hash of the kind that the hub names: SHA-256, or git's SHA-1 of a blob."""
    digest = (
        hashlib.sha256()
        if file.sha256
        else hashlib.sha1(f"blob {path.stat().st_size}\0".encode(), usedforsecurity=False)
    )
    with path.open("rb") as opened:
        while block := opened.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _by_http(hub: Hub, repository: Repository, file: RemoteFile, part: Path, add: Add) -> None:
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils._headers import build_hf_headers

    url = hub.url(repository, file.path)
    with part.open("ab") as opened:
        begin = opened.tell()
        if begin > file.size:
            opened.truncate(0)
            begin = 0
        add(begin)
        if begin == file.size:
            return
        with hub_errors(repository.name, hub.endpoint):
            try:
                http_get(
                    url,
                    cast(BinaryIO, _Counted(opened, add)),
                    resume_size=begin,
                    headers=build_hf_headers(),
                    expected_size=file.size,
                    displayed_filename=file.path,
                )
            except OSError as error:
                if error.errno is not None or "Consistency check failed" not in str(error):
                    raise
                # Fewer or more bytes than were promised: the hash finds it, too, and it is tried once more.
        opened.flush()
        os.fsync(opened.fileno())


def _by_client(hub: Hub, repository: Repository, file: RemoteFile, part: Path) -> None:
    from huggingface_hub import hf_hub_download

    aside = part.with_suffix(".hub")
    with hub_errors(repository.name, hub.endpoint):
        got = hf_hub_download(
            repository.name, file.path, repo_type=repository.kind, revision=repository.commit, local_dir=aside,
            endpoint=hub.endpoint,
        )  # fmt: skip
    Path(got).replace(part)
    shutil.rmtree(aside, ignore_errors=True)


class _Counted:
    """A file that tells how much is written, also where the server begins anew and what was there is cut off."""

    def __init__(self, file: IO[bytes], add: Add) -> None:
        self._file, self._add = file, add

    def write(self, data: bytes) -> int:
        self._add(len(data))
        return self._file.write(data)

    def truncate(self, size: int | None = None) -> int:
        self._file.flush()
        before = os.fstat(self._file.fileno()).st_size
        after = self._file.truncate(size)
        self._add(after - before)
        return after

    def __getattr__(self, name: str) -> object:
        return getattr(self._file, name)


def _state(file: RemoteFile, path: Path) -> list[object]:
    stat = path.stat()
    return [file.digest, stat.st_size, stat.st_mtime_ns]
