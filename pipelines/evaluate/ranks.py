"""Work shared over processes of this machine: a share a rank, in place where there is one.

Nothing passes between ranks: each writes files that appear whole, so one that fails or is killed spoils
nothing, and ends the others and the command with one sentence.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from typing import TypeVar

from sigma_data.errors import BuildError, SigmaError

Share = TypeVar("Share")

Work = Callable[[int, Share, Callable[[int], None]], None]
"""(rank, share, progress) -> None; a function that can be pickled, where there are several shares."""


def run_ranks(work: Work[Share], shares: Sequence[Share], progress: Callable[[int], None]) -> None:
    """Do every share, each in a process of its own; `progress(count)` as ranks report it.

    Raises the SigmaError of the rank that failed first, BuildError where one failed otherwise or was killed.
    """
    if len(shares) == 1:
        _do(work, 0, shares[0], progress)
        return
    context = multiprocessing.get_context("spawn")
    pipes = [context.Pipe() for _ in shares]
    processes = [
        context.Process(target=_rank, args=(theirs, work, rank), daemon=True) for rank, (_, theirs) in enumerate(pipes)
    ]
    try:
        with _interrupts_held():
            for process, (_, theirs) in zip(processes, pipes, strict=True):
                process.start()
                theirs.close()
        # Only now, when all of them are starting up: a large share is taken when its rank has got so far.
        for share, (ours, _) in zip(shares, pipes, strict=True):
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it is dead, as is seen below
                ours.send(share)
        at_work = {ours: rank for rank, (ours, _) in enumerate(pipes)}
        while at_work:
            for pipe in wait(list(at_work)):
                assert isinstance(pipe, Connection)
                rank = at_work[pipe]
                try:
                    news: int | SigmaError = pipe.recv()
                except (EOFError, OSError):  # it has ended, perhaps in the middle of a message
                    processes[rank].join()
                    if processes[rank].exitcode:
                        raise _death(rank, processes[rank].exitcode or 0) from None
                    del at_work[pipe]
                    continue
                if isinstance(news, SigmaError):
                    raise news
                progress(news)
    finally:
        for process in processes:
            if process.pid is not None:
                process.kill()
                process.join()


@contextlib.contextmanager
def _interrupts_held() -> Iterator[None]:
    """Ctrl-C waits until the end of the block, and never comes to processes that are started in it.

    They inherit that it is blocked: ignored only when they run our code, it would end them in their imports. Here it
    is noted, too, since other threads do not block it: one half started would complain.
    """
    noted: list[int] = []
    handler = signal.signal(signal.SIGINT, lambda number, _: noted.append(number))
    resource_tracker.ensure_running()  # `start` would, and lets Ctrl-C through again when it does
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        signal.signal(signal.SIGINT, handler)
    if noted:
        raise KeyboardInterrupt


def _rank(pipe: Connection, work: Work[Share], rank: int) -> None:
    """One rank's life, in a process of its own."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    threading.Thread(target=_die_with_parent, daemon=True).start()
    try:
        _do(work, rank, pipe.recv(), pipe.send)
    except SigmaError as error:
        error.add_note(f"in rank {rank}:\n" + traceback.format_exc())
        pipe.send(error)


def _do(work: Work[Share], rank: int, share: Share, progress: Callable[[int], None]) -> None:
    try:
        work(rank, share, progress)
    except SigmaError:
        raise
    except Exception as error:  # out of memory, a driver that fails: the user gets a sentence, --debug all of it
        message = " ".join(str(error).split())[:200]
        raise BuildError(
            f"rank {rank} failed ({type(error).__name__}: {message}); run the same command again to continue, "
            "with sigma --debug to see where it failed"
        ) from error


def _die_with_parent() -> None:
    """End this process with its parent: one that outlived it would write where a rerun is at work."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _death(rank: int, code: int) -> BuildError:
    cause = f"exit code {code}"
    if code == -signal.SIGKILL:
        cause = "it was killed, most likely because memory ran out: use a smaller --nproc"
    elif code < 0:
        cause = f"it was ended by {signal.Signals(-code).name}"
    return BuildError(f"rank {rank} died ({cause}); run the same command again to continue")
