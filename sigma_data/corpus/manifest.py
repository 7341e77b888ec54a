"""The tables of a corpus: the columns of manifest and quarantine, how a sample becomes a row, how rows are read.

A manifest may come from anybody, so every reader of one goes through `read_batches`: columns and types as a build
writes them, no nulls where a value must be, ids that are keys of a shard.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sigma_data.corpus.record import KEY, stored_order
from sigma_data.errors import CorpusError
from sigma_data.images.image_info import ImageInfo
from sigma_data.sample import Sample
from sigma_data.storage.paths import literal

if TYPE_CHECKING:
    import polars as pl
    import pyarrow as pa

    from sigma_data.corpus.checks import Examination

_OLD_COLUMNS = {"licence": "license"}
"""Former names of columns, by which older corpora are opened."""
_NULLABLE = {"images.reencoded", "images.value_range", "turns.target", "turns.response", "made", "injection"}

_BUFFER = 2**18
"""Bytes of a column that are read at a time: a row group is not held whole while a part of it is looked at."""

OPTIONAL = {"filtered": False, "made": None, "injection": None}
"""Columns that a table only has if a row has another value than this: older tables have none of them."""


def images_type(*, ranges: bool = True) -> pa.DataType:
    """The images of a sample in the manifest; `offset` is that of an image's bytes in the shard.

    Without `ranges` the type that older corpora have, before there was a `value_range`.
    """
    import pyarrow as pa

    image = pa.struct({
        "number": pa.int16(), "role": pa.string(), "member": pa.string(), "format": pa.string(),
        "mode": pa.string(), "width": pa.int32(), "height": pa.int32(), "size": pa.int64(),
        "offset": pa.int64(), "sha256": pa.string(), "signature": pa.binary(), "reencoded": pa.string(),
        "value_range": pa.struct({"rule": pa.string(), "low": pa.float64(), "high": pa.float64()}),
    })  # fmt: skip
    return pa.list_(image if ranges else pa.struct([field for field in image if field.name != "value_range"]))


def manifest_schema() -> pa.Schema:
    """A row a sample: where it lies, what it holds, what it shares, where it came from.

    `made` is, for a sample made from others of the corpus, "RULE: their ids".
    """
    import pyarrow as pa

    turn = pa.struct({"instruction": pa.string(), "target": pa.int16(), "response": pa.string()})
    return pa.schema({
        "id": pa.string(), "family": pa.string(), "family_inferred": pa.bool_(), "split": pa.string(),
        "shard": pa.string(), "index": pa.int32(), "offset": pa.int64(), "size": pa.int64(),
        "json_offset": pa.int64(), "json_size": pa.int64(), "json_sha256": pa.string(),
        "images": images_type(), "instruction": pa.string(), "turns": pa.list_(turn),
        "attributes": pa.list_(pa.string()), "references": pa.int16(), "tokens": pa.int32(),
        "content": pa.string(), "component": pa.string(), "source": pa.string(), "location": pa.string(),
        "row": pa.int64(), "license": pa.string(), "warnings": pa.list_(pa.string()), "made": pa.string(),
        "injection": pa.string(),
    })  # fmt: skip


def quarantine_schema() -> pa.Schema:
    """A row a record that was not written: where it came from and why.

    `filtered` tells a good record that a filter or a quota left out from a broken one and from a duplicate.
    """
    import pyarrow as pa

    return pa.schema({
        "source": pa.string(), "location": pa.string(), "row": pa.int64(), "id": pa.string(),
        "family": pa.string(), "code": pa.string(), "codes": pa.list_(pa.string()), "message": pa.string(),
        "instruction": pa.string(), "thumbnail": pa.binary(), "filtered": pa.bool_(),
    })  # fmt: skip


def sample_columns(sample: Sample) -> dict[str, Any]:
    """The columns of the manifest that need no image to be decoded."""
    return {
        "id": sample.id,
        "family": sample.family.value,
        "family_inferred": sample.family_inferred,
        "source": sample.source.name,
        "location": sample.source.location,
        "row": sample.source.row,
        "license": sample.source.license,
        "instruction": sample.turns[0].instruction if sample.turns else None,
        "made": _made_of(sample.provenance),
    }


def _made_of(provenance: str | None) -> str | None:
    """Rule and parents of a sample made from others ("RULE: ID, ID"), None of any other."""
    if not provenance or '"made"' not in provenance:
        return None
    try:
        note = json.loads(provenance)["made"]
        return f"{note['rule']}: {', '.join(note['from'])}"
    except (ValueError, KeyError, TypeError, RecursionError):  # a record of somebody else
        return None


def examined_columns(found: Examination) -> dict[str, Any]:
    """`sample_columns` and those that follow from the decoded images, as they are or will be in the shard."""
    sample = found.sample
    return {
        **sample_columns(sample),
        "turns": [{"instruction": t.instruction, "target": t.target, "response": t.response} for t in sample.turns],
        "attributes": list(found.attributes),
        "references": len(sample.references),
        "tokens": found.tokens,
        "images": _image_columns(sample, found.infos),
    }


def _image_columns(sample: Sample, infos: Mapping[int, ImageInfo]) -> list[dict[str, Any]]:
    targets = set(sample.targets)
    ranges = {image.number: image.value_range for image in sample.images}
    return [
        {
            "number": number,
            "role": "target" if number in targets else "reference",
            "value_range": asdict(known) if (known := ranges[number]) is not None else None,
            **{
                name: getattr(infos[number], name)
                for name in ("format", "mode", "width", "height", "size", "sha256", "signature")
            },
        }
        for number in stored_order(sample)
    ]


def read_batches(
    path: Path, schema: pa.Schema, columns: Sequence[str] | None = None, *, rows: int = 65_536, nulls: bool = False
) -> Iterator[pa.RecordBatch]:
    """A table in chunks: all columns of the schema or some, parts of a list of structs as images.list.element.NAME.

    Older corpora get today's column names; their images have no `value_range`. With `nulls` any value may be missing.
    Raises CorpusError for a file that cannot be read, other types, missing values, and ids that are not keys.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    wanted = list(schema.names) if columns is None else list(columns)
    older = {"images": images_type(ranges=False)}
    try:
        with pq.ParquetFile(literal(path), buffer_size=_BUFFER, pre_buffer=False) as file:
            # Buffered ahead (pyarrow's default), every byte that was read would be kept until the file is closed.
            there = {_OLD_COLUMNS.get(name, name): name for name in file.schema_arrow.names}
            types = {name: file.schema_arrow.field(old).type for name, old in there.items()}
            tops = dict.fromkeys(name.partition(".")[0] for name in wanted)
            kinds = {name: schema.field(name).type for name in tops}
            absent = [name for name in tops if name in OPTIONAL and name not in there]
            if wrong := [
                n
                for n, kind in kinds.items()
                if n not in absent and (n not in there or types[n] not in (kind, older.get(n, kind)))
            ]:
                raise CorpusError(f"{path}: the columns {', '.join(wrong)} are not there, or of another type")
            found = [there.get(name, name) for name in wanted if name not in absent]
            for batch in file.iter_batches(rows, columns=found, use_threads=False):
                batch.validate(full=True)  # pyarrow itself takes bytes that are not UTF-8 as text
                named = batch.rename_columns([_OLD_COLUMNS.get(name, name) for name in batch.schema.names])
                for name in absent:
                    values = pa.array([OPTIONAL[name]] * len(batch), kinds[name])
                    named = named.append_column(schema.field(name), values)
                if not nulls:
                    _check(named, path)
                yield named
                # What a batch took is given back: the pool would keep some of it for each thread that freed it.
                del batch, named
                pa.default_memory_pool().release_unused()
    except (OSError, pa.ArrowException, KeyError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise CorpusError(f"{path}: cannot be read ({reason}); run sigma validate") from None


def _check(batch: pa.RecordBatch, path: Path) -> None:
    """Raise CorpusError for a missing value, and for an id that is not a key of a shard."""
    import pyarrow as pa
    import pyarrow.compute as pc

    for name in batch.schema.names:
        values = {name: batch[name]}
        if pa.types.is_list(batch[name].type) and pa.types.is_struct(batch[name].type.value_type):
            entries = batch[name].flatten()
            parts = zip(entries.type, entries.flatten(), strict=True)
            values |= {f"{name}.{field.name}": part for field, part in parts}
        for full, value in values.items():
            if full not in _NULLABLE and value.null_count:
                raise CorpusError(f"{path}: has no value in {full} in some rows; run sigma validate")
    if "id" in batch.schema.names and not pc.all(pc.match_substring_regex(batch["id"], f"^{KEY.pattern}$")).as_py():
        raise CorpusError(f"{path}: has an id that is not a key of a shard")


def count_warnings(manifest: pl.DataFrame) -> dict[str, int]:
    """Code -> samples with that warning, the most frequent first; of the manifest only `warnings` is looked at."""
    codes = manifest["warnings"].explode().drop_nulls().str.extract("^([^:]*)").alias("code").to_frame()
    return dict(codes.group_by("code").len().sort(["len", "code"], descending=[True, False]).iter_rows())
