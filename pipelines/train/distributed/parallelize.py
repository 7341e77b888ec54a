"""How the work is spread over ranks: the world, a model sharded over it, and sums over all of it.

`parallelize` tells the whole story in order: checkpointing, compilation, FSDP2. It may be given a model on the
meta device; each rank then reads or draws its own rows of every tensor, and none ever holds a full copy.

Gradients are sums over ranks, not averages: a loss must be divided by the tokens of all ranks beforehand. Every
rank must run the same parts of the model in every pass, and its loss must depend on both outputs, also where its
pack has no pictures or no answers (a sum over nothing serves): what one rank reduces, all reduce.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import HashStore, Store  # type: ignore[attr-defined]
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, OffloadPolicy, fully_shard
from torch.distributed.rendezvous import rendezvous
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset
from torch.utils.checkpoint import checkpoint

from pipelines.train.config import ParallelSettings
from pipelines.train.distributed.launcher_env import Started, by_launcher
from pipelines.train.distributed.rank_agreement import compare
from pipelines.train.lora import is_lora
from pipelines.train.token_rows import ROWS
from sigma_data.errors import ConfigError, SigmaError
from sigma_model.checkpoint_io import Checkpoint, assign
from sigma_model.initialization import fresh_tensor
from sigma_model.model import SigmaModel
from sigma_model.state_dict_adapter import released_name

_Value = TypeVar("_Value")

_COME = timedelta(minutes=10)
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


def start_process_group(
    settings: ParallelSettings,
    *,
    device: str = "auto",
    timeout_s: float = 600,
    mixed: bool = False,
    facts: Mapping[str, str] | None = None,
) -> ProcessGroup:
    """Join the ranks that torch's launcher started, or start a world of one where there is no launcher.

    `device`: auto, cpu or cuda; auto is a GPU where there is one. `timeout_s` seconds is how long ranks wait for
    one another. `mixed` says that the model computes in another type than its parameters have: in one process, too,
    that is FSDP's work. `facts` are compared over the ranks, as `rank_agreement.compare` does. `stop_process_group`
    undoes what this does to the process. Raises ConfigError where the settings do not fit the ranks or
    the machine, and where ranks cannot meet or differ.
    """
    started = by_launcher(meeting=False) or Started(0, 1, 0)
    rank, size, local_rank = started.rank, started.size, started.local_rank
    store = _met(size) if started.meets else None
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
    if not started.meets:
        by_launcher()  # raises, saying what is missing
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


def _met(size: int) -> Store:
    """The store of all ranks, at the place that the launcher named. Raises ConfigError where it is not reached."""
    if size == 1:
        return HashStore()
    try:
        store: Store
        store, _, _ = next(rendezvous("env://", timeout=_COME))
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
    """Leave the ranks, and compute with as many threads as before; nothing where there is no world."""
    if dist.is_initialized():
        dist.destroy_process_group()
    while _threads_before:
        torch.set_num_threads(_threads_before.pop())


def parallelize(model: SigmaModel, world: ProcessGroup, settings: ParallelSettings, *, dtype: torch.dtype) -> None:
    """Make a model ready for this world, in place; names of parameters stay what they are.

    `dtype` is what layers compute in; gradients are reduced in float32 and summed over ranks. Without a mesh a model
    computes in the type of its parameters (see `mixed` of `start_process_group`). The trainable parameters
    must be chosen before, and all be of one type.
    """
    layers: list[nn.Module] = [*model.backbone.layers, *(model.vision.layers if model.vision is not None else ())]
    every = {"none": 0, "selective": 2, "full": 1}[settings.checkpointing]
    for number, layer in enumerate(layers):
        # The forward method alone is replaced: FSDP's hooks stay outside, and parameters keep their names.
        if every and number % every == 0:
            layer.forward = partial(checkpoint, layer.forward, use_reentrant=False, preserve_rng_state=False)
        if settings.compile and number < len(model.backbone.layers):
            layer.forward = torch.compile(layer.forward)
    if world.mesh is None:
        return
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
    offload = CPUOffloadPolicy() if settings.offload else OffloadPolicy()
    for module in (*layers, model):
        unit = fully_shard(module, mesh=world.mesh, mp_policy=policy, offload_policy=offload)
        unit.set_gradient_divide_factor(1.0)
        unit.set_force_sum_reduction_for_comms(True)  # gloo knows no other


def load_weights_sharded(
    model: SigmaModel,
    directory: Path,
    world: ProcessGroup,
    *,
    dtype: torch.dtype,
    learning: torch.dtype | None = None,
    vision: bool = True,
    apart: Mapping[str, torch.Size] = {},
) -> None:
    """Fill a parallelized model on the meta device from a released directory; a rank reads its own rows alone.

    All becomes `dtype`, but what learns `learning` where that is given. Low-rank additions keep their type and become
    zero: `init_lora` draws them. The attribute tokens' own rows become zero, too: `write_rows` fills them. `vision` as
    in `load_model`; `apart`: names and shapes of what the files hold and the model has not, for the caller to read.
    Memory: this rank's share, and its rows of one tensor more. Raises ConfigError as
    `sigma_model.checkpoint_io.load_weights` does, before any data is read.
    """
    stored = Checkpoint(Path(directory), vision=vision, config=model.config)
    wanted = {name: tensor for name, tensor in model.state_dict(keep_vars=True).items() if not _added(name)}
    shapes = {**apart, **{name: tensor.shape for name, tensor in wanted.items()}}
    stored.check({released_name(name): shape for name, shape in shapes.items()})
    ours = {released_name(name): name for name in wanted}

    def read(name: str, part: Tensor, rows: tuple[int, int]) -> None:
        part.copy_(stored.read(released_name(name), dtype=part.dtype, device=part.device, rows=rows))

    # An attribute projection, which files may lack, is not in their order, and stays zero then.
    order = [ours[name] for name in stored.in_order() if name in ours]
    _materialize(model, world, dtype, learning, order, read)


def init_weights_sharded(
    model: SigmaModel, seed: int, world: ProcessGroup, *, dtype: torch.dtype, learning: torch.dtype | None = None
) -> None:
    """Fill a parallelized model on the meta device with what training from scratch starts from.

    The numbers are those of `sigma_model.checkpoint_io.init_model`, whatever the number of ranks; types as in
    `load_weights_sharded`. Memory: this rank's share, and one whole tensor more.
    """
    order = [name for name in model.state_dict(keep_vars=True) if not _added(name)]
    shapes = {name: tensor.shape for name, tensor in model.state_dict(keep_vars=True).items()}

    def draw(name: str, part: Tensor, rows: tuple[int, int]) -> None:
        part.copy_(fresh_tensor(model.config, name, shapes[name], seed=seed)[rows[0] : rows[1]])

    _materialize(model, world, dtype, learning, order, draw)


@torch.no_grad()
def _materialize(
    model: SigmaModel,
    world: ProcessGroup,
    dtype: torch.dtype,
    learning: torch.dtype | None,
    order: Iterable[str],
    fill: Callable[[str, Tensor, tuple[int, int]], None],
) -> None:
    """Give a model on the meta device memory, all zero, then let `fill(name, part, rows)` write parts, in `order`."""
    for name, tensor in model.state_dict(keep_vars=True).items():
        assert tensor.is_meta, f"{name} is not on the meta device"
        if not is_lora(name):
            wanted = learning if learning is not None and tensor.requires_grad else dtype
            assign(model, name, tensor.detach().to(wanted))
    model.to_empty(device="cpu" if world.offload else world.device)
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, buffer.to(world.device))
    tensors = model.state_dict(keep_vars=True)
    for tensor in tensors.values():
        local_part(tensor).zero_()
    for name in order:
        fill(name, local_part(tensors[name]), held_rows(tensors[name]))


def _added(name: str) -> bool:
    """Whether a parameter was added for training and has no released name."""
    return is_lora(name) or name == ROWS


@torch.no_grad()
def write_rows(parameter: Tensor, numbers: Iterable[int], rows: Tensor) -> None:
    """Write whole rows, the i-th of `rows` [n, ...] at the i-th of `numbers`; a rank writes those it holds."""
    part, (first, last) = local_part(parameter), held_rows(parameter)
    for number, row in zip(numbers, rows, strict=True):
        if first <= number < last:
            part[number - first].copy_(row)


def local_part(tensor: Tensor) -> Tensor:
    """The part of a tensor that this rank holds, sharing its memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def held_rows(tensor: Tensor) -> tuple[int, int]:
    """The rows [first, last) of a tensor that this rank holds."""
    if not isinstance(tensor, DTensor):
        return 0, len(tensor)
    shape, offset = compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)
    return (offset[0], offset[0] + shape[0]) if shape[0] else (0, 0)


@contextmanager
def callable_in_parts(model: nn.Module) -> Iterator[None]:
    """Within, parts of a model may be called by themselves, as sampling does.

    Parameters outside layers are gathered; a layer's are while it runs. So every rank must run as many passes, and
    the model must have run as a whole before.
    """
    if isinstance(model, FSDPModule):
        model.unshard()
    try:
        yield
    finally:
        if isinstance(model, FSDPModule):
            model.reshard()


def all_reduce_sum(tensor: Tensor, world: ProcessGroup) -> Tensor:
    """The sum of a tensor over all ranks; the tensor itself stays as it is."""
    total = tensor.clone()
    if world.size > 1:
        dist.all_reduce(total)
    return total


def together(world: ProcessGroup, act: Callable[[], _Value]) -> _Value:
    """Do something on all ranks; what a user can mend on one of them is raised on all, so that none waits for it."""
    value: _Value | None = None
    mine: SigmaError | None = None
    try:
        value = act()
    except SigmaError as error:
        if world.size == 1:
            raise
        mine = error
    if world.size > 1:
        told: list[Any] = [None] * world.size
        dist.all_gather_object(told, mine and (type(mine), str(mine), socket.gethostname()))
        if mine is not None:
            raise mine
        for rank, fault in enumerate(told):
            if fault is not None:
                kind, text, host = fault
                raise kind(f"rank {rank} ({host}): {text}")
    return cast(_Value, value)


def from_rank0(world: ProcessGroup, act: Callable[[], _Value]) -> _Value:
    """What rank 0 finds out, on all ranks."""
    told = [act() if world.rank == 0 else None]
    if world.size > 1:
        dist.broadcast_object_list(told, src=0)
    return cast(_Value, told[0])


def barrier(world: ProcessGroup) -> None:
    """Wait for all ranks."""
    if world.size > 1:
        dist.barrier(device_ids=[world.local_rank] if world.device.type == "cuda" else None)


@torch.no_grad()
def clip_grad_norm(parameters: Iterable[Tensor], world: ProcessGroup, max_norm: float) -> Tensor:
    """Scale gradients down to a norm of `max_norm` over all ranks; returns the norm before, [] float32.

    Nothing waits for the device. A norm that is not finite makes every gradient NaN or zero: do not step then.
    Sharded gradients are added up over the ranks that share them; plain ones must be the same on all ranks.
    """
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    sharded = [gradient.to_local() for gradient in gradients if isinstance(gradient, DTensor)]
    plain = [gradient for gradient in gradients if not isinstance(gradient, DTensor)]
    device = next((gradient.device for gradient in (*sharded, *plain)), world.device)
    squares = _squares(sharded, device)
    if world.mesh is not None:
        # Over all ranks, copies included: sums in another order would let the copies drift apart.
        dist.all_reduce(squares)
        squares /= world.size // world.mesh["shard"].size()
    norm = (squares + _squares(plain, device)).sqrt()
    factor = (max_norm / (norm + 1e-6)).clamp(max=1.0)
    for gradient in (*sharded, *plain):
        gradient.mul_(factor.to(gradient.dtype))
    return norm.to(world.device)


def _squares(tensors: list[Tensor], device: torch.device) -> Tensor:
    """The sum of squares of tensors, [] float32."""
    norms = [torch.linalg.vector_norm(tensor, dtype=torch.float32) for tensor in tensors]
    return torch.stack(norms).square().sum() if norms else torch.zeros((), device=device)
