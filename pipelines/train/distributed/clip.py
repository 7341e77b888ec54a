"""The norm of gradients over all ranks, and their scaling."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from pipelines.train.distributed.process_group import ProcessGroup


@torch.no_grad()
def clip_grad_norm(parameters: Iterable[Tensor], group: ProcessGroup, max_norm: float) -> Tensor:
    """Scale gradients down to a norm of `max_norm` over all ranks; returns the norm before, [] float32.

    Nothing waits for the device. A norm that is not finite makes every gradient NaN or zero: do not step then.
    Sharded gradients are added up over the ranks that share them; plain ones must be the same on all ranks.
    """
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    sharded = [gradient.to_local() for gradient in gradients if isinstance(gradient, DTensor)]
    plain = [gradient for gradient in gradients if not isinstance(gradient, DTensor)]
    device = next((gradient.device for gradient in (*sharded, *plain)), group.device)
    squares = _squares(sharded, device)
    if group.mesh is not None:
        # Over all ranks, copies included: sums in another order would let the copies drift apart.
        dist.all_reduce(squares)
        squares /= group.size // group.mesh["shard"].size()
    norm = (squares + _squares(plain, device)).sqrt()
    factor = (max_norm / (norm + 1e-6)).clamp(max=1.0)
    for gradient in (*sharded, *plain):
        gradient.mul_(factor.to(gradient.dtype))
    return norm.to(group.device)


def _squares(tensors: list[Tensor], device: torch.device) -> Tensor:
    """The sum of squares of tensors, [] float32."""
    norms = [torch.linalg.vector_norm(tensor, dtype=torch.float32) for tensor in tensors]
    return torch.stack(norms).square().sum() if norms else torch.zeros((), device=device)
