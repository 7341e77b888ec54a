"""A source whose rows a field map describes."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, cast

from sigma_data.errors import ConfigError, SourceError
from sigma_data.sample import Family, Rejection, Sample, Source
from sigma_data.sources.base import Fragment, Reader, ReaderOptions, Surveyed
from sigma_data.sources.field_map.filters import Filtered, check_filters
from sigma_data.sources.field_map.formats import format_of, store_of
from sigma_data.sources.field_map.images import ImageStore, Scope
from sigma_data.sources.field_map.load import load_map, load_shipped
from sigma_data.sources.field_map.names import image_names, value_names, wrong_keys
from sigma_data.sources.field_map.rows import literal_glob, matches
from sigma_data.sources.field_map.samples import sample_of
from sigma_data.sources.field_map.schema import FieldMap, RowLayout
from sigma_data.sources.field_map.shapes import Draft, drafts
from sigma_data.sources.field_map.targets import repeated_targets, target_key
from sigma_data.sources.field_map.values import RowFault
from sigma_data.storage.data_folder import data_folder


class MapOptions(ReaderOptions):
    """Options of every source with a field map."""

    root: str | None = None
    """Folder of the corpus, for `map:` alone: its path is that of the map."""
    filters: Literal["on", "off"] = "on"
    """off: rows that the map's filters leave out are read, too."""
    phrasing: Literal["first", "last", "drawn"] = "first"
    """Which of several phrasings is the instruction; drawn: by a hash of the sample's id."""
    license: str = ""
    """License of the images, noted with every sample; by default that of the map."""


@dataclass(frozen=True)
class _Place:
    """A file with rows: its layout, the fields its path gives, where its images lie."""

    layout: RowLayout
    location: str
    fields: dict[str, Any]
    scope: Scope


@dataclass(frozen=True)
class _Outcome:
    """What became of a row before its images are read: a draft, or a fault."""

    row: int | None
    draft: Draft | None = None
    fault: RowFault | None = None
    family: Family | None = None


class MapReader(Reader):
    """Reads the rows of a corpus by its field map."""

    options_type: ClassVar[type[ReaderOptions]] = MapOptions

    def __init__(self, scheme: str, path: str, options: ReaderOptions) -> None:
        self.options = cast(MapOptions, options)
        if (scheme == "map") == (self.options.root is None):
            way = f"say where the files are, as in map:{path}?root=DIR" if scheme == "map" else "leave out root"
            raise ConfigError(f"source {scheme}:{path}: {way}")
        self.map: FieldMap = load_map(path) if scheme == "map" else load_shipped(scheme)
        super().__init__(Path(path).stem if scheme == "map" else scheme, self.options.root or path, options)
        self._shipped = None if scheme == "map" else scheme
        self._folder = data_folder(self.path)
        self._stores: dict[int, ImageStore] = {}

    def folder(self) -> Path | None:
        return self._folder.local

    def fingerprint(self, fragment: Fragment) -> str:
        return self._folder.fingerprint(fragment.location, fragment.stamp)

    def fragments(self) -> list[Fragment]:
        listed = self._folder.files("")
        found: list[Fragment] = []
        for layout in self.map.layouts:
            mine = [(location, stamp) for location, stamp in listed if self._layout(location) is layout]
            rows = format_of(layout, self._folder)
            if mine and (fault := wrong_keys(layout, mine[0][0], rows.keys(mine[0][0]))):
                raise SourceError(f"{self.path}: {fault}")
            for location, stamp in mine:
                found += rows.fragments(location, stamp)
        if not found:
            globs = " or ".join(dict.fromkeys(glob for layout in self.map.layouts for glob in layout.rows))
            have = ", ".join(location for location, _ in listed[:3]) + (", ..." if len(listed) > 3 else "")
            how = f"; sigma sources {self._shipped} says how to lay out the files" if self._shipped else ""
            raise SourceError(f"{self.path}: no file {globs} below this place, but {have or 'none'}{how}")
        return found

    def read(self, fragment: Fragment) -> Iterator[Sample | Rejection]:
        place = self._place(fragment.location)
        store, terms = self._store(place.layout), self._license(place.layout)
        for outcome in self._outcomes(place, fragment, survey=False):
            draft, fault = outcome.draft, outcome.fault
            if draft is not None:
                source = Source(self.name, f"{place.location}{draft.suffix}", outcome.row or 0, terms)
                try:
                    yield sample_of(draft, place.layout, source, store, place.scope, self.options.phrasing)
                except RowFault as error:
                    fault = error
            if fault is not None:
                family = draft.family if draft else outcome.family
                yield Rejection(
                    self.name, place.location, outcome.row, fault.code, str(fault),
                    filtered=isinstance(fault, Filtered), family=family, license=terms,
                )  # fmt: skip

    def survey(self, fragment: Fragment | None = None) -> Iterator[Surveyed]:
        for one in self.fragments() if fragment is None else [fragment]:
            place = self._place(one.location)
            terms = self._license(place.layout)
            for outcome in self._outcomes(place, one, survey=True):
                fault, draft = outcome.fault, outcome.draft
                family = draft.family if draft else outcome.family
                yield Surveyed(family, terms, fault.code if fault else None, isinstance(fault, Filtered))

    def _outcomes(self, place: _Place, fragment: Fragment, *, survey: bool) -> Iterator[_Outcome]:
        """What becomes of every row of a fragment by its words and values."""
        layout = place.layout
        rows = format_of(layout, self._folder)
        bytes_in_rows = layout.images.origin == "bytes"
        names = value_names(layout) | (set() if bytes_in_rows else image_names(layout))
        repeated = (
            repeated_targets(self._folder.uri, layout, fragment.location, fragment.stamp)
            if layout.images.unique_target
            else frozenset()
        )
        for number, row in rows.read(fragment, names if survey else None):
            if isinstance(row, RowFault):
                yield _Outcome(number, fault=row)
                continue
            family = None
            try:
                found = drafts(layout, {**row, "subset": place.fields} if place.fields else row)
                family = found[0].family
                if self.options.filters == "on":
                    check_filters(layout, {**row, "subset": place.fields})
                for draft in found:
                    if repeated and not repeated.isdisjoint(map(target_key, draft.turns)):
                        raise RowFault("ambiguous_name", "another row names the same target")
            except RowFault as fault:
                yield _Outcome(number, fault=fault, family=family)
            else:
                yield from (_Outcome(number, draft) for draft in found)

    def _layout(self, location: str) -> RowLayout | None:
        """The first layout whose globs name a file."""
        for layout in self.map.layouts:
            if matches(location, layout.rows) and not matches(location, layout.skip):
                return layout
        return None

    def _place(self, location: str) -> _Place:
        layout = self._layout(location)
        if layout is None:
            raise SourceError(f"{self.path}: {location} is named by no layout of the map")
        folder = posixpath.dirname(location)
        found = re.search(layout.subset, location) if layout.subset else None
        fields = {name: text or "" for name, text in found.groupdict().items()} if found else {}
        names = {**fields, "folder": folder or "."}
        archives = tuple(_filled(glob, {name: literal_glob(text) for name, text in names.items()})
                         for glob in layout.images.archive)  # fmt: skip
        folders = tuple(posixpath.normpath(_filled(one, names)) for one in layout.images.folders)
        return _Place(layout, location, fields, Scope(folders, archives, folder))

    def _store(self, layout: RowLayout) -> ImageStore:
        index = self.map.layouts.index(layout)
        return self._stores.setdefault(index, store_of(layout.images, self._folder))

    def _license(self, layout: RowLayout) -> str:
        return self.options.license or layout.license or self.map.license


def _filled(template: str, names: dict[str, str]) -> str:
    """A template with {NAME} filled in; other braces stay. Raises ConfigError for a name that there is not."""

    def fill(match: re.Match[str]) -> str:
        if match[1] not in names:
            raise ConfigError(f"{template}: there is no {match[0]}, only {', '.join(names)} of the rows' file")
        return names[match[1]]

    return re.sub(r"\{([A-Za-z_]\w*)\}", fill, template)
