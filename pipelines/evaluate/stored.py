"""Images of an evaluation that lie in files and are read when they are needed: 5,000 items take no memory for theirs.

Those of a corpus are read from its shards; those of a table, which cannot be read one by one, are copied once into a
temporary file (in TMPDIR), which is gone with the store.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from sigma_data.errors import ConfigError
from sigma_data.storage.files import disk_error


@dataclass(frozen=True, eq=False)
class StoredBytes:
    """`size` bytes of a file from `offset` on; equal to others of the same content."""

    path: str
    offset: int
    size: int
    sha256: str

    def read(self) -> bytes:
        """The bytes. Raises ConfigError where they are no longer what they were."""
        try:
            with open(self.path, "rb") as file:
                file.seek(self.offset)
                found = file.read(self.size)
        except OSError as error:
            why = error.strerror or error
            raise ConfigError(f"{self.path}: cannot be read ({why}): run the command again") from None
        if hashlib.sha256(found).hexdigest() != self.sha256:
            raise ConfigError(f"{self.path}: has changed while it was evaluated: run the command again")
        return found

    def __eq__(self, other: object) -> bool:
        if isinstance(other, bytes):
            return self.sha256 == sha256_of(other)
        return self.sha256 == other.sha256 if isinstance(other, StoredBytes) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.sha256)


Encoded = bytes | StoredBytes
"""An encoded image: at hand, or in a file."""


def bytes_of(data: Encoded) -> bytes:
    """The bytes themselves. Raises ConfigError as `StoredBytes.read`."""
    return data.read() if isinstance(data, StoredBytes) else data


def sha256_of(data: Encoded) -> str:
    """The digest of the bytes, in hexadecimal."""
    return data.sha256 if isinstance(data, StoredBytes) else hashlib.sha256(data).hexdigest()


def stored_file(path: Path) -> StoredBytes:
    """A whole file, read once for its digest. Raises OSError."""
    data = path.read_bytes()
    return StoredBytes(str(path), 0, len(data), sha256_of(data))


class ImageStore:
    """Puts bytes where they can be read again; the same bytes once."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._end = 0
        self._places: dict[str, StoredBytes] = {}

    def keep(self, data: Encoded, places: Mapping[str, StoredBytes]) -> Encoded:
        """The same bytes, to be read when they are needed; `places` says by digest where some lie already.

        Raises BuildError where the disk refuses.
        """
        if isinstance(data, StoredBytes) or not data:
            return data
        digest = sha256_of(data)
        place = places.get(digest) or self._places.get(digest)
        if place is None:
            try:
                self._file.write(data)
                self._file.flush()
            except OSError as error:
                raise disk_error(error, Path(self._file.name)) from None
            place = self._places[digest] = StoredBytes(self._file.name, self._end, len(data), digest)
            self._end += len(data)
        return place


@contextmanager
def image_store() -> Iterator[ImageStore]:
    """A store for one evaluation. Raises BuildError where the disk refuses."""
    try:
        with tempfile.NamedTemporaryFile(prefix="sigma-eval-", suffix=".images") as file:
            yield ImageStore(file)
    except OSError as error:
        raise disk_error(error, Path(tempfile.gettempdir())) from None
