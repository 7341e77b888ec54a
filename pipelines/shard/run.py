"""`sigma shard`: a corpus sharded anew, a part of it, or its samples in the release's parquet.

Samples are copied as whole blocks of tar, their digests checked on the way; splits, ids and
components stay. To merge corpora, build from them: `sigma build-dataset webdataset:A webdataset:B`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray

from pipelines.build_dataset.commit import write_corpus_files
from pipelines.build_dataset.placing import Shard, place, with_offsets
from pipelines.build_dataset.run import finish_shards
from pipelines.build_dataset.tables import ROW_GROUP
from pipelines.build_dataset.workspace import Workspace, refuse_overlap
from pipelines.build_dataset.write import ShardFiles, preallocate
from pipelines.common.engine import Engine
from pipelines.common.lazy_tasks import LazyTasks
from pipelines.common.process_pool import Crashed, ProcessPool
from pipelines.common.progress import ProgressBar
from pipelines.shard.export import export_release, release_row
from pipelines.shard.selection import Chosen, Selection
from sigma_data.corpus.corpus import open_corpus
from sigma_data.corpus.manifest import OPTIONAL, manifest_schema, quarantine_schema
from sigma_data.corpus.places import ShardPlace
from sigma_data.corpus.shard import ShardFault, read_range
from sigma_data.errors import BuildError, CorpusError, SourceError
from sigma_data.settings_base import StrictModel

__all__ = ["Selection", "export_release", "release_row", "reshard"]

_COPIED = ("id", "shard", "offset", "size", "json_size", "json_sha256", "images")
"""What a copy of a sample needs."""


class _ShardConfig(StrictModel):
    """What a re-sharded corpus says about itself."""

    title: str
    source: str
    source_digest: str
    selection: dict[str, Any]
    shard_bytes: int
    shard_samples: int
    splits: dict[str, float]
    limits: dict[str, Any]
    checks: dict[str, str]

    def digest(self) -> str:
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()


@dataclass(frozen=True)
class CopyTask:
    """Samples of one shard to copy: rows of (id, offset, size, new shard, new offset, member digests)."""

    source: ShardPlace
    rows: Sequence[tuple[str, int, int, str, int, Sequence[tuple[int, int, str]]]]
    folder: str


def reshard(
    path: str | Path,
    out: Path,
    selection: Selection,
    *,
    shard_bytes: int,
    shard_samples: int,
    workers: int = 1,
    engine: Engine | None = None,
    overwrite: bool = False,
) -> dict[str, int]:
    """Write the chosen samples of a corpus as a new corpus; returns counts.

    Raises ConfigError, CorpusError where the source is damaged, BuildError where the disk refuses.
    """
    corpus = open_corpus(path)
    if corpus.uri is None:
        refuse_overlap(out, corpus.path, str(path))
    chosen = selection.of(corpus)
    old = corpus.commit["config"]
    config = _ShardConfig(
        title=old["title"],
        source=str(path),
        source_digest=corpus.commit["digest"],
        selection=vars(selection),
        shard_bytes=shard_bytes,
        shard_samples=shard_samples,
        splits=old["splits"],
        limits=old["limits"],
        checks=old["checks"],
    )
    with (
        engine or ProcessPool(workers) as running,
        Workspace(out, config, config.digest(), overwrite=overwrite) as work,
    ):
        placed = _Placed.of(chosen, shard_bytes, shard_samples)
        shards = placed.shards
        size = sum(shard.size for shard in shards)
        counts = {"samples": len(chosen.rows), "shards": len(shards), "bytes": size}
        if work.committed:
            return counts
        _refuse_sizes(chosen)
        work.enter_plan(config.digest())
        # A shard gets its name when it is whole: what an interrupted run has finished is not copied again.
        missing = [number for number, shard in enumerate(shards) if not (work.out / shard.path).exists()]
        for number in missing:
            preallocate(work.partial / shards[number].path, shards[number].size)
        _copy(running, placed, missing, work)
        digests = finish_shards(running, shards, work)
        write_corpus_files(
            out,
            manifest=_manifest(placed),
            quarantine=[_schema(quarantine_schema(), set()).empty_table()],
            sums=_sums(chosen.columns, size),
            shards={
                shard.path: {
                    "samples": shard.samples,
                    "bytes": digests[shard.path][0],
                    "sha256": digests[shard.path][1],
                }
                for shard in shards
            },
            config=config.model_dump(mode="json"),
            config_digest=config.digest(),
            inputs=corpus.commit["digest"],
        )
        work.done()
    return counts


def copy_samples(task: CopyTask) -> int:
    """Copy samples block by block, checking every member's digest; returns the bytes copied."""
    copied = 0
    try:
        with task.source.open() as file, ShardFiles(Path(task.folder)) as files:
            for name, offset, size, shard, new_offset, members in task.rows:
                data = read_range(file, offset, size)
                for start, length, digest in members:
                    if hashlib.sha256(data[start - offset : start - offset + length]).hexdigest() != digest:
                        raise CorpusError(f"{task.source}: sample {name} is damaged; run sigma validate --deep")
                files.write(shard, new_offset, data)
                copied += size
    except ShardFault as fault:
        raise CorpusError(f"{task.source}: {fault}; run sigma validate") from None
    except (OSError, SourceError) as error:
        told = getattr(error, "strerror", None) or error
        raise CorpusError(f"{task.source}: cannot be read ({told})") from None
    return copied


@dataclass(frozen=True)
class _Placed:
    """Chosen samples with their places in the new shards."""

    chosen: Chosen
    shards: tuple[Shard, ...]
    places: pl.DataFrame
    """A row each: the number of its shard, its index there, its offset."""

    @classmethod
    def of(cls, chosen: Chosen, shard_bytes: int, shard_samples: int) -> _Placed:
        columns = chosen.columns
        shards, places = place(
            columns["split"], columns["family"], columns["size"].to_numpy(), columns["images"].to_numpy(),
            shard_bytes=shard_bytes, shard_samples=shard_samples,
        )  # fmt: skip
        return cls(chosen, shards, pl.DataFrame(places))

    def frames(self, names: Sequence[str]) -> Iterator[tuple[slice, pl.DataFrame]]:
        """The samples with columns of the manifest, some at a time, in the new places; the old are `old_...`."""
        paths = pl.Series([shard.path for shard in self.shards], dtype=pl.String)
        for some, frame in self.chosen.frames(names):
            places = self.places[some]
            new = {"shard": paths.gather(places["shard"]), "index": places["index"], "offset": places["offset"]}
            frame = frame.rename({"shard": "old_shard", "offset": "old_offset"}).with_columns(**new)
            yield some, pl.DataFrame(pl.from_arrow(with_offsets(frame.to_arrow())))


def _copy(engine: Engine, placed: _Placed, missing: Sequence[int], work: Workspace) -> None:
    """Copy the samples of missing shards: a task for all that lie side by side in the manifest and in one old shard."""
    copied = placed.places["shard"].is_in(missing).to_numpy()
    old = placed.chosen.columns["shard"].to_physical().to_numpy()[copied]
    count = int(np.count_nonzero(old[1:] != old[:-1])) + 1 if len(old) else 0
    stream = _runs(placed, copied)
    at_work: dict[int, CopyTask] = {}

    def task(number: int) -> CopyTask:
        if number not in at_work:  # else it is tried again
            shard, rows = next(stream)
            at_work[number] = CopyTask(ShardPlace(placed.chosen.corpus.place, shard), rows, str(work.partial))
        return at_work[number]

    with ProgressBar("copy", len(old), "samples", at_work=engine.at_work) as progress:

        def done(index: int, result: Any) -> None:
            task = at_work.pop(index)
            if isinstance(result, Crashed):
                raise BuildError(f"{task.source}: reading it kills the reader ({result.signal})")
            progress.moved(result)
            progress.add(len(task.rows))

        engine.run(copy_samples, LazyTasks(count, task), done, what="copying")


def _runs(placed: _Placed, copied: NDArray[np.bool_]) -> Iterator[tuple[str, list[Any]]]:
    """Old shard, and what is copied of it, for each stretch of rows of one old shard."""
    held: list[Any] = []
    shard = ""
    for some, frame in placed.frames(_COPIED):
        for row in frame.filter(pl.Series(copied[some])).iter_rows(named=True):
            if held and row["old_shard"] != shard:
                yield shard, sorted(held, key=lambda entry: entry[1])
                held = []
            shard = row["old_shard"]
            shift = row["old_offset"] - row["offset"]
            members = [(row["old_offset"] + 512, row["json_size"], row["json_sha256"])]
            members += [(image["offset"] + shift, image["size"], image["sha256"]) for image in row["images"]]
            held.append((row["id"], row["old_offset"], row["size"], row["shard"], row["offset"], members))
    if held:
        yield shard, sorted(held, key=lambda entry: entry[1])


def _manifest(placed: _Placed) -> Iterator[pa.Table]:
    """The new manifest in row groups."""
    filled = {name for name in OPTIONAL if name in placed.chosen.columns and placed.chosen.columns[name].any()}
    schema = _schema(manifest_schema(), filled)
    held: list[pa.Table] = []
    for _, frame in placed.frames(manifest_schema().names):
        held.append(frame.select(schema.names).to_arrow().cast(schema))
        if sum(map(len, held)) >= ROW_GROUP:
            whole = pa.concat_tables(held)
            yield whole.slice(0, ROW_GROUP).combine_chunks()
            held = [whole.slice(ROW_GROUP)]
    if sum(map(len, held)):
        yield pa.concat_tables(held).combine_chunks()


def _schema(schema: pa.Schema, filled: set[str]) -> pa.Schema:
    """Without the optional columns in which no value stands."""
    return pa.schema([field for field in schema if field.name not in OPTIONAL or field.name in filled])


def _refuse_sizes(chosen: Chosen) -> None:
    """Space is set aside for what the manifest says, so it must not say more than there is."""
    for shard, size in chosen.columns.group_by("shard").agg(pl.col("size").sum()).sort("shard").iter_rows():
        place = ShardPlace(chosen.corpus.place, shard)
        if (place.size() or 0) < size:
            raise CorpusError(f"{place}: is not there, or shorter than the manifest says; run sigma validate")


def _sums(rows: pl.DataFrame, size: int) -> dict[str, Any]:
    families = rows.group_by("family").len().iter_rows()
    return {
        "read": len(rows), "made": 0, "written": len(rows), "filtered": 0, "quarantined": 0, "duplicates": 0,
        "codes": {}, "filters": {},
        "splits": dict(rows.group_by("split", maintain_order=True).len().iter_rows()),
        "families": dict(sorted(families)),
        "images": int(rows["images"].cast(pl.Int64).sum()), "bytes": size, "components": rows["component"].n_unique(),
    }  # fmt: skip
