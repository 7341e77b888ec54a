"""This rank's part of a tensor, which may be sharded by rows (a DTensor) or whole."""

from __future__ import annotations

from torch import Tensor
from torch.distributed.tensor import DTensor

from sigma_model.torch_compat import local_shape_and_offset


def local_part(tensor: Tensor) -> Tensor:
    """The part of a tensor that this rank holds, sharing its memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def held_rows(tensor: Tensor) -> tuple[int, int]:
    """The rows [first, last) of a tensor that this rank holds."""
    if not isinstance(tensor, DTensor):
        return 0, len(tensor)
    shape, offset = local_shape_and_offset(tensor)
    return (offset[0], offset[0] + shape[0]) if shape[0] else (0, 0)
