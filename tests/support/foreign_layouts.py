"""Small corpora in the layouts that others publish, made in code."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from sigma_data.sample import Rejection, Sample
from sigma_data.sources import open_source

Record = Sample | Rejection


def hf_image(data: bytes | None, path: str | None = None) -> dict[str, Any]:
    """An image as `datasets` embeds it."""
    return {"bytes": data, "path": path}


def write_parquet(file: Path, rows: list[dict[str, Any]], *, group: int = 3, schema: pa.Schema | None = None) -> Path:
    """Rows as a parquet file with small row groups."""
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), file, row_group_size=group)
    return file


def write_lines(file: Path, rows: list[Any]) -> Path:
    """Rows as JSON lines; bytes as they are."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(b"".join((row if isinstance(row, bytes) else json.dumps(row).encode()) + b"\n" for row in rows))
    return file


def tar_bytes(members: dict[str, bytes] | list[tuple[str, bytes]]) -> bytes:
    """A tar with these members in order."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, data in members.items() if isinstance(members, dict) else members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def records(spec: str) -> list[Record]:
    """Every record of a source; reading a fragment twice gives the same."""
    reader = open_source(spec)
    found: list[Record] = []
    for fragment in reader.fragments():
        part = list(reader.read(fragment))
        assert part == list(open_source(spec).read(fragment))
        found += part
    return found


def told(record: Record) -> str:
    """A record in short: its family, or its reason (in brackets for one that is filtered)."""
    if isinstance(record, Sample):
        return record.family.value
    return f"({record.code})" if record.filtered else record.code
