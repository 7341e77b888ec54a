"""Where a corpus lies: a folder of this machine, or a place behind fsspec, of which small files are copied here."""

from __future__ import annotations

import hashlib
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from sigma_data.storage.data_folder import DataFolder, RemoteFolder, data_folder
from sigma_data.storage.files import with_temporary
from sigma_data.storage.paths import is_uri, local_path


def copy_folder(uri: str, cache: Path | None = None) -> Path:
    """The folder for copies of a corpus' commit, tables and index, in `cache`, else $SIGMA_CACHE or ~/.cache/sigma."""
    root = cache or local_path(os.environ.get("SIGMA_CACHE") or "~/.cache/sigma")
    local = data_folder(uri).local
    full = uri.rstrip("/") if local is None else str(local.resolve())
    return root / "corpora" / hashlib.sha256(full.encode()).hexdigest()[:16]


def fetch(folder: DataFolder, name: str, copy: Path) -> Path:
    """Copy a file of a remote corpus into `copy`. Raises SourceError and OSError."""

    def write(temporary: Path) -> None:
        with folder.open(name) as file, temporary.open("wb") as out:
            shutil.copyfileobj(file, out, 2**20)

    copy.mkdir(parents=True, exist_ok=True)
    with_temporary(copy / name, write)
    return copy / name


@dataclass(frozen=True)
class ShardPlace:
    """A shard in a corpus' folder, which is a path or a URI. Its methods raise OSError and SourceError."""

    folder: str
    name: str

    def size(self) -> int | None:
        """Its bytes, None if it is not there."""
        if is_uri(self.folder):
            return RemoteFolder(self.folder).size(self.name)
        path = Path(self.folder, self.name)
        return path.stat().st_size if path.is_file() else None

    def open(self) -> IO[bytes]:
        """The shard, seekable."""
        if is_uri(self.folder):
            return RemoteFolder(self.folder).open(self.name)
        return Path(self.folder, self.name).open("rb")

    def digest(self) -> str:
        """SHA-256 of its bytes."""
        found = hashlib.sha256()
        with self.open() as file:
            while data := file.read(2**20):
                found.update(data)
        return found.hexdigest()

    def __str__(self) -> str:
        return f"{self.folder.rstrip('/')}/{self.name}"
