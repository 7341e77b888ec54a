"""Rows to measure on: a release folder repeated, every repeat with bytes and words of its own.

Samples equal in all pictures and words would be folded as duplicates, so every copy's words differ.
With `mark` so do its pictures' bytes, as in a corpus in which no picture is used twice: a JPEG gets a
comment segment, a PNG a text chunk, a WebP an XMP chunk. The pixels stay.
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from sigma_data.corpus.check_limits import Limits
from sigma_data.corpus.checks import examine
from sigma_data.sample import Sample
from sigma_data.sources import open_source

_ROWS_A_FILE, _ROWS_A_GROUP = 300, 10


def repeat_release(release: Path, out: Path, samples: int, *, mark: bool) -> None:
    """Write `samples` good rows, taken round and round from a release folder, as a release folder."""
    rows = list(_good_rows(release))
    schema = pa.schema({
        "image_list": pa.list_(pa.binary()),
        "instruction_list": pa.list_(pa.list_(pa.string())),
        "data_prep_method": pa.string(),
    })  # fmt: skip
    out.mkdir(parents=True)
    for start in range(0, samples, _ROWS_A_FILE):
        with pq.ParquetWriter(out / f"chunk_{start // _ROWS_A_FILE}.parquet", schema) as writer:
            for group in range(start, min(start + _ROWS_A_FILE, samples), _ROWS_A_GROUP):
                numbers = range(group, min(group + _ROWS_A_GROUP, start + _ROWS_A_FILE, samples))
                batch = [_copy(rows[number % len(rows)], number, mark=mark) for number in numbers]
                writer.write_table(pa.Table.from_pylist(batch, schema=schema))


def _good_rows(release: Path) -> Iterator[dict[str, Any]]:
    reader = open_source(f"release:{release}")
    for fragment in reader.fragments():
        for sample in reader.read(fragment):
            if isinstance(sample, Sample) and not examine(sample, Limits()).errors:
                yield {
                    "image_list": [image.data for image in sample.images],
                    "instruction_list": [[turn.instruction for turn in sample.turns]],
                    "data_prep_method": sample.family.value,
                }


def _copy(row: dict[str, Any], number: int, *, mark: bool) -> dict[str, Any]:
    words = f"copy {number:010d} ".encode()
    pictures = [_mark(data, words) if mark else data for data in row["image_list"]]
    text = f"{row['instruction_list'][0][0]} (Variant {number}.)"
    return {**row, "image_list": pictures, "instruction_list": [[text]]}


def _mark(data: bytes, words: bytes) -> bytes:
    if data.startswith(b"\xff\xd8"):
        return data[:2] + b"\xff\xfe" + (len(words) + 2).to_bytes(2, "big") + words + data[2:]
    if data.startswith(b"\x89PNG"):
        body = b"tEXtComment\0" + words
        chunk = (len(body) - 4).to_bytes(4, "big") + body + zlib.crc32(body).to_bytes(4, "big")
        return data[:33] + chunk + data[33:]  # behind IHDR
    if data[12:15] == b"VP8" and data[15:16] != b"X":  # a simple WebP becomes an extended one
        width, height = Image.open(io.BytesIO(data)).size
        sides = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
        extended = _chunk(b"VP8X", b"\x04\0\0\0" + sides)
        body = b"WEBP" + extended + data[12:] + _chunk(b"XMP ", words)
        return b"RIFF" + len(body).to_bytes(4, "little") + body
    return data


def _chunk(name: bytes, content: bytes) -> bytes:
    return name + len(content).to_bytes(4, "little") + content
