"""A source whose rows a field map describes."""

from __future__ import annotations

import hashlib
import posixpath
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, NoReturn, cast

from pydantic import Field

from sigma_data.errors import ConfigError, SourceError
from sigma_data.sample import Rejection, Sample, Source
from sigma_data.sources.base import Fragment, Reader, ReaderOptions, Surveyed
from sigma_data.sources.field_map.archives import INSIDE, REFUSED, ArchivedRows
from sigma_data.sources.field_map.chains import chained, runs_of
from sigma_data.sources.field_map.filters import Filtered
from sigma_data.sources.field_map.formats import format_of, store_of
from sigma_data.sources.field_map.images import ImageStore, Scope
from sigma_data.sources.field_map.load import load_map, load_shipped
from sigma_data.sources.field_map.names import image_names, missing, value_names, wrong_keys
from sigma_data.sources.field_map.outcomes import Judge, Outcome
from sigma_data.sources.field_map.quadruples import Pair, fragments_of, group_fragment, quadruple, ring
from sigma_data.sources.field_map.roots import Roots
from sigma_data.sources.field_map.rows import RowFormat, literal_glob, matches
from sigma_data.sources.field_map.samples import image_data, sample_of
from sigma_data.sources.field_map.schema import FieldMap, Quadruples, RowLayout
from sigma_data.sources.field_map.shapes import Draft
from sigma_data.sources.field_map.side_file import SideValues
from sigma_data.sources.field_map.targets import repeated_targets
from sigma_data.sources.field_map.values import RowFault
from sigma_data.storage.archive_cache import DEFAULT_LIMIT, ArchiveCache
from sigma_data.storage.data_folder import DataFolder, data_folder
from sigma_data.storage.path_settings import LocalPath


class MapOptions(ReaderOptions):
    """Options of every source with a field map: your own, or a shipped one, as in `omniedit:DIR?filters=off`."""

    root: str | None = None
    """Folder of the corpus, for `map:` alone: its path is that of the map."""
    filters: Literal["on", "off"] = "on"
    """off: rows that the map's filters leave out are read, too."""
    phrasing: Literal["first", "last", "drawn"] = "first"
    """Which of several phrasings is the instruction; drawn: by a hash of the sample's id."""
    turns: Literal["dialogue", "single"] = "dialogue"
    """single: every turn of a dialogue is a sample of its own, where turns can be understood by themselves."""
    cache: LocalPath | None = None
    """Folder in which compressed archives are unpacked and archives indexed; by default `archives` in `$SIGMA_CACHE`,
    or in ~/.cache/sigma."""
    cache_gb: float = Field(DEFAULT_LIMIT / 1e9, gt=0)
    """Gigabytes that the cache may hold: what was used longest ago is removed, and unpacked again when needed."""
    license: str = ""
    """License of the images, noted with every sample; by default that of the map."""


@dataclass(frozen=True)
class _Place:
    """A file with rows: its layout, the fields its path gives, the names of globs, where its images lie."""

    layout: RowLayout
    location: str
    fields: dict[str, Any]
    names: dict[str, str]
    scope: Scope


class MapReader(Reader):
    """Reads the rows of a corpus by its field map."""

    options_type: ClassVar[type[ReaderOptions]] = MapOptions

    def __init__(self, scheme: str, path: str, options: ReaderOptions) -> None:
        self.options = cast(MapOptions, options)
        self.map, name, place = self._load(scheme, path)
        super().__init__(name, place, options)
        self.injected = self.map.injected
        self._shipped = None if scheme == "map" else scheme
        read = self.map.model_dump_json(include={"version", "layouts"})
        self._digest = hashlib.sha256(read.encode()).hexdigest()[:16]
        self._cache = ArchiveCache(self.options.cache, int(self.options.cache_gb * 1e9))
        inside = [glob for layout in self.map.layouts for glob in layout.rows if INSIDE in glob]
        folder = data_folder(self.path)
        self._folder: DataFolder = ArchivedRows(folder, inside, self._cache) if inside else folder
        self._stores: dict[int, ImageStore] = {}
        self._layouts: dict[str, RowLayout | None] = {}
        self._sides: dict[int, SideValues] = {}
        self._roots: dict[str, Roots] = {}

    def _load(self, scheme: str, path: str) -> tuple[FieldMap, str, str]:
        """The map, the name of the source, where its files are. Raises ConfigError."""
        if (scheme == "map") == (self.options.root is None):
            way = f"say where the files are, as in map:{path}?root=DIR" if scheme == "map" else "leave out root"
            raise ConfigError(f"source {scheme}:{path}: {way}")
        if scheme == "map":
            return load_map(path), Path(path).stem, self.options.root or ""
        return load_shipped(scheme), scheme, path

    def folder(self) -> Path | None:
        return self._folder.local

    def fingerprint(self, fragment: Fragment) -> str:
        parts = fragments_of(fragment) or [fragment]
        found = {one.location: self._folder.fingerprint(one.location, one.stamp) for one in parts}
        return f"{' '.join(found.values())} {self._digest}"

    def fragments(self) -> list[Fragment]:
        found: list[Fragment] = []
        files = self._files()
        for layout in self.map.layouts:
            if layout.fallback and found:
                continue
            mine = [(location, stamp) for location, stamp in files if self._layout(location) is layout]
            rows = self._rows(layout)
            if mine and (fault := wrong_keys(layout, mine[0][0], rows.keys(mine[0][0]))):
                raise SourceError(f"{self.path}: {fault}")
            groups: dict[str, list[Fragment]] = {}
            for location, stamp in mine:
                listed = rows.fragments(location, stamp)
                if layout.quadruples is None:
                    found += listed
                else:
                    name = filled(layout.quadruples.group, self._place(location).names)
                    groups.setdefault(name, []).extend(listed)
            found += map(group_fragment, groups.values())
        if isinstance(self._folder, ArchivedRows):
            found += self._folder.refused.values()
        if not found:
            self._refuse_nothing()
        return self._stamped(found)

    def _stamped(self, fragments: list[Fragment]) -> list[Fragment]:
        """The fragments with the map in their stamps: what a build made by another map is not used again."""
        return [replace(one, stamp=f"{one.stamp}:{self._digest}") for one in fragments]

    def read(self, fragment: Fragment) -> Iterator[Sample | Rejection]:
        if fragment.refused is not None and fragment.part == REFUSED:
            code, _, message = fragment.refused.partition(": ")
            yield Rejection(self.name, fragment.location, None, code, message, license=self._license(None))
            return
        for place, outcome in self._outcomes(fragment, survey=False):
            draft, fault = outcome.draft, outcome.fault
            terms = self._license(place.layout)
            if draft is not None:
                source = Source(self.name, f"{place.location}{draft.suffix}", outcome.row or 0, terms)
                try:
                    store = self._store(place.layout)
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
            if one.refused is not None and one.part == REFUSED:
                yield Surveyed(None, self._license(None), one.refused.partition(": ")[0])
                continue
            for place, outcome in self._outcomes(one, survey=True):
                draft, fault = outcome.draft, outcome.fault
                yield Surveyed(
                    draft.family if draft else outcome.family, self._license(place.layout),
                    fault.code if fault else None, isinstance(fault, Filtered),
                    references=len(draft.references) if draft else None,
                    texts=_texts(draft) if draft else (),
                    labelled=bool(draft and draft.references and draft.references[0].label),
                )  # fmt: skip

    def _outcomes(self, fragment: Fragment, *, survey: bool) -> Iterator[tuple[_Place, Outcome]]:
        """What becomes of every row of a fragment by its words and values, and the place of its file."""
        place = self._place(fragment.location)
        layout = place.layout
        rows = self._rows(layout)
        names = None
        if survey or (layout.format == "parquet" and layout.quadruples is None):
            without = survey and layout.images.origin == "bytes"
            names = value_names(layout) | (set() if without else image_names(layout))
        if layout.quadruples is not None:
            yield from self._quadruples(fragment, layout.quadruples, names)
        elif layout.chain is not None:
            whole = rows.fragments(fragment.location, fragment.stamp)
            index = next((index for index, one in enumerate(whole) if one.part == fragment.part), None)
            if index is not None:
                runs = runs_of(rows, whole, index, layout.chain, names)
                yield from ((place, outcome) for outcome in chained(self._judge(place, ""), layout.chain, runs))
        else:
            judge = self._judge(place, fragment.stamp)
            yield from ((place, outcome) for outcome in judge.outcomes(rows.read(fragment, names)))

    def _judge(self, place: _Place, stamp: str) -> Judge:
        repeated = frozenset[bytes]()
        if place.layout.images.unique_target:
            repeated = repeated_targets(self._folder, place.layout, place.location, stamp)
        filters, single = self.options.filters == "on", self.options.turns == "single"
        return Judge(place.layout, place.fields, filters, repeated, single, self._side_values(place.layout))

    def _quadruples(
        self, group: Fragment, spec: Quadruples, names: set[str] | None
    ) -> Iterator[tuple[_Place, Outcome]]:
        """The relations of a group; those that cannot be a part of one first."""
        pairs: list[Pair] = []
        for one in fragments_of(group):
            place = self._place(one.location)
            rows = self._rows(place.layout)
            for outcome in self._judge(place, one.stamp).outcomes(rows.read(one, names)):
                if outcome.draft is None:
                    yield place, outcome
                    continue
                images = [*outcome.draft.references, *(t.target for t in outcome.draft.turns if t.target)]
                try:
                    store = self._store(place.layout)
                    found = [image_data(image, store, place.scope).data for image in images] if names is None else []
                except RowFault as fault:
                    yield place, Outcome(outcome.row, fault=fault, family=outcome.draft.family)
                    continue
                digests = tuple(hashlib.sha256(data).digest() for data in found)
                if len(set(digests)) < len(digests):
                    same = RowFault("target_equals_reference", "both images of the pair are the same")
                    yield place, Outcome(outcome.row, fault=same, family=outcome.draft.family)
                    continue
                pairs.append(Pair(place.location, outcome.row or 0, outcome.draft, place.scope, digests))
        for pair, demonstration in ring(pairs, spec):
            yield self._place(pair.location), quadruple(pair, demonstration)

    def _files(self) -> list[tuple[str, str]]:
        """Every file that a glob of the map names, with its stamp."""
        globs = [glob for layout in self.map.layouts for glob in layout.rows]
        listed = self._folder.files(tuple({re.split(r"[*?\]/]", glob)[-1] for glob in globs}))
        return [(location, stamp) for location, stamp in listed if self._layout(location) is not None]

    def _refuse_nothing(self) -> NoReturn:
        """Raise SourceError for a folder without a file of the map."""
        globs = " or ".join(dict.fromkeys(glob for layout in self.map.layouts for glob in layout.rows))
        listed = [location for location, _ in self._folder.files("")]
        have = ", ".join(listed[:3]) + (", ..." if len(listed) > 3 else "") or "no file"
        how = f"; sigma sources {self._shipped} says how to lay out the files" if self._shipped else ""
        raise SourceError(f"{self.path}: no file {globs} below this place, but {have}{how}")

    def _rows(self, layout: RowLayout) -> RowFormat:
        """What reads the rows of a layout."""
        return format_of(layout, self._folder)

    def _layout(self, location: str) -> RowLayout | None:
        """The first layout whose globs name a file and whose fields its rows have; else the first by its globs."""
        if location not in self._layouts:
            named = [one for one in self.map.layouts if matches(location, one.rows) and not matches(location, one.skip)]
            found = named[0] if named else None
            if len(named) > 1:
                keys = self._rows(named[0]).keys(location)
                found = next((one for one in named if not missing(one, keys)), found)
            self._layouts[location] = found
        return self._layouts[location]

    def _place(self, location: str) -> _Place:
        layout = self._layout(location)
        if layout is None:
            raise SourceError(f"{self.path}: {location} is named by no layout of the map")
        folder = posixpath.dirname(location)
        found = re.search(layout.subset, location) if layout.subset else None
        fields = {name: text or "" for name, text in found.groupdict().items()} if found else {}
        names = {**fields, "folder": folder or ".", "parent": posixpath.dirname(folder) or "."}
        literal = {name: literal_glob(text) for name, text in names.items()}
        folders = [posixpath.normpath(filled(one, names)) for one in layout.images.folders]
        if layout.images.roots is not None:
            folders = [
                *self._roots.setdefault(layout.images.roots, Roots(self._folder, layout.images.roots)).of(location),
                *folders,
            ]
        scope = Scope(
            tuple(dict.fromkeys(folders)),
            tuple(filled(glob, literal).removeprefix("./") for glob in layout.images.archive),
            folder,
            tuple(posixpath.normpath(filled(one, names)) for one in layout.images.named_in),
        )
        return _Place(layout, location, fields, names, scope)

    def _store(self, layout: RowLayout) -> ImageStore:
        if id(layout) not in self._stores:
            self._stores[id(layout)] = store_of(layout.images, self._folder, self._cache)
        return self._stores[id(layout)]

    def _side_values(self, layout: RowLayout) -> SideValues | None:
        if layout.side_file is not None and id(layout) not in self._sides:
            self._sides[id(layout)] = SideValues(self._folder, layout.side_file, self._cache)
        return self._sides.get(id(layout))

    def _license(self, layout: RowLayout | None) -> str:
        return self.options.license or (layout.license if layout else None) or self.map.license


def _texts(draft: Draft) -> tuple[str, ...]:
    """The instructions of a draft with all phrasings."""
    if len(draft.turns) == 1:
        return draft.turns[0].instructions
    return tuple(text for turn in draft.turns for text in turn.instructions)


def filled(template: str, names: dict[str, str]) -> str:
    """A template with {NAME} filled in; other braces stay. Raises ConfigError for a name that there is not."""

    def fill(match: re.Match[str]) -> str:
        if match[1] not in names:
            raise ConfigError(f"{template}: there is no {match[0]}, only {', '.join(names)} of the rows' file")
        return names[match[1]]

    return re.sub(r"\{([A-Za-z_]\w*)\}", fill, template)
