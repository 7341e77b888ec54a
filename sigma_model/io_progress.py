"""Who wants to know how many bytes of weights have been read or written: large files take minutes.

A listener holds for a block, in its own thread; without one nothing is told.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_LISTENER: ContextVar[Callable[[int], None] | None] = ContextVar("listener", default=None)


@contextmanager
def watched(listener: Callable[[int], None]) -> Iterator[None]:
    """Tell `listener` the bytes of each piece that is read or written inside the block."""
    token = _LISTENER.set(listener)
    try:
        yield
    finally:
        _LISTENER.reset(token)


def note_bytes(count: int) -> None:
    """So many bytes of weights have been read or written."""
    listener = _LISTENER.get()
    if listener is not None:
        listener(count)
