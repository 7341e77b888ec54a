"""A bar while weights are read or written; small ones are there before anybody looks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from pipelines.common.progress import ProgressBar
from sigma_model.io_progress import watched

LARGE = 500_000_000
"""Bytes from which on there is a bar."""
_MEGABYTE = 10**6


@contextmanager
def weights_progress(name: str, size: int) -> Iterator[None]:
    """Show how much of `size` bytes is done inside the block."""
    if size < LARGE:
        yield
        return
    done = 0
    with ProgressBar(name, -(-size // _MEGABYTE), "MB") as progress:

        def add(count: int) -> None:
            nonlocal done
            done += count
            progress.add(min(done // _MEGABYTE, progress.total or 0) - progress.count)

        with watched(add):
            yield


def size_of(files: Iterable[Path]) -> int:
    """Bytes of files."""
    return sum(path.stat().st_size for path in files)
