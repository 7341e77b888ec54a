"""Whether processes of this machine meet and add up a tensor: what training on several ranks begins with."""

from __future__ import annotations

import multiprocessing
import os
import time
from contextlib import suppress
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from typing import Any

from pipelines.doctor.finding import Finding, fail, ok

WAIT_S = 90.0
"""For all of it: processes that load torch from a network disk take long."""
_COUNT = 4 * 2**20


def look_ranks(gpus: int) -> list[Finding]:
    """Gloo with two processes, and NCCL with one for each GPU."""
    findings = [check_ranks("gloo", 2)]
    if gpus:
        findings.append(check_ranks("nccl", gpus))
    return findings


def check_ranks(backend: str, ranks: int, *, seconds: float = WAIT_S) -> Finding:
    """Start `ranks` processes that meet on loopback and all-reduce 16 MiB; each is ended after `seconds`."""
    import torch.distributed as dist

    begin = time.monotonic()
    store = dist.TCPStore(  # type: ignore[attr-defined]
        "127.0.0.1", 0, is_master=True, wait_for_workers=False
    )
    context = multiprocessing.get_context("spawn")
    pipes = [context.Pipe(duplex=False) for _ in range(ranks)]
    processes = [
        context.Process(target=_rank, args=(backend, store.port, rank, ranks, seconds, mine), daemon=True)
        for rank, (_, mine) in enumerate(pipes)
    ]
    try:
        for process, (_, mine) in zip(processes, pipes, strict=True):
            process.start()
            mine.close()
        said = _answers([theirs for theirs, _ in pipes], begin + seconds)
    finally:
        for process in processes:
            if process.is_alive():
                process.kill()
            if process.pid is not None:
                process.join()
    where = "processes" if backend == "gloo" else "GPUs"
    faults = [one for one in said if isinstance(one, str)]
    if faults or len(said) < ranks:
        reason = faults[0] if faults else f"{ranks - len(said)} of {ranks} did not answer within {seconds:.0f} s"
        return fail(backend, f"{ranks} {where} cannot add up a tensor ({reason})", _ADVICE[backend])
    rate = sum(one for one in said if isinstance(one, float)) / ranks
    return ok(backend, f"{ranks} {where} meet and add up a tensor, {rate / 1e9:.1f} GB/s")


_ADVICE = {
    "gloo": "set GLOO_SOCKET_IFNAME to an interface that exists (lo, eth0; `ip link` lists them), and allow loopback",
    "nccl": "set NCCL_DEBUG=INFO and run it again; in a container NCCL wants --shm-size=16g and --ulimit memlock=-1",
}


def _answers(pipes: list[Connection[Any, Any]], until: float) -> list[float | str]:
    """What each process says: bytes a second, or what went wrong. A process that ends or stays silent says nothing."""
    said: list[float | str] = []
    open_ = list(pipes)
    while open_ and (left := until - time.monotonic()) > 0:
        for pipe in wait(open_, left):
            assert isinstance(pipe, Connection)
            with suppress(EOFError):
                said.append(pipe.recv())
            open_.remove(pipe)
        if any(isinstance(one, str) for one in said):
            break
    return said


def _rank(backend: str, port: int, rank: int, ranks: int, seconds: float, pipe: Connection[Any, Any]) -> None:
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    try:
        pipe.send(_reduced(backend, port, rank, ranks, seconds))
    except Exception as error:  # whatever it is, the parent says it in a line
        pipe.send((str(error).splitlines() or [type(error).__name__])[0][:200])
    pipe.close()


def _reduced(backend: str, port: int, rank: int, ranks: int, seconds: float) -> float:
    """Bytes a second of an all-reduce, the second of two. Raises RuntimeError where the sum is wrong."""
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    limit = timedelta(seconds=seconds)
    store = dist.TCPStore(  # type: ignore[attr-defined]
        "127.0.0.1", port, is_master=False, timeout=limit
    )
    dist.init_process_group(backend, store=store, rank=rank, world_size=ranks, timeout=limit)
    try:
        device = torch.device("cuda", rank) if backend == "nccl" else torch.device("cpu")
        took = 0.0
        for _ in range(2):
            tensor = torch.full((_COUNT,), float(rank + 1), device=device)
            dist.barrier(device_ids=[rank] if backend == "nccl" else None)
            begin = time.perf_counter()
            dist.all_reduce(tensor)
            if backend == "nccl":
                torch.cuda.synchronize(device)
            took = time.perf_counter() - begin
            if not bool((tensor == ranks * (ranks + 1) / 2).all()):
                raise RuntimeError("the sum is wrong")
        return tensor.nbytes / took
    finally:
        dist.destroy_process_group()
