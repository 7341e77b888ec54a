"""Paths as users write them: taken literally, except that a leading `~` is expanded.

No globs (brackets, stars, percent signs and colons belong to the name) and no environment variables.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from sigma_data.errors import ConfigError

_URI = re.compile(r"([a-z][a-z0-9+.-]*::)*[a-z][a-z0-9+.-]*://", re.IGNORECASE)
_ALMOST = re.compile(r"((?:[a-z][a-z0-9+.-]*::)*(?:s3a?|gc?s|hf|abfss?|az|adl|hdfs|https?)):/(?!/)", re.IGNORECASE)
"""A store with a slash too few, which would be a folder of that name."""


def is_uri(text: str) -> bool:
    """Whether this is a URI for fsspec (s3://bucket/data, simplecache::s3://bucket/data)."""
    return _URI.match(text) is not None


def home(text: str) -> str:
    """The path with a leading `~` or `~user` expanded.

    Raises ConfigError if there is no such home folder, and where a URI lacks a slash.
    """
    if almost := _ALMOST.match(text):
        rest = text[almost.end() :]
        raise ConfigError(f"{text}: write {almost[1].lower()}://{rest}; if it is a folder here, write ./{text}")
    if not text.startswith("~"):
        return text
    found = os.path.expanduser(text)  # noqa: PTH111 - pathlib drops what makes a path a URI
    if found.startswith("~"):
        user = text.partition("/")[0]
        raise ConfigError(f"{text}: {user} has no home folder here; if it is a name, write ./{text}")
    return found


def local_path(text: str | Path) -> Path:
    """A path of this machine, as typed. Raises ConfigError for a URI."""
    path = Path(home(_local(str(text))))
    # Path drops the ./ in front of a name that begins with ~ or is almost a URI, which would be told of later.
    return Path.cwd() / path if str(path).startswith("~") or _ALMOST.match(str(path)) else path


def model_path(text: str) -> str:
    """A preset's name, or the path of a model's directory on this machine. Raises ConfigError for a URI."""
    return home(_local(text))


def path_or_uri(text: str) -> str:
    """A path of this machine, its `~` expanded, or a URI."""
    return text if is_uri(text) else home(text)


def literal(path: Path) -> str:
    """The absolute path, for libraries such as pyarrow that take a relative one with a colon for a URI."""
    return os.path.abspath(path)  # noqa: PTH100 - links stay as they are


def no_folder(path: Path, kind: str = "folder") -> str:
    """What is wrong with a path where a folder is needed: "/a: no such folder" or "/a: is a file and no folder"."""
    return f"{path}: is a file and no {kind}" if path.exists() else f"{path}: no such {kind}"


def one_line(text: str) -> str:
    """The message with control characters escaped, on one line."""
    return "".join(repr(mark)[1:-1] if ord(mark) < 32 or ord(mark) == 127 else mark for mark in text)


def _local(text: str) -> str:
    if is_uri(text):
        raise ConfigError(
            f"{text}: is a remote place, and here it must be a path of this machine: read from a copy here, or write "
            "here and copy it there afterwards (docs/scale.md says which places may be remote)"
        )
    return text
