"""A corpus of thousands of tiny samples, written without decoding anything, to measure what a row takes."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from sigma_data.corpus.manifest import manifest_schema
from sigma_data.corpus.shard import END, block
from support import corpora

SHARD = 250
ROW_GROUP = 3_000
NAMES = ("ref_01.jpg", "target.jpg")
SIZE = 3 * 1024
"""Of a sample in its shard: header and one block, for the JSON and for each image."""


def grown(small: Path, out: Path, rows: int) -> None:
    """A corpus of so many samples in shards of 250, sound but for its pixels, of the commit of a small one."""
    (out / "train").mkdir(parents=True)
    for name in ("quarantine.parquet", "README.md", "report.html", "corpus.json"):
        (out / name).write_bytes((small / name).read_bytes())
    pattern = corpora.read_manifest(small)[0]
    made: list[dict[str, Any]] = []
    for first in range(0, rows, SHARD):
        shard, data = f"train/editing-{first // SHARD:05d}.tar", b""
        for index, number in enumerate(range(first, first + SHARD)):
            digest = hashlib.sha256(str(number).encode()).hexdigest()
            keys = [hashlib.shake_256(f"{number} {at}".encode()).digest(86) for at in (1, 2)]
            images = [
                {**pattern["images"][0], "member": member, "number": at, "role": role, "size": 8, "signature": key,
                 "sha256": hashlib.sha256(key[:8]).hexdigest(), "offset": len(data) + 1536 + 1024 * (at - 1)}
                for at, role, member, key in zip((1, 2), ("reference", "target"), NAMES, keys, strict=True)
            ]  # fmt: skip
            members = [("json", b"{}"), *((member, key[:8]) for member, key in zip(NAMES, keys, strict=True))]
            made.append({
                **pattern, "id": digest[:20], "family": "editing", "split": "train", "shard": shard, "index": index,
                "offset": len(data), "json_offset": len(data) + 512, "json_size": 2, "size": SIZE,
                "json_sha256": hashlib.sha256(b"{}").hexdigest(),
                "images": images, "content": digest, "component": digest[:20], "row": number,
                "instruction": f"Paint it in shade {digest}",
            })  # fmt: skip
            data += block(digest[:20], members)
        (out / shard).write_bytes(data + END)
    table = pa.Table.from_pylist(made, schema=manifest_schema())
    pq.write_table(table, out / "manifest.parquet", row_group_size=ROW_GROUP)  # as builds do, with 65,536

    def change(commit: dict[str, Any]) -> None:
        entry = {"bytes": 0, "sha256": "", "samples": SHARD}
        commit["shards"] = {f"train/editing-{number:05d}.tar": dict(entry) for number in range(rows // SHARD)}
        out = commit["sums"]["quarantined"] + commit["sums"]["duplicates"] + commit["sums"].get("filtered", 0)
        commit["sums"] |= {"written": rows, "read": rows + out, "made": 0}

    corpora.forge_commit(out, change)
    corpora.forge_commit(out)
