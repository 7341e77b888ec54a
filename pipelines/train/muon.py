"""Muon whose Newton-Schulz iterations run over all matrices of one shape at once: sooner done where they are small.

The same steps as `torch.optim.Muon`, but for the rounding of products.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from sigma_model.torch_compat import multiplies_bfloat16

MOST = 1 << 25
"""Numbers in a stack of matrices: larger matrices gain nothing from company, and their copies would take memory."""


class StackedMuon(torch.optim.Muon):
    """`torch.optim.Muon` over plain tensors, with `match_rms_adamw`.

    Which matrices run together depends on their order and shapes alone: a resumed run repeats itself to the bit.
    """

    def __init__(self, groups: list[dict[str, Any]], *, lr: float, momentum: float) -> None:
        super().__init__(groups, lr=lr, momentum=momentum, adjust_lr_fn="match_rms_adamw")

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]  # nothing to return
        """One step of the parameters that have a gradient; without a closure."""
        assert closure is None, "gradients are there already"
        for group in self.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            for some in stacks(parameters):
                updates: list[Tensor] = []
                for parameter in some:
                    gradient, buffer = parameter.grad, self.state[parameter]["momentum_buffer"]
                    assert gradient is not None
                    buffer.lerp_(gradient, 1 - group["momentum"])
                    updates.append(gradient.lerp(buffer, group["momentum"]))
                made = orthogonal(torch.stack(updates), group["ns_coefficients"], group["ns_steps"], group["eps"])
                rate = group["lr"] * 0.2 * max(some[0].shape) ** 0.5  # Liu et al. 2025, arXiv 2502.16982
                for parameter, update in zip(some, made, strict=True):
                    parameter.mul_(1 - group["lr"] * group["weight_decay"])
                    parameter.add_(update, alpha=-rate)


def stacks(parameters: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """The parameters in lists of one shape, type and device each, in order, of at most MOST numbers or one of them."""
    alike: dict[tuple[Any, ...], list[Tensor]] = {}
    for parameter in parameters:
        alike.setdefault((parameter.shape, parameter.dtype, parameter.device), []).append(parameter)
    for some in alike.values():
        room = max(1, MOST // max(1, some[0].numel()))
        for first in range(0, len(some), room):
            yield some[first : first + room]


def orthogonal(matrices: Tensor, coefficients: tuple[float, float, float], steps: int, eps: float) -> Tensor:
    """Matrices [n, rows, columns] -> with singular values near 1 (Jordan et al. 2024).

    A step is X <- a X + (b G + c G G) X with G = X X^T, from X of Frobenius norm 1.
    """
    a, b, c = coefficients
    x = matrices.to(_type(matrices.device))
    tall = x.shape[1] > x.shape[2]
    if tall:
        x = x.mT.contiguous()
    x = x / torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True).clamp(min=eps)
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


def _type(device: torch.device) -> torch.dtype:
    """Of the products: bfloat16, but float32 on a CPU without instructions for it, which takes 20 times as long."""
    return torch.bfloat16 if multiplies_bfloat16(device) else torch.float32
