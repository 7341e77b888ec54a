"""Archives whose members are read by name: tar and tar.gz, in one file or cut into parts.

A plain tar is read in place, by an index of its headers. A compressed one has no places: it is unpacked once, front to
back, into one file of the cache. No member is ever written under its own name.
"""

from __future__ import annotations

import gzip
import io
import os
import shutil
import sqlite3
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import IO, cast

from sigma_data.errors import SourceError
from sigma_data.storage.archive_cache import ArchiveCache, CacheEntry, Room
from sigma_data.storage.archive_index import ArchiveIndex, ArchiveIndexWriter
from sigma_data.storage.archive_streams import CHUNK, NOT_COMPLETE, SeekingTar, Slice, UnpackedGzip
from sigma_data.storage.data_folder import DataFolder
from sigma_data.storage.files import LFS_MESSAGE, is_lfs_pointer
from sigma_data.storage.split_files import JoinedFile, SplitFile
from sigma_data.storage.tar_members import BLOCK, MemberKind, TarError, TarMember, is_whole, tar_members

_VERSION = "1"
_MOST_MEMBER = 2**30
"""Largest member that is unpacked: images are far smaller."""
_OTHERS = {
    b"\x28\xb5\x2f\xfd": "zstd", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x04\x22\x4d\x18": "lz4", b"PK\x03\x04": "zip",
    b"7z\xbc\xaf": "7z",
}  # fmt: skip


class ArchiveError(Exception):
    """A member cannot be given, or the archive as a whole; `code` is that of the row's rejection."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class Archive:
    """One archive; nothing is read before it is asked for.

    Every method raises ArchiveError for a fault of the archive, SourceError where storage or the cache fails.
    """

    def __init__(self, folder: DataFolder, file: SplitFile, cache: ArchiveCache) -> None:
        self.file = file
        self._folder = folder
        self._cache = cache
        self._joined: JoinedFile | None = None
        self._compressed: bool | None = None
        self._index: tuple[ArchiveIndex, CacheEntry] | None = None
        self._data: tuple[IO[bytes], CacheEntry] | None = None
        stamps = [word for part in file.parts for word in (part.location, part.stamp)]
        root = folder.uri if folder.local is None else str(folder.local.resolve())
        self._key = "\0".join([_VERSION, root, *stamps])

    @property
    def location(self) -> str:
        """Its location, without the ending of its parts."""
        return self.file.location

    @property
    def fault(self) -> tuple[str, str] | None:
        """(code, message) of what ends the archive early: what stands before can be read."""
        fault = self._opened_index().fault
        return fault and (fault[0], f"{self.location}: {fault[1]}")

    def find(self, path: str, *, tail: int | None = None) -> list[TarMember]:
        """At most two members of this name, or whose last `tail` names are those of `path`; see `ArchiveIndex.find`."""
        return self._opened_index().find(path, tail=tail)

    def members(self) -> Iterator[TarMember]:
        """All members in order."""
        return self._opened_index().names()

    def read(self, member: TarMember, limit: int) -> bytes:
        """A member's content. Raises ArchiveError where it has more than `limit` bytes or cannot be read."""
        self._check(member)
        if member.size > limit:
            raise ArchiveError("too_large", f"{self._named(member)}: has {member.size:,} bytes, more than {limit:,}")
        if self._is_compressed():
            file = self._opened_data()
            data = os.pread(file.fileno(), member.size, member.offset)
        else:
            data = self._opened().read_at(member.offset, member.size)
        if len(data) < member.size:
            raise SourceError(f"{self.location}: has become shorter while it was read")
        return data

    def open(self, member: TarMember) -> IO[bytes]:
        """A member's content as a seekable file, for what is too large to be read at once."""
        self._check(member)
        file = self._opened_data() if self._is_compressed() else self._opened()
        return cast(IO[bytes], io.BufferedReader(Slice(cast(io.RawIOBase, file), member.offset, member.size), CHUNK))

    def close_data(self) -> None:
        """Close the content, so that the cache may remove what was unpacked; the index stays open."""
        if self._joined is not None:
            self._joined.close()
            self._joined = None
        if self._data is not None:
            for one in self._data:
                one.close()
            self._data = None

    def close(self) -> None:
        """Close everything; the next use opens it again."""
        self.close_data()
        if self._index is not None:
            for one in self._index:
                one.close()
            self._index = None

    def _check(self, member: TarMember) -> None:
        reason = _REASONS.get(member.kind)
        if reason is not None:
            raise ArchiveError(reason[0], f"{self._named(member)}: {reason[1]}")

    def _named(self, member: TarMember) -> str:
        return f"{self.location}::{member.name[:200]}"

    def _opened(self) -> JoinedFile:
        if self.file.missing is not None:
            raise ArchiveError("part_missing", self.file.missing)
        if self._joined is None:
            self._joined = JoinedFile(self._folder, self.file.parts)
        return self._joined

    def _is_compressed(self) -> bool:
        if self._compressed is None:
            head = self._opened().read_at(0, BLOCK)
            first = self.file.parts[0].location
            gzipped = head.startswith(b"\x1f\x8b")
            if first != self.location and not first.endswith(("0", "a")) and not gzipped and not _is_tar(head):
                raise ArchiveError("part_missing", f"{self.location}: its first part is missing: download it")
            if fault := _head_fault(head):
                raise ArchiveError("missing_picture", f"{self.location}: {fault}")
            self._compressed = gzipped
        return self._compressed

    def _opened_index(self) -> ArchiveIndex:
        if self._index is None:
            compressed = self._is_compressed()

            def fill(folder: Path, room: Room) -> None:
                if not compressed:
                    self._write_index(folder / _INDEX)
                    return
                data = self._cache.open(f"data\0{self._key}", self.location, self._unpack)
                try:
                    shutil.copyfile(data.folder / _INDEX, folder / _INDEX)
                finally:
                    data.close()

            entry = self._cache.open(f"index\0{self._key}", self.location, fill)
            try:
                self._index = ArchiveIndex(entry.folder / _INDEX), entry
            except sqlite3.Error as error:
                entry.close()
                raise SourceError(f"{entry.folder}: cannot be read ({error}): remove this folder") from None
        return self._index[0]

    def _opened_data(self) -> IO[bytes]:
        if self._data is None:
            entry = self._cache.open(f"data\0{self._key}", self.location, self._unpack)
            self._data = (entry.folder / _DATA).open("rb", buffering=0), entry
        return self._data[0]

    def _write_index(self, path: Path) -> None:
        """Index a plain tar by its headers."""
        file = self._opened()
        writer = ArchiveIndexWriter(path)
        fault = None
        try:
            for member in tar_members(SeekingTar(file)):
                cut = member.offset + member.size > file.size and member.kind is MemberKind.FILE
                writer.add(replace(member, kind=MemberKind.CUT) if cut else member)
        except TarError as error:
            fault = error.code, f"{error}{_ADVICE.get(error.code, '')}"
        if fault is None and not is_whole(file.size, file.read_at(file.size - 2 * BLOCK, 2 * BLOCK)):
            fault = "truncated", f"it ends without its closing blocks{NOT_COMPLETE}"
        writer.finish(fault)

    def _unpack(self, folder: Path, room: Room) -> None:
        """Unpack a gzip into one file, front to back, and index it."""
        writer = ArchiveIndexWriter(folder / _INDEX)
        fault = None
        with (
            gzip.GzipFile(fileobj=io.BufferedReader(self._opened(), CHUNK)) as stream,
            (folder / _DATA).open("wb") as out,
        ):
            self._opened().seek(0)
            source = UnpackedGzip(stream, self._opened(), room)
            try:
                for member in tar_members(source):
                    writer.add(_copied(member, source, out))
            except TarError as error:
                fault = error.code, f"{error}{_ADVICE.get(error.code, '')}"
        writer.finish(("truncated", source.fault) if source.fault else fault)


class ArchiveSet:
    """The archives in which a name must be unique; few of them have their content open at a time."""

    def __init__(self, archives: list[Archive], most_open: int = 4) -> None:
        self.archives = archives
        self._most_open = most_open
        self._open: list[Archive] = []
        self._unreadable: dict[Archive, tuple[str, str]] = {}

    @property
    def fault(self) -> tuple[str, str] | None:
        """(code, message) of an archive that cannot be read to its end, if any: `part_missing` before others."""
        faults = [self._unreadable.get(archive) or self._fault(archive) for archive in self.archives]
        known = [fault for fault in faults if fault]
        return next((fault for fault in known if fault[0] == "part_missing"), known[0] if known else None)

    def find_all(self, path: str, *, tail: int | None = None) -> list[tuple[Archive, TarMember]]:
        """Members of this name (see `Archive.find`) in the archives that can be read; two of each are enough.

        Members that cannot be read count only where no other has the name.
        """
        found: list[tuple[Archive, TarMember]] = []
        for archive in self.archives:
            if archive not in self._unreadable:
                try:
                    found += [(archive, member) for member in archive.find(path, tail=tail)]
                except ArchiveError as error:
                    self._unreadable[archive] = (error.code, str(error))
        return [one for one in found if one[1].kind is MemberKind.FILE] or found[:1]

    def find(self, path: str, *, tail: int | None = None) -> tuple[Archive, TarMember]:
        """The only member of this name.

        Raises ArchiveError: `ambiguous_name` where several members have it, `missing_picture` where none has,
        `part_missing` where none has and an archive is not complete.
        """
        found = self.find_all(path, tail=tail)
        if len(found) > 1:
            first, second = (f"{archive.location}::{member.name[:200]}" for archive, member in found[:2])
            what = f"{first} and {second}" if first != second else f"{first} stands there twice"
            raise ArchiveError("ambiguous_name", f"{path[:200]!r} could be more than one member: {what}")
        if found:
            return found[0]
        fault = self.fault
        code = "part_missing" if fault and fault[0] == "part_missing" else "missing_picture"
        where = self.archives[0].location if len(self.archives) == 1 else f"any of {len(self.archives)} archives"
        raise ArchiveError(code, f"{path[:200]!r} is not in {where}" + (f" ({fault[1]})" if fault else ""))

    def read(self, archive: Archive, member: TarMember, limit: int) -> bytes:
        """A member's content; see `Archive.read`."""
        if not (self._open and self._open[-1] is archive):
            if archive in self._open:
                self._open.remove(archive)
            self._open.append(archive)
            if len(self._open) > self._most_open:
                self._open.pop(0).close_data()
        return archive.read(member, limit)

    def _fault(self, archive: Archive) -> tuple[str, str] | None:
        try:
            return archive.fault
        except ArchiveError as error:
            return error.code, str(error)

    def close(self) -> None:
        """Close all archives."""
        for archive in self.archives:
            archive.close()
        self._open.clear()


_INDEX, _DATA = "index.sqlite", "data"
_ADVICE = {
    "truncated": NOT_COMPLETE,
    "bad_header": ": fetch it again; what stands before it is read",
    "not_a_tar": ": fetch it again",
}
_REASONS = {
    MemberKind.UNSAFE: ("unsafe_path", "its name leaves the archive"),
    MemberKind.LINK: ("unsafe_path", "it is a link, and links are not followed"),
    MemberKind.SPECIAL: ("unsafe_path", "it is not a regular file"),
    MemberKind.CUT: ("truncated", "the archive ends inside it: fetch the archive again"),
    MemberKind.LARGE: ("too_large", f"it claims more than {_MOST_MEMBER:,} bytes"),
}


def _head_fault(head: bytes) -> str | None:
    if is_lfs_pointer(head):
        return f"is {LFS_MESSAGE}"
    if head[:64].lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        return "is a web page, not an archive: the download went wrong, fetch it again"
    for magic, tool in _OTHERS.items():
        if head.startswith(magic):
            return f"is compressed by {tool}: unpack it beside, only tar and tar.gz are read in place"
    return None


def _is_tar(head: bytes) -> bool:
    return head[257:262] == b"ustar" or not head.strip(b"\0")


def _copied(member: TarMember, source: UnpackedGzip, out: IO[bytes]) -> TarMember:
    """The member at its place in `out`, where its content was copied to."""
    if member.kind is not MemberKind.FILE:
        return member
    if member.size > _MOST_MEMBER:
        return replace(member, kind=MemberKind.LARGE)
    offset, left = out.tell(), member.size
    while left:
        data = source.take(min(left, CHUNK))
        if not data:
            out.seek(offset)
            out.truncate()
            return replace(member, kind=MemberKind.CUT)
        source.room.need(len(data))
        out.write(data)
        left -= len(data)
    return replace(member, offset=offset)
