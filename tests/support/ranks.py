"""A function of a test file on several ranks: real processes that meet over loopback.

They are forked from a server that has imported torch once and done nothing with it, so that starting them is
quick and safe. A rank that fails or hangs ends the others, and its traceback is the test's error.
"""

from __future__ import annotations

import importlib.util
import io
import multiprocessing as mp
import multiprocessing.connection
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from pipelines.train.distributed.process_group import ProcessGroup
from support.places import TESTS

_PRELOAD = [
    "torch._dynamo",  # which an optimizer imports
    "torch.distributed.checkpoint",
    "torch.distributed.fsdp",
    "pipelines.train.trainer",
    "torch.profiler",
    "transformers.models.auto.tokenization_auto",
    "transformers.models.qwen2.tokenization_qwen2",
    "hypothesis",
    "pytest",
]


class Ranks:
    """Running ranks of `function(*arguments)`; the function must be a plain one at the top of a test file."""

    def __init__(self, function: Callable[..., Any], size: int, *arguments: Any) -> None:
        context = mp.get_context("forkserver")
        context.set_forkserver_preload(_PRELOAD)
        # The store lives here as it does in torch's launcher: no port is ever guessed.
        self._store = dist.TCPStore(
            "127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=60)
        )
        self.processes: list[ForkServerProcess] = []
        self._ends: list[Connection] = []
        where = function.__code__.co_filename, function.__name__
        for rank in range(size):
            mine, theirs = context.Pipe(duplex=False)
            process = context.Process(
                target=_run, args=(theirs, where, arguments, rank, size, self._store.port), daemon=True
            )
            process.start()
            theirs.close()
            self.processes.append(process)
            self._ends.append(mine)

    def results(self, *, timeout_s: float = 60) -> list[Any]:
        """What the function returned on each rank, in order. Raises AssertionError where one failed or hung."""
        found: dict[int, Any] = {}
        deadline = time.monotonic() + timeout_s
        try:
            while len(found) < len(self._ends):
                waiting = [end for rank, end in enumerate(self._ends) if rank not in found]
                ready = multiprocessing.connection.wait(waiting, timeout=max(0.0, deadline - time.monotonic()))
                assert ready, f"ranks {sorted(set(range(len(self._ends))) - set(found))} hang"
                for end in ready:
                    rank = self._ends.index(end)  # type: ignore[arg-type]
                    try:
                        fault, data = self._ends[rank].recv()
                    except EOFError:
                        raise AssertionError(f"rank {rank} died without a word") from None
                    assert not fault, f"rank {rank}:\n{fault}"
                    found[rank] = torch.load(io.BytesIO(data), weights_only=False)
        finally:
            self.kill()
        return [found[rank] for rank in range(len(self._ends))]

    def kill(self, *ranks: int) -> None:
        """kill -9, of all ranks or of these."""
        for rank in ranks or range(len(self.processes)):
            process = self.processes[rank]
            process.kill()  # SIGKILL; no error where it has just ended by itself
            process.join()


def run(function: Callable[..., Any], size: int, *arguments: Any, timeout_s: float = 60) -> list[Any]:
    """Run `function(*arguments)` on `size` ranks; returns what each returned."""
    return Ranks(function, size, *arguments).results(timeout_s=timeout_s)


def reset_peak() -> int:
    """Bytes that this process has resident; `peak` counts from here."""
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def peak() -> int:
    """The most bytes that this process had resident since `reset_peak`."""
    return _status("VmHWM")


@torch.no_grad()
def full_state_on_rank0(state: nn.Module | Mapping[str, Tensor], group: ProcessGroup) -> Iterator[tuple[str, Tensor]]:
    """Whole tensors on the CPU, by name, one at a time and on rank 0 alone; the other ranks get none.

    `state`: a mapping, or a model for its parameters and persistent buffers. Every rank must run the iterator to
    its end, for each tensor is gathered from all. Memory: one whole tensor on every rank.
    """
    tensors = state.state_dict() if isinstance(state, nn.Module) else state
    for name, tensor in tensors.items():
        if isinstance(tensor, DTensor):
            moved = tensor.to(group.device)  # where it is gathered, which an offloaded one is not
            assert isinstance(moved, DTensor)
            tensor = moved.full_tensor()
        if group.rank == 0:
            yield name, tensor.cpu()


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key)) * 1024


def _run(end: Connection, where: tuple[str, str], arguments: tuple[Any, ...], rank: int, size: int, port: int) -> None:
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_RANK": str(rank)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_USE_AGENT_STORE": "True"}
    torch.set_num_threads(1)
    try:
        sys.path.insert(0, str(TESTS))
        spec = importlib.util.spec_from_file_location("_ranks_of", where[0])
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules["_ranks_of"] = module  # dataclasses look their module up
        spec.loader.exec_module(module)
        buffer = io.BytesIO()
        torch.save(getattr(module, where[1])(*arguments), buffer)
        end.send(("", buffer.getvalue()))
    except BaseException:
        end.send((traceback.format_exc(), b""))
    finally:
        os._exit(0)  # a failed rank must not wait for the others to leave
