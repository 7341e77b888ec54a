"""Spawned processes of this machine, and the two policies of sharing work among them.

`ProcessPool.run` deals out tasks one at a time, so that when a worker dies it is known which task killed it: a
task whose process is killed by a fault in native code (a hostile file) is reported as crashed after a second try
alone, any other death stops the run. `run_ranks` gives each process one share, and the first that fails ends all.

Work is a module-level function and a picklable argument; results are small, for work goes from file to file.
"""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from pipelines.common.console import message_level, show_messages
from sigma_data.errors import BuildError, SigmaError

Share = TypeVar("Share")

Work = Callable[[int, Share, Callable[[int], None]], None]
"""(rank, share, progress) -> None; a function that can be pickled, if there are several shares."""

_NATIVE_FAULTS = {signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL}

# A worker allocates and frees a few megabytes for every image. Kept by the process instead of given
# back and faulted in again each time, that memory saves a tenth of a scan's time; one thread for
# linear algebra is all that 32 x 32 matrices need.
_WORKER_ENVIRONMENT = {
    "ARROW_DEFAULT_MEMORY_POOL": "system",
    "MALLOC_MMAP_THRESHOLD_": str(2**28),
    "MALLOC_TRIM_THRESHOLD_": str(2**28),
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
}


@dataclass
class _Child:
    process: BaseProcess
    pipe: Connection
    task: int | None = None

    def cause_of_death(self, remedy: str) -> str:
        """What ended it, and what to do if memory ran out."""
        code = self.process.exitcode or 0
        if code == -signal.SIGKILL:
            return f"killed, most likely because memory ran out: use {remedy}"
        return f"ended by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


@dataclass(frozen=True)
class Crashed:
    """Stands in for a task's result if native code killed the process twice."""

    signal: str


@dataclass
class ProcessPool:
    """Runs tasks in `workers` processes, with 0 in this one, in their order. Use as a context manager."""

    workers: int
    peak_bytes: int = 0
    """Largest resident size that any worker has reported."""
    _children: list[_Child] = field(default_factory=list)

    def __enter__(self) -> Self:
        # Two at once and early: they import while the caller prepares the work; more as tasks come.
        self._children += [self._start() for _ in range(min(self.workers, 2))]
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        for child in self._children:
            if kind is not None:
                child.process.kill()
            child.pipe.close()  # an idle worker ends when its pipe does
        for child in self._children:
            child.process.join()
        self._children.clear()

    def at_work(self) -> str:
        """Processes of this machine go without saying."""
        return ""

    def run(
        self, function: Callable[[Any], Any], tasks: Sequence[Any], done: Callable[[int, Any], None], *, what: str
    ) -> None:
        """Call `function(task)` for each task, `done(index, result)` in the order of completion.

        An exception in a task is raised here. `what` names the work in errors.
        """
        if not self.workers:
            for number, task in enumerate(tasks):
                done(number, function(task))
            self.peak_bytes = peak_memory()
            return
        queue = list(range(len(tasks)))[::-1]
        tries = [0] * len(tasks)
        open_tasks = len(tasks)
        while open_tasks:
            self._feed(function, tasks, queue)
            busy = [child for child in self._children if child.task is not None]
            for ready in wait([child.pipe for child in busy]):
                child = next(one for one in busy if one.pipe is ready)
                index = child.task
                assert index is not None
                try:
                    status, value, peak = child.pipe.recv()
                except (EOFError, ConnectionResetError):
                    self._children.remove(child)
                    tries[index] += 1
                    died = self._death(child, what)
                    if tries[index] < 2:
                        queue.append(index)
                        continue
                    status, value, peak = "ok", died, 0
                child.task = None
                self.peak_bytes = max(self.peak_bytes, peak)
                if status == "error":
                    raise value
                open_tasks -= 1
                done(index, value)

    def _feed(self, function: Callable[[Any], Any], tasks: Sequence[Any], queue: list[int]) -> None:
        for child in self._children:
            if child.task is None and queue:
                self._give(child, function, tasks, queue.pop())
        while queue and len(self._children) < self.workers:
            child = self._start()
            self._children.append(child)
            self._give(child, function, tasks, queue.pop())

    @staticmethod
    def _give(child: _Child, function: Callable[[Any], Any], tasks: Sequence[Any], index: int) -> None:
        child.task = index
        # If it died while idle, `run` sees the end of its pipe and tries the task again.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            child.pipe.send((function, tasks[index]))

    @staticmethod
    def _start() -> _Child:
        with _interrupts_held(), _environment(_WORKER_ENVIRONMENT):
            return _spawn(_serve_tasks)

    @staticmethod
    def _death(child: _Child, what: str) -> Crashed:
        child.process.join()
        code = child.process.exitcode or 0
        if -code in _NATIVE_FAULTS:
            return Crashed(signal.Signals(-code).name)
        cause = child.cause_of_death("fewer --workers")
        raise BuildError(f"a worker died while {what} ({cause}); run the same command again to continue")


def run_ranks(work: Work[Share], shares: Sequence[Share], progress: Callable[[int], None]) -> None:
    """Do every share, each in a process of its own, or here if there is one; `progress(count)` as ranks report it.

    Nothing passes between ranks: each writes files that appear whole, so one that fails or is killed spoils nothing.
    Raises the SigmaError of the rank that failed first, BuildError if one failed otherwise or was killed.
    """
    if len(shares) == 1:
        _do_share(work, 0, shares[0], progress)
        return
    ranks: list[_Child] = []
    try:
        with _interrupts_held():
            for rank in range(len(shares)):
                ranks.append(_spawn(_serve_share, work, rank))
        # Only now, when all of them are starting up: a large share is taken when its rank has got so far.
        for share, child in zip(shares, ranks, strict=True):
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it is dead, as is seen below
                child.pipe.send(share)
        at_work = {child.pipe: rank for rank, child in enumerate(ranks)}
        while at_work:
            for pipe in wait(list(at_work)):
                assert isinstance(pipe, Connection)
                rank = at_work[pipe]
                try:
                    news: int | SigmaError = pipe.recv()
                except (EOFError, OSError):  # it has ended, perhaps in the middle of a message
                    ranks[rank].process.join()
                    if ranks[rank].process.exitcode:
                        cause = ranks[rank].cause_of_death("a smaller --nproc")
                        raise BuildError(
                            f"rank {rank} died ({cause}); run the same command again to continue"
                        ) from None
                    del at_work[pipe]
                    continue
                if isinstance(news, SigmaError):
                    raise news
                progress(news)
    finally:
        for child in ranks:
            child.process.kill()
            child.process.join()


def peak_memory() -> int:
    """The largest resident size this process has had, in bytes."""
    try:
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) * 1024
    except (OSError, IndexError, ValueError):  # not Linux; there, getrusage would count the parent's size too
        import resource
        import sys

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024


def default_workers() -> int:
    """The cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _spawn(serve: Callable[..., None], *arguments: Any) -> _Child:
    """Start a process that runs `serve(pipe, *arguments)`, shows the messages that this one does, and ends with it."""
    # Spawned, not forked: a forked child would inherit polars' threads and locks.
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    start = (theirs, os.getpid(), message_level(), serve, arguments)
    process = context.Process(target=_run_child, args=start, daemon=True)
    process.start()
    theirs.close()
    return _Child(process, ours)


def _run_child(pipe: Connection, parent: int, level: int, serve: Callable[..., None], arguments: Sequence[Any]) -> None:
    """The life of a spawned process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    _die_with_parent(parent)
    show_messages(level)
    serve(pipe, *arguments)


def _serve_tasks(pipe: Connection) -> None:
    """Take a task, do it, answer; end when the parent is gone."""
    while True:
        try:
            function, task = pipe.recv()
        except (EOFError, ConnectionResetError):
            os._exit(0)  # nothing is open; taking the interpreter down in order takes a fifth of a second
        try:
            result = ("ok", function(task))
        except Exception as error:  # carried to the parent, which raises it
            error.add_note("in a worker:\n" + traceback.format_exc())
            result = ("error", error)
        try:
            pipe.send((*result, peak_memory()))
        except (BrokenPipeError, ConnectionResetError):
            os._exit(0)


def _serve_share(pipe: Connection, work: Work[Share], rank: int) -> None:
    """Take the share of a rank and do it."""
    try:
        _do_share(work, rank, pipe.recv(), pipe.send)
    except SigmaError as error:
        error.add_note(f"in rank {rank}:\n" + traceback.format_exc())
        pipe.send(error)


def _do_share(work: Work[Share], rank: int, share: Share, progress: Callable[[int], None]) -> None:
    try:
        work(rank, share, progress)
    except SigmaError:
        raise
    except Exception as error:  # out of memory, a driver that fails: the user gets one line, --debug all of it
        message = " ".join(str(error).split())[:200]
        raise BuildError(
            f"rank {rank} failed ({type(error).__name__}: {message}); run the same command again to continue, "
            "with sigma --debug to see where it failed"
        ) from error


def _die_with_parent(parent: int) -> None:
    """End this process with its parent, also in the middle of a task.

    One that outlived its killed parent could still write where a rerun is at work.
    """
    try:
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    except (AttributeError, OSError):  # not Linux
        threading.Thread(target=_watch_parent, daemon=True).start()
    if os.getppid() != parent:  # it died before we asked; a task may still wait in the pipe
        os._exit(0)


def _watch_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


@contextlib.contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """Variables a process started meanwhile inherits, unless the user has set them."""
    added = {name: value for name, value in values.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            del os.environ[name]


@contextlib.contextmanager
def _interrupts_held() -> Iterator[None]:
    """Ctrl-C waits until the end of the block, and never comes to processes that are started in it.

    They inherit that it is blocked: ignored only when they run our code, it would end them in their imports. Here it
    is noted, too, since other threads do not block it: one half started would complain.
    """
    if threading.current_thread() is not threading.main_thread():  # which alone gets signals, and may set handlers
        yield
        return
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
