"""Processes that work tasks off, and hand back the results in the order of the tasks.

A pool of our own, for training must learn at once which sample a killed worker was at, and nowhere but
where it waits for data: torch's DataLoader raises out of a signal handler, in the middle of any step.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import traceback
from collections import deque
from collections.abc import Callable, Generator, Iterable, MutableSequence, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, Generic, TypeVar

from sigma_data.errors import LoaderError, SigmaError
from sigma_data.loading.crossing import Inbox, Outbox

Task = TypeVar("Task")
Result = TypeVar("Result")

Place = MutableSequence[int]
"""Two numbers in shared memory: what a worker is at, in its own words; -1 where it is at nothing."""

_PATIENCE = 5.0
"""Seconds for a worker to end before it is killed."""


@dataclass(frozen=True)
class _Worker:
    process: BaseProcess
    pipe: Connection
    place: Any
    inbox: Inbox = field(default_factory=Inbox)

    def give(self, task: Any) -> None:
        """A task, and the memory that its results may use again."""
        freed = [self.inbox.freed.popleft() for _ in range(len(self.inbox.freed))]
        self.pipe.send((task, freed))


@dataclass
class Workers(Generic[Task, Result]):
    """`count` processes that call `work(task, place)`, in which `work` writes down what it is at.

    `start_method` is fork or spawn. `ahead` is how many tasks a worker is given before an answer is taken,
    `timeout` how many seconds an answer may take. `describe` says in words what a place means.
    """

    work: Callable[[Task, Place], Result]
    count: int
    start_method: str
    ahead: int
    timeout: float
    describe: Callable[[Place], str]
    _pool: list[_Worker] = field(default_factory=list)

    def run(self, tasks: Iterable[Task]) -> Generator[Result]:
        """The results in the order of the tasks. The processes end with the iterator.

        What `work` raises is raised here. Raises LoaderError where a worker dies or does not answer in time.
        """
        try:
            while len(self._pool) < self.count:
                self._start()
            given: deque[_Worker] = deque()  # who has a task, in the order of the tasks
            for number, task in enumerate(tasks):
                # The next task goes out before a result does: nobody idles while it is used.
                results = [self._answer(given.popleft())] if len(given) == self.count * self.ahead else []
                worker = self._pool[number % self.count]
                with suppress(BrokenPipeError, ConnectionResetError):  # it died: its answer will be missed
                    worker.give(task)
                given.append(worker)
                yield from results
            while given:
                yield self._answer(given.popleft())
        finally:
            self._end()

    def _start(self) -> None:
        context: Any = multiprocessing.get_context(self.start_method)
        ours, theirs = context.Pipe()
        place = context.RawArray("q", [-1, -1])
        # A forked worker closes its copies of our ends: it must see the end of its pipe when we are gone.
        copies = [ours, *(worker.pipe for worker in self._pool)] if self.start_method == "fork" else []
        process = context.Process(target=_serve, args=(theirs, self.work, place, copies), daemon=True)
        process.start()
        theirs.close()
        self._pool.append(_Worker(process, ours, place))

    def _answer(self, worker: _Worker) -> Result:
        ready = wait([worker.pipe, worker.process.sentinel], self.timeout)
        if not ready:
            raise LoaderError(
                f"a loader worker has not answered for {self.timeout:g} seconds, {self.describe(worker.place)}: "
                "look whether the corpus can be read, or set a longer timeout"
            )
        try:
            if worker.pipe not in ready:
                raise EOFError
            done, value = worker.inbox.receive(worker.pipe)
        except (EOFError, OSError):
            worker.process.join(_PATIENCE)
            code = worker.process.exitcode or 0
            memory = "killed, most likely because memory ran out: use fewer workers"
            cause = memory if code == -signal.SIGKILL else f"exit code {code}"
            raise LoaderError(f"a loader worker died {self.describe(worker.place)} ({cause})") from None
        if not done:
            raise value
        result: Result = value
        return result

    def _end(self) -> None:
        for worker in self._pool:
            worker.pipe.close()  # the sign to end, after the task that is under way
        for worker in self._pool:
            worker.process.join(_PATIENCE)
            if worker.process.is_alive():
                worker.process.kill()
                worker.process.join()
        self._pool.clear()


def _serve(pipe: Connection, work: Callable[[Any, Place], Any], place: Any, copies: Sequence[Connection]) -> None:
    """A worker's life: take a task, do it, answer; end when the parent closes the pipe, or is gone."""
    for number in (signal.SIGINT, signal.SIGTERM):  # told to whole groups; the parent handles them, and may still save
        signal.signal(number, signal.SIG_IGN)
    for copy in copies:
        copy.close()
    outbox = Outbox()
    with suppress(EOFError, ConnectionResetError, BrokenPipeError):
        while True:
            task, freed = pipe.recv()
            outbox.take_back(freed)
            try:
                outbox.send(pipe, (True, work(task, place)))
            except SigmaError as error:  # carried to the parent, which raises it
                outbox.send(pipe, (False, error))
            except Exception as error:
                error.add_note("in a loader worker:\n" + traceback.format_exc())
                outbox.send(pipe, (False, error))
            place[:] = -1, -1
    os._exit(0)
