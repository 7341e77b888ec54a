"""Workers without pandas, which pyarrow imports for its first array wherever it is installed."""

from __future__ import annotations

import multiprocessing
import sys
from functools import cache
from importlib.abc import MetaPathFinder

import pyarrow as pa


@cache
def leave_pandas_out() -> None:
    """Let pyarrow look for pandas now and find none, in a worker process: saves 0.4 s and 50 MB of it.

    `to_pandas` looks again. In a process that may be a user's own, nothing happens.
    """
    if multiprocessing.parent_process() is None or "pandas" in sys.modules:
        return
    absent = _Absent()
    sys.meta_path.insert(0, absent)
    try:
        pa.array([None])
    finally:
        sys.meta_path.remove(absent)


class _Absent(MetaPathFinder):
    """Finds that pandas is not installed."""

    def find_spec(self, fullname: str, path: object, target: object = None) -> None:
        if fullname == "pandas":
            raise ImportError("left out")
