"""Rows of webdataset tars that others packed: consecutive members of one key.

The member KEY.SUFFIX has the key up to the first dot of its name; dots in front of the suffix are ignored. A row has
the keys of its JSON, its text as `txt`, and every other member by its suffix without the extension (`1.0` for
KEY.1.0.jpg), or by the extension where that is all. Some files are several tars one after the other, in which keys
begin anew: a suffix that the open row has already begins a new one.
"""

from __future__ import annotations

import json
import posixpath
import re
import tarfile
from collections.abc import Collection, Iterator
from typing import IO, Any, cast

from sigma_data.sources.base import Fragment
from sigma_data.sources.field_map.images import MOST_IMAGE_BYTES
from sigma_data.sources.field_map.rows import NumberedRow, RowFormat
from sigma_data.sources.field_map.values import Row, RowFault
from sigma_data.sources.parquet import one_line, size_of

_BLOCK = 512
_TEXT = ("json", "txt")


class TarRows(RowFormat):
    """Reads .tar files of samples."""

    def fragments(self, location: str, stamp: str) -> list[Fragment]:
        return [Fragment(location, "tar", stamp)]

    def read(self, fragment: Fragment, fields: Collection[str] | None = None) -> Iterator[NumberedRow]:
        with self.folder.open(fragment.location) as file:
            yield from _rows(file, size_of(fragment.stamp), images=fields is None)

    def keys(self, location: str) -> list[str]:
        with self.folder.open(location) as file:
            for _, row in _rows(file, size_of(""), images=False):
                return list(row) if not isinstance(row, RowFault) else []
        return []


def _rows(file: IO[bytes], size: int, *, images: bool) -> Iterator[NumberedRow]:
    number = 0
    group: dict[str, bytes] = {}
    key: str | None = None
    fault: RowFault | None = None  # of the open row
    for item in _members(file, size):
        if isinstance(item, RowFault):  # of the tar
            if key is not None:
                yield number, fault or _row(key, group)
            yield None, item
            return
        name, data = item
        stem, suffix = _split(name)
        if key is not None and (stem != key or suffix in group):
            yield number, fault or _row(key, group)
            number, group, fault = number + 1, {}, None
        key = stem
        group[suffix] = b""
        if isinstance(data, RowFault):
            fault = fault or data
        elif images or suffix.rpartition(".")[2] in _TEXT:
            content = data()
            if isinstance(content, RowFault):
                yield number, content
                yield None, RowFault(content.code, f"the tar ends there: {content}")
                return
            group[suffix] = content
    if key is not None:
        yield number, fault or _row(key, group)


def _split(name: str) -> tuple[str, str]:
    folder, base = posixpath.split(name)
    stem, _, suffix = base.partition(".")
    return posixpath.join(folder, stem), suffix.lstrip(".").lower()


def _row(key: str, group: dict[str, bytes]) -> Row | RowFault:
    """One row of its members."""
    row: dict[str, Any] = {"__key__": key}
    for suffix, data in group.items():
        name, dot, extension = suffix.rpartition(".")
        if extension == "json":
            try:
                content = json.loads(data.decode("utf-8-sig"))
            except (ValueError, RecursionError) as error:
                return RowFault("bad_line", f"{key}.{suffix} is not JSON ({one_line(error)})")
            if not isinstance(content, dict):
                return RowFault("bad_fields", f"{key}.{suffix} is {type(content).__name__}, not an object")
            row = content | row
        else:
            row[extension if extension == "txt" or not dot else name] = data
    return row


def _members(file: IO[bytes], size: int) -> Iterator[tuple[str, Any] | RowFault]:
    """(name, a function that reads it) of every file in all tars of the file; a RowFault ends them.

    A member that is no plain file, or whose name climbs, has a RowFault in place of the function.
    """
    end = 0
    try:
        with tarfile.open(fileobj=file, mode="r:", ignore_zeros=True) as tar:
            while (member := tar.next()) is not None:
                cast(Any, tar).members.clear()  # or the list grows with the file
                if not _is_zero(file, end, member.offset):
                    yield RowFault("truncated", f"the tar is damaged: what is at byte {end:,} is no member")
                    return
                end = member.offset_data + -(-member.size // _BLOCK) * _BLOCK if member.isreg() else member.offset_data
                name = posixpath.normpath(member.name)
                if member.isdir() or posixpath.basename(name).startswith("."):
                    continue
                if not member.isreg():
                    yield name, RowFault("unsafe_path", f"the member {member.name} is a link or no plain file")
                elif ".." in re.split(r"[/\\]", member.name) or member.name.startswith("/"):
                    yield name, RowFault("unsafe_path", f"the member {member.name} has a name that leaves the tar")
                elif member.offset_data + member.size > size:
                    message = f"the tar ends inside {member.name}, which is to have {member.size:,} bytes"
                    yield RowFault("truncated", message)
                    return
                elif member.size > MOST_IMAGE_BYTES:
                    yield name, RowFault("undecodable", f"{member.name} has {member.size:,} bytes, too many")
                else:
                    yield name, _reader(file, member)
                file.seek(end)
            if end < file.seek(0, 2) and not _is_zero(file, end, file.tell()):
                yield RowFault("truncated", f"the tar is damaged: what is at byte {end:,} is no member")
    except (tarfile.TarError, EOFError, ValueError, OverflowError, OSError) as error:
        yield RowFault("truncated", f"the tar cannot be read ({one_line(error)})")


def _reader(file: IO[bytes], member: tarfile.TarInfo) -> Any:
    def read() -> bytes | RowFault:
        file.seek(member.offset_data)
        data = file.read(member.size)
        if len(data) < member.size:
            return RowFault("truncated", f"the tar ends inside {member.name}")
        return data

    return read


def _is_zero(file: IO[bytes], start: int, stop: int) -> bool:
    """Whether a range of the file holds only zeros."""
    if stop <= start:
        return True
    place = file.tell()
    file.seek(start)
    while start < stop and (piece := file.read(min(stop - start, 2**20))):
        if piece.strip(b"\0"):
            return False
        start += len(piece)
    file.seek(place)
    return True
