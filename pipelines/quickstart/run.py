"""`sigma quickstart`: corpus, training, export and evaluation once, on the embedded world and the tiny model.

One stage after the other, each in a line. What is done already is told from the journal, without anything heavy.
"""

from __future__ import annotations

import errno
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import FrameType
from typing import Any

from pipelines.quickstart.journal import Journal
from pipelines.quickstart.stages import QuickstartOptions, Stages
from sigma_data.storage.files import disk_error


def quickstart(options: QuickstartOptions) -> dict[str, Any]:
    """Do what is left to do in the folder; returns what came of it, for `quickstart_words` or as JSON.

    Raises SigmaError for what a user can mend, KeyboardInterrupt where it was told to stop.
    """
    work = Stages(options)
    with _sigterm_interrupts(), Journal(options.out, work.asked()) as journal:
        stages = work.stages()
        for number, stage in enumerate(stages, 1):
            head = f"{number}/{len(stages)} {stage.name:<10}"
            found = journal.stages.get(stage.name)
            if found is not None and stage.leaves.exists():
                _say(f"{head} {found['told']:<60} done before", quiet=options.quiet)
                continue
            journal.forget([later.name for later in stages[number - 1 :]])  # what comes after it goes by it
            for later in stages[number:]:  # now, so that a kill leaves nothing stale; its own it goes on from
                later.clear()
            begin = time.monotonic()
            try:
                with _running(head, quiet=options.quiet, speaks=stage.speaks):
                    facts = stage.act()
            except OSError as error:  # where a stage does not say so itself
                if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                    raise
                raise disk_error(error, options.out) from None
            seconds = round(time.monotonic() - begin, 1)
            journal.add(stage.name, {**facts, "seconds": seconds})
            _say(f"{head} {facts['told']:<60} {seconds:>9.1f} s", quiet=options.quiet)
        return work.result(journal.stages)


def _say(line: str, *, quiet: bool) -> None:
    if not quiet:
        sys.stderr.write(f"{line}\n")
        sys.stderr.flush()


def _running(head: str, *, quiet: bool, speaks: bool) -> AbstractContextManager[Any]:
    """What stands there while a stage is at work: a line above its own progress, or one that moves."""
    if speaks:
        _say(f"{head} running", quiet=quiet)
    if quiet or speaks or not sys.stderr.isatty():
        return nullcontext()
    from rich.console import Console

    return Console(stderr=True).status(head)


@contextmanager
def _sigterm_interrupts() -> Iterator[None]:
    """SIGTERM is as Ctrl-C: every stage ends its processes, and the command says how to go on."""

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
