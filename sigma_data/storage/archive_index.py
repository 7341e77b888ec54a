"""The index of an archive: where each member's content lies, in a SQLite file, so that no list of names is in memory.

Members are found by their whole name or by the end of it. The key is the name's folders in reverse, so that both are
one range of a sorted column.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

from sigma_data.storage.tar_members import MemberKind, TarMember

_VERSION = 1
_BATCH = 10_000


class ArchiveIndex:
    """An index that was written by `ArchiveIndexWriter`. Raises sqlite3.Error if the file is not one."""

    def __init__(self, path: Path) -> None:
        self._db = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro&immutable=1", uri=True, check_same_thread=False)
        self._db.execute("PRAGMA mmap_size = 268435456")
        row = self._db.execute("SELECT version, members, fault_code, fault FROM about").fetchone()
        if row is None or row[0] != _VERSION:
            raise sqlite3.DatabaseError("an index of another version")
        self.members: int = row[1]
        self.fault: tuple[str, str] | None = (row[2], row[3]) if row[2] else None
        """(code, message) of what ended the reading of the archive early, None where it was read to its end."""

    def find(self, path: str, *, tail: int | None = None, most: int = 2) -> list[TarMember]:
        """The members of this name, or those whose last `tail` names are the last `tail` of `path`.

        At most `most`, those that can be read first.
        """
        key = _key(path, tail)
        end = key + "\0" if tail is None else _after(key)
        found = self._db.execute(
            "SELECT key, offset, size, kind FROM member WHERE key >= ? AND key < ? ORDER BY kind, rowid LIMIT ?",
            (key, end, most),
        )
        return [TarMember(_name(key), offset, size, MemberKind(kind)) for key, offset, size, kind in found]

    def names(self) -> Iterator[TarMember]:
        """All members in the order of the archive."""
        for key, offset, size, kind in self._db.execute("SELECT key, offset, size, kind FROM member ORDER BY rowid"):
            yield TarMember(_name(key), offset, size, MemberKind(kind))

    def close(self) -> None:
        """Close the file."""
        self._db.close()


class ArchiveIndexWriter:
    """Writes an index; holds a batch of members in memory."""

    def __init__(self, path: Path) -> None:
        self._db = sqlite3.connect(path, isolation_level=None)
        self._db.execute("PRAGMA journal_mode = OFF")  # the file gets its name only when it is whole
        self._db.execute("PRAGMA synchronous = OFF")
        self._db.execute("BEGIN")
        self._db.execute("CREATE TABLE member (key TEXT, offset INTEGER, size INTEGER, kind INTEGER)")
        self._waiting: list[tuple[str, int, int, int]] = []
        self._members = 0

    def add(self, member: TarMember) -> None:
        """Add a member."""
        self._waiting.append((_key(member.name, None), member.offset, member.size, int(member.kind)))
        self._members += 1
        if len(self._waiting) >= _BATCH:
            self._flush()

    def finish(self, fault: tuple[str, str] | None) -> None:
        """Write the rest and close."""
        self._flush()
        self._db.execute("CREATE INDEX by_key ON member (key)")
        self._db.execute("CREATE TABLE about (version INTEGER, members INTEGER, fault_code TEXT, fault TEXT)")
        self._db.execute("INSERT INTO about VALUES (?, ?, ?, ?)", (_VERSION, self._members, *(fault or (None, None))))
        self._db.execute("COMMIT")
        self.close()

    def close(self) -> None:
        """Close without finishing."""
        self._db.close()

    def _flush(self) -> None:
        self._db.executemany("INSERT INTO member VALUES (?, ?, ?, ?)", self._waiting)
        self._waiting.clear()


def _key(path: str, tail: int | None) -> str:
    words = path.split("/")
    return "/".join(reversed(words if tail is None else words[-tail:])) + "/"


def _name(key: str) -> str:
    return "/".join(reversed(key[:-1].split("/")))


def _after(key: str) -> str:
    """The first key behind all that begin with `key`."""
    return key[:-1] + chr(ord("/") + 1)
