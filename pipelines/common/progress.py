"""Progress a person can watch: a bar a pass on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Self

from pipelines.common.console import shows_progress
from sigma_data.text_format import counted, format_bytes, format_duration

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

logger = logging.getLogger(__name__)

_PLAIN_INTERVAL = 10.0  # seconds between plain lines


class ProgressBar:
    """One pass of a pipeline; use as a context manager.

    Shown where messages of level INFO are, on standard error, so that standard output stays the result's. `total` is
    the amount of work, None where it is not known before the end; `found` is work that an earlier run has done.
    `at_work` says where it is done at the moment, if that is worth a word.
    """

    def __init__(
        self, name: str, total: int | None, unit: str, *, found: int = 0, at_work: Callable[[], str] = str
    ) -> None:
        self.name, self.total, self.unit = name, total, unit
        self.count = self._found = found
        self._bytes, self._at_work = 0, at_work
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
                TextColumn("{task.fields[speed]}"), TimeRemainingColumn(),
                TextColumn("{task.fields[more]}"), console=Console(stderr=True),
            )  # fmt: skip
            self._bar.start()
            self._task = self._bar.add_task(self.name, total=self.total, completed=self._found, speed="", more="")
        return self

    def moved(self, size: int) -> None:
        """Count bytes that were read or written; `add`, which comes next, shows them."""
        self._bytes += size

    def add(self, amount: int = 1) -> None:
        """Count finished work."""
        self.count += amount
        now = time.monotonic()
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, advance=amount, speed=self._speed(now), more=", ".join(self._more(now)))
        elif self._shown and now - self._last >= _PLAIN_INTERVAL:
            self._last = now
            of = f" of {self.total:,}" if self.total is not None else ""
            more = "".join(f", {part}" for part in self._more(now))
            self._line(f"{self.count:,}{of} {self.unit}, {self._speed(now)}{more}{self._left(now)}")

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.stop()
        elif self._shown and kind is None:
            now = time.monotonic()
            before = f" ({self._found:,} of them by an earlier run)" if self._found else ""
            speed = f", {self._speed(now)}" if self.count > self._found and now > self._start else ""
            size = f", {self._size(now)}" if self._bytes else ""
            self._line(f"{self._counted()}{before} in {now - self._start:.1f} s{speed}{size}")

    def _counted(self) -> str:
        """The count with its unit: 1 prompt, 4 prompts, 3 MB."""
        noun = self.unit.removesuffix("s")
        return f"{self.count:,} {self.unit}" if noun == self.unit else counted(self.count, noun)

    def _speed(self, now: float) -> str:
        elapsed = now - self._start
        if elapsed <= 0:
            return ""
        pace = (self.count - self._found) / elapsed
        return f"{pace:,.0f} {self.unit}/s" if pace >= 10 else f"{pace:.2g} {self.unit}/s"

    def _size(self, now: float) -> str:
        pace = self._bytes / max(now - self._start, 1e-3)
        return f"{format_bytes(self._bytes)} at {format_bytes(pace)}/s"

    def _more(self, now: float) -> list[str]:
        """Bytes, and where the work is done."""
        return [part for part in (self._size(now) if self._bytes else "", self._at_work()) if part]

    def _left(self, now: float) -> str:
        """The time that the rest takes at the pace so far."""
        done = self.count - self._found
        if self.total is None or done <= 0:
            return ""
        return f", {format_duration((now - self._start) / done * max(0, self.total - self.count))} left"

    def _line(self, text: str) -> None:
        logger.info("%s: %s", self.name, text)
