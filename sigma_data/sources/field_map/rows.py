"""Rows of files: what every format gives, and the globs that name the files.

A format lists the fragments of a file and reads the rows of one, a few at a time. A row that cannot be read is a
RowFault in its place, so that rows keep their numbers and none is lost.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator
from functools import lru_cache

from sigma_data.errors import ConfigError
from sigma_data.sources.base import Fragment
from sigma_data.sources.field_map.values import Row, RowFault
from sigma_data.storage.data_folder import DataFolder

NumberedRow = tuple[int | None, Row | RowFault]
"""A row's number (None: a whole file, or the rest of one) and the row, or why it cannot be read."""

FRAGMENT_ROWS = 256
"""Rows of text that one fragment holds."""


class RowFormat(ABC):
    """How rows are stored in a file."""

    def __init__(self, folder: DataFolder) -> None:
        self.folder = folder

    @abstractmethod
    def fragments(self, location: str, stamp: str) -> list[Fragment]:
        """The fragments of a file, in order."""

    @abstractmethod
    def read(self, fragment: Fragment, fields: Collection[str] | None = None) -> Iterator[NumberedRow]:
        """The rows of a fragment in order; `fields` are the first parts of all names that are asked for, None: all."""

    @abstractmethod
    def keys(self, location: str) -> list[str]:
        """The fields of a file's first row, empty if it has none that can be read."""


@lru_cache(maxsize=1024)
def glob_pattern(glob: str) -> re.Pattern[str]:
    """A regular expression for a glob: `**/` any folders or none, `*` and `?` within a name, `[..]` a character.

    Raises ConfigError for a class of characters that is none.
    """
    out, position = "", 0
    while position < len(glob):
        rest = glob[position:]
        if rest.startswith("**/"):
            out, position = out + r"(?:[^/]+/)*", position + 3
        elif rest.startswith("**"):
            out, position = out + r".*", position + 2
        elif rest[0] == "*":
            out, position = out + r"[^/]*", position + 1
        elif rest[0] == "?":
            out, position = out + r"[^/]", position + 1
        elif rest[0] == "[" and (end := rest.find("]", 2 + (rest[1:2] == "!"))) > 0:
            other = rest[1] == "!"
            inside = re.sub(r"([\\\[\]^&~|])", r"\\\1", rest[1 + other : end])
            out, position = out + f"[{'^' * other}{inside}]", position + end + 1
        else:
            out, position = out + re.escape(rest[0]), position + 1
    try:
        return re.compile(out, re.DOTALL)
    except re.error as error:
        raise ConfigError(f"{glob!r} is no glob ({error})") from None


def literal_glob(text: str) -> str:
    """Text as a glob that matches only itself: folders may have brackets in their names."""
    return re.sub(r"([*?\[])", r"[\1]", text)


def matches(location: str, globs: Collection[str]) -> bool:
    """Whether a location matches one of the globs."""
    return any(glob_pattern(glob).fullmatch(location) for glob in globs)
