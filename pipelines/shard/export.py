"""`sigma shard --to release`: samples of a corpus in the layout of the SIGMA release."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.build_dataset.workspace import refuse_overlap
from pipelines.common.batched import batched
from pipelines.shard.selection import Chosen, Selection
from sigma_data.corpus.corpus import file_digest, open_corpus
from sigma_data.errors import ConfigError
from sigma_data.instruction import renumber
from sigma_data.sample import Sample
from sigma_data.sources.release import SPLIT_COLUMN
from sigma_data.storage.files import disk_error, dump_json, write_atomic
from sigma_data.storage.paths import literal

_RELEASE_ROWS, _RELEASE_GROUP = 300, 10
"""Rows a file and rows a row group in the release."""
_COLUMNS = ("id", "split", "shard", "json_offset", "json_size", "images")
"""What leads to a sample's bytes."""


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
    chosen = selection.of(corpus)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{out} is there already: choose another place with --out")
    temporary = out.resolve().with_name(f".{out.name}.tmp")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        counts = _write_release(chosen, temporary)
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


def _write_release(chosen: Chosen, out: Path) -> dict[str, Any]:
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

    def records(split: str) -> Iterator[dict[str, Any]]:
        for _, frame in chosen.frames(_COLUMNS):
            for row in frame.filter(frame["split"] == split).iter_rows(named=True):
                if (record := release_row(chosen.corpus.sample(row))) is not None:
                    yield record | {SPLIT_COLUMN: split}

    for split in chosen.columns["split"].unique(maintain_order=True):
        folder = f"{split}/seedxedit_multi"
        writer: pq.ParquetWriter | None = None
        name = ""
        files = written = 0
        try:
            for group in batched(records(split), _RELEASE_GROUP):
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
            splits[split] = written
    write_atomic(out / "parquet_info.json", dump_json(info))
    size = sum(file_digest(out / name)[0] for name in info)
    samples = sum(splits.values())
    counts = {"samples": samples, "left_out": len(chosen.rows) - samples, "files": len(info), "bytes": size}
    return {**counts, "splits": splits}
