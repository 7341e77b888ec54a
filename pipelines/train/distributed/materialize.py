"""Weights for a parallelized model on the meta device: each rank reads or draws its own rows, none holds all."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from pipelines.train.distributed.process_group import ProcessGroup
from pipelines.train.distributed.sharded_tensor import held_rows, local_part
from pipelines.train.lora import is_lora
from pipelines.train.token_rows import ROWS
from sigma_model.checkpoint_io import Checkpoint, assign
from sigma_model.initialization import fresh_tensor
from sigma_model.model import SigmaModel
from sigma_model.state_dict_adapter import released_name


def load_weights_sharded(
    model: SigmaModel,
    directory: Path,
    group: ProcessGroup,
    *,
    dtype: torch.dtype,
    trainable: torch.dtype | None = None,
    vision: bool = True,
    left_out: Mapping[str, torch.Size] = {},
) -> None:
    """Fill a parallelized model on the meta device from a released directory; a rank reads its own rows alone.

    All becomes `dtype`, trainable parameters `trainable` if given. LoRA adapters keep their type and become zero:
    `init_lora` draws them. The attribute tokens' own rows become zero, too: `write_rows` fills them. `vision` as
    in `load_model`; `left_out`: names and shapes of what the files hold and the model has not, for the caller to read.
    Memory: this rank's share, and its rows of one tensor more. Raises ConfigError as
    `sigma_model.checkpoint_io.load_weights` does, before any data is read.
    """
    stored = Checkpoint(Path(directory), vision=vision, config=model.config)
    wanted = {name: tensor for name, tensor in model.state_dict(keep_vars=True).items() if not _added(name)}
    shapes = {**left_out, **{name: tensor.shape for name, tensor in wanted.items()}}
    stored.check({released_name(name): shape for name, shape in shapes.items()})
    ours = {released_name(name): name for name in wanted}

    def read(name: str, part: Tensor, rows: tuple[int, int]) -> None:
        part.copy_(stored.read(released_name(name), dtype=part.dtype, device=part.device, rows=rows))

    # An attribute projection, which files may lack, is not in their order, and stays zero then.
    order = [ours[name] for name in stored.in_order() if name in ours]
    materialize(model, group, dtype, trainable, order, read)


def init_weights_sharded(
    model: SigmaModel, seed: int, group: ProcessGroup, *, dtype: torch.dtype, trainable: torch.dtype | None = None
) -> None:
    """Fill a parallelized model on the meta device with what training from scratch starts from.

    The numbers are those of `sigma_model.checkpoint_io.init_model`, whatever the number of ranks; types as in
    `load_weights_sharded`. Memory: this rank's share, and one whole tensor more.
    """
    order = [name for name in model.state_dict(keep_vars=True) if not _added(name)]
    shapes = {name: tensor.shape for name, tensor in model.state_dict(keep_vars=True).items()}

    def draw(name: str, part: Tensor, rows: tuple[int, int]) -> None:
        part.copy_(fresh_tensor(model.config, name, shapes[name], seed=seed)[rows[0] : rows[1]])

    materialize(model, group, dtype, trainable, order, draw)


@torch.no_grad()
def materialize(
    model: nn.Module,
    group: ProcessGroup,
    dtype: torch.dtype,
    trainable: torch.dtype | None,
    order: Iterable[str],
    fill: Callable[[str, Tensor, tuple[int, int]], None],
) -> None:
    """Give a model on the meta device memory, all zero, then let `fill(name, part, rows)` write parts, in `order`."""
    for name, tensor in model.state_dict(keep_vars=True).items():
        assert tensor.is_meta, f"{name} is not on the meta device"
        if not is_lora(name):
            wanted = trainable if trainable is not None and tensor.requires_grad else dtype
            assign(model, name, tensor.detach().to(wanted))
    model.to_empty(device="cpu" if group.offload else group.device)
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, buffer.to(group.device))
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
