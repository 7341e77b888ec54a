"""The write pass of made samples: byte ranges of the shards that were just written, copied to their planned places.

A task is a stretch of made samples. Doing one twice changes nothing, and its marker says that it is done.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.build_dataset.plan import Plan
from pipelines.build_dataset.tables import placed
from pipelines.build_dataset.workspace import Workspace
from pipelines.build_dataset.write import ShardFiles
from pipelines.common.engine import Engine
from pipelines.common.process_pool import Crashed
from pipelines.common.progress import ProgressBar
from sigma_data.corpus.shard import ShardFault, block, read_range
from sigma_data.errors import BuildError
from sigma_data.storage.files import disk_error, write_atomic

_STRETCH = 256


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
    fragment = plan.places["fragment"].to_numpy()
    made = np.flatnonzero(fragment == len(plan.scans))
    where = _places(plan)
    places = plan.places[made]
    tasks = []
    for start in range(0, len(made), _STRETCH):
        marker = work.written(f"made-{start}-{_STRETCH}")
        if marker.exists():
            continue
        part = places.slice(start, _STRETCH)
        rows = []
        for position, shard, offset in part.select("position", "shard", "offset").iter_rows():
            row = plan.made.table.slice(position, 1).select(["id", "json", "images"]).to_pylist()[0]
            pieces = [
                Piece(image["member"], *where[origin], image["size"], image["sha256"])
                for image, origin in zip(row["images"], plan.made.origins[position], strict=True)
            ]
            rows.append((row["id"], row["json"], pieces, plan.shards[shard].path, offset))
        tasks.append(MadeTask(rows, str(work.partial), str(work.out), str(marker)))
    with ProgressBar("make", len(made), "samples", found=len(made) - sum(len(t.rows) for t in tasks)) as progress:

        def done(index: int, result: Any) -> None:
            if isinstance(result, Crashed):
                raise BuildError(f"writing made samples was killed ({result.signal}); run the same command again")
            progress.add(len(tasks[index].rows))

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


def _places(plan: Plan) -> dict[tuple[str, int], tuple[str, int]]:
    """(id, image number) of the parents' images -> shard and offset of the bytes."""
    assert plan.made is not None
    parents = {name for origins in plan.made.origins for name, _ in origins}
    ids = plan.ids.gather(plan.places["sample"])
    wanted = np.flatnonzero(ids.is_in(list(parents)).to_numpy())
    return {
        (row["id"], image["number"]): (row["shard"], image["offset"])
        for _, table in placed(plan, wanted, ["id"])
        for row in table.select(["id", "shard", "images"]).to_pylist()
        for image in row["images"]
    }
