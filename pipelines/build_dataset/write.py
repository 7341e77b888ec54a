"""The third pass: every image copied to its planned place, each source fragment read once more.

The plan knows the byte offset of every sample, so a task is a fragment, not a shard: it reads its
records in order and writes each straight to its final place in a preallocated file. Nothing is
sorted or spooled, tasks never wait for one another, and doing one twice changes nothing.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Self

from pipelines.build_dataset.prepare import PrepareSettings, prepared
from pipelines.build_dataset.publication import upload
from pipelines.build_dataset.scan import CACHE, read_scan
from sigma_data.corpus.corpus import file_digest
from sigma_data.corpus.shard import ShardFault, block, read_members
from sigma_data.errors import BuildError, SourceError
from sigma_data.images.decode import ImageFault, probe, reencode
from sigma_data.sample import Rejection, Sample
from sigma_data.sources import Fragment, open_source
from sigma_data.storage.files import disk_error, write_atomic
from sigma_data.storage.remote import LostError

_OPEN_SHARDS = 64
"""Shards that a task keeps open at a time."""


@dataclass(frozen=True)
class WriteTask:
    """A fragment's samples that are wanted: (position in the fragment, shard, offset), by position."""

    spec: str
    fragment: Fragment
    scan: str
    places: Sequence[tuple[int, str, int]]
    folder: str
    preparation: PrepareSettings
    marker: str


@dataclass(frozen=True)
class FinishTask:
    """A shard whose samples are all in place, in the folder `partial`; it goes to `final`, and to a `store` if given.

    `uploaded` is the SHA-256 of what the store has of it, if that is known.
    """

    partial: str
    final: str
    name: str
    members: int
    store: str | None = None
    uploaded: str | None = None


class _UnstableError(Exception):
    """A sample is not what the scan saw; the text says in what."""


def write_fragment(task: WriteTask) -> list[tuple[int, str]]:
    """Write a fragment's samples to their places; returns (position, reason) of those that are not as scanned.

    Reading or encoding that gives other bytes each time costs only the sample it happens to. Raises BuildError
    where the source itself has changed since the scan, or the disk refuses.
    """
    members = [f"images.list.element.{name}" for name in ("number", "member", "size", "sha256", "reencoded")]
    rows = read_scan(Path(task.scan), ["id", "json", *members]).to_pylist()
    wanted = {position: (shard, offset) for position, shard, offset in task.places}
    last = max(wanted, default=-1)
    unstable: list[tuple[int, str]] = []
    with ShardFiles(Path(task.folder)) as files:
        cache = Path(task.folder).parent / CACHE
        source = open_source(task.spec).read(task.fragment)
        records = prepared(source, task.preparation, images_only=True, cache=cache)
        for position, record in enumerate(islice(records, last + 1)):
            if position not in wanted:
                continue
            row = rows[position]
            shard, offset = wanted.pop(position)
            try:
                files.write(shard, offset, _sample_block(_same(record, row["id"]), row, task))
            except (_UnstableError, ImageFault) as error:
                unstable.append((position, str(error)))
    unstable += [(position, "reading the source a second time ended before this sample") for position in wanted]
    if not unstable:
        write_atomic(Path(task.marker), b"")
    elif _has_changed(task):
        raise BuildError(
            f"{task.spec}: {task.fragment.location} changed while the corpus was built; run the same command again"
        )
    return unstable


def preallocate(path: Path, size: int) -> bool:
    """Reserve a shard's bytes, so that a full disk is known before anything is written.

    Returns False where the file already lies there at its full size. Raises BuildError.
    """
    try:
        if path.exists() and path.stat().st_size == size:
            return False
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, size)
            else:  # macOS
                file.truncate(size)
    except OSError as error:
        path.unlink(missing_ok=True)
        raise disk_error(error, path) from None
    return True


def finish_shard(task: FinishTask) -> tuple[int, str]:
    """Walk a full shard, hash it, move it to its name, upload it; returns (size, sha256)."""
    partial, final = Path(task.partial, task.name), Path(task.final, task.name)
    path = partial if partial.exists() else final
    try:
        with path.open("rb") as file:
            members = sum(1 for _ in read_members(file))
        if members != task.members:
            raise BuildError(
                f"{final}: {members} members where {task.members} were planned; this is a bug, please report"
            )
        size, digest = file_digest(path)
        if path is partial:
            final.parent.mkdir(parents=True, exist_ok=True)
            with path.open("rb") as file:
                os.fsync(file.fileno())
            partial.rename(final)
    except ShardFault as error:
        raise BuildError(f"{final}: {error}; remove the folder and build again") from None
    except OSError as error:
        raise disk_error(error, final) from None
    if task.store is not None:
        upload(Path(task.final), task.name, task.store, digest, before=task.uploaded)
    return size, digest


class ShardFiles:
    """A few shards open for writing at any offset."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._open: OrderedDict[str, int] = OrderedDict()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for descriptor in self._open.values():
            os.close(descriptor)

    def write(self, shard: str, offset: int, data: bytes) -> None:
        """Write all of `data` at an offset of a shard. Raises BuildError where the disk refuses."""
        path = self._folder / shard
        try:
            descriptor = self._open.get(shard)
            if descriptor is None:
                descriptor = os.open(path, os.O_WRONLY)
                self._open[shard] = descriptor
                if len(self._open) > _OPEN_SHARDS:
                    os.close(self._open.popitem(last=False)[1])
            self._open.move_to_end(shard)
            view = memoryview(data)
            while view:
                count = os.pwrite(descriptor, view, offset)
                view, offset = view[count:], offset + count
        except OSError as error:
            raise disk_error(error, path) from None


def _sample_block(sample: Sample, row: dict[str, Any], task: WriteTask) -> bytes:
    data = {image.number: image.data or b"" for image in sample.images}
    members: list[tuple[str, bytes]] = [("json", row["json"])]
    for image in row["images"]:
        content = data.get(image["number"], b"")
        if image["reencoded"]:
            changed = reencode(
                content,
                probe(content, max_pixels=sys.maxsize),
                max_side=task.preparation.max_side,
                store=task.preparation.store,
                mask=image["number"] in sample.masks,
            )
            content = changed[0] if changed else content
        if len(content) != image["size"] or hashlib.sha256(content).hexdigest() != image["sha256"]:
            doing = "encoding" if image["reencoded"] else "reading"
            raise _UnstableError(f"{doing} image {image['number']} a second time gave other bytes")
        members.append((image["member"], content))
    return block(sample.id, members)


def _same(record: Sample | Rejection, name: str) -> Sample:
    """The record, which must be the sample of this id."""
    if isinstance(record, Rejection):
        raise _UnstableError(f"reading it a second time failed: {record.message}")
    if record.id != name:
        raise _UnstableError(f"reading the source a second time gave another sample here, {record.id}")
    return record


def _has_changed(task: WriteTask) -> bool:
    """Whether the source no longer holds the fragment as it was listed."""
    try:
        return task.fragment not in open_source(task.spec).fragments()
    except LostError:
        raise
    except SourceError:
        return True
