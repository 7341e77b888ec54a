"""Tasks for tests of pools whose workers cannot import a test's module."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from sigma_data.errors import CorpusError


def work(task: tuple[str, Path]) -> str:
    """Return, crash in native code, raise, or wait until a file is there; says in a file that it has begun."""
    kind, path = task
    with path.open("a") as file:
        file.write(f"{os.getpid()}\n")
    if kind == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    if kind == "raise":
        raise CorpusError("this task fails")
    while kind == "wait" and not path.with_suffix(".go").exists():
        time.sleep(0.02)
    return kind
