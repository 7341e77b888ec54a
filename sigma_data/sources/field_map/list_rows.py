"""Rows that are only names of images: the lines of a list, or the members of tars where there is no list."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from itertools import islice

from sigma_data.sources.base import Fragment
from sigma_data.sources.field_map.rows import FRAGMENT_ROWS, NumberedRow, RowFormat
from sigma_data.sources.field_map.values import RowFault
from sigma_data.storage.archive_streams import SeekingTar
from sigma_data.storage.split_files import JoinedFile, Part
from sigma_data.storage.tar_members import BLOCK, MemberKind, TarError, TarMember, tar_members

PATH = "path"
"""The field of such rows."""
_MOST_LINE = 4096
_PART = re.compile(r"(lines|members) rows (\d+):(\d+) at (\d+)")


class LineRows(RowFormat):
    """Reads a list: every line that is not blank is a row."""

    def fragments(self, location: str, stamp: str) -> list[Fragment]:
        places = [place for place, _ in self._lines(location, 0)]
        return _fragments("lines", location, stamp, places)

    def read(self, fragment: Fragment, fields: Collection[str] | None = None) -> Iterator[NumberedRow]:
        if (span := _span(fragment, "lines")) is None:
            return
        start, stop, place = span
        row = start
        for _, line in islice(self._lines(fragment.location, place), stop - start):
            yield row, line if isinstance(line, RowFault) else {PATH: line}
            row += 1
        for lost in range(row, stop):
            yield lost, RowFault("bad_line", "the file changed since its rows were counted")

    def keys(self, location: str) -> list[str]:
        return [PATH]

    def _lines(self, location: str, place: int) -> Iterator[tuple[int, str | RowFault]]:
        with self.folder.open(location) as file:
            file.seek(place)
            while line := file.readline(_MOST_LINE + 1):
                size = len(line)
                while not line.endswith(b"\n") and (more := file.readline(_MOST_LINE)):
                    line, size = more, size + len(more)
                if size > _MOST_LINE:
                    yield place, RowFault("bad_line", f"the line has {size:,} bytes, more than a path has")
                elif line.strip():
                    try:
                        yield place, line.decode("utf-8-sig").strip()
                    except UnicodeDecodeError:
                        yield place, RowFault("bad_line", "the line is not UTF-8")
                place += size


class MemberRows(RowFormat):
    """Reads a tar: every image in it is a row, in order; text beside the images is passed over."""

    def fragments(self, location: str, stamp: str) -> list[Fragment]:
        places = [place for place, _ in self._members(location, stamp, 0)]
        return _fragments("members", location, stamp, places)

    def read(self, fragment: Fragment, fields: Collection[str] | None = None) -> Iterator[NumberedRow]:
        if (span := _span(fragment, "members")) is None:
            return
        start, stop, place = span
        row = start
        for _, member in islice(self._members(fragment.location, fragment.stamp, place), stop - start):
            yield row, member if isinstance(member, RowFault) else {PATH: member.name}
            row += 1

    def keys(self, location: str) -> list[str]:
        return [PATH]

    def _members(self, location: str, stamp: str, place: int) -> Iterator[tuple[int, TarMember | RowFault]]:
        """(place of its header, member) of every image from a header on."""
        size = stamp.partition(":")[0]
        with JoinedFile(self.folder, (Part(location, int(size) if size.isdecimal() else -1, stamp),)) as file:
            try:
                start = place
                for member in tar_members(SeekingTar(file, start)):
                    if member.name.lower().endswith((".jpg", ".jpeg", ".png", ".webp")):
                        ok = member.kind is MemberKind.FILE
                        yield place, member if ok else RowFault("unsafe_path", f"{member.name[:200]} is not a file")
                    place = start + member.offset + -(-member.size // BLOCK) * BLOCK
            except TarError as error:
                yield place, RowFault("truncated", f"the tar cannot be read from here on: {error}")


def _fragments(kind: str, location: str, stamp: str, places: list[int]) -> list[Fragment]:
    found = []
    for start in range(0, max(len(places), 1), FRAGMENT_ROWS):
        stop = min(start + FRAGMENT_ROWS, len(places))
        place = places[start] if places else 0
        found.append(Fragment(location, f"{kind} rows {start}:{stop} at {place}", stamp, stop - start))
    return found


def _span(fragment: Fragment, kind: str) -> tuple[int, int, int] | None:
    span = _PART.fullmatch(fragment.part)
    return (int(span[2]), int(span[3]), int(span[4])) if span and span[1] == kind else None
