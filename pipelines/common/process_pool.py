"""Where tasks run: processes on this machine.

A task is a module-level function and a small picklable argument; results are small too, for work
goes from file to file. One task a worker at a time, so that when a worker dies it is known which
task killed it: a task whose process is killed by a fault in native code (a hostile file) is reported
as crashed after a second try alone, any other death stops the run with a sentence.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from sigma_data.errors import BuildError

_NATIVE_FAULTS = {signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL}


# A worker allocates and frees a few megabytes for every picture. Kept by the process instead of given
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
class _Worker:
    process: BaseProcess
    pipe: Connection
    task: int | None = None


@dataclass(frozen=True)
class Crashed:
    """Stands in for a task's result where native code killed the process twice."""

    signal: str


@dataclass
class LocalEngine:
    """Runs tasks in `workers` spawned processes, with 0 in this one, in their order. Use as a context manager."""

    workers: int
    peak_bytes: int = 0
    """Largest resident size that any worker has reported."""
    _pool: list[_Worker] = field(default_factory=list)

    def __enter__(self) -> Self:
        # Two at once and early: they import while the caller prepares the work; more as tasks come.
        self._pool += [self._start() for _ in range(min(self.workers, 2))]
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        for worker in self._pool:
            if kind is not None:
                worker.process.kill()
            worker.pipe.close()  # an idle worker ends when its pipe does
        for worker in self._pool:
            worker.process.join()
        self._pool.clear()

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
            busy = [worker for worker in self._pool if worker.task is not None]
            for ready in wait([worker.pipe for worker in busy]):
                worker = next(w for w in busy if w.pipe is ready)
                index = worker.task
                assert index is not None
                try:
                    status, value, peak = worker.pipe.recv()
                except (EOFError, ConnectionResetError):
                    self._pool.remove(worker)
                    tries[index] += 1
                    died = self._death(worker, what)
                    if tries[index] < 2:
                        queue.append(index)
                        continue
                    status, value, peak = "ok", died, 0
                worker.task = None
                self.peak_bytes = max(self.peak_bytes, peak)
                if status == "error":
                    raise value
                open_tasks -= 1
                done(index, value)

    def _feed(self, function: Callable[[Any], Any], tasks: Sequence[Any], queue: list[int]) -> None:
        for worker in self._pool:
            if worker.task is None and queue:
                self._give(worker, function, tasks, queue.pop())
        while queue and len(self._pool) < self.workers:
            worker = self._start()
            self._pool.append(worker)
            self._give(worker, function, tasks, queue.pop())

    @staticmethod
    def _give(worker: _Worker, function: Callable[[Any], Any], tasks: Sequence[Any], index: int) -> None:
        worker.task = index
        # Where it died while idle, `run` sees the end of its pipe and tries the task again.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            worker.pipe.send((function, tasks[index]))

    @staticmethod
    def _start() -> _Worker:
        # Spawned, not forked: a forked child would inherit polars' threads and locks.
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(theirs, os.getpid()), daemon=True)
        with _environment(_WORKER_ENVIRONMENT):
            process.start()
        theirs.close()
        return _Worker(process, ours)

    @staticmethod
    def _death(worker: _Worker, what: str) -> Crashed:
        worker.process.join()
        code = worker.process.exitcode or 0
        if -code in _NATIVE_FAULTS:
            return Crashed(signal.Signals(-code).name)
        cause = "killed, most likely because memory ran out: use fewer --workers" if code == -9 else f"exit code {code}"
        raise BuildError(f"a worker died while {what} ({cause}); run the same command again to continue")


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


@contextlib.contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    """Variables a process started meanwhile inherits, where the user has not set them."""
    added = {name: value for name, value in values.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            del os.environ[name]


def _die_with_parent(parent: int) -> None:
    """Ask Linux to end this process with its parent, also in the middle of a task.

    A worker that outlived its killed parent could still write where a rerun is at work.
    """
    import ctypes

    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:  # it died before we asked; a task may still wait in the pipe
        os._exit(0)


def _serve(pipe: Connection, parent: int) -> None:
    """A worker's life: take a task, do it, answer; end when the parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    _die_with_parent(parent)
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
