"""The third pass: every picture copied to its planned place, each source fragment read once more.

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

from pipelines.build.scan import read_scan
from sigma_data.corpus import file_digest
from sigma_data.errors import BuildError
from sigma_data.files import disk_error, write_atomic
from sigma_data.images import probe, reencode
from sigma_data.other_readers import Store
from sigma_data.sample import Sample
from sigma_data.shard import ShardFault, block, read_members
from sigma_data.sources import Fragment, open_source

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
    max_side: int | None
    store: Store
    marker: str


@dataclass(frozen=True)
class FinishTask:
    """A shard whose samples are all in place."""

    partial: str
    final: str
    members: int


def write_fragment(task: WriteTask) -> int:
    """Write a fragment's samples to their places; returns the bytes written.

    Raises BuildError where the source no longer holds what the scan saw, or the disk refuses.
    """
    members = [f"images.list.element.{name}" for name in ("number", "member", "size", "sha256", "reencoded")]
    rows = read_scan(Path(task.scan), ["id", "json", *members]).to_pylist()
    wanted = {position: (shard, offset) for position, shard, offset in task.places}
    last = max(wanted, default=-1)
    written = 0
    with ShardFiles(Path(task.folder)) as files:
        for position, record in enumerate(islice(open_source(task.spec).read(task.fragment), last + 1)):
            if position not in wanted:
                continue
            row = rows[position]
            if not isinstance(record, Sample) or record.id != row["id"]:
                raise _changed(task)
            data = _sample_block(record, row, task)
            shard, offset = wanted.pop(position)
            files.write(shard, offset, data)
            written += len(data)
    if wanted:
        raise _changed(task)
    write_atomic(Path(task.marker), b"")
    return written


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
    """Walk a full shard, hash it, move it to its name; returns (size, sha256)."""
    partial, final = Path(task.partial), Path(task.final)
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
                content, probe(content, max_pixels=sys.maxsize), max_side=task.max_side, store=task.store
            )
            content = changed[0] if changed else content
        if len(content) != image["size"] or hashlib.sha256(content).hexdigest() != image["sha256"]:
            raise _changed(task)
        members.append((image["member"], content))
    return block(sample.id, members)


def _changed(task: WriteTask) -> BuildError:
    return BuildError(
        f"{task.spec}: {task.fragment.location} changed while the corpus was built; run the same command again"
    )
