"""Small corpora in publishers' layouts, made in code: images, archives whole and in parts, rows."""

from __future__ import annotations

import gzip
import io
import json
import random
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from sigma_data.sample import Rejection, Sample
from sigma_data.sources import open_source, source_spec


def picture(seed: int, size: tuple[int, int] = (48, 40), kind: str = "PNG") -> bytes:
    """An encoded image of four colours drawn from a seed."""
    draw = random.Random(seed)
    small = Image.frombytes("RGB", (2, 2), draw.randbytes(12))
    out = io.BytesIO()
    small.resize(size, Image.Resampling.NEAREST).save(out, kind)
    return out.getvalue()


def tar_of(members: Mapping[str, bytes]) -> bytes:
    """A tar of the members in order."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


def put(path: Path, content: bytes | str) -> Path:
    """Write a file and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def put_parts(path: Path, content: bytes, ending: str, parts: int) -> None:
    """Write a file in parts; `ending` is formatted with the number of the part."""
    step = -(-len(content) // parts)
    for number in range(parts):
        put(path.with_name(path.name + ending.format(number)), content[number * step : (number + 1) * step])


def put_tar(path: Path, members: Mapping[str, bytes], ending: str = "", parts: int = 1) -> None:
    """Write a tar, by gzip if its name says so."""
    content = tar_of(members)
    content = gzip.compress(content) if path.name.endswith("gz") else content
    if parts == 1 and not ending:
        put(path, content)
    else:
        put_parts(path, content, ending, parts)


def lines(rows: Iterable[Mapping[str, Any]]) -> str:
    """JSON Lines."""
    return "".join(json.dumps(row) + "\n" for row in rows)


def read(layout: str, folder: Path, **options: str) -> list[Sample | Rejection]:
    """All records of a source, its cache beside the folder."""
    cache = folder.parent / f"{folder.name}.cache"
    words = "&".join(f"{key}={value}" for key, value in {"cache": str(cache), **options}.items())
    reader = open_source(f"{source_spec(layout, str(folder))}?{words}")
    return [record for fragment in reader.fragments() for record in reader.read(fragment)]


def told(records: Iterable[Sample | Rejection]) -> list[str]:
    """What became of each record: its family, or the code of its rejection, in brackets where it was filtered."""
    return [
        record.family.value if isinstance(record, Sample) else f"({record.code})" if record.filtered else record.code
        for record in records
    ]


def sample(record: Sample | Rejection) -> Sample:
    """The record, which must be a sample."""
    assert isinstance(record, Sample), record
    return record
