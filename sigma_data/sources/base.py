"""The interface of corpus layouts: list the fragments of a source, read the records of a fragment.

A fragment is the unit of parallel work: its rows' metadata fits in memory. Reading one twice gives the same records in
the same order.
"""

from __future__ import annotations

import difflib
import importlib
import pkgutil
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar
from urllib.parse import parse_qsl

from pydantic import ValidationError

from sigma_data.errors import ConfigError
from sigma_data.sample import Family, Rejection, Sample
from sigma_data.settings_base import StrictModel


@dataclass(frozen=True)
class Fragment:
    """A piece of a source: `location` is a path relative to the source, `part` a range inside the file.

    `stamp` changes with the file (size and modification time); `rows` is the number of records, if known. `refused` is
    the reason if the file as a whole is unreadable: reading it gives only rejections.
    """

    location: str
    part: str = ""
    stamp: str = ""
    rows: int | None = None
    refused: str | None = None


@dataclass(slots=True)  # not frozen: one is made of every row
class Surveyed:
    """What a row (or one of the samples it gives) would become, as far as it can be told without its images.

    `code` says why it gives no sample, None if it gives one; `filtered` tells a filter's reason from a fault's.
    `references` is the number of reference images, `texts` are the instructions with all phrasings, if known; images
    with a label of their own are told by `labelled`.
    """

    family: Family | None
    license: str
    code: str | None = None
    filtered: bool = False
    references: int | None = None
    texts: tuple[str, ...] = ()
    labelled: bool = False


class ReaderOptions(StrictModel):
    """Options of every source."""

    name: str | None = None
    """Distinguishes two sources of one layout and enters the sample ids; by default the layout's name."""
    license: str = "unknown"
    """License of the images, noted with every sample."""


class Reader(ABC):
    """One source of samples, opened with `open_source`."""

    options_type: ClassVar[type[ReaderOptions]] = ReaderOptions
    injected: bool = False
    """Whether its instructions have their attribute tokens and placeholders already: injection leaves them alone."""

    def __init__(self, scheme: str, path: str, options: ReaderOptions) -> None:
        self.path = path
        self.name = options.name or scheme

    def folder(self) -> Path | None:
        """The local path of the source, if any: nothing may be written over it."""
        return None

    def fingerprint(self, fragment: Fragment) -> str:
        """Changes with the content of the fragment's file, so that a later build notices. Raises SourceError."""
        return fragment.stamp

    @abstractmethod
    def fragments(self) -> list[Fragment]:
        """The fragments in their fixed order.

        Raises SourceError if the source as a whole is missing or not of this layout.
        """

    @abstractmethod
    def read(self, fragment: Fragment) -> Iterator[Sample | Rejection]:
        """The fragment's records in their fixed order, a Rejection for each unreadable one.

        Never raises for bad content; holds a few rows in memory.
        """

    def survey(self, fragment: Fragment | None = None) -> Iterator[Surveyed]:
        """What every row of a fragment would become (None: of all), in order, at the least cost.

        Sources with a field map read no image for it; others read their records.
        """
        for one in self.fragments() if fragment is None else [fragment]:
            for record in self.read(one):
                if isinstance(record, Sample):
                    yield Surveyed(record.family, record.source.license, references=len(record.references))
                else:
                    yield Surveyed(record.family, record.license or "unknown", record.code, record.filtered)


_REGISTERED: dict[str, type[Reader]] = {}


def register(name: str, reader: type[Reader]) -> None:
    """Make a layout known that lies outside this package, so that `name:path` opens it.

    Call it when your module is imported, not under `if __name__ == "__main__"`: worker processes import it anew.
    Raises ConfigError for a name that is taken or is not a word of lower-case letters, digits and underscores.
    """
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise ConfigError(f"source {name!r}: a layout is named in lower-case letters, digits and underscores")
    if name in _built_in():
        raise ConfigError(f"source {name!r}: there is a layout of that name")
    _REGISTERED[name] = reader


def names() -> list[str]:
    """The names of all layouts."""
    return sorted({*_built_in(), *_REGISTERED})


def _built_in() -> list[str]:
    return [*_modules(), *field_maps()]


def _modules() -> list[str]:
    """Layouts with a module of their own."""
    package = importlib.import_module("sigma_data.sources")
    return [m.name for m in pkgutil.iter_modules(package.__path__) if m.name not in _SHARED and not m.ispkg]


def field_maps() -> list[str]:
    """Layouts that a field map describes which comes with sigma."""
    return sorted(path.stem for path in MAPS.glob("*.yaml"))


MAPS = Path(__file__).parent / "maps"
"""The folder of the field maps that come with sigma."""


_SHARED = ("base", "parquet", "row_groups", "spec")
"""Modules that hold what layouts share."""


_OLD_OPTIONS = {"licence": "license"}
"""Former spellings of options, which are read as ever."""

_OPTIONS = re.compile(r"(\?+)(?=[A-Za-z_]+=|$)")
"""Question marks where options could begin; doubled ones belong to the path."""


def source_spec(layout: str, path: str) -> str:
    """The source string of a path, its question marks escaped; options may be appended after a `?`."""
    return f"{layout}:{_OPTIONS.sub(lambda marks: 2 * marks[1], path)}"


def has_options(spec: str) -> bool:
    """Whether a source string has options, so that another is appended after an `&`."""
    return bool(split_options(spec)[1])


def split_options(text: str) -> tuple[str, str]:
    """The path and the options of a source."""
    path, end = "", 0
    for marks in _OPTIONS.finditer(text):
        path += text[end : marks.start()] + "?" * (len(marks[1]) // 2)
        end = marks.end()
        if len(marks[1]) % 2:
            return path, text[end:]
    return path + text[end:], ""


def _meant(scheme: str, colon: str) -> str | None:
    """What was most likely meant by something else than a layout, or by a path alone; None if there is no saying."""
    name = scheme if colon else scheme.rstrip("/").rpartition("/")[2]
    name = "release" if name == "sigma-dataset" else name  # as `sigma download` calls it
    if colon:
        return next((f"{one}:" for one in difflib.get_close_matches(name.lower(), names(), n=1)), None)
    path = scheme if "/" in scheme else f"data/{'sigma-dataset' if name == 'release' else name}"
    return f"{name}:{path}" if name == "release" or name in field_maps() else None


def open_source(spec: str) -> Reader:
    """Open `name:path?option=value`. Raises ConfigError for an unknown layout or option.

    The path is taken literally. Options begin at the first `?` followed by `option=` or the end; in a path such a `?`
    is doubled (`release:why?n=1` is written `release:why??n=1`, see `source_spec`).
    """
    scheme, colon, rest = spec.partition(":")
    if not colon or scheme not in names():
        meant = _meant(scheme, colon)
        raise ConfigError(
            f"source {spec!r}: {f'did you mean {meant}? ' if meant else ''}write release:, webdataset:, world: or "
            "one of the layouts that `sigma sources` lists, followed by a path, e.g. release:data/sigma-dataset"
        )
    path, query = split_options(rest)
    if not path:
        raise ConfigError(f"source {spec!r}: a path must follow {scheme}:")
    module = "map" if scheme in field_maps() else scheme
    reader = _REGISTERED.get(scheme) or importlib.import_module(f"sigma_data.sources.{module}").READER
    pairs = [(_OLD_OPTIONS.get(name, name), value) for name, value in parse_qsl(query, keep_blank_values=True)]
    try:
        if len(dict(pairs)) != len(pairs):
            raise ConfigError(f"source {spec!r}: an option is given twice")
        options = reader.options_type.model_validate(dict(pairs))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(place) for place in first["loc"]) or "options"
        said = first["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
        known = ", ".join(sorted(reader.options_type.model_fields))
        more = "; a ? of the path itself is written ??" if first["type"] == "extra_forbidden" else ""
        raise ConfigError(f"source {spec!r}: {where}: {said} (options: {known}{more})") from None
    return reader(scheme, path, options)
