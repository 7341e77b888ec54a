"""The end of a build: tables, card and report written, then `corpus.json`, which makes it a corpus."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.build_dataset.config import NOT_RECORDED, BuildConfig
from pipelines.build_dataset.image_words import NO_WORDS, ImageWords
from pipelines.build_dataset.plan import Plan
from sigma_data.corpus.corpus import CARD, COMMIT, MANIFEST, QUARANTINE, REPORT, WORK, file_digest
from sigma_data.corpus.dataset_card import render_card
from sigma_data.corpus.manifest import OPTIONAL, manifest_schema, quarantine_schema
from sigma_data.corpus.record import SCHEMA_VERSION
from sigma_data.corpus.shard import read_range
from sigma_data.images.fingerprint_file import KnownImages
from sigma_data.report.report import render_report
from sigma_data.sources import Fragment, open_source
from sigma_data.storage.files import disk_error, dump_json, with_temporary, write_atomic
from sigma_data.storage.paths import literal

_THUMBNAILS_A_CODE = 24
"""Thumbnails that the quarantine keeps for each code."""


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

    def count(out: pl.DataFrame) -> dict[str, int]:
        return dict(out.group_by("code").len().sort(["len", "code"], descending=[True, False]).iter_rows())

    filters = count(plan.out.filter("filtered"))
    codes = count(plan.out.filter(~pl.col("filtered")))
    duplicates = codes.pop("duplicate", 0)
    written = len(plan.rows)
    filtered, quarantined = sum(filters.values()), sum(codes.values())
    if plan.read + plan.made != written + filtered + quarantined + duplicates:
        raise AssertionError(
            f"read {plan.read} + made {plan.made} != {written} written + {filtered} filtered + {quarantined} "
            f"quarantined + {duplicates} twice"
        )
    splits = dict(plan.rows.group_by("split", maintain_order=True).len().iter_rows())
    families = dict(plan.rows.group_by("family").len().sort("family").iter_rows())
    return {
        "read": plan.read,
        "made": plan.made,
        "written": written,
        "filtered": filtered,
        "quarantined": quarantined,
        "duplicates": duplicates,
        "codes": codes,
        "filters": filters,
        "splits": splits,
        "families": families,
        "images": int(plan.rows["images"].list.len().sum()),
        "bytes": sum(shard.size for shard in plan.shards),
        "components": plan.rows["component"].n_unique(),
    }


def commit_corpus(
    out: Path, config: BuildConfig, plan: Plan, inputs: Inputs, digests: Mapping[str, tuple[int, str]]
) -> None:
    """Write everything that describes the shards, and `corpus.json` last."""
    sums = sums_of(plan)
    write_corpus_files(
        out,
        manifest=plan.rows,
        quarantine=_quarantine(plan.out),
        sums=sums,
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
    manifest: pl.DataFrame,
    quarantine: pl.DataFrame,
    sums: Mapping[str, Any],
    shards: Mapping[str, Mapping[str, Any]],
    config: Mapping[str, Any],
    config_digest: str,
    inputs: str,
) -> None:
    """Manifest, quarantine, card, report, commit: whatever made the shards, the end is the same."""
    tables = {MANIFEST: _table(manifest, manifest_schema()), QUARANTINE: _table(quarantine, quarantine_schema())}
    manifest, quarantine = (pl.DataFrame(pl.from_arrow(table)) for table in tables.values())

    def read(shard: str, offset: int, size: int) -> bytes:
        with (out / shard).open("rb") as file:
            return read_range(file, offset, size)

    scratch = out / WORK  # a killed commit must leave no temporary file in the corpus
    try:
        for name in (MANIFEST, QUARANTINE):
            _write_table(out / name, tables.pop(name), scratch)
        first = manifest.row(0, named=True)
        record = read(first["shard"], first["json_offset"], first["json_size"])
        card = render_card(title=config["title"], manifest=manifest, sums=sums, record=record)
        write_atomic(out / CARD, card, scratch=scratch)
        report = render_report(
            title=config["title"], summary=_summary(sums), manifest=manifest, quarantine=quarantine, read=read
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


def _quarantine(out: pl.DataFrame) -> pl.DataFrame:
    """The table of what was not written, with a bounded number of thumbnails."""
    nth = pl.col("thumbnail").is_not_null().cast(pl.Int64).cum_sum().over("code")
    return out.with_columns(
        pl.when(nth <= _THUMBNAILS_A_CODE).then("thumbnail").alias("thumbnail"),
        pl.col("instruction").str.slice(0, 500),
    )


def _table(frame: pl.DataFrame, schema: pa.Schema) -> pa.Table:
    """A frame as an Arrow table of this schema: missing columns are null, optional ones without values left out."""
    table = frame.to_arrow()
    schema = pa.schema([field for field in schema if field.name not in OPTIONAL or _has_values(frame, field.name)])
    columns = [
        table.column(field.name).cast(field.type)
        if field.name in table.column_names
        else pa.nulls(len(table), field.type)
        for field in schema
    ]
    return pa.table(columns, schema=schema)


def _has_values(frame: pl.DataFrame, column: str) -> bool:
    """Whether a column says anything: neither null nor false in every row."""
    if column not in frame.columns:
        return False
    values = frame[column].drop_nulls()
    return bool(values.any()) if values.dtype == pl.Boolean else len(values) > 0


def _write_table(path: Path, table: pa.Table, scratch: Path) -> None:
    def write(temporary: Path) -> None:
        pq.write_table(table, literal(temporary), compression="zstd", row_group_size=65_536)

    with_temporary(path, write, scratch=scratch)
