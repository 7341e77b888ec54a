"""The write pass of made samples: byte ranges of the shards that were just written, copied to their planned places.

A task is a stretch of made samples. Doing one twice changes nothing, and its marker says that it is done.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.build_dataset.derive import ORIGINS
from pipelines.build_dataset.placing import Integers
from pipelines.build_dataset.plan import Plan
from pipelines.build_dataset.tables import placed
from pipelines.build_dataset.workspace import Workspace
from pipelines.build_dataset.write import ShardFiles
from pipelines.common.engine import Engine
from pipelines.common.lazy_tasks import LazyTasks
from pipelines.common.process_pool import Crashed
from pipelines.common.progress import ProgressBar
from sigma_data.corpus.shard import ShardFault, block, read_range
from sigma_data.errors import BuildError
from sigma_data.storage.files import disk_error, write_atomic
from sigma_data.storage.paths import literal

_STRETCH = 256
_NUMBERS = 1000
"""Image numbers are below this."""


@dataclass(frozen=True)
class Piece:
    """An image of a made sample: the member it becomes, and its bytes in a shard of the corpus."""

    member: str
    shard: str
    offset: int
    size: int
    sha256: str


@dataclass(frozen=True)
class MadeTask:
    """Made samples to be written: (id, record, images, shard, offset)."""

    rows: Sequence[tuple[str, bytes, Sequence[Piece], str, int]]
    partial: str
    final: str
    marker: str


def write_made(engine: Engine, plan: Plan, work: Workspace) -> None:
    """Write all made samples of the plan; the others must be in place. Raises BuildError."""
    if plan.made is None:
        return
    made = np.flatnonzero(plan.places["fragment"].to_numpy() == len(plan.scans))
    # In the order of the file, which is read along; markers of older versions were of stretches in another order.
    places = plan.places.select("position", "shard", "offset")[made].sort("position")
    todo = [
        start for start in range(0, len(made), _STRETCH) if not work.written(f"made-rows-{start}-{_STRETCH}").exists()
    ]
    where = _Where(plan, places["position"].to_numpy()) if todo else None

    def task(number: int) -> MadeTask:
        assert where is not None
        assert plan.made is not None
        start = todo[number]
        part = places.slice(start, _STRETCH)
        rows = []
        for row, (_, shard, offset) in zip(
            _rows(plan.made.path, part["position"].to_numpy()), part.iter_rows(), strict=True
        ):
            pieces = [
                Piece(image["member"], *where.of(origin), image["size"], image["sha256"])
                for image, origin in zip(row["images"], row[ORIGINS], strict=True)
            ]
            rows.append((row["id"], row["json"], pieces, plan.shards[shard].path, offset))
        return MadeTask(rows, str(work.partial), str(work.out), str(work.written(f"made-rows-{start}-{_STRETCH}")))

    tasks = LazyTasks(len(todo), task)
    sizes = [min(_STRETCH, len(made) - start) for start in todo]
    with ProgressBar("make", len(made), "samples", found=len(made) - sum(sizes), at_work=engine.at_work) as progress:

        def done(index: int, result: Any) -> None:
            if isinstance(result, Crashed):
                raise BuildError(f"writing made samples was killed ({result.signal}); run the same command again")
            progress.add(sizes[index])

        engine.run(write_stretch, tasks, done, what="making samples")


def write_stretch(task: MadeTask) -> None:
    """Write the samples of a task. Raises BuildError where the disk does not give back what was written."""
    with ShardFiles(Path(task.partial)) as files:
        for name, record, pieces, shard, offset in task.rows:
            if (Path(task.final) / shard).exists():
                continue  # a finished shard has it
            members = [("json", record), *((piece.member, _read(piece, task)) for piece in pieces)]
            files.write(shard, offset, block(name, members))
    write_atomic(Path(task.marker), b"")


def _read(piece: Piece, task: MadeTask) -> bytes:
    path = Path(task.partial) / piece.shard
    path = path if path.exists() else Path(task.final) / piece.shard
    try:
        with path.open("rb") as file:
            data = read_range(file, piece.offset, piece.size)
    except ShardFault as fault:
        raise BuildError(f"{path}: {fault}; remove the folder and build again") from None
    except OSError as error:
        raise disk_error(error, path) from None
    if hashlib.sha256(data).hexdigest() != piece.sha256:
        raise BuildError(f"{path}: an image is not the one that was written; remove the folder and build again")
    return data


def _rows(path: Path, positions: Integers) -> Iterator[dict[str, Any]]:
    """The rows at these places of the file of made samples, which ascend; of the file no more than these are read."""
    with pq.ParquetFile(literal(path), pre_buffer=False) as file:
        first = 0
        for group in range(file.num_row_groups):
            count = file.metadata.row_group(group).num_rows
            begin, end = np.searchsorted(positions, [first, first + count]).tolist()
            if end > begin:
                table = file.read_row_group(group, columns=["id", "json", "images", ORIGINS], use_threads=False)
                yield from table.take(positions[begin:end] - first).to_pylist()
            first += count


class _Where:
    """(sample, image number) of the parents' images -> shard and offset of the bytes, in 24 bytes each."""

    def __init__(self, plan: Plan, positions: Integers) -> None:
        assert plan.made is not None
        self._shards = plan.shards
        parents = np.unique(np.concatenate([np.empty(0, dtype=np.int64), *_parents(plan.made.path, positions)]))
        sample = plan.places["sample"].to_numpy()
        keys, shards, offsets = [], [], []
        for some, table in placed(plan, np.flatnonzero(np.isin(sample, parents)), []):
            images = table.column("images").combine_chunks()
            images = images.chunk(0) if isinstance(images, pa.ChunkedArray) else images
            many = images.value_lengths().to_numpy(zero_copy_only=False)
            entries = images.flatten()
            number = entries.field("number").to_numpy(zero_copy_only=False).astype(np.int64)
            keys.append(np.repeat(sample[some].astype(np.int64), many) * _NUMBERS + number)
            shards.append(np.repeat(plan.places["shard"].to_numpy()[some], many))
            offsets.append(entries.field("offset").to_numpy(zero_copy_only=False))
        order = np.argsort(np.concatenate(keys))
        self._keys, self._of, self._offsets = (np.concatenate(parts)[order] for parts in (keys, shards, offsets))

    def of(self, origin: Mapping[str, int]) -> tuple[str, int]:
        """Shard and offset of an image."""
        key = origin["sample"] * _NUMBERS + origin["number"]
        place = int(np.searchsorted(self._keys, key))
        assert self._keys[place] == key, "an image of a parent that is not in the plan"
        return self._shards[int(self._of[place])].path, int(self._offsets[place])


def _parents(path: Path, positions: Integers) -> Iterator[Integers]:
    """The samples that the rows at these places have images of."""
    with pq.ParquetFile(literal(path), pre_buffer=False) as file:
        first = 0
        for batch in file.iter_batches(columns=[ORIGINS], use_threads=False):
            begin, end = np.searchsorted(positions, [first, first + len(batch)]).tolist()
            some = batch.column(0).take(pa.array(positions[begin:end] - first))
            yield np.unique(some.flatten().field("sample").to_numpy(zero_copy_only=False)).astype(np.int64)
            first += len(batch)
