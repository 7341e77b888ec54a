"""CV-Bench's rows as people hold them: parquet, JSON lines, TSV or CSV, images inside or as files beside.

A row is checked by type and meaning once, here, and only what was checked goes on: a column of choices that is
text is parsed, never iterated over, and an image is bytes, base64, or a file below the folder of the table.
"""

from __future__ import annotations

import ast
import base64
import binascii
import io
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from pipelines.evaluate.benchmarks.choice_letter import choice_letter
from sigma_data.errors import ConfigError, reason_of
from sigma_data.storage.paths import literal

TASKS = ("Count", "Relation", "Depth", "Distance")
TYPES = ("2D", "3D")
SOURCES = ("ADE20K", "COCO", "Omni3D")

FORMATS = (".parquet", ".jsonl", ".tsv", ".csv")
"""File name endings that are read; of a folder, all files of the first kind that it has."""

_COLUMNS: Mapping[str, tuple[str, ...]] = {
    "idx": ("idx", "index"), "type": ("type", "split"), "task": ("task", "category"), "source": ("source",),
    "prompt": ("prompt",), "answer": ("answer",),
}  # fmt: skip
"""Columns that every row needs: the name in the release, and the one in VLMEvalKit's tables where it differs."""

_IMAGES = ("image", "image_path", "filename")
_LETTERS = tuple("ABCDEFGHIJKLMNOPQRSTUVWXYZ")
_BATCH_ROWS = 64
_PATH_AT_MOST = 64
"""Characters of a text that may name another row's image, as VLMEvalKit's tables do, or a file, if it is not base64."""

_TOKEN = re.compile(r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|[-+]?\d+(?:\.\d+)?""", re.DOTALL)


@dataclass(frozen=True)
class Question:
    """A row of CV-Bench; `letter` is the right choice, `images` are encoded."""

    idx: str
    type: str
    task: str
    source: str
    prompt: str
    choices: tuple[str, ...]
    letter: str
    images: tuple[bytes, ...]


def table_files(path: str) -> list[Path]:
    """The files of a benchmark given as a file or a folder. Raises ConfigError if there are none."""
    place = Path(path)
    if place.is_file():
        if place.suffix.lower() not in FORMATS:
            raise ConfigError(f"benchmark cv-bench: {path}: is not one of {', '.join(FORMATS)}")
        return [place]
    if not place.exists():
        raise ConfigError(
            f"benchmark cv-bench: {path}: no such file or folder; `sigma download cv-bench` fetches it to data/cv-bench"
        )
    inside = sorted(file for file in place.rglob("*") if file.is_file()) if place.is_dir() else []
    kinds = ([file for file in inside if file.suffix.lower() == ending] for ending in FORMATS)
    found = next(filter(None, kinds), [])
    if not found:
        raise ConfigError(
            f"benchmark cv-bench: {path}: no parquet file there, and no .jsonl, .tsv or .csv with its questions"
        )
    return found


def read_questions(path: Path) -> list[Question]:
    """The questions of a file, in order. Raises ConfigError naming the file, the question and what is wrong."""
    rows = [*_rows(path)]
    names = set().union(*rows) if rows else set()
    missing = [name for name, known in _COLUMNS.items() if not names & set(known)]
    if not names & {"choices", "A"}:
        missing.append("choices")
    if not names & set(_IMAGES):
        missing.append("image")
    if missing:
        raise ConfigError(f"benchmark cv-bench: {path}: has no column {', '.join(missing)}")
    images = {str(_first(row, _COLUMNS["idx"])): row.get("image") for row in rows}
    return [_question(row, path, images) for row in rows]


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    """Rows as plain values."""
    ending = path.suffix.lower()
    if ending == ".parquet":
        yield from _parquet_rows(path)
        return
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"benchmark cv-bench: {path}: cannot be read ({error.strerror or error})") from None
    yield from (
        _json_rows(path, data) if ending == ".jsonl" else _text_rows(path, data, "\t" if ending == ".tsv" else ",")
    )


def _parquet_rows(path: Path) -> Iterator[dict[str, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    wanted = {*(name for names in _COLUMNS.values() for name in names), *_IMAGES, *_LETTERS, "choices"}
    try:
        with pq.ParquetFile(literal(path), pre_buffer=False) as file:
            columns = [name for name in file.schema_arrow.names if name in wanted]
            if not columns:
                yield {}
            for batch in file.iter_batches(_BATCH_ROWS, columns=columns):
                yield from batch.to_pylist()
    except (OSError, pa.ArrowException) as error:
        raise ConfigError(f"benchmark cv-bench: {path}: cannot be read as parquet ({reason_of(error)})") from None


def _json_rows(path: Path, data: bytes) -> Iterator[dict[str, Any]]:
    # Lines end in \n alone: str.splitlines would also cut at U+2028, which JSON allows inside a text.
    for number, line in enumerate(data.removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"benchmark cv-bench: {path}, line {number}: is not JSON ({error})") from None
        if not isinstance(row, dict):
            raise ConfigError(f"benchmark cv-bench: {path}, line {number}: is not a JSON object")
        yield row


def _text_rows(path: Path, data: bytes, separator: str) -> Iterator[dict[str, Any]]:
    import polars as pl

    try:
        # Every cell stays text: a choice "01" is not the number 1.
        table = pl.read_csv(io.BytesIO(data), separator=separator, infer_schema=False)
    except (pl.exceptions.PolarsError, OSError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        kind = "TSV" if separator == "\t" else "CSV"
        raise ConfigError(f"benchmark cv-bench: {path}: cannot be read as {kind} ({reason})") from None
    yield from table.iter_rows(named=True)


def _first(row: Mapping[str, Any], names: Sequence[str]) -> Any:
    return next((row[name] for name in names if row.get(name) is not None), None)


def _question(row: Mapping[str, Any], path: Path, images: Mapping[str, Any]) -> Question:
    values = {name: _first(row, names) for name, names in _COLUMNS.items()}
    idx = values["idx"]
    if isinstance(idx, bool) or not isinstance(idx, (int, str)) or not str(idx).strip():
        raise ConfigError(f"benchmark cv-bench: {path}: a question has the idx {idx!r}, which is not a number")
    where = f"benchmark cv-bench: {path}: question {idx}"
    kind, source, task = values["type"], values["source"], values["task"]
    if source not in SOURCES or kind not in TYPES or task not in TASKS:
        raise ConfigError(f"{where}: the source {source!r} of type {kind!r} and task {task!r} is none of CV-Bench")
    if not isinstance(values["prompt"], str) or not values["prompt"].strip():
        raise ConfigError(f"{where}: has no prompt, but {values['prompt']!r}")
    choices = _choices(row, where)
    return Question(
        str(idx), kind, task, source, values["prompt"], choices, _answer(values["answer"], choices, where),
        tuple(_image(row, path.parent, where, images)),
    )  # fmt: skip


def _choices(row: Mapping[str, Any], where: str) -> tuple[str, ...]:
    """The choices' texts: a list, a list written as text, or the columns A, B, C ..."""
    value = row.get("choices")
    if value is None:
        cells = [row.get(letter) for letter in _LETTERS]
        value = cells[: next((n for n, cell in enumerate(cells) if cell is None), len(cells))]
    found = parse_list(value) if isinstance(value, str) else value
    if not isinstance(found, (list, tuple)) or any(
        isinstance(one, bool) or not isinstance(one, (str, int, float)) for one in found
    ):
        raise ConfigError(
            f"{where}: the choices {_short(value)} are not a list of texts: write a list, or a text like "
            '["1", "2", "3"]'
        )
    if not 2 <= len(found) <= len(_LETTERS):
        raise ConfigError(f"{where}: has {len(found)} choices, and a question has 2 to {len(_LETTERS)}")
    return tuple(str(one) for one in found)


def parse_list(text: str) -> list[str] | None:
    """A list that was written as text: by JSON, by Python, or by numpy, which writes no commas; None if it is none.

    Python's own reading would join numpy's `['1' '2']` to one text.
    """
    text = text.strip()
    try:
        found = json.loads(text)
        if isinstance(found, list):
            return found
    except (ValueError, RecursionError):
        pass
    if not (text.startswith("[") and text.endswith("]")) and not (text.startswith("(") and text.endswith(")")):
        return None
    inside = text[1:-1].strip().removesuffix(",")
    tokens = list(_TOKEN.finditer(inside))
    gaps = [inside[one.end() : other.start()].strip() for one, other in pairwise(tokens)]
    if (
        not tokens
        or tokens[0].start()
        or tokens[-1].end() != len(inside)
        or len(set(gaps)) > 1
        or set(gaps) - {"", ","}
    ):
        return None
    try:
        return [str(ast.literal_eval(match[0])) if match[0][0] in "'\"" else match[0] for match in tokens]
    except (ValueError, SyntaxError):
        return None


def _answer(value: Any, choices: tuple[str, ...], where: str) -> str:
    """The right letter: `(B)` as released, `B`, or the text of a choice."""
    text = value.strip() if isinstance(value, str) else ""
    plain = re.fullmatch(r"\(?\s*([A-Za-z])\s*\)?[.:]?", text)
    letter = plain[1].upper() if plain else choice_letter(text, choices) if text else None
    if letter is None or letter not in _LETTERS[: len(choices)]:
        raise ConfigError(f"{where}: has the answer {value!r}, which is none of its choices")
    return letter


def _image(row: Mapping[str, Any], folder: Path, where: str, images: Mapping[str, Any]) -> Iterator[bytes]:
    """The encoded images of a row, usually one: of the first column that has any."""
    value = next((row[name] for name in _IMAGES if not _is_empty(row.get(name))), None)
    if isinstance(value, str) and value.lstrip().startswith("["):
        value = parse_list(value)
    for one in value if isinstance(value, list) else [value]:
        if isinstance(one, dict):  # the form of Hugging Face's Image
            one = one.get("bytes") or one.get("path")
        if isinstance(one, str):
            one = _named(one.strip(), folder, where, images)
        if not isinstance(one, bytes):
            raise ConfigError(f"{where}: has no image: {_short(value)} is neither bytes, base64 nor a file's name")
        yield one


def _is_empty(value: Any) -> bool:
    return value in (None, "", b"", []) or (isinstance(value, dict) and not any(value.values()))


def _named(text: str, folder: Path, where: str, images: Mapping[str, Any]) -> bytes:
    """The image that a text holds as base64, or names: another row of the table, or a file."""
    if len(text) > _PATH_AT_MOST and re.fullmatch(r"[A-Za-z0-9+/\s]+={0,2}", text):
        try:
            return base64.b64decode("".join(text.split()), validate=True)
        except binascii.Error:
            raise ConfigError(f"{where}: its image is broken base64") from None
    other = images.get(text)
    if isinstance(other, str) and other != text and len(other) > _PATH_AT_MOST:
        return _named(other, folder, where, {})
    try:
        file = (folder / text).resolve()
        if not file.is_relative_to(folder.resolve()):
            raise ConfigError(f"{where}: its image {_short(text)} lies outside the folder of the table: move it there")
        return file.read_bytes()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(
            f"{where}: its image {_short(text)} cannot be read ({reason}): put the images below {folder}"
        ) from None


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
