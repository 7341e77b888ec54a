"""Capture what C libraries print while decoding: libtiff writes to the process's standard error.

Python cannot redirect that, so the file descriptor itself is replaced, and only where nothing else can be writing to
it: in a worker process, or while the process has a single Python thread.
"""

from __future__ import annotations

import multiprocessing
import os
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import IO

_STDERR = 2
_KEPT_BYTES = 2_000

_sink: tuple[int, IO[bytes]] | None = None  # (process, file): a forked child opens its own
_inside = False


@contextmanager
def captured_stderr() -> Iterator[None]:
    """Hide what is printed to standard error; an exception that leaves the block carries it as a note."""
    global _inside
    alone = multiprocessing.parent_process() is not None or threading.active_count() == 1
    if not alone and not _inside:
        yield
        return
    try:
        sink = _open_sink()
        saved = None if _inside else os.dup(_STDERR)
    except OSError:  # no temporary folder, or no standard error: not a reason to fail
        yield
        return
    start = os.lseek(sink, 0, os.SEEK_END) if _inside else 0
    if saved is not None:
        os.ftruncate(sink, 0)
        os.lseek(sink, 0, os.SEEK_SET)
        os.dup2(sink, _STDERR)
        _inside = True
    try:
        yield
    except Exception as error:
        with suppress(OSError):
            if text := os.pread(sink, _KEPT_BYTES, start).decode("utf-8", "replace").strip():
                error.add_note(text)
        raise
    finally:
        if saved is not None:
            os.dup2(saved, _STDERR)
            os.close(saved)
            _inside = False


def _open_sink() -> int:
    global _sink
    if _sink is None or _sink[0] != os.getpid():
        _sink = (os.getpid(), tempfile.TemporaryFile(buffering=0))  # noqa: SIM115 (as long as the process lives)
    return _sink[1].fileno()
