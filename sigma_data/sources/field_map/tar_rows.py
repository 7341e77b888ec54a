"""Rows of webdataset tars that others packed: consecutive members of one key.

The member KEY.SUFFIX has the key up to the first dot of its name; dots in front of the suffix are ignored. A row has
the keys of its JSON, its text as `txt`, and every other member by its suffix without the extension (`1.0` for
KEY.1.0.jpg), or by the extension where that is all. Some files are several tars one after the other, in which keys
begin anew: a suffix that the open row has already begins a new one.
"""

from __future__ import annotations

import json
import posixpath
from collections.abc import Collection, Iterator
from functools import partial
from typing import Any

from sigma_data.sources.base import Fragment
from sigma_data.sources.field_map.images import MOST_IMAGE_BYTES
from sigma_data.sources.field_map.rows import NumberedRow, RowFormat
from sigma_data.sources.field_map.values import Row, RowFault
from sigma_data.sources.parquet import one_line
from sigma_data.storage.archive_streams import SeekingTar
from sigma_data.storage.split_files import JoinedFile, Part
from sigma_data.storage.tar_members import MemberKind, TarError, tar_members

_TEXT = ("json", "txt")


class TarRows(RowFormat):
    """Reads .tar files of samples."""

    def fragments(self, location: str, stamp: str) -> list[Fragment]:
        return [Fragment(location, "tar", stamp)]

    def read(self, fragment: Fragment, fields: Collection[str] | None = None) -> Iterator[NumberedRow]:
        with self._open(fragment.location, fragment.stamp) as file:
            yield from _rows(file, images=fields is None)

    def keys(self, location: str) -> list[str]:
        with self._open(location, "") as file:
            for _, row in _rows(file, images=False):
                return list(row) if not isinstance(row, RowFault) else []
        return []

    def _open(self, location: str, stamp: str) -> JoinedFile:
        size = stamp.partition(":")[0]
        return JoinedFile(self.folder, (Part(location, int(size) if size.isdecimal() else -1, stamp),))


def _rows(file: JoinedFile, *, images: bool) -> Iterator[NumberedRow]:
    number = 0
    group: dict[str, bytes] = {}
    key: str | None = None
    fault: RowFault | None = None  # of the open row
    for item in _members(file):
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
            group[suffix] = data()
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


def _members(file: JoinedFile) -> Iterator[tuple[str, Any] | RowFault]:
    """(name, a function that reads it) of every file in all tars of the file; a RowFault ends them.

    A member that is no plain file, or whose name climbs, has a RowFault in place of the function.
    """
    try:
        for member in tar_members(SeekingTar(file)):
            if posixpath.basename(member.name).startswith("."):
                continue
            if member.kind is MemberKind.UNSAFE:
                fault = RowFault("unsafe_path", f"the member {member.name[:200]} has a name that leaves the tar")
                yield posixpath.normpath(member.name), fault
            elif member.kind is not MemberKind.FILE:
                fault = RowFault("unsafe_path", f"the member {member.name[:200]} is a link or no plain file")
                yield member.name, fault
            elif member.offset + member.size > file.size:
                message = f"the tar ends inside {member.name[:200]}, which is to have {member.size:,} bytes"
                yield RowFault("truncated", message)
                return
            elif member.size > MOST_IMAGE_BYTES:
                yield member.name, RowFault("undecodable", f"{member.name} has {member.size:,} bytes, too many")
            else:
                yield member.name, partial(file.read_at, member.offset, member.size)
    except TarError as error:
        yield RowFault("truncated", f"the tar is damaged: {error}")
