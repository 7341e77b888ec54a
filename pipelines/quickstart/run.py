"""`sigma quickstart`: corpus, post-training, export and evaluation once, on the embedded world.

One stage after the other, each in a line. What is done already is read from the journal, without heavy imports.
"""

from __future__ import annotations

import errno
import logging
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import FrameType
from typing import Any

from pipelines.common.console import shows_progress, warnings_only
from pipelines.quickstart.journal import Journal
from pipelines.quickstart.sgt_stages import SgtStages
from pipelines.quickstart.stages import QuickstartOptions, Stages
from sigma_data.storage.files import disk_error

logger = logging.getLogger(__name__)

RECIPES: dict[str, type[Stages]] = {stages.recipe: stages for stages in (Stages, SgtStages)}


def quickstart(options: QuickstartOptions) -> dict[str, Any]:
    """Do what is left to do in the folder; returns the results, for `quickstart_summary` or as JSON.

    Raises SigmaError for what a user can mend, KeyboardInterrupt if it is interrupted.
    """
    work = RECIPES[options.recipe](options)
    with _sigterm_interrupts(), Journal(options.out, work.settings()) as journal:
        stages = work.stages()
        for number, stage in enumerate(stages, 1):
            head = f"{number}/{len(stages)} {stage.name:<10}"
            found = journal.stages.get(stage.name)
            if found is not None and stage.leaves.exists():
                logger.info("%s %-60s done before", head, found["told"])
                continue
            journal.forget([later.name for later in stages[number - 1 :]])  # what comes after it goes by it
            for later in stages[number:]:  # now, so that a kill leaves nothing stale; its own it goes on from
                later.clear()
            begin = time.monotonic()
            try:
                with _running(head, speaks=stage.speaks):
                    result = stage.act()
            except OSError as error:  # where a stage does not say so itself
                if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                    raise
                raise disk_error(error, options.out) from None
            seconds = round(time.monotonic() - begin, 1)
            journal.add(stage.name, {**result, "seconds": seconds})
            logger.info("%s %-60s %9.1f s", head, result["told"], seconds)
        return work.result(journal.stages)


@contextmanager
def _running(head: str, *, speaks: bool) -> Iterator[None]:
    """What is shown while a stage is at work: a line above its own progress, or a spinner instead of it."""
    if speaks:
        logger.info("%s running", head)
        yield
        return
    with ExitStack() as shown:
        if shows_progress() and sys.stderr.isatty():
            from rich.console import Console

            shown.enter_context(Console(stderr=True).status(head))
        shown.enter_context(warnings_only())
        yield


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
