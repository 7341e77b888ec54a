"""Progress a person can watch: a bar a pass on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import logging
import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, Self

from pipelines.common.console import shows_progress

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

logger = logging.getLogger(__name__)

_PLAIN_INTERVAL = 10.0  # seconds between plain lines


class ProgressBar:
    """One pass of a pipeline with a known amount of work; use as a context manager.

    Shown where messages of level INFO are, on standard error, so that standard output stays the result's.
    `found` is work that an earlier run has done.
    """

    def __init__(self, name: str, total: int, unit: str, *, found: int = 0) -> None:
        self.name, self.total, self.unit = name, total, unit
        self.count = self._found = found
        self._shown = shows_progress()
        self._start = self._last = time.monotonic()
        self._bar: Progress | None = None
        self._task: TaskID | None = None

    def __enter__(self) -> Self:
        if self._shown and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            self._bar = Progress(
                TextColumn("{task.description:<8}"), BarColumn(), MofNCompleteColumn(), TextColumn(self.unit),
                TextColumn("{task.fields[speed]}"), TimeRemainingColumn(), console=Console(stderr=True),
            )  # fmt: skip
            self._bar.start()
            self._task = self._bar.add_task(self.name, total=self.total, completed=self._found, speed="")
        return self

    def add(self, amount: int = 1) -> None:
        """Count finished work."""
        self.count += amount
        now = time.monotonic()
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, advance=amount, speed=self._speed(now))
        elif self._shown and now - self._last >= _PLAIN_INTERVAL:
            self._last = now
            self._line(f"{self.count:,} of {self.total:,} {self.unit}, {self._speed(now)}")

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.stop()
        elif self._shown and kind is None:
            now = time.monotonic()
            before = f" ({self._found:,} of them by an earlier run)" if self._found else ""
            speed = f", {self._speed(now)}" if self.count > self._found else ""
            self._line(f"{self.count:,} {self.unit}{before} in {now - self._start:.1f} s{speed}")

    def _speed(self, now: float) -> str:
        elapsed = now - self._start
        return f"{(self.count - self._found) / elapsed:,.0f} {self.unit}/s" if elapsed > 0 else ""

    def _line(self, text: str) -> None:
        logger.info("%s: %s", self.name, text)
