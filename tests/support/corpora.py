"""Small corpora and parquet files, their images drawn from a seed, for the tests that need real files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.build_dataset.config import BuildConfig
from pipelines.build_dataset.run import BuildResult
from pipelines.build_dataset.run import build as run_build
from sigma_data.corpus.corpus import COMMIT, MANIFEST, QUARANTINE, file_digest
from sigma_data.corpus.manifest import manifest_schema, quarantine_schema
from sigma_data.corpus.shard import read_members
from sigma_data.storage.files import dump_json
from support.image_files import image_bytes

RELEASE_SCHEMA = pa.schema({
    "image_list": pa.list_(pa.binary()),
    "instruction_list": pa.list_(pa.list_(pa.string())),
    "data_prep_method": pa.string(),
})  # fmt: skip

_INSTRUCTIONS = {
    "editing": (1, "Paint the <subject>thing in <image_1> in shade {number}"),
    "compositional": (2, "Place <subject>the first thing<image_1> into <background>scene {number}<image_2>"),
    "stylization": (2, "Redraw <image_1> in the <style>style of <image_2>, variant {number}"),
    "relation": (3, "As from <image_1> to <image_2>, change <image_3>, number {number}"),
    "selective": (1, "Isolate <select> thing {number} in <image_1>"),
    "layout": (1, "Follow the <layout>depth map<image_1> to draw scene {number}"),
}


def release_row(
    seed: int, *, family: str = "editing", kind: str = "jpeg", target_kind: str | None = None
) -> dict[str, Any]:
    """A legal row of the release's parquet, all its images drawn from the seed."""
    references, instruction = _INSTRUCTIONS[family]
    pictures = [image_bytes(kind, 100 * seed + number, width=64 + 8 * number) for number in range(references)]
    pictures.append(image_bytes(target_kind or kind, 100 * seed + 99))
    return {
        "image_list": pictures,
        "instruction_list": [[instruction.format(number=seed)]],
        "data_prep_method": family,
    }


def write_parquet(
    path: Path, rows: Sequence[dict[str, Any]], *, group: int = 10, schema: pa.Schema = RELEASE_SCHEMA
) -> Path:
    """Rows as a parquet file of the release's layout."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(list(rows), schema=schema), path, row_group_size=group)
    return path


def make_release(folder: Path, rows: int, seed: int = 0, *, files: int = 1, group: int = 10) -> Path:
    """A folder in the release's layout with `rows` legal rows of all families, in JPEG, PNG and WebP.

    The targets of editing samples are BMP of one size, so that equally large members exist.
    """
    families = list(_INSTRUCTIONS)
    made = [
        release_row(
            1000 * seed + index,
            family=families[index % len(families)],
            kind=("jpeg", "jpeg", "png", "webp")[index % 4],
            target_kind="bmp" if index % len(families) == 0 else ("jpeg", "png")[index % 2],
        )
        for index in range(rows)
    ]
    share = -(-rows // files)
    for index in range(files):
        write_parquet(
            folder / "seedxedit_multi" / f"chunk_{index}.parquet",
            made[index * share : (index + 1) * share],
            group=group,
        )
    return folder


def build(out: Path, *sources: str, workers: int = 0, overwrite: bool = False, **settings: Any) -> BuildResult:
    """Build a corpus in this process and without progress lines; `settings` are those of BuildConfig."""
    return run_build(BuildConfig(sources=sources, **settings), out, workers=workers, overwrite=overwrite)


def adds_up(sums: dict[str, Any]) -> bool:
    """Whether nothing was dropped silently."""
    out = sums.get("filtered", 0) + sums["quarantined"] + sums["duplicates"]
    return bool(sums["read"] + sums.get("made", 0) == sums["written"] + out)


def members(path: Path) -> list[tuple[str, bytes]]:
    """Name and content of every member of a sound shard."""
    data = path.read_bytes()
    with path.open("rb") as file:
        return [(m.name, data[m.offset : m.offset + m.size]) for m in read_members(file)]


def files_below(folder: Path) -> dict[str, tuple[int, str]]:
    """Relative path -> size and digest of every file below a folder."""
    return {
        path.relative_to(folder).as_posix(): file_digest(path) for path in sorted(folder.rglob("*")) if path.is_file()
    }


def read_commit(corpus: Path) -> dict[str, Any]:
    """The content of corpus.json."""
    commit: dict[str, Any] = json.loads((corpus / COMMIT).read_text("utf-8"))
    return commit


def write_commit(corpus: Path, commit: dict[str, Any]) -> None:
    """Write corpus.json with a digest that fits, as somebody who knows the format would."""
    body = {name: value for name, value in commit.items() if name != "digest"}
    digest = hashlib.sha256(dump_json(body).encode("utf-8", "surrogatepass")).hexdigest()
    (corpus / COMMIT).write_bytes(dump_json({**body, "digest": digest}).encode("utf-8", "surrogatepass"))


def forge_commit(corpus: Path, change: Callable[[dict[str, Any]], None] | None = None) -> None:
    """Give corpus.json the true size and digest of every file that lies there, after a change to it."""
    commit = read_commit(corpus)
    for entries in (commit["shards"], commit["files"]):
        for name, entry in entries.items():
            if (corpus / name).is_file():
                entry["bytes"], entry["sha256"] = file_digest(corpus / name)
    if change is not None:
        change(commit)
    write_commit(corpus, commit)


def read_manifest(corpus: Path) -> list[dict[str, Any]]:
    """The rows of the manifest."""
    return pl.read_parquet(corpus / MANIFEST).to_dicts()


def write_manifest(corpus: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write the manifest; `forge_commit` makes the commit fit it."""
    pq.write_table(pa.Table.from_pylist(list(rows), schema=manifest_schema()), corpus / MANIFEST)


def write_quarantine(corpus: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write the quarantine; `forge_commit` makes the commit fit it."""
    pq.write_table(pa.Table.from_pylist(list(rows), schema=quarantine_schema()), corpus / QUARANTINE)
