"""Images and rows in archives, in place: tar and tar.gz, whole or in parts, and unpacked trees beside them."""

from __future__ import annotations

import hashlib
import posixpath
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import IO

from sigma_data.errors import SourceError
from sigma_data.sources.base import Fragment
from sigma_data.sources.field_map.images import MOST_IMAGE_BYTES, ImageStore, Scope, TreeStore
from sigma_data.sources.field_map.rows import glob_pattern, literal_glob, matches
from sigma_data.sources.field_map.schema import ImagesMap
from sigma_data.sources.field_map.values import RowFault
from sigma_data.storage.archive import Archive, ArchiveError, ArchiveSet
from sigma_data.storage.archive_cache import ArchiveCache
from sigma_data.storage.data_folder import DataFolder
from sigma_data.storage.split_files import find_split_files
from sigma_data.storage.tar_members import TarMember

INSIDE = "::"
"""Between the location of an archive and the name of a member."""
REFUSED = "archive"
"""The part of a fragment that stands for an archive that cannot be read to its end."""
_OPEN_SETS = 3
"""Sets of archives that are held open: rows come file by file, and a file's images lie in one set."""


def glob_files(folder: DataFolder, globs: Iterable[str]) -> list[tuple[str, str]]:
    """(location, stamp) of the files in every folder that a glob's folders match; the names are not looked at.

    Lists only the folders that may hold such files, for unpacked trees have millions. Raises SourceError.
    """
    found: dict[str, str] = {}
    for glob in globs:
        head = posixpath.dirname(glob)
        for place in _folders(folder, "", head.split("/") if head else []):
            found |= dict(folder.children(place)[1])
    return list(found.items())


def _folders(folder: DataFolder, place: str, words: Sequence[str]) -> list[str]:
    if not words:
        return [place]
    names = folder.children(place)[0]
    if words[0] == "**":
        below = [one for name in names for one in _folders(folder, posixpath.join(place, name), words)]
        return [*_folders(folder, place, words[1:]), *below]
    pattern = glob_pattern(words[0])
    return [
        one
        for name in names
        if pattern.fullmatch(name)
        for one in _folders(folder, posixpath.join(place, name), words[1:])
    ]


def find_archives(folder: DataFolder, globs: Sequence[str], cache: ArchiveCache) -> list[Archive]:
    """The archives that the globs name, by their own names or by those of their parts."""
    files = find_split_files(glob_files(folder, globs), partial(matches, globs=globs))
    return [Archive(folder, file, cache) for file in files]


class ArchiveStore(ImageStore):
    """Images in the archives of the scope; those that were unpacked beside them come first."""

    def __init__(self, images: ImagesMap, folder: DataFolder, cache: ArchiveCache) -> None:
        super().__init__(images)
        self._tree = TreeStore(images, folder)
        self._folder = folder
        self._cache = cache
        self._sets: dict[tuple[str, ...], ArchiveSet] = {}

    def read(self, location: str, scope: Scope) -> tuple[bytes, str] | None:
        if (found := self._tree.read(location, scope)) is not None:
            return found
        member = self._find(location, scope)
        if member is None:
            return None
        try:
            data = self._set(scope).read(*member, MOST_IMAGE_BYTES)
        except ArchiveError as error:
            raise RowFault("undecodable" if error.code == "too_large" else error.code, str(error)) from None
        return data, f"{member[0].location}{INSIDE}{member[1].name}"

    def exists(self, location: str, scope: Scope) -> bool:
        return self._tree.exists(location, scope) or self._find(location, scope) is not None

    def named(self, tail: str, scope: Scope) -> list[str]:
        if found := self._tree.named(tail, scope):
            return found
        members = self._set(scope).find_all(tail, tail=tail.count("/") + 1)
        return [f"{archive.location}{INSIDE}{member.name}" for archive, member in members]

    def _find(self, location: str, scope: Scope) -> tuple[Archive, TarMember] | None:
        """The member at a location, None if there is none or what would hold it cannot be read."""
        archives = self._set(scope)
        name, inside, member = location.partition(INSIDE)
        if inside:
            archives = ArchiveSet([archive for archive in archives.archives if archive.location == name])
        try:
            return archives.find(member if inside else location)
        except ArchiveError as error:
            if error.code in ("missing_picture", "part_missing"):
                return None
            raise RowFault(error.code, str(error)) from None

    def _missing(self, path: str, scope: Scope) -> RowFault:
        fault = super()._missing(path, scope)
        archives = self._set(scope)
        if fault.code == "missing_picture" and scope.archives and not archives.archives:
            globs = " or ".join(dict.fromkeys(scope.archives))
            return RowFault(fault.code, f"no image {path[:200]!r}, and no archive {globs}")
        why = archives.fault
        if fault.code != "missing_picture" or why is None:
            return fault
        return RowFault(why[0] if why[0] == "part_missing" else fault.code, f"{fault}: {why[1]}")

    def _set(self, scope: Scope) -> ArchiveSet:
        if scope.archives not in self._sets:
            if len(self._sets) >= _OPEN_SETS:
                self._sets.pop(next(iter(self._sets))).close()
            self._sets[scope.archives] = ArchiveSet(find_archives(self._folder, scope.archives, self._cache))
        return self._sets[scope.archives]


class ArchivedRows(DataFolder):
    """A folder in which members of archives, `ARCHIVE::MEMBER`, are files, too.

    Those that `globs` name are listed, but for archives beside which such a file was unpacked.
    """

    def __init__(self, folder: DataFolder, globs: Sequence[str], cache: ArchiveCache) -> None:
        super().__init__(folder.uri)
        self._folder = folder
        self._globs = tuple(globs)
        self._cache = cache
        self._archives: dict[str, Archive] = {}
        self.refused: dict[str, Fragment] = {}
        """A fragment for each archive that was listed and cannot be read to its end: its rows are not counted."""

    @property
    def local(self) -> Path | None:
        return self._folder.local

    def exists(self, location: str) -> bool:
        return INSIDE not in location and self._folder.exists(location)

    def children(self, location: str) -> tuple[list[str], list[tuple[str, str]]]:
        return self._folder.children(location)

    def files(self, suffix: str | tuple[str, ...]) -> list[tuple[str, str]]:
        listed = self._folder.files(suffix)
        for glob in self._globs:
            outer, _, inner = glob.partition(INSIDE)
            pattern = glob_pattern(inner)
            for archive in find_archives(self._folder, [outer], self._cache):
                beside = glob_pattern(posixpath.join(literal_glob(posixpath.dirname(archive.location)), inner))
                if not any(beside.fullmatch(location) for location, _ in listed):
                    members = self._members(archive)
                    listed += [(one, stamp) for one, name, stamp in members if pattern.fullmatch(name)]
        return listed

    def open(self, location: str) -> IO[bytes]:
        name, inside, member = location.partition(INSIDE)
        if not inside:
            return self._folder.open(location)
        try:
            archive = self._archive(name)
            found = archive.find(member)
            if len(found) > 1:
                raise ArchiveError("ambiguous_name", f"{location} stands there twice")
            return archive.open(found[0])
        except (ArchiveError, LookupError) as error:
            raise SourceError(f"{self.uri}: {location} cannot be read ({error})") from None

    def fingerprint(self, location: str, stamp: str) -> str:
        return stamp if INSIDE in location else self._folder.fingerprint(location, stamp)

    def _archive(self, location: str) -> Archive:
        if location not in self._archives:
            globs = [glob.partition(INSIDE)[0] for glob in self._globs]
            self._archives |= {one.location: one for one in find_archives(self._folder, globs, self._cache)}
        return self._archives[location]

    def _members(self, archive: Archive) -> list[tuple[str, str, str]]:
        """(location, name, stamp) of all members of an archive that can be read; a fault of it is noted."""
        stamps = "".join(part.stamp for part in archive.file.parts)
        digest = hashlib.sha256(stamps.encode()).hexdigest()[:16]
        found: list[tuple[str, str, str]] = []
        fault = None
        try:
            fault = archive.fault
            for one in archive.members():
                found.append((f"{archive.location}{INSIDE}{one.name}", one.name, f"{one.size}:{digest}"))
        except ArchiveError as error:
            fault = error.code, str(error)
        archive.close()
        if fault is not None:
            location = f"{archive.location}{INSIDE}"
            self.refused[location] = Fragment(location, REFUSED, digest, 1, refused=f"{fault[0]}: {fault[1]}")
        return found

    def _is_file(self, location: str) -> bool:
        return self._folder._is_file(location)

    def _open(self, location: str) -> IO[bytes]:
        return self._folder._open(location)

    def _beside(self, location: str, path: str, size: int) -> bytes:
        return self._folder._beside(location, path, size)
