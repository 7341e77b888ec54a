"""Values of rows that lie in one large JSON object beside them, such as ImgEdit's scores: read once into an index."""

from __future__ import annotations

import codecs
import json
import posixpath
import re
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from sigma_data.errors import SourceError
from sigma_data.sources.field_map.schema import SideFile
from sigma_data.sources.field_map.values import Row, look_up
from sigma_data.storage.archive_cache import ArchiveCache, CacheEntry, Room
from sigma_data.storage.data_folder import DataFolder

_MOST_ITEM = 2**20
"""Longest key or value that is read, in characters."""
_READ = 2**20
_FILE = "values.sqlite"
_BETWEEN = re.compile(r"[ \t\r\n,]*")
_COLON = re.compile(r"[ \t\r\n]*:[ \t\r\n]*")


class SideValues:
    """The values of a side file by path, which is read when the first is asked for; without a file there are none."""

    def __init__(self, folder: DataFolder, spec: SideFile, cache: ArchiveCache) -> None:
        self._folder, self._spec, self._cache = folder, spec, cache
        self._open: tuple[sqlite3.Connection, CacheEntry] | None = None
        self._looked = False

    def added(self, row: Row) -> Row:
        """The row with its value, None if the file has none. Raises SourceError where the file cannot be read."""
        path = look_up(row, self._spec.key)
        if isinstance(path, list) and path:
            path = path[0]
        value = self._value(path) if isinstance(path, str) else None
        return {**row, self._spec.field: value}

    def _value(self, path: str) -> Any:
        values = self._values()
        if values is None:
            return None
        written = [path, *(changed for a, b in self._spec.replace if (changed := re.sub(a, b, path, count=1)) != path)]
        for one in written:
            for key in (posixpath.dirname(one), one):
                found = values.execute("SELECT value FROM side WHERE key = ?", (key,)).fetchone() if key else None
                if found is not None:
                    return json.loads(found[0])
        return None

    def _values(self) -> sqlite3.Connection | None:
        if not self._looked:
            self._looked = True
            folder, name = posixpath.split(self._spec.file)
            stamp = dict(self._folder.children(folder)[1]).get(posixpath.join(folder, name))
            if stamp is not None:
                self._open = self._indexed(stamp)
        return self._open[0] if self._open else None

    def _indexed(self, stamp: str) -> tuple[sqlite3.Connection, CacheEntry]:
        def fill(place: Path, room: Room) -> None:
            index = sqlite3.connect(place / _FILE, isolation_level=None)
            index.execute("PRAGMA journal_mode = OFF")
            index.execute("PRAGMA synchronous = OFF")
            index.execute("BEGIN")
            index.execute("CREATE TABLE side (key TEXT PRIMARY KEY, value TEXT) WITHOUT ROWID")
            with self._folder.open(self._spec.file) as file:
                try:
                    index.executemany("INSERT OR REPLACE INTO side VALUES (?, ?)", _dumped(json_items(file)))
                except ValueError as error:
                    raise SourceError(f"{self._folder.uri}: {self._spec.file} cannot be read ({error})") from None
            index.execute("COMMIT")
            index.close()

        root = self._folder.uri if self._folder.local is None else str(self._folder.local.resolve())
        entry = self._cache.open("\0".join(["side 1", root, self._spec.file, stamp]), self._spec.file, fill)
        place = (entry.folder / _FILE).absolute().as_uri()
        return sqlite3.connect(f"{place}?mode=ro&immutable=1", uri=True), entry


def _dumped(items: Iterator[tuple[str, Any]]) -> Iterator[tuple[str, str]]:
    for key, value in items:
        yield key.encode("utf-8", "replace").decode(), json.dumps(value)


def json_items(file: IO[bytes]) -> Iterator[tuple[str, Any]]:
    """(key, value) of every entry of a JSON object, read in pieces. Raises ValueError for what is not one."""
    decoder = json.JSONDecoder()
    utf8 = codecs.getincrementaldecoder("utf-8-sig")()
    text, position, more = "", 0, True

    def fill() -> bool:
        nonlocal text, position, more
        piece = file.read(_READ)
        more = bool(piece)
        text, position = text[position:] + utf8.decode(piece, final=not more), 0
        return more

    def whole(start: int) -> tuple[Any, int] | None:
        """A value that does not reach the end of the text, where it could go on."""
        try:
            value, end = decoder.raw_decode(text, start)
        except RecursionError:
            raise ValueError("it is too deep") from None
        except ValueError:
            if not more:
                raise
            return None
        return (value, end) if end < len(text) or not more else None

    while not text.strip() and fill():
        pass
    position = len(text) - len(text.lstrip())
    if not text.startswith("{", position):
        raise ValueError("it is no JSON object")
    position += 1
    while True:
        start = _BETWEEN.match(text, position).end()  # type: ignore[union-attr]
        if text.startswith("}", start):
            return
        found = whole(start) if start < len(text) else None
        colon = _COLON.match(text, found[1]) if found else None
        value = whole(colon.end()) if colon and colon.end() < len(text) else None
        if found and value:
            if not isinstance(found[0], str):
                raise ValueError("a key is no text")
            yield found[0], value[0]
            position = value[1]
        elif len(text) - position > _MOST_ITEM + _READ:
            raise ValueError(f"an entry has more than {_MOST_ITEM:,} characters")
        elif not fill():
            raise ValueError("it has no end")
