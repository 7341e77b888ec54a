"""Messages of our loggers on standard error, for the command line; a program that imports sigma sets up its own."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_LOGGERS = tuple(logging.getLogger(name) for name in ("sigma_data", "sigma_model", "pipelines"))


class _StandardError(logging.Handler):
    """Writes to what `sys.stderr` is at that moment: rich puts a stream there that prints above its progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            sys.stderr.write(f"{self.format(record)}\n")
            sys.stderr.flush()
        except Exception:  # as all handlers: a message that cannot be written ends no work
            self.handleError(record)


def show_messages(level: int) -> None:
    """Print messages of this level and above, as they are. Progress is shown at INFO and below.

    Also for spawned processes, which start without: give them the parent's `message_level` and call this there.
    Handlers of the root logger get none of them any more: libraries add one (wandb does), which prints each again.
    """
    for logger in _LOGGERS:
        if not logger.handlers:
            logger.addHandler(_StandardError())
        logger.propagate = False
        logger.setLevel(level)


def message_level() -> int:
    """The level that `show_messages` has set; logging.WARNING, Python's own, where nobody has called it."""
    return _LOGGERS[-1].level or logging.WARNING


def shows_progress() -> bool:
    """Whether a person is to see how far the work has got."""
    return _LOGGERS[-1].isEnabledFor(logging.INFO)


@contextmanager
def warnings_only() -> Iterator[None]:
    """Hide progress and all messages below a warning, where one pipeline runs another as a step of its own."""
    levels = [logger.level for logger in _LOGGERS]
    try:
        for logger in _LOGGERS:
            logger.setLevel(max(logging.WARNING, logger.level))
        yield
    finally:
        for logger, level in zip(_LOGGERS, levels, strict=True):
            logger.setLevel(level)
