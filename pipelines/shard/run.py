"""`sigma shard`: a corpus sharded anew, a part of it, or its samples in the release's parquet.

Samples are copied as whole blocks of tar, their digests checked on the way; splits, ids and
components stay. To merge corpora, build from them: `sigma build-dataset webdataset:A webdataset:B`.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from pipelines.build_dataset.commit import as_table, write_corpus_files
from pipelines.build_dataset.placing import Shard, place, with_offsets
from pipelines.build_dataset.run import finish_shards
from pipelines.build_dataset.workspace import Workspace, refuse_overlap
from pipelines.build_dataset.write import ShardFiles, preallocate
from pipelines.common.batched import batched
from pipelines.common.engine import Engine
from pipelines.common.process_pool import Crashed, ProcessPool
from pipelines.common.progress import ProgressBar
from sigma_data.corpus.corpus import Corpus, file_digest, open_corpus
from sigma_data.corpus.manifest import manifest_schema, quarantine_schema
from sigma_data.corpus.places import ShardPlace
from sigma_data.corpus.shard import ShardFault, read_range
from sigma_data.errors import BuildError, ConfigError, CorpusError, SourceError
from sigma_data.instruction import renumber
from sigma_data.sample import Family, Sample
from sigma_data.settings_base import StrictModel
from sigma_data.sources.release import SPLIT_COLUMN
from sigma_data.storage.files import disk_error, dump_json, write_atomic
from sigma_data.storage.paths import literal

_RELEASE_ROWS, _RELEASE_GROUP = 300, 10
"""Rows a file and rows a row group in the release."""


@dataclass(frozen=True)
class Selection:
    """Which samples of a corpus: of these families and splits, for which `where` (SQL) holds."""

    families: tuple[str, ...] = ()
    splits: tuple[str, ...] = ()
    where: str | None = None
    limit: int | None = None

    def apply(self, corpus: Corpus) -> pl.DataFrame:
        """The chosen rows of the manifest, in its order. Raises ConfigError."""
        rows = corpus.manifest
        for name, wanted, known in (
            ("family", self.families, sorted(family.value for family in Family)),
            ("split", self.splits, sorted(corpus.sums["splits"])),
        ):
            if wrong := [value for value in wanted if value not in known]:
                raise ConfigError(f"there is no {name} {wrong[0]!r} (there are: {', '.join(known)})")
            if wanted:
                rows = rows.filter(pl.col(name).is_in(wanted))
        if self.where is not None:
            rows = _filter(rows, self.where)
        rows = rows.head(self.limit) if self.limit is not None else rows
        if rows.is_empty():
            raise ConfigError(f"{corpus.place}: no sample is left after the selection")
        return rows


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
    chosen = selection.apply(corpus)
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
        rows = chosen.rename({"shard": "old_shard", "offset": "old_offset"})
        rows, shards = _placed(rows, shard_bytes, shard_samples)
        counts = {"samples": len(rows), "shards": len(shards), "bytes": sum(shard.size for shard in shards)}
        if work.committed:
            return counts
        _refuse_sizes(corpus, rows)
        work.enter_plan(config.digest())
        # A shard gets its name when it is whole: what an interrupted run has finished is not copied again.
        missing = [shard for shard in shards if not (work.out / shard.path).exists()]
        for shard in missing:
            preallocate(work.partial / shard.path, shard.size)
        _copy(running, corpus, rows.filter(pl.col("shard").is_in([shard.path for shard in missing])), work)
        digests = finish_shards(running, shards, work)
        write_corpus_files(
            out,
            manifest=[as_table(rows, manifest_schema())],
            quarantine=[as_table(corpus.quarantine.clear(), quarantine_schema())],
            sums=_sums(rows, counts["bytes"]),
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


def export_release(path: str | Path, out: Path, selection: Selection) -> dict[str, Any]:
    """Write the chosen samples in the layout of the SIGMA release: a folder a split, with relative paths.

    Each row names its split, so that `sigma build-dataset release:OUT` keeps it. Returns the counts, `splits` of them
    those by split.

    Samples that layout cannot hold (text answers, several turns over more than one reference) are
    counted as `left_out`. The folder appears whole or not at all. Raises ConfigError, CorpusError.
    """
    corpus = open_corpus(path)
    if corpus.uri is None:
        refuse_overlap(out, corpus.path, str(path))
    rows = selection.apply(corpus)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{out} is there already: choose another place with --out")
    temporary = out.resolve().with_name(f".{out.name}.tmp")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        counts = _write_release(corpus, rows, temporary)
        if not counts["samples"]:
            raise ConfigError(f"{path}: no chosen sample fits the release's layout")
        if out.exists():
            out.rmdir()
        temporary.rename(out)
    except OSError as error:
        raise disk_error(error, out) from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return counts


def release_row(sample: Sample) -> dict[str, Any] | None:
    """A sample as a row of the release, or None where that layout cannot say it.

    Images are renumbered: references first, then the targets in turn order.
    """
    targets = sample.targets
    if len(targets) != len(sample.turns) or (len(targets) > 1 and len(sample.references) != 1):
        return None
    order = [*sample.references, *targets]
    numbers = {old: new for new, old in enumerate(order, 1)}
    data = {image.number: image.data for image in sample.images}
    texts = [[renumber(text, numbers) for text in (turn.instruction, *turn.alternatives)] for turn in sample.turns]
    return {
        "image_list": [data[number] for number in order],
        "instruction_list": texts,
        "data_prep_method": sample.family.value,
    }


def _filter(rows: pl.DataFrame, where: str) -> pl.DataFrame:
    """Rows for which an SQL expression over the manifest's columns holds; an expression only, no query."""
    try:
        return rows.filter(pl.sql_expr(where))
    except (pl.exceptions.PolarsError, ValueError, TypeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(f"--where {where!r}: {reason} (columns: {', '.join(rows.columns)})") from None


def _copy(engine: Engine, corpus: Corpus, rows: pl.DataFrame, work: Workspace) -> None:
    by_shard: dict[str, list[Any]] = {}
    columns = ["old_shard", "id", "old_offset", "offset", "size", "shard", "json_size", "json_sha256", "images"]
    for row in rows.select(columns).sort("old_shard", "old_offset").iter_rows(named=True):
        shift = row["old_offset"] - row["offset"]
        first = row["old_offset"] + 512
        members = [(first, row["json_size"], row["json_sha256"])]
        members += [(image["offset"] + shift, image["size"], image["sha256"]) for image in row["images"]]
        entry = (row["id"], row["old_offset"], row["size"], row["shard"], row["offset"], members)
        by_shard.setdefault(row["old_shard"], []).append(entry)
    tasks = [
        CopyTask(ShardPlace(corpus.place, shard), entries, str(work.partial)) for shard, entries in by_shard.items()
    ]
    with ProgressBar("copy", len(rows), "samples") as progress:

        def done(index: int, result: Any) -> None:
            if isinstance(result, Crashed):
                raise BuildError(f"{tasks[index].source}: reading it kills the reader ({result.signal})")
            progress.add(len(tasks[index].rows))

        engine.run(copy_samples, tasks, done, what="copying")


def _placed(rows: pl.DataFrame, shard_bytes: int, shard_samples: int) -> tuple[pl.DataFrame, tuple[Shard, ...]]:
    """The rows with their places in the new shards."""
    counts = rows["images"].list.len().to_numpy()
    shards, columns = place(
        rows["split"], rows["family"], rows["size"].to_numpy(), counts, shard_bytes=shard_bytes,
        shard_samples=shard_samples,
    )  # fmt: skip
    names = pl.Series([shard.path for shard in shards], dtype=pl.String)
    shard = names.gather(columns.pop("shard"))
    table = with_offsets(rows.with_columns(shard=shard, **columns).to_arrow())
    return pl.DataFrame(pl.from_arrow(table)), shards


def _refuse_sizes(corpus: Corpus, rows: pl.DataFrame) -> None:
    """Space is set aside for what the manifest says, so it must not say more than there is."""
    for shard, size in rows.group_by("old_shard").agg(pl.col("size").sum()).sort("old_shard").iter_rows():
        place = ShardPlace(corpus.place, shard)
        if (place.size() or 0) < size:
            raise CorpusError(f"{place}: is not there, or shorter than the manifest says; run sigma validate")


def _sums(rows: pl.DataFrame, size: int) -> dict[str, Any]:
    return {
        "read": len(rows), "made": 0, "written": len(rows), "filtered": 0, "quarantined": 0, "duplicates": 0,
        "codes": {}, "filters": {},
        "splits": dict(rows.group_by("split", maintain_order=True).len().iter_rows()),
        "families": dict(rows.group_by("family").len().sort("family").iter_rows()),
        "images": int(rows["images"].list.len().sum()), "bytes": size, "components": rows["component"].n_unique(),
    }  # fmt: skip


def _write_release(corpus: Corpus, rows: pl.DataFrame, out: Path) -> dict[str, Any]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema({
        "image_list": pa.list_(pa.binary()),
        "instruction_list": pa.list_(pa.list_(pa.string())),
        "data_prep_method": pa.string(),
        SPLIT_COLUMN: pa.string(),
    })  # fmt: skip
    # Encoded images do not shrink, and no reader asks for the first of them in order: pyarrow's defaults would
    # compress them, look for equal ones and keep whole images as statistics.
    text, images = (
        ["instruction_list.list.element.list.element", "data_prep_method", SPLIT_COLUMN],
        "image_list.list.element",
    )
    options = {
        "use_dictionary": text,
        "write_statistics": text,
        "compression": {images: "none"} | dict.fromkeys(text, "snappy"),
    }
    info: dict[str, dict[str, int]] = {}
    splits: dict[str, int] = {}

    def records(part: pl.DataFrame) -> Iterator[dict[str, Any]]:
        for row in part.iter_rows(named=True):
            if (record := release_row(corpus.sample(row))) is not None:
                yield record | {SPLIT_COLUMN: row["split"]}

    for split, part in rows.group_by("split", maintain_order=True):
        folder = f"{split[0]}/seedxedit_multi"
        writer: pq.ParquetWriter | None = None
        name = ""
        files = written = 0
        try:
            for group in batched(records(part), _RELEASE_GROUP):
                if writer is None or info[name]["num_rows"] >= _RELEASE_ROWS:
                    if writer is not None:
                        writer.close()
                    name = f"{folder}/chunk_{files}.parquet"
                    files += 1
                    info[name] = {"num_row_groups": 0, "num_rows": 0}
                    (out / folder).mkdir(parents=True, exist_ok=True)
                    writer = pq.ParquetWriter(literal(out / name), schema, **options)
                writer.write_table(pa.Table.from_pylist(group, schema=schema))
                info[name]["num_row_groups"] += 1
                info[name]["num_rows"] += len(group)
                written += len(group)
        finally:
            if writer is not None:
                writer.close()
        if written:
            splits[str(split[0])] = written
    write_atomic(out / "parquet_info.json", dump_json(info))
    size = sum(file_digest(out / name)[0] for name in info)
    samples = sum(splits.values())
    counts = {"samples": samples, "left_out": len(rows) - samples, "files": len(info), "bytes": size}
    return {**counts, "splits": splits}
