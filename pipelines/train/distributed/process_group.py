"""The ranks of a run: how they meet, what each is given, and what they do together."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import HashStore, Store  # type: ignore[attr-defined]
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.rendezvous import rendezvous

from pipelines.train.config import ParallelSettings
from pipelines.train.distributed.launcher_env import LauncherRank, launcher_rank
from pipelines.train.distributed.rank_agreement import compare
from sigma_data.errors import ConfigError, SigmaError

_Value = TypeVar("_Value")

_RENDEZVOUS_TIMEOUT = timedelta(minutes=10)
"""How long ranks that are up wait for the place where they meet."""

_threads_before: list[int] = []
"""The process's number of threads before `start_process_group` set another; empty if it did not."""


@dataclass(frozen=True)
class ProcessGroup:
    """The ranks of a run and this one's place among them.

    `mesh` has a dimension `shard` and, where there are several copies of the parameters, `replicate` before it.
    It is None in a process that works alone and needs no FSDP: its parameters are plain tensors.
    """

    rank: int
    size: int
    local_rank: int
    device: torch.device
    mesh: DeviceMesh | None
    offload: bool = False
    """Parameters lie in the memory of the CPU, though the device is a GPU."""
    store: Store | None = field(default=None, compare=False, repr=False)
    """What all ranks share; None where there are no others."""

    @classmethod
    def single(cls) -> ProcessGroup:
        """A process that works alone, on the CPU."""
        return cls(rank=0, size=1, local_rank=0, device=torch.device("cpu"), mesh=None)


def start_process_group(
    settings: ParallelSettings,
    *,
    device: str = "auto",
    timeout_s: float = 600,
    mixed: bool = False,
    facts: Mapping[str, str] | None = None,
) -> ProcessGroup:
    """Join the ranks that torch's launcher started, or be the only rank where there is no launcher.

    `device`: auto, cpu or cuda; auto is a GPU if any. `timeout_s` seconds is how long ranks wait for
    one another. `mixed` says that the model computes in another type than its parameters have: in one process, too,
    that is FSDP's work. `facts` are compared over the ranks, as `rank_agreement.compare` does. `stop_process_group`
    undoes what this does to the process. Raises ConfigError where the settings do not fit the ranks or
    the machine, and where ranks cannot meet or differ.
    """
    started = launcher_rank(need_address=False) or LauncherRank(0, 1, 0)
    rank, size, local_rank = started.rank, started.size, started.local_rank
    store = _rendezvous_store(size) if started.has_address else None
    if facts is not None and store is not None and size > 1:
        compare(store, rank=rank, size=size, stage="settings", facts=facts)
    on_gpu = torch.cuda.is_available() if device == "auto" else device == "cuda"
    if on_gpu and local_rank >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise ConfigError(
            f"process {local_rank + 1} of this machine has no GPU of its own, there are {count}: set --nproc"
        )
    for name, wanted in (("offload", settings.offload), ("compile", settings.compile)):
        if wanted and not on_gpu:
            raise ConfigError(f"parallel.{name} needs a GPU, and this run has none: leave it out")
    shard = settings.shard or size
    if size % shard:
        fitting = ", ".join(str(count) for count in range(1, size + 1) if size % count == 0)
        raise ConfigError(f"parallel.shard: {shard} does not divide the {size} ranks: choose one of {fitting}")
    if not started.has_address:
        launcher_rank()  # raises, saying what is missing
    chosen = torch.device("cuda", local_rank) if on_gpu else torch.device("cpu")
    if on_gpu:
        torch.cuda.set_device(chosen)
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if on_gpu else "gloo",
        store=store,
        rank=rank,
        world_size=size,
        timeout=timedelta(seconds=timeout_s),
    )
    mesh = None
    if shard < size:
        mesh = init_device_mesh(chosen.type, (size // shard, shard), mesh_dim_names=("replicate", "shard"))
    elif size > 1 or mixed or settings.offload:
        mesh = init_device_mesh(chosen.type, (size,), mesh_dim_names=("shard",))
    if settings.threads is not None:
        _threads_before.append(torch.get_num_threads())
        torch.set_num_threads(settings.threads)
    return ProcessGroup(
        rank, size, local_rank, chosen, mesh, offload=settings.offload, store=store if size > 1 else None
    )


def _rendezvous_store(size: int) -> Store:
    """The store of all ranks, at the place that the launcher named. Raises ConfigError where it is not reached."""
    if size == 1:
        return HashStore()
    try:
        store: Store
        store, _, _ = next(rendezvous("env://", timeout=_RENDEZVOUS_TIMEOUT))
    except (RuntimeError, ValueError, OSError) as error:
        place = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        raise ConfigError(
            f"the ranks cannot meet at MASTER_ADDR:MASTER_PORT, {place} ({first_line(error)}): is it rank 0's machine, "
            "and the port free there and open to the others?"
        ) from None
    return store


def first_line(error: BaseException) -> str:
    """What an error says, without the pages that torch adds."""
    return str(error).strip().partition("\n")[0].rstrip(". ")[:200]


def stop_process_group() -> None:
    """Leave the ranks, and compute with as many threads as before; nothing if there is no process group."""
    if dist.is_initialized():
        dist.destroy_process_group()
    while _threads_before:
        torch.set_num_threads(_threads_before.pop())


def all_reduce_sum(tensor: Tensor, group: ProcessGroup) -> Tensor:
    """The sum of a tensor over all ranks; the tensor itself stays as it is."""
    total = tensor.clone()
    if group.size > 1:
        dist.all_reduce(total)
    return total


def on_all_ranks(group: ProcessGroup, act: Callable[[], _Value]) -> _Value:
    """Do something on all ranks; what a user can mend on one of them is raised on all, so that none waits for it."""
    value: _Value | None = None
    mine: SigmaError | None = None
    try:
        value = act()
    except SigmaError as error:
        if group.size == 1:
            raise
        mine = error
    if group.size > 1:
        by_rank: list[Any] = [None] * group.size
        dist.all_gather_object(by_rank, mine and (type(mine), str(mine), socket.gethostname()))
        if mine is not None:
            raise mine
        for rank, fault in enumerate(by_rank):
            if fault is not None:
                kind, text, host = fault
                raise kind(f"rank {rank} ({host}): {text}")
    return cast(_Value, value)


def rank0_first(group: ProcessGroup, act: Callable[[], _Value]) -> _Value:
    """Do something on rank 0 while the others wait, then on them: what it leaves behind is made once."""
    value = on_all_ranks(group, lambda: act() if group.rank == 0 else None)
    others = on_all_ranks(group, lambda: act() if group.rank != 0 else None)
    return cast(_Value, value if group.rank == 0 else others)


def from_rank0(group: ProcessGroup, act: Callable[[], _Value]) -> _Value:
    """What rank 0 finds out, on all ranks."""
    values = [act() if group.rank == 0 else None]
    if group.size > 1:
        dist.broadcast_object_list(values, src=0)
    return cast(_Value, values[0])


def barrier(group: ProcessGroup) -> None:
    """Wait for all ranks."""
    if group.size > 1:
        dist.barrier(device_ids=[group.local_rank] if group.device.type == "cuda" else None)
