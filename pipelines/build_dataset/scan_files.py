"""Scan files beyond the machine that made them: a store may keep them, so that another machine need not scan again."""

from __future__ import annotations

import hashlib
import platform
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import PIL
from PIL import features

from sigma_data.corpus.corpus import WORK
from sigma_data.storage.files import disk_error, write_atomic
from sigma_data.storage.store import Store


def is_whole(path: Path) -> bool:
    """Whether a scan file is there with its end: one that a power cut emptied counts as not there."""
    try:
        with path.open("rb") as file:
            file.seek(-4, 2)
            return file.read() == b"PAR1"
    except OSError:
        return False


@dataclass(frozen=True)
class KeptScan:
    """A scan file at `path`, which the store at `uri` keeps."""

    uri: str
    path: str

    @property
    def name(self) -> str:
        """Its object. One of other versions of what decodes images is another: the same image may give other bytes."""
        return f"{WORK}/scan/{_codecs()}/{Path(self.path).name}"

    def upload(self) -> None:
        """Put the file into the store. Raises BuildError."""
        Store(self.uri).put(Path(self.path), self.name)


def exchange_scan(task: KeptScan) -> None:
    """Fetch a scan file, or upload one that the store lacks. A task; raises BuildError."""
    path = Path(task.path)
    if is_whole(path):
        task.upload()
    elif (data := Store(task.uri).read(task.name)) is not None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(path, data)
        except OSError as error:
            raise disk_error(error, path) from None


@cache
def _codecs() -> str:
    """Names the versions of what decodes and encodes images."""
    versions = [features.version(name) for name in ("jpg", "zlib", "webp", "libjpeg_turbo")]
    return hashlib.sha256(repr((PIL.__version__, *versions, platform.machine())).encode()).hexdigest()[:12]
