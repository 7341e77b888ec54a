"""Paths as people write them: names, nothing in them is a pattern; only a `~` in front stands for a home folder.

Brackets, stars, question marks, percent signs, colons and the like belong to the name. Environment variables
are not expanded: that is the shell's to do.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from sigma_data.errors import ConfigError

_URI = re.compile(r"([a-z][a-z0-9+.-]*::)*[a-z][a-z0-9+.-]*://", re.IGNORECASE)


def is_uri(text: str) -> bool:
    """Whether a place is behind fsspec (s3://bucket/data, simplecache::s3://bucket/data), not on this machine."""
    return _URI.match(text) is not None


def home(text: str) -> str:
    """A path with `~` or `~user` in front replaced by the home folder. Raises ConfigError where there is none."""
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
    # Path drops the ./ in front of a name that begins with ~, and somebody would expand it later.
    return Path.cwd() / path if str(path).startswith("~") else path


def model_path(text: str) -> str:
    """A preset's name, or the path of a model's directory on this machine. Raises ConfigError for a URI."""
    return home(_local(text))


def place(text: str) -> str:
    """A path of this machine or a URI, as a string."""
    return text if is_uri(text) else home(text)


def literal(path: Path) -> str:
    """A path for libraries that take a relative one with a colon for a URI, as pyarrow does."""
    return os.path.abspath(path)  # noqa: PTH100 - links stay as they are


def one_line(text: str) -> str:
    """A message in one line, whatever names it holds."""
    return "".join(repr(mark)[1:-1] if ord(mark) < 32 or ord(mark) == 127 else mark for mark in text)


def _local(text: str) -> str:
    if is_uri(text):
        raise ConfigError(
            f"{text}: is a remote place, and here it must be a path of this machine: read from a copy here, or write "
            "here and copy it there afterwards (sources of build-dataset and corpora of plan and train may be remote)"
        )
    return text
