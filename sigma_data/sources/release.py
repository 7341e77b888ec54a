"""The layout of the SIGMA release (and of BAGEL's editing rows): parquet, encoded pictures in lists.

A row has `image_list` (the last picture is the target), `instruction_list` (a list of phrasings a
turn) and perhaps `data_prep_method`. Row groups are streamed. `parquet_info.json` is never needed:
the paths in it are the publisher's own.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, cast

from pydantic import field_validator

from sigma_data.errors import SourceError
from sigma_data.files import Place
from sigma_data.instruction import canonical, parse
from sigma_data.sample import Family, Image, Rejection, Sample, Source, Turn, sample_id
from sigma_data.sources.base import Fragment, Reader, ReaderOptions

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

_FRAGMENT_ROWS = 32
_BATCH_ROWS = 8
_MAX_GROUP_BYTES = 2**31
"""A row group that unpacks to more is not read: it would not fit a worker's memory."""

FAMILY_NAMES: Mapping[str, Family] = {
    **{family.value: family for family in Family},
    "composition": Family.COMPOSITIONAL,
    "selection": Family.SELECTIVE,
    "content_extraction": Family.SELECTIVE,
    "extraction": Family.SELECTIVE,
    "style": Family.STYLIZATION,
    "style_transfer": Family.STYLIZATION,
    "relation_transfer": Family.RELATION,
    "edit": Family.EDITING,
    "conditional": Family.LAYOUT,
    "canny": Family.LAYOUT,
    "depth": Family.LAYOUT,
}
"""What `data_prep_method` is known to say; `?families=name:family,...` adds to it."""

_RELATION = re.compile(r"\b(transformation|relation|change|difference)\b", re.IGNORECASE)
_LAYOUT = re.compile(r"\b(canny|depth|outline|edge map|contour|sketch|line drawing)\b", re.IGNORECASE)


class ReleaseOptions(ReaderOptions):
    """`family` holds for every row; `families` says what a `data_prep_method` means (a:editing,b:layout)."""

    family: Family | None = None
    families: dict[str, Family] = {}

    @field_validator("families", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        if isinstance(value, str):
            pairs = [pair.partition(":") for pair in value.split(",") if pair]
            return {name.strip(): family.strip() for name, _, family in pairs}
        return value


class ReleaseReader(Reader):
    """Reads a folder of parquet files, or one file."""

    options_type: ClassVar[type[ReaderOptions]] = ReleaseOptions

    def __init__(self, scheme: str, path: str, options: ReaderOptions) -> None:
        super().__init__(scheme, path, options)
        self.options = cast(ReleaseOptions, options)
        self.place = Place(path)
        self._names = {**FAMILY_NAMES, **self.options.families}

    def folder(self) -> Path | None:
        return self.place.local

    def fragments(self) -> list[Fragment]:
        found: list[Fragment] = []
        for location, stamp in self.place.files(".parquet"):
            try:
                with self.place.open(location) as stream:
                    groups = _groups(_open(stream), _size(stamp))
            except _Unreadable:
                found.append(Fragment(location, "file", stamp, rows=1))
                continue
            if not groups:  # a file that says it holds nothing
                found.append(Fragment(location, "groups 0:0 from row 0", stamp, rows=0))
            start = first_row = row = 0
            for index, rows in enumerate(groups):
                row += rows
                if row - first_row >= _FRAGMENT_ROWS or index == len(groups) - 1:
                    part = f"groups {start}:{index + 1} from row {first_row}"
                    found.append(Fragment(location, part, stamp, rows=row - first_row))
                    start, first_row = index + 1, row
        if not found:
            raise SourceError(f"{self.path}: no .parquet file below this place")
        return found

    def read(self, fragment: Fragment) -> Iterator[Sample | Rejection]:
        try:
            with self.place.open(fragment.location) as stream:
                file = _open(stream)
                groups = _groups(file, _size(fragment.stamp))
                span = re.fullmatch(r"groups (\d+):(\d+) from row (\d+)", fragment.part)
                if span is None:
                    return
                if int(span[2]) > len(groups):
                    raise _Unreadable("unreadable_file", "the file changed since its row groups were listed")
                row = int(span[3])
                for group in range(int(span[1]), int(span[2])):
                    yield from self._read_group(file, group, fragment.location, row, groups[group])
                    row += groups[group]
        except _Unreadable as error:
            yield Rejection(self.name, fragment.location, None, error.code, str(error))

    def _read_group(
        self, file: pq.ParquetFile, group: int, location: str, row: int, rows: int
    ) -> Iterator[Sample | Rejection]:
        end = row + rows
        reason = "it ends early"
        unpacked = file.metadata.row_group(group).total_byte_size
        if unpacked > _MAX_GROUP_BYTES:
            for lost in range(row, end):
                message = f"row group {group} unpacks to {unpacked:,} bytes, more than {_MAX_GROUP_BYTES:,}"
                yield Rejection(self.name, location, lost, "unreadable_rows", message)
            return
        try:
            columns = [name for name in file.schema_arrow.names if name in _COLUMNS]
            for batch in file.iter_batches(_BATCH_ROWS, row_groups=[group], columns=columns, use_threads=False):
                for index in range(min(batch.num_rows, end - row)):
                    yield self._record(location, row, batch, index)
                    row += 1
        except Exception as error:  # pyarrow raises whatever broken pages make it raise
            reason = _one_line(error)
        for lost in range(row, end):
            message = f"row group {group} cannot be read ({reason})"
            yield Rejection(self.name, location, lost, "unreadable_rows", message)

    def _record(self, location: str, row: int, batch: pa.RecordBatch, index: int) -> Sample | Rejection:
        try:  # one row at a time, so that only one row's pictures are copied into Python
            values = {
                name: column[index].as_py() for name, column in zip(batch.schema.names, batch.columns, strict=True)
            }
        except (ValueError, UnicodeDecodeError) as error:
            return Rejection(
                self.name, location, row, "unreadable_rows", f"the row cannot be read ({_one_line(error)})"
            )
        pictures = [_bytes(item) for item in values.get("image_list") or []]
        texts = [[text for text in turn or [] if text is not None] for turn in values.get("instruction_list") or []]
        count = len(pictures)
        if len(texts) > 1 and count != len(texts) + 1:
            message = f"{len(texts)} turns need {len(texts) + 1} pictures, the row has {count}"
            return Rejection(self.name, location, row, "turns_mismatch", message)
        # One turn: the last picture is the target. Several: each turn makes the next picture.
        targets = range(2, count + 1) if len(texts) > 1 else [count]
        references = count - len(targets)
        turns = tuple(
            Turn(
                instruction=canonical(phrasings[0], pictures=references) if phrasings else "",
                target=target or None,
                alternatives=tuple(canonical(text, pictures=references) for text in dict.fromkeys(phrasings[1:])),
            )
            for phrasings, target in zip(texts or [[]], targets, strict=True)
        )
        family, inferred = self._family(values.get("data_prep_method"), turns, references)
        return Sample(
            id=sample_id(self.name, location, row),
            family=family,
            images=tuple(Image(number, data) for number, data in enumerate(pictures, 1)),
            turns=turns,
            source=Source(self.name, location, row, self.options.licence),
            family_inferred=inferred,
        )

    def _family(self, method: object, turns: tuple[Turn, ...], references: int) -> tuple[Family, bool]:
        if self.options.family is not None:
            return self.options.family, False
        if isinstance(method, str) and (named := self._names.get(method) or self._names.get(method.strip().lower())):
            return named, False
        return infer_family(turns, references), True


def infer_family(turns: tuple[Turn, ...], references: int) -> Family:
    """The family a row most likely belongs to, from its first instruction and its references."""
    instruction = parse(turns[0].instruction)
    tokens = set(instruction.attributes)
    if len(turns) > 1:
        return Family.EDITING
    if "select" in tokens:
        return Family.SELECTIVE
    if references >= 3 and {1, 2, 3} <= set(instruction.placeholders) and _RELATION.search(instruction.plain):
        return Family.RELATION
    if "layout" in tokens or _LAYOUT.search(instruction.plain):
        return Family.LAYOUT
    if "style" in tokens and references >= 2:
        return Family.STYLIZATION
    return Family.EDITING if references <= 1 else Family.COMPOSITIONAL


_COLUMNS = ("image_list", "instruction_list", "data_prep_method")


class _Unreadable(Exception):
    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


def _open(stream: Any) -> pq.ParquetFile:
    """Open a parquet file and make sure that it has the columns of this layout."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(stream)
        schema = file.schema_arrow
    except Exception as error:  # as in _read_group
        raise _Unreadable("unreadable_file", f"not a parquet file ({_one_line(error)})") from None
    if twice := [name for name in _COLUMNS if schema.names.count(name) > 1]:
        raise _Unreadable("wrong_columns", f"more than one column {' and '.join(twice)}")
    missing = [name for name in _COLUMNS[:2] if name not in schema.names]
    if missing:
        raise _Unreadable("wrong_columns", f"no column {' or '.join(missing)}, but {', '.join(schema.names)[:200]}")
    pictures = _element(pa, schema.field("image_list").type)
    texts = _element(pa, _element(pa, schema.field("instruction_list").type))
    holds_bytes = pictures is not None and (_is_binary(pa, pictures) or _is_encoded_struct(pa, pictures))
    if not holds_bytes or not (texts is not None and (pa.types.is_string(texts) or pa.types.is_large_string(texts))):
        types = f"{schema.field('image_list').type} and {schema.field('instruction_list').type}"
        message = f"image_list must be list<binary> and instruction_list list<list<string>>, they are {types}"
        raise _Unreadable("wrong_columns", message)
    return file


def _size(stamp: str) -> int:
    """Bytes of a file by its stamp; not every remote place tells them."""
    size = stamp.partition(":")[0]
    return int(size) if size.isdecimal() else sys.maxsize


def _groups(file: pq.ParquetFile, size: int) -> list[int]:
    """Rows of each row group; a footer that announces more rows than the file has bytes is a lie."""
    metadata = file.metadata
    groups = [metadata.row_group(index).num_rows for index in range(metadata.num_row_groups)]
    if any(rows < 0 for rows in groups) or sum(groups) > max(size, 1):
        raise _Unreadable("unreadable_file", f"the footer announces {sum(groups):,} rows in {size:,} bytes")
    return groups


def _bytes(item: object) -> bytes | None:
    """Encoded bytes from plain binary, or from the struct that HF `datasets` stores pictures in."""
    data = item.get("bytes") if isinstance(item, dict) else item
    return data if isinstance(data, bytes) else None


def _element(pa: Any, kind: Any) -> Any:
    is_list = kind is not None and (pa.types.is_list(kind) or pa.types.is_large_list(kind))
    return kind.value_type if is_list else None


def _is_binary(pa: Any, kind: Any) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _is_encoded_struct(pa: Any, kind: Any) -> bool:
    return bool(
        pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0 and _is_binary(pa, kind.field("bytes").type)
    )


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


READER = ReleaseReader
