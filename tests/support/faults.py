"""Damaging a finished corpus, and finding it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipelines.validate.run import Validation, validate_corpus
from sigma_data.corpus.shard import END, header, padded
from support import corpora

Members = list[tuple[str, bytes]]
members = corpora.members
SHARD = "train/editing-00000.tar"
"""Where the faults go: at least three samples, a JSON, a reference and a BMP target each."""


def check(corpus: Path, *, deep: bool) -> Validation:
    return validate_corpus(corpus, deep=deep, workers=0)


def samples(corpus: Path, shard: str = SHARD) -> list[dict[str, Any]]:
    """The manifest's rows of a shard, in its order."""
    return sorted((row for row in corpora.read_manifest(corpus) if row["shard"] == shard), key=lambda row: row["index"])


def pack(path: Path, content: Members) -> None:
    """Write a well-formed tar of any members, `header` names included that no corpus would have."""
    parts = [header(name, len(data)) + data + bytes(padded(len(data)) - len(data)) for name, data in content]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"".join(parts) + END)


def patch(path: Path, place: int, data: bytes) -> None:
    content = bytearray(path.read_bytes())
    content[place : place + len(data)] = data
    path.write_bytes(bytes(content))


def flip(path: Path, place: int, bit: int = 0) -> None:
    patch(path, place, bytes([path.read_bytes()[place] ^ 1 << bit]))


def target_of(row: dict[str, Any]) -> dict[str, Any]:
    return next(image for image in row["images"] if image["role"] == "target")


def assert_found(result: Validation, code: str, named: str) -> None:
    found = [f"{problem.code} {problem.where}: {problem.message}" for problem in result.problems]
    assert any(line.startswith(f"{code} ") and named in line for line in found), (code, named, found)
