"""The layout of the SIGMA release (and of BAGEL's editing rows): parquet files with lists of encoded images.

A row has `image_list` (the last image is the target), `instruction_list` (a list of phrasings for each turn) and
optionally `data_prep_method`, in any Arrow types that hold the same data. `parquet_info.json` is not needed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, ClassVar, Literal, cast

from pydantic import field_validator

from sigma_data.corpus.archives import archive_of
from sigma_data.corpus.corpus import COMMIT
from sigma_data.corpus.foreign_spellings import settle
from sigma_data.errors import SourceError
from sigma_data.instruction import canonical, parse
from sigma_data.sample import Family, Image, Rejection, Sample, Source, Turn, sample_id
from sigma_data.sources.base import Fragment, Reader, ReaderOptions
from sigma_data.sources.parquet import (
    Refused,
    bare,
    element,
    group_rows,
    holds_bytes,
    holds_text,
    one_line,
    open_parquet,
    plain,
    size_of,
)
from sigma_data.sources.row_groups import (
    Group,
    group_fragments,
    group_values,
    groups_of,
    is_group_fragment,
    lost_rows,
    refused_fragment,
)
from sigma_data.storage.data_folder import data_folder

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

_MAX_IMAGE_BYTES = 2**28
"""Largest file that a row may name by its path."""
_EMBED = "embed the images first (push_to_hub of datasets does it, docs/corpus-format.md says how without it)"

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
"""Known values of `data_prep_method`; `?families=name:family,...` adds to them."""

SPLIT_COLUMN = "sigma_split"
"""The column in which an export of a corpus keeps each row's split; no release has it."""

_RELATION = re.compile(r"\b(transformation|relation|change|difference)\b", re.IGNORECASE)
_LAYOUT = re.compile(r"\b(canny|depth|outline|edge map|contour|sketch|line drawing)\b", re.IGNORECASE)


class ReleaseOptions(ReaderOptions):
    """The release's parquet: a file, or a folder of files."""

    family: Family | None = None
    """Family of every row; by default it follows from `data_prep_method`."""
    families: dict[str, Family] = {}
    """Families of values of `data_prep_method`, e.g. a:editing,b:layout."""
    splits: Literal["keep", "new"] = "keep"
    """keep: rows that `sigma shard --to release` wrote stay in the split of their column `sigma_split`; new: splits
    are assigned anew."""

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
    injected = True

    def __init__(self, scheme: str, path: str, options: ReaderOptions) -> None:
        super().__init__(scheme, path, options)
        self.options = cast(ReleaseOptions, options)
        self._folder = data_folder(path)
        self._names = {**FAMILY_NAMES, **self.options.families}

    def folder(self) -> Path | None:
        return self._folder.local

    def fingerprint(self, fragment: Fragment) -> str:
        return self._folder.fingerprint(fragment.location, fragment.stamp)

    def fragments(self) -> list[Fragment]:
        found: list[Fragment] = []
        if self._folder.exists(COMMIT):
            raise SourceError(f"{self.path}: is a corpus that sigma has built: read it with webdataset:")
        for location, stamp in self._folder.files(".parquet"):
            if fault := archive_of(location):  # named itself
                raise SourceError(f"{self.path}: {fault}")
            try:
                with self._folder.open(location) as stream:
                    found += group_fragments(location, stamp, group_rows(_open(stream, size_of(stamp))))
            except Refused as error:
                found.append(refused_fragment(location, stamp, error))
        if not found:
            others = ((location, archive_of(location)) for location, _ in self._folder.files(""))
            hint = next((f", but {location}: it {fault}" for location, fault in others if fault), "")
            raise SourceError(f"{self.path}: no .parquet file below this place{hint}")
        return found

    def read(self, fragment: Fragment) -> Iterator[Sample | Rejection]:
        if not is_group_fragment(fragment):
            return
        try:
            with self._folder.open(fragment.location) as stream:
                file = _open(stream, size_of(fragment.stamp))
                for group in groups_of(fragment, file):
                    yield from self._read_group(file, group, fragment.location)
        except Refused as error:
            for _ in range(lost_rows(fragment, error)):
                yield Rejection(self.name, fragment.location, None, error.code, str(error))

    def _read_group(self, file: pq.ParquetFile, group: Group, location: str) -> Iterator[Sample | Rejection]:
        columns = [name for name in file.schema_arrow.names if name in _COLUMNS]
        for value in group_values(file, group, columns):
            if len(value) == 2:
                yield Rejection(self.name, location, value[0], "unreadable_rows", value[1])
            else:
                yield self._record(location, *value)

    def _record(self, location: str, row: int, batch: pa.RecordBatch, index: int) -> Sample | Rejection:
        try:  # one row at a time, so that only one row's images are copied into Python
            values = {
                name: plain(column[index]) for name, column in zip(batch.schema.names, batch.columns, strict=True)
            }
            texts = _turns(values.get("instruction_list"))
            method = _text(values.get("data_prep_method"))
            split = _text(values.get(SPLIT_COLUMN))
        except ValueError as error:
            return Rejection(self.name, location, row, "unreadable_rows", f"the row cannot be read ({one_line(error)})")
        held: Any = values.get("image_list")
        held = held if isinstance(held, list) else [] if held is None else [held]  # a single image
        images = tuple(self._image(number, item, location) for number, item in enumerate(held, 1))
        count = len(images)
        if len(texts) > 1 and count != len(texts) + 1:
            message = f"{len(texts)} turns need {len(texts) + 1} images, the row has {count}"
            return Rejection(self.name, location, row, "turns_mismatch", message)
        # One turn: the last image is the target. Several: the target of each turn is the next image.
        targets = range(2, count + 1) if len(texts) > 1 else [count]
        references = count - len(targets)

        def read(text: str, target: int) -> str:
            return canonical(settle(text, target - 1), references=references)  # earlier images may be named

        turns = tuple(
            Turn(
                instruction=read(phrasings[0], target) if phrasings else "",
                target=target or None,
                alternatives=tuple(read(text, target) for text in dict.fromkeys(phrasings[1:])),
            )
            for phrasings, target in zip(texts or [[]], targets, strict=True)
        )
        family, inferred = self._family(method, turns, references)
        return Sample(
            id=sample_id(self.name, location, row),
            family=family,
            images=images,
            turns=turns,
            source=Source(self.name, location, row, self.options.license),
            family_inferred=inferred,
            split=self._split(split),
        )

    def _image(self, number: int, item: Any, location: str) -> Image:
        """An image from plain bytes, or from the struct {bytes, path} that HF `datasets` stores images in."""
        path = None
        if isinstance(item, dict):
            item, path = item.get("bytes"), item.get("path")
        if isinstance(item, bytes):
            return Image(number, item)
        if not isinstance(path, str) or not path:
            return Image(number, None)
        try:
            return Image(number, self._folder.beside(location, path, _MAX_IMAGE_BYTES))
        except ValueError as error:
            return Image(number, None, missing=f"has no bytes but a path, {path[:200]!r}, and {error}; {_EMBED}")

    def _split(self, named: str | None) -> str | None:
        return named if self.options.splits == "keep" else None

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


_COLUMNS = ("image_list", "instruction_list", "data_prep_method", SPLIT_COLUMN)


def _open(stream: IO[bytes], size: int) -> pq.ParquetFile:
    """Open a parquet file and make sure that it has the columns of this layout. Raises Refused."""
    file = open_parquet(stream, size)
    if fault := _column_fault(file.schema_arrow):
        rows = sum(group_rows(file))
        raise Refused("wrong_columns", f"{fault} ({rows:,} rows)", rows)
    return file


def _column_fault(schema: pa.Schema) -> str | None:
    """Why a schema is not of this layout, or None. A column of nulls alone holds nothing, which is no fault."""
    import pyarrow as pa

    if twice := [name for name in _COLUMNS if schema.names.count(name) > 1]:
        return f"more than one column {' and '.join(twice)}"
    if missing := [name for name in _COLUMNS[:2] if name not in schema.names]:
        return f"no column {' or '.join(missing)}, but {', '.join(schema.names)[:200]}"
    images, texts = (bare(schema.field(name).type) for name in _COLUMNS[:2])
    one = images if _holds_image(images) else element(images) or images
    if not (_holds_image(one) or pa.types.is_null(one)):
        path = pa.types.is_struct(one) and one.get_field_index("path") >= 0
        advice = "text is not read as bytes, whether base64 or a path" if holds_text(one) else _EMBED if path else ""
        types = f"it is {schema.field('image_list').type}"
        return f"image_list must hold encoded images (a list of binary), {types}" + (f"; {advice}" if advice else "")
    for _ in range(2):  # phrasings of turns, or less deep
        texts = element(texts) or texts
    if not (holds_text(texts) or pa.types.is_null(texts)):
        types = f"it is {schema.field('instruction_list').type}"
        return f"instruction_list must hold text (a list of lists of strings) beside image_list, {types}"
    return None


def _holds_image(kind: pa.DataType) -> bool:
    """Whether a value of a bare type is one image: its bytes, or a struct {bytes, path}."""
    import pyarrow as pa

    if not pa.types.is_struct(kind):
        return holds_bytes(kind)
    index = kind.get_field_index("bytes")
    inside = bare(kind.field(index).type) if index >= 0 else None
    # A file in which no image is embedded may have nothing but nulls there.
    return inside is not None and (holds_bytes(inside) or pa.types.is_null(inside))


def _turns(value: Any) -> list[list[str]]:
    """The phrasings of every turn: from a list of lists, a flat list (a phrasing a turn) or one text."""
    if not isinstance(value, list):
        value = [] if value is None else [value]
    turns = [turn if isinstance(turn, list) else [turn] for turn in value]
    return [[text for phrasing in turn if (text := _text(phrasing)) is not None] for turn in turns]


def _text(value: Any) -> str | None:
    """Text, decoded where a writer stored it as bytes. Raises ValueError where they are not UTF-8."""
    if isinstance(value, bytes):
        return value.decode()
    return value if isinstance(value, str) else None


READER = ReleaseReader
