"""What torch has no public name for, all in one place: a release that lacks one is named by test_torch_compat.py."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

CHECKPOINT_RECORDS = (
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
    ("torch.distributed.checkpoint.metadata", "_MEM_FORMAT_ENCODING"),
    ("torch.serialization", "_get_layout"),
)
"""Private names that the pickled metadata of a distributed checkpoint refers to."""


def lerp_all(averages: list[Tensor], values: list[Tensor], weight: float) -> None:
    """Averages <- averages + weight (values - averages), in place, all tensors in one launch."""
    torch._foreach_lerp_(averages, values, weight)


def sharded_like(part: Tensor, like: DTensor) -> DTensor:
    """This rank's part as a DTensor that is spread as `like` is, on the part's own device, unlike `from_local`."""
    return DTensor(part, like._spec, requires_grad=False)


def local_shape_and_offset(tensor: DTensor) -> tuple[Sequence[int], Sequence[int]]:
    """The shape of this rank's part, and where it begins in the whole tensor."""
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    return compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)


def multiplies_bfloat16(device: torch.device) -> bool:
    """Whether products of bfloat16 matrices are fast: not on a CPU that has no instructions for them."""
    return device.type != "cpu" or torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
