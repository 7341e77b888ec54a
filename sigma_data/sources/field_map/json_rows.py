"""Rows of JSON: one object a line, or one array of objects; its first character tells which.

A file is read in pieces, so memory depends on a row, not on the file; a line may be as long as it likes, but a row
larger than the limit is refused. NaN and Infinity, which are no JSON but common, are read as such.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Collection, Iterator
from itertools import islice
from typing import IO, Any

from sigma_data.errors import SourceError
from sigma_data.sources.base import Fragment
from sigma_data.sources.field_map.rows import FRAGMENT_ROWS, NumberedRow, RowFormat
from sigma_data.sources.field_map.values import RowFault
from sigma_data.storage.files import LFS_MESSAGE, is_lfs_pointer

MOST_ROW_BYTES = 2**24
"""Largest row that is read."""
_FIRST_BYTES, _READ_BYTES = 2**16, 2**20
"""Bytes that are read at first, for a fragment is short, and from then on at a time."""
_HEAD_BYTES = 4096
_SPACE = b" \t\r\n"
_BETWEEN = re.compile(r"[ \t\r\n,]*")
"""What stands between elements."""


class JsonRows(RowFormat):
    """Reads .json and .jsonl files."""

    def fragments(self, location: str, stamp: str) -> list[Fragment]:
        found: list[Fragment] = []
        start = row = offset = 0
        with self.folder.open(location) as file:
            array = _is_array(file, location)
            for _, place in _array_places(file) if array else _line_places(file):
                if row and row % FRAGMENT_ROWS == 0:
                    found.append(Fragment(location, _part(array, start, row, offset), stamp, row - start))
                    start, offset = row, place
                elif row == 0:
                    offset = place
                row += 1
        if row > start or not found:
            found.append(Fragment(location, _part(array, start, row, offset), stamp, row - start))
        return found

    def read(self, fragment: Fragment, fields: Collection[str] | None = None) -> Iterator[NumberedRow]:
        span = re.fullmatch(r"(array|lines) rows (\d+):(\d+) at (\d+)", fragment.part)
        if span is None:
            return
        start, stop = int(span[2]), int(span[3])
        with self.folder.open(fragment.location) as file:
            file.seek(int(span[4]))
            found = _elements(file, int(span[4])) if span[1] == "array" else _lines(file)
            row = start
            for value, _ in islice(found, stop - start):
                if isinstance(value, RowFault):
                    yield row, value
                elif not isinstance(value, dict):
                    yield row, RowFault("bad_fields", f"the row is {type(value).__name__}, not an object")
                else:
                    yield row, value
                row += 1
        for lost in range(row, stop):
            yield lost, RowFault("bad_line", "the file changed since its rows were counted")

    def keys(self, location: str) -> list[str]:
        with self.folder.open(location) as file:
            array = _is_array(file, location)
            found = _elements(file, file.tell()) if array else _lines(file)
            first = next((value for value, _ in islice(found, 20) if isinstance(value, dict)), {})
        return list(first)


def _part(array: bool, start: int, stop: int, offset: int) -> str:
    return f"{'array' if array else 'lines'} rows {start}:{stop} at {offset}"


def _is_array(file: IO[bytes], location: str) -> bool:
    """Whether the file begins with an array; leaves the file there, behind the bracket. Raises SourceError for LFS."""
    head = file.read(_HEAD_BYTES)
    if is_lfs_pointer(head):
        raise SourceError(f"{location}: {LFS_MESSAGE}")
    begin = len(codecs.BOM_UTF8) if head.startswith(codecs.BOM_UTF8) else 0
    head = head[begin:]
    while head and not (text := head.lstrip(_SPACE)):
        begin += len(head)
        head = file.read(_HEAD_BYTES)
    begin += len(head) - len(text) if head else 0
    array = bool(head) and text.startswith(b"[")
    file.seek(begin + array)
    return array


def _line_places(file: IO[bytes]) -> Iterator[tuple[None, int]]:
    """Where every line that is not blank begins, found without keeping any."""
    place, blank, begin = file.tell(), True, file.tell()
    while piece := file.read(_READ_BYTES):
        position = 0
        while (end := piece.find(b"\n", position)) >= 0:
            if not blank or piece[position:end].strip(_SPACE):
                yield None, begin
            begin, blank, position = place + end + 1, True, end + 1
        blank = blank and not piece[position:].strip(_SPACE)
        place += len(piece)
    if not blank:
        yield None, begin


def _lines(file: IO[bytes]) -> Iterator[tuple[Any, int]]:
    """The value of every line that is not blank, or a RowFault."""
    while line := file.readline(MOST_ROW_BYTES + 1):
        whole = len(line) <= MOST_ROW_BYTES
        size = len(line)
        tail = line
        while not tail.endswith(b"\n") and (tail := file.readline(_READ_BYTES)):  # the rest of a long line
            size += len(tail)
        if not whole:
            yield RowFault("bad_line", f"the line has {size:,} bytes, more than {MOST_ROW_BYTES:,}"), 0
        elif line.strip(_SPACE):
            try:
                yield json.loads(line.decode("utf-8-sig")), 0
            except (ValueError, RecursionError) as error:
                yield RowFault("bad_line", f"the line is not JSON ({_short(error)})"), 0


def _array_places(file: IO[bytes]) -> Iterator[tuple[Any, int]]:
    return _elements(file, file.tell())


def _elements(file: IO[bytes], place: int) -> Iterator[tuple[Any, int]]:
    """(value, offset) of every element of an array from `place` on, behind its bracket or at an element.

    After a fault there is nothing to go on from: a RowFault stands for all the rest.
    """
    decoder = json.JSONDecoder()
    utf8 = codecs.getincrementaldecoder("utf-8")("surrogateescape")
    text, position, more, step = "", 0, True, _FIRST_BYTES
    while True:
        start = _BETWEEN.match(text, position).end()  # type: ignore[union-attr]
        place += start - position  # all of one byte
        position = start
        if text.startswith("]", position):
            return
        fault = "it has no end" if position == len(text) and not more else ""
        if position < len(text):
            try:
                value, end = decoder.raw_decode(text, position)
            except RecursionError:
                fault = "it is too deep"
            except ValueError as error:
                fault = "" if more else _short(error)
            else:
                if end < len(text) or not more:  # a number may go on in the next piece
                    yield _checked(value, text[position:end]), place
                    place += len(text[position:end].encode("utf-8", "surrogateescape"))
                    position, step = end, min(step, _READ_BYTES)
                    continue
        if not fault and len(text) - position > MOST_ROW_BYTES:
            fault = f"an element has more than {MOST_ROW_BYTES:,} bytes"
        if not fault:
            piece = file.read(step)
            more, step = bool(piece), min(2 * step, MOST_ROW_BYTES)
            text, position = text[position:] + utf8.decode(piece, final=not more), 0
        if fault:
            yield RowFault("bad_line", f"the array cannot be read from here on ({fault})"), place
            return


def _checked(value: Any, text: str) -> Any:
    """The value of an element, or a RowFault if its text was not UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return RowFault("bad_line", "the element is not UTF-8")
    return value


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
