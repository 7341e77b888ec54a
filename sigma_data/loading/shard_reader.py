"""Samples of a prepared corpus by byte ranges: one read for the record, one for each image that is wanted.

The record comes first and without images, because it alone says which images a layout shows; those
that condition dropout has left out are never read.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Collection
from pathlib import Path
from typing import Any

from sigma_data.corpus.record import RecordError, decode, stored_order
from sigma_data.errors import CorpusError, SourceError, reason_of
from sigma_data.loading.shard_cache import ShardCache
from sigma_data.planning.index import CorpusIndex
from sigma_data.sample import Sample
from sigma_data.storage.data_folder import RemoteFolder
from sigma_data.storage.paths import is_uri

_OPEN_SHARDS = 64
"""Descriptors a reader keeps; a plan works in few shards at a time."""


class ShardReader:
    """Reads samples of one corpus: from local shards, from `cache`, or by ranges from a remote place.

    Pickles without its open shards. `bytes_read` counts what it has read.
    """

    def __init__(self, index: CorpusIndex, cache: ShardCache | None = None) -> None:
        self.index = index
        self.bytes_read = 0
        self._cache = cache
        self._remote = is_uri(index.uri)
        self._open: OrderedDict[int, int] = OrderedDict()  # shard -> descriptor, the last used at the end
        self._folder: RemoteFolder | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.index, self._cache)

    def __del__(self) -> None:
        while self._open:
            os.close(self._open.popitem()[1])

    def sample(self, row: int) -> Sample:
        """The sample of a row, its images without bytes.

        Raises CorpusError where the record cannot be read, or is not the one that the index was made from.
        """
        index = self.index
        record = self._read(row, int(index.json_offset[row]), int(index.json_size[row]))
        try:
            sample = decode(record, None)
        except RecordError as error:
            raise self._error(row, f"cannot be read ({error})") from None
        if sample.id != index.ids[row].decode():
            raise self._error(row, f"is not there, but sample {sample.id} in its place")
        if stored_order(sample) != index.image_number[index.image_first[row] : index.image_first[row + 1]].tolist():
            raise self._error(row, "has other images than the manifest says")
        return sample

    def images(self, row: int, numbers: Collection[int]) -> dict[int, bytes]:
        """The encoded images of a sample by number. Raises CorpusError where they cannot be read."""
        index = self.index
        found = {}
        for image in range(index.image_first[row], index.image_first[row + 1]):
            number = int(index.image_number[image])
            if number in numbers:
                found[number] = self._read(row, int(index.image_offset[image]), int(index.image_size[image]))
        return found

    def _read(self, row: int, offset: int, size: int) -> bytes:
        shard = int(self.index.shard[row])
        if offset < 0 or size < 0 or offset + size > self.index.shard_bytes[shard]:
            raise self._error(row, "lies outside its shard: the index is damaged", "remove the corpus's .index folder")
        try:
            data = self._range(shard, offset, size)
        except FileNotFoundError:
            raise self._error(row, "cannot be read: the shard is not there any more", "put it back") from None
        except (OSError, SourceError) as error:
            raise self._error(
                row, f"cannot be read ({reason_of(error)})", "look whether its place can be reached"
            ) from None
        if len(data) < size:
            raise self._error(row, f"cannot be read: the shard ends {size - len(data):,} bytes too early")
        self.bytes_read += size
        return data

    def _range(self, shard: int, offset: int, size: int) -> bytes:
        """At most `size` bytes; fewer where the shard ends."""
        index, name = self.index, self.index.shards[shard]
        if not self._remote:
            return _pread(self._descriptor(shard), offset, size)
        if self._cache is not None:
            # Opened for this read alone: an evicted shard that somebody holds open still fills the disk.
            descriptor = self._cache.open(index.uri, name, index.shard_bytes[shard], version=index.digest)
            try:
                return _pread(descriptor, offset, size)
            finally:
                os.close(descriptor)
        self._folder = self._folder or RemoteFolder(index.uri)
        return self._folder.read(name, offset, size)

    def _descriptor(self, shard: int) -> int:
        if shard in self._open:
            self._open.move_to_end(shard)
        else:
            self._open[shard] = os.open(Path(self.index.uri) / self.index.shards[shard], os.O_RDONLY)
            if len(self._open) > _OPEN_SHARDS:
                os.close(self._open.popitem(last=False)[1])
        return self._open[shard]

    def _error(self, row: int, what: str, advice: str = "") -> CorpusError:
        advice = advice or "run sigma validate, and build or copy the corpus again"
        return CorpusError(f"{shard_of(self.index, row)}: sample {self.index.ids[row].decode()} {what}; {advice}")


def shard_of(index: CorpusIndex, row: int) -> str:
    """Where the shard of a sample lies, for messages."""
    return f"{index.uri.rstrip('/')}/{index.shards[index.shard[row]]}"


def _pread(descriptor: int, offset: int, size: int) -> bytes:
    """Up to `size` bytes: one call reads less than asked where a signal comes, and at most 2 GiB."""
    parts = []
    while size > 0 and (part := os.pread(descriptor, size, offset)):
        parts.append(part)
        offset, size = offset + len(part), size - len(part)
    return b"".join(parts)
