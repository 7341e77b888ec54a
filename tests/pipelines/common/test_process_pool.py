"""The engine: order of completion, errors carried over, native crashes survived and named."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

import pytest

from pipelines.common.process_pool import Crashed, ProcessPool
from sigma_data.corpus.shard import ShardFault
from sigma_data.errors import BuildError, SourceError


def square(number: int) -> int:
    return number * number


def fail(number: int) -> int:
    raise SourceError(f"task {number} is wrong")


def fault(number: int) -> int:
    raise ShardFault("cut", "the tar ends early", number)


def die(task: tuple[int, int]) -> int:
    number, code = task
    if code:
        os.kill(os.getpid(), code)
        time.sleep(10)
    return number


def run(engine: ProcessPool, function: Any, tasks: list[Any]) -> dict[int, Any]:
    results: dict[int, Any] = {}
    engine.run(function, tasks, lambda index, value: results.__setitem__(index, value), what="testing")
    return results


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 1, 3])
def test_every_task_is_done_once(workers: int) -> None:
    with ProcessPool(workers) as engine:
        assert run(engine, square, list(range(40))) == {number: number**2 for number in range(40)}
        assert run(engine, square, []) == {}
        assert engine.peak_bytes > 2**20


@pytest.mark.slow
def test_errors_arrive_with_their_type_and_words() -> None:
    for workers in (0, 1):
        with ProcessPool(workers) as engine, pytest.raises(SourceError, match="task 7 is wrong"):
            run(engine, fail, [7])
        with ProcessPool(workers) as engine, pytest.raises(ShardFault, match="ends early") as raised:
            run(engine, fault, [512])
        assert (raised.value.code, raised.value.offset) == ("cut", 512)


@pytest.mark.slow
def test_a_task_that_crashes_in_native_code_is_named_and_the_others_are_done() -> None:
    tasks = [(number, signal.SIGSEGV if number == 3 else 0) for number in range(8)]
    with ProcessPool(2) as engine:
        results = run(engine, die, tasks)
    assert results.pop(3) == Crashed("SIGSEGV")
    assert results == {number: number for number in range(8) if number != 3}


@pytest.mark.slow
def test_a_worker_killed_for_memory_stops_the_run_with_a_sentence() -> None:
    with ProcessPool(2) as engine, pytest.raises(BuildError, match="memory ran out.*run the same command again"):
        run(engine, die, [(0, 0), (1, signal.SIGKILL), (2, 0)])
