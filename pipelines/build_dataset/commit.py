"""The end of a build: tables, card and report written, then `corpus.json`, which makes it a corpus."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.build_dataset.config import NOT_RECORDED, BuildConfig
from pipelines.build_dataset.image_words import NO_WORDS, ImageWords
from pipelines.build_dataset.plan import Plan
from pipelines.build_dataset.tables import ROW_GROUP, manifest_tables, quarantine_tables
from sigma_data.corpus.corpus import CARD, COMMIT, MANIFEST, QUARANTINE, REPORT, WORK, file_digest
from sigma_data.corpus.dataset_card import render_card
from sigma_data.corpus.manifest import manifest_schema, quarantine_schema
from sigma_data.corpus.record import SCHEMA_VERSION
from sigma_data.corpus.shard import read_range
from sigma_data.corpus.table_rows import FileRows
from sigma_data.images.fingerprint_file import KnownImages
from sigma_data.report.report import render_report
from sigma_data.sources import Fragment, open_source
from sigma_data.storage.files import disk_error, dump_json, with_temporary, write_atomic
from sigma_data.storage.paths import literal


@dataclass(frozen=True)
class Inputs:
    """What went in: the digest over every fragment's place, its file's fingerprint, and the images to be excluded."""

    digest: str

    @classmethod
    def of(cls, located: Sequence[tuple[str, Fragment]], excluded: KnownImages, words: ImageWords = NO_WORDS) -> Inputs:
        """Fingerprints by content, see `DataFolder.fingerprint`: a correction may leave a file's size as it was."""
        readers = {spec: open_source(spec) for spec, _ in located}
        known: dict[tuple[str, str], str] = {}  # a file has many fragments
        lines = []
        for spec, fragment in located:
            key = (spec, fragment.location)
            if key not in known:
                known[key] = readers[spec].fingerprint(fragment)
            lines.append((*key, fragment.part, known[key]))
        lines += [("excluded", one.sha256, one.signature.hex(), one.name) for one in excluded.prints]
        lines += [("words", words.digest, "", "")] if words.digest else []
        return cls(hashlib.sha256(repr(lines).encode()).hexdigest())


def sums_of(plan: Plan) -> dict[str, Any]:
    """Read (+ made) = written + filtered + quarantined + duplicates, and the counts behind them."""
    most_first = sorted(plan.codes.items(), key=lambda entry: (-entry[1], entry[0][0]))
    filters = {code: count for (code, filtered), count in most_first if filtered}
    codes = {code: count for (code, filtered), count in most_first if not filtered}
    duplicates = codes.pop("duplicate", 0)
    written, made = len(plan.places), plan.made_samples
    filtered, quarantined = sum(filters.values()), sum(codes.values())
    if plan.read + made != written + filtered + quarantined + duplicates:
        raise AssertionError(
            f"read {plan.read} + made {made} != {written} written + {filtered} filtered + {quarantined} "
            f"quarantined + {duplicates} twice"
        )
    splits = dict(plan.places.group_by("split", maintain_order=True).len().iter_rows())
    families = dict(sorted(plan.places.group_by("family").len().iter_rows()))
    return {
        "read": plan.read,
        "made": made,
        "written": written,
        "filtered": filtered,
        "quarantined": quarantined,
        "duplicates": duplicates,
        "codes": codes,
        "filters": filters,
        "splits": splits,
        "families": families,
        "images": int(plan.places["images"].cast(pl.Int64).sum()),
        "bytes": sum(shard.size for shard in plan.shards),
        "components": plan.places["component"].n_unique(),
    }


def commit_corpus(
    out: Path, config: BuildConfig, plan: Plan, inputs: Inputs, digests: Mapping[str, tuple[int, str]]
) -> None:
    """Write everything that describes the shards, and `corpus.json` last."""
    write_corpus_files(
        out,
        manifest=manifest_tables(plan, out / WORK),
        quarantine=quarantine_tables(plan),
        sums=sums_of(plan),
        shards={
            shard.path: {"samples": shard.samples, "bytes": digests[shard.path][0], "sha256": digests[shard.path][1]}
            for shard in plan.shards
        },
        config=json.loads(config.model_dump_json(exclude=NOT_RECORDED)),
        config_digest=config.digest(),
        inputs=inputs.digest,
    )


def write_corpus_files(
    out: Path,
    *,
    manifest: Iterable[pa.Table],
    quarantine: Iterable[pa.Table],
    sums: Mapping[str, Any],
    shards: Mapping[str, Mapping[str, Any]],
    config: Mapping[str, Any],
    config_digest: str,
    inputs: str,
) -> None:
    """Manifest, quarantine, card, report, commit: whatever made the shards, the end is the same.

    The tables come in pieces, in the columns of `manifest_schema` and `quarantine_schema`.
    """

    def read(shard: str, offset: int, size: int) -> bytes:
        with (out / shard).open("rb") as file:
            return read_range(file, offset, size)

    scratch = out / WORK  # a killed commit must leave no temporary file in the corpus
    try:
        for name, tables in ((MANIFEST, manifest), (QUARANTINE, quarantine)):
            _write_table(out / name, tables, scratch)
        rows = FileRows(out / MANIFEST, manifest_schema())
        first = rows.first(["shard", "json_offset", "json_size"])
        record = read(first["shard"], first["json_offset"], first["json_size"])
        card = render_card(title=config["title"], manifest=rows, sums=sums, record=record)
        write_atomic(out / CARD, card, scratch=scratch)
        report = render_report(
            title=config["title"],
            summary=_summary(sums),
            manifest=rows,
            quarantine=FileRows(out / QUARANTINE, quarantine_schema(), nulls=True),
            read=read,
        )
        write_atomic(out / REPORT, report, scratch=scratch)
        files = {}
        for name in (MANIFEST, QUARANTINE, CARD, REPORT):
            size, digest = file_digest(out / name)
            files[name] = {"bytes": size, "sha256": digest}
        body = {
            "schema_version": SCHEMA_VERSION,
            "config": dict(config),
            "config_digest": config_digest,
            "inputs": inputs,
            "sums": dict(sums),
            "shards": {path: dict(entry) for path, entry in shards.items()},
            "files": files,
        }
        digest = hashlib.sha256(dump_json(body).encode()).hexdigest()
        write_atomic(out / COMMIT, dump_json({**body, "digest": digest}), durable=True, scratch=scratch)
    except OSError as error:
        raise disk_error(error, out) from None


def _summary(sums: Mapping[str, Any]) -> dict[str, Any]:
    return {**sums, "quarantined_by_code": sums["codes"]}


def _write_table(path: Path, tables: Iterable[pa.Table], scratch: Path) -> None:
    def write(temporary: Path) -> None:
        with ExitStack() as stack:
            writer: pq.ParquetWriter | None = None
            for table in tables:
                if writer is None:
                    made = pq.ParquetWriter(literal(temporary), table.schema, compression="zstd")
                    writer = stack.enter_context(made)
                writer.write_table(table, row_group_size=ROW_GROUP)

    with_temporary(path, write, scratch=scratch)
