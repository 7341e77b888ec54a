"""What a field map may say: one corpus, in one or several layouts of rows.

A name of a field is dotted where the value lies inside another (`description.item`, `image.-1`); `a|b` is the first of
them that a row has. Globs are relative to the folder of the source; `**/` stands for any folders, also none.
"""

from __future__ import annotations

import re
from functools import cached_property
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from sigma_data.sample import Family, ImageKind
from sigma_data.settings_base import StrictModel
from sigma_data.sources.field_map.values import spelled

MOST_TURNS = 64
"""Turns that a dialogue may have."""


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str | dict) else value


def _pattern(value: str) -> str:
    try:
        re.compile(value)
    except re.error as error:
        raise ValueError(f"{value!r} is not a regular expression ({error})") from None
    return value


Pattern = Annotated[str, BeforeValidator(str), BeforeValidator(_pattern)]
"""A regular expression."""
Words = Annotated[tuple[str, ...], BeforeValidator(_listed)]
"""Text, or a list of texts."""


class ImageField(StrictModel):
    """A field that holds an image, or a list of images."""

    field: str
    """Name of the field."""
    kind: ImageKind | None = None
    """What the image is where it is no ordinary picture."""
    kind_by: str | None = None
    """Name of the field whose value tells the kind, by `kinds`."""
    kinds: dict[str, ImageKind] = {}
    """Kinds of values of `kind_by` (as `family.by` spells them)."""
    change: tuple[tuple[Pattern, str], ...] = ()
    """Regular expressions and what takes the place of what they find in the path, one after the other."""
    label: str | None = None
    """Name of the field with a few words for what the image shows."""
    if_null: Literal["empty", "missing", "none"] | None = None
    """What null means: an image without bytes (`empty`), one that is missing, or that the row has none.

    By default `empty` where images are bytes, else `missing`.
    """

    @cached_property
    def spelled_kinds(self) -> dict[str, ImageKind]:
        """`kinds` by values as they are compared."""
        return {spelled(name): kind for name, kind in self.kinds.items()}


def _image_field(value: Any) -> Any:
    return {"field": value} if isinstance(value, str) else value


OneImage = Annotated[ImageField, BeforeValidator(_image_field)]


def _image_fields(value: Any) -> Any:
    return [_image_field(item) for item in value] if isinstance(value, list) else [_image_field(value)]


class Fields(StrictModel):
    """Where a row has what a sample needs."""

    instruction: Words = ()
    """Fields with the instruction: the first that has words. Of a list of phrasings the others are alternatives."""
    instruction_from: str | None = None
    """Field that says which field has a row's instruction, if it says so."""
    say: Words = ()
    """The instruction of rows that have none, such as images and their masks: one of these, drawn for each row."""
    alternatives: Words = ()
    """Fields with other phrasings."""
    json_text: Words = ()
    """Fields whose text is JSON, an object or a list, that is read in its place."""
    strip: Pattern | None = None
    """What is taken out of instructions, such as `^<image>\\s*`."""
    references: Annotated[tuple[ImageField, ...], BeforeValidator(_image_fields)] = ()
    """The images that are given, in order."""
    target: OneImage | None = None
    """The image to produce."""
    reverse: str | None = None
    """Field with the instruction that leads from the target back to the one reference: a second sample."""
    last_is_target: bool = False
    """Whether the last of the references is the target."""
    text_to_image: bool = False
    """Whether rows without references are text to image; else a row without the fields is broken."""

    @model_validator(mode="after")
    def _one_target(self) -> Fields:
        if self.target is not None and self.last_is_target:
            raise ValueError("either `target` or `last_is_target`")
        return self


class Conversation(StrictModel):
    """Turns of questions and answers in a list of {from, value}."""

    field: str = "conversations"
    speaker: str = "from"
    text: str = "value"
    human: Words = ("human", "user")
    """Speakers who ask."""
    answer: Words = ("gpt", "assistant")
    """Speakers who answer."""
    leave_out: Words = ("system",)
    """Speakers whose turns are not ours."""
    refuse: Words = ()
    """Fields whose rows cannot be used, such as `video`."""


class Composite(StrictModel):
    """One image that holds two side by side: of each direction a sample, the other side its reference."""

    field: OneImage
    border: int | None = None
    """Pixels around each square side: sides are squares of height - 2 border. None: cut at half the width."""
    left: str | None = None
    """Field with the words for the left side as target; None: the left side is never a target."""
    right: str | None = None
    """Field with the words for the right side as target."""
    label: str | None = None
    """Field with the name of what both sides show."""


class Quadruples(StrictModel):
    """Relations of pairs: the rows of a group in a ring, each with its neighbour's pair as demonstration."""

    group: str
    """What the files of a group share, by names of `subset` and {folder}."""
    seed: int = 0
    """The order of the ring is that of a hash of seed and row."""


class Chain(StrictModel):
    """Rows that are the turns of one dialogue, one after the other."""

    by: str
    """Field that the rows of a dialogue share."""
    order: str
    """Field with the number of the turn."""


class FamilyRule(StrictModel):
    """The family by the value of a field, in lower case with underscores for spaces and hyphens."""

    by: str
    """Field with the value."""
    map: dict[str, Family] = {}
    """Families of values."""
    wording: dict[Pattern, Family] = {}
    """Families of values in which a regular expression is found (case does not matter)."""
    default: Family
    """Family of all other values."""

    @cached_property
    def spelled_map(self) -> dict[str, Family]:
        """`map` by values as they are compared."""
        return {spelled(name): family for name, family in self.map.items()}


class Filter(StrictModel):
    """Rows that are left out: good ones, by a score or a value."""

    field: Words
    """The score or value: of several fields the first that holds one."""
    keys: Words = ()
    """Keys of the field's value that must all pass."""
    pattern: Pattern | None = None
    """How numbers stand in a text: the groups of every match."""
    min: float | None = None
    """The least value; of a list, of each."""
    sum_min: float | None = None
    """The least sum of a list."""
    drop: tuple[str | bool, ...] = ()
    """Values that are left out (as `family.by` spells them)."""
    keep: tuple[str | bool, ...] = ()
    """The only values that are kept."""
    matches: Pattern | None = None
    """A regular expression that the text must have."""
    unless: str | None = None
    """A field with scores: rows that have it are not asked."""
    missing: Literal["keep", "drop"]
    """What becomes of a row without a value; null, NaN, infinity and what is no number count as none."""
    when: dict[str, Words] = {}
    """Only rows whose fields have one of these values are asked."""
    code: str | None = None
    """The reason that is noted; by default `low_score` or `no_score`, for values `task_excluded`."""

    @model_validator(mode="after")
    def _one_rule(self) -> Filter:
        rules = [self.min is not None, self.sum_min is not None, bool(self.drop), bool(self.keep), bool(self.matches)]
        if sum(rules) != 1:
            raise ValueError("a filter has one of min, sum_min, drop, keep and matches")
        return self


class Turns(StrictModel):
    """A dialogue in a row: numbered fields ({n} counts from 1, {i} from 0), or a list of turns.

    The images that the dialogue begins with are `fields.references`, or those that the first turn of the list takes.
    """

    each: str | None = None
    """Field with the list of turns; the names below are then those of its items."""
    instruction: str
    """Field with what a turn asks."""
    target: str
    """Field with the image that a turn produces."""
    last_target: str | None = None
    """Field with the image that the last turn produces, where it has another name."""
    takes: str | None = None
    """Field with the images that a turn of the list begins with: each must be one that the dialogue has shown."""
    keyed: tuple[str, str, str] | None = None
    """A list of objects that is read as one object: its field, the name of its keys, the name of its values."""
    together: bool = False
    """Whether turns cannot be understood by themselves."""

    @model_validator(mode="after")
    def _one_form(self) -> Turns:
        if (self.each is None) != ("{n}" in self.instruction or "{i}" in self.instruction):
            raise ValueError("either `each`, or an instruction with {n} or {i} in its name")
        return self


class SideFile(StrictModel):
    """A file with values of rows that lie elsewhere, such as scores: a JSON object from a path to a value."""

    file: str
    """Its location."""
    field: str
    """The field that rows have of it."""
    key: str
    """Field with the path that is looked up, or its folder."""
    replace: tuple[tuple[Pattern, str], ...] = ()
    """Regular expressions and what takes the place of what they find, each tried by itself."""


class ImagesMap(StrictModel):
    """Where the images are. Written paths are looked for as they are, then changed by `strip_prefix` and `replace`."""

    origin: Literal["bytes", "tree", "archive"] = Field("bytes", alias="from")
    """In the row; as files; in archives, or as files where the archives were unpacked."""
    folders: Words = (".",)
    """Folders in which written paths begin, by names of `subset` and {folder}, the folder of the rows' file."""
    archive: Words = ()
    """Globs of the archives or their parts, by names of `subset` and {folder}."""
    strip_prefix: Words = ()
    """Beginnings of written paths that are taken off."""
    replace: tuple[tuple[Pattern, str], ...] = ()
    """Regular expressions and what takes the place of what they find, each tried by itself."""
    match: Literal["path", "tail2", "name"] = "path"
    """Whether an image may also be found by its folder's and its own name (tail2) or by its name, if there is one."""
    roots: str | None = None
    """Location of a list of lines `ROOT,JSON,...`: the folder in which the paths of a file of rows begin."""
    named_in: Words = ()
    """Folders among whose files `match` looks, where those of `folders` hold the images of other rows, too."""
    unique_target: bool = False
    """Whether rows that name one and the same target are all refused."""


class RowLayout(StrictModel):
    """Rows of one kind, and how a sample is made of one."""

    name: str = ""
    """Tells layouts of one corpus apart in messages."""
    format: Literal["json", "jsonl", "parquet", "webdataset", "lines", "members"]
    """How rows are stored. Whether JSON is an array or lines is seen by its first character. Rows that are
    only names of images have the one field `path`: the lines of a list, or the images in a tar."""
    rows: Words
    """Globs of the files with rows; `ARCHIVE::MEMBER` for files in archives that were not unpacked."""
    skip: Words = ()
    """Globs of files that are left out, such as evaluation splits."""
    fallback: bool = False
    """Whether these rows are read only where there are none of the layouts before."""
    subset: Pattern | None = None
    """A regular expression for the rows' file, whose named groups are fields `subset.NAME`."""
    fields: Fields = Fields()
    conversation: Conversation | None = None
    composite: Composite | None = None
    quadruples: Quadruples | None = None
    chain: Chain | None = None
    turns: Turns | None = None
    side_file: SideFile | None = None
    images: ImagesMap = ImagesMap()
    family: Family | FamilyRule
    filters: tuple[Filter, ...] = ()
    max_aspect_difference: float | None = None
    """The most by which the aspect ratios of reference and target may differ, as a fraction."""
    min_deviation: float | None = None
    """The least standard deviation of the grey values (0-255) of a reference of a kind: below it shows nothing."""
    license: str | None = None
    """Where it is another than the corpus'."""


class FieldMap(StrictModel):
    """A corpus and the layouts of its rows."""

    corpus: str
    """The name people know it by."""
    hub: Words = ()
    """Ids on the hub, or where else it is to be had."""
    families: Annotated[tuple[Family, ...], Field(min_length=1)]
    """The families that its samples belong to."""
    license: str = "unknown"
    """License of the images and texts."""
    certainty: str = "unknown"
    """How sure the facts are: A the publisher's own, B others' code, C knowledge without a source, G guessed."""
    size: str = "unknown"
    """Rows and bytes, as published."""
    version: int = 1
    """Increased whenever the map reads other samples of the same files."""
    injected: bool = False
    """Whether the instructions have their attribute tokens already, so that injection leaves them alone."""
    files: str = ""
    """How to lay out the files, for `sigma sources NAME`."""
    layouts: Annotated[tuple[RowLayout, ...], Field(min_length=1)]

    @field_validator("license", "certainty", "size", mode="before")
    @classmethod
    def _text(cls, value: Any) -> Any:
        return str(value) if isinstance(value, int | float) else value
