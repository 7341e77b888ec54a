"""Replies of language models on disk, by the digest of what was asked: a second run makes no request.

One SQLite file; every reply is committed as it comes, so that an interruption loses at most those under way.
"""

from __future__ import annotations

import json
import sqlite3
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from sigma_data.errors import ConfigError

_TABLE = "CREATE TABLE IF NOT EXISTS replies (key TEXT PRIMARY KEY, value TEXT NOT NULL)"


@dataclass(frozen=True)
class Reply:
    """What a model said at last, how many requests that took, and their tokens.

    `code` is empty for a valid reply; else it is the reason why none of the tries could be used.
    """

    content: str
    code: str = ""
    requests: int = 1
    prompt_tokens: int = 0
    reply_tokens: int = 0


class Cache:
    """A file of replies, used from one thread. A context manager.

    Raises ConfigError for a file that is none, or a place that cannot be written.
    """

    def __init__(self, path: Path, *, read_only: bool = False) -> None:
        self._path = path
        self._read_only = read_only

    def __enter__(self) -> Self:
        try:
            if self._read_only:
                there = self._path.exists()
                uri = f"{self._path.resolve().as_uri()}?mode=ro" if there else ":memory:"
                self._connection = sqlite3.connect(uri, uri=there, timeout=60)
            else:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                there = False
                self._connection = sqlite3.connect(self._path, timeout=60)
            if not there:
                self._connection.execute(
                    "CREATE TABLE IF NOT EXISTS replies (key TEXT PRIMARY KEY, value TEXT NOT NULL)"
                )
            self._connection.execute("SELECT value FROM replies LIMIT 1").fetchone()
        except (sqlite3.Error, OSError) as error:
            raise self._error(error) from None
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._connection.close()

    def get(self, key: str) -> Reply | None:
        """The reply to what was asked, None if there is none that can be read."""
        try:
            row = self._connection.execute("SELECT value FROM replies WHERE key = ?", (key,)).fetchone()
            return None if row is None else Reply(**json.loads(row[0]))
        except sqlite3.Error as error:
            raise self._error(error) from None
        except (TypeError, ValueError):  # of another version
            return None

    def put(self, key: str, reply: Reply) -> None:
        """Keep a reply, on disk when this returns."""
        try:
            with self._connection:
                value = json.dumps(asdict(reply), sort_keys=True)
                self._connection.execute("INSERT OR REPLACE INTO replies VALUES (?, ?)", (key, value))
        except sqlite3.Error as error:
            raise self._error(error) from None

    def _error(self, error: Exception) -> ConfigError:
        return ConfigError(
            f"{self._path}: the cache of replies cannot be used ({error}): choose another with endpoint.cache"
        )
