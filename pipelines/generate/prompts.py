"""Prompts of a file, a folder or a corpus, one after the other: never more than one with its images in memory."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any

from pipelines.common.inference_config import parse_size
from pipelines.evaluate.benchmarks.samples import corpus_samples, is_corpus, items_of, release_samples, text_items_of
from pipelines.evaluate.item import Item
from sigma_data.errors import ConfigError
from sigma_data.sample import Sample

LINES = (".jsonl", ".ndjson")
UNREADABLE = "unreadable"
"""In an item's `truth`: why it, or an image of it, could not be read."""
_OTHERWISE = 'write other prompts as JSON lines (.jsonl), {"prompt": "...", "images": ["a.png"]}'
_KEYS = {"id", "prompt", "images", "size"}


def read_prompts(
    path: Path, *, text: bool, split: str | None = None, start: int = 0, limit: int | None = None
) -> Iterator[tuple[int, Item]]:
    """The items of a source, each with its index there, from `start` on, `limit` of them.

    `path` is a file of JSON lines ({"prompt": ..., "images": [...]}, also "id" and "size"; paths are relative to the
    file) or a folder of such files, taken in the order of their names, the release's parquet, or a corpus, whose
    `split` (test) is asked. `text`: what is asked for text there.
    A line that is wrong, or names an image that cannot be read, is an item with the reason in its `truth`. Raises
    ConfigError where the source is none of these.
    """
    if not path.exists():
        raise ConfigError(f"--from {path}: no such file or folder")
    if path.suffix.lower() in LINES and not path.is_dir():
        items: Iterator[Item] = _lines(path)
    elif is_corpus(str(path)):
        items = _of_samples(corpus_samples(str(path), split or "test"), text=text)
    elif path.suffix.lower() == ".parquet" or (path.is_dir() and next(path.rglob("*.parquet"), None) is not None):
        samples = release_samples(str(path), asked_by=f"--from {path}", otherwise=_OTHERWISE)
        items = _of_samples(samples, text=text)
    elif files := _files_of_lines(path):
        items = chain.from_iterable(_lines(file, prefix=f"{file.stem}-") for file in files)
    else:
        wrong = "is no corpus and holds neither parquet nor JSON lines: " if path.is_dir() else ""
        raise ConfigError(f"--from {path}: {wrong}give JSON lines (.jsonl), the release's parquet, or a corpus")
    if split is not None and not is_corpus(str(path)):
        raise ConfigError(f"--from {path}: is not a corpus and has no splits: leave --split out")
    stop = None if limit is None else start + limit
    return ((index, item) for index, item in islice(enumerate(items), start, stop))


def _of_samples(samples: Iterator[Sample], *, text: bool) -> Iterator[Item]:
    for sample in samples:
        yield from (item for _, item in text_items_of(sample)) if text else items_of(sample)


def _files_of_lines(path: Path) -> list[Path]:
    """The files of JSON lines of a folder, but for hidden ones, which systems put beside what a user wrote."""
    if not path.is_dir():
        return []
    found = sorted(file for file in path.iterdir() if file.suffix.lower() in LINES and not file.is_dir())
    return [file for file in found if not file.name.startswith(".")]


def _lines(path: Path, *, prefix: str = "") -> Iterator[Item]:
    """The items of a file; those that have no id are called after their lines, with `prefix`."""
    try:
        with path.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield _item(path, number, line, f"{prefix}{number}")
    except OSError as error:
        raise ConfigError(f"--from {path}: cannot be read ({error.strerror or error})") from None


def _item(path: Path, number: int, line: bytes, name: str) -> Item:
    """A line as an item; what is wrong with it, or with its images, is in `truth`, and fails that item alone."""
    try:
        return _right_item(path, number, line, name)
    except ConfigError as error:
        return Item(name, "", "", truth={UNREADABLE: str(error)})


def _right_item(path: Path, number: int, line: bytes, name: str) -> Item:
    """The same. Raises ConfigError for a line that is wrong."""
    where = f"{path}, line {number}"
    try:
        row: dict[str, Any] = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{where}: is no JSON ({_fault(error)}): write one object a line") from None
    if not _is_unicode(row):
        raise ConfigError(f"{where}: has half a character (\\ud800 to \\udfff alone): mend it")
    if not isinstance(row, dict) or not isinstance(row.get("prompt"), str):
        raise ConfigError(f'{where}: has no prompt: write {{"prompt": "...", "images": ["a.png"]}}')
    if unknown := sorted(row.keys() - _KEYS):
        raise ConfigError(f"{where}: unknown key {unknown[0]!r}; there are {', '.join(sorted(_KEYS))}")
    names = row.get("images") or []
    if not isinstance(names, list) or not all(isinstance(image, str) for image in names):
        raise ConfigError(f"{where}: images are a list of paths")
    try:
        size = parse_size(row["size"]) if row.get("size") is not None else None
    except ValueError as error:
        raise ConfigError(f"{where}: size: {error}") from None
    references: list[bytes] = []
    truth: dict[str, Any] = {"files": names}
    for image in names:
        try:
            references.append((path.parent / Path(image).expanduser()).read_bytes())
        except OSError as fault:
            references.append(b"")
            truth.setdefault(UNREADABLE, f"{image}: cannot be read ({fault.strerror}): mend its path in {where}")
    return Item(str(row.get("id", name)), "", row["prompt"], tuple(references), size=size, truth=truth)


def _is_unicode(row: Any) -> bool:
    """Whether all text in it can be written; JSON may hold surrogates without their other halves."""
    try:
        json.dumps(row, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


def _fault(error: Exception) -> str:
    """What is wrong with a line; the parser's own words would count its lines from 1."""
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg}, character {error.colno}"
    return str(error)
