"""The optimiser over the trainable parameters, and the learning rate of each step, a pure function of its number."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from pipelines.train.adamw import LeanAdamW
from pipelines.train.config import OptimizerSettings, ScheduleSettings
from pipelines.train.muon import StackedMuon

MOMENTUM = 0.95
"""Muon's."""


def parameter_groups(model: nn.Module, settings: OptimizerSettings) -> list[dict[str, Any]]:
    """The trainable parameters, in groups of one weight decay each; every one is in one group.

    Matrices of linear layers decay. Norms, biases, embeddings and the trainable table of positions do not.
    """
    matrices = {module.weight for module in model.modules() if isinstance(module, nn.Linear)}
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = (
        ([parameter for parameter in trainable if parameter in matrices], settings.weight_decay),
        ([parameter for parameter in trainable if parameter not in matrices], 0.0),
    )
    return [{"params": parameters, "weight_decay": decay} for parameters, decay in groups if parameters]


def make_optimizer(model: nn.Module, settings: OptimizerSettings) -> Optimizers:
    """Over the trainable parameters, with the state that they begin with. After the model is sharded and frozen.

    Muon (Jordan et al. 2024; torch.optim.Muon) takes the weights of the backbone's linear layers, with steps as
    large as AdamW's (Liu et al. 2025, arXiv 2502.16982): so `lr` means the same for both. AdamW takes the others, or
    all; fused: the foreach kind would plan every step anew over sharded tensors. `LeanAdamW` stands in for it where
    something is stored in fewer bits or elsewhere.
    """
    hidden = _hidden(model) if settings.kind == "muon" else set()
    rest: list[dict[str, Any]] = []
    inner: list[dict[str, Any]] = []
    for group in parameter_groups(model, settings):
        for taken, groups in ((True, inner), (False, rest)):
            parameters = [parameter for parameter in group["params"] if (parameter in hidden) is taken]
            groups += [{**group, "params": parameters}] if parameters else []
    made: list[torch.optim.Optimizer] = []
    if rest:
        made.append(_adamw(model, rest, settings))
    if inner:
        made.append(_muon(inner, settings))
    return Optimizers(made)


class Optimizers:
    """Several optimisers as one, each over its own parameters.

    `state` is what is kept of each parameter, by name. It is there from the start, as it would be made at the first
    step, so that a checkpoint can fill it.
    """

    def __init__(self, optimizers: Sequence[torch.optim.Optimizer]) -> None:
        self._optimizers = optimizers
        self.param_groups = [group for optimizer in optimizers for group in optimizer.param_groups]
        self.state: dict[Tensor, dict[str, Tensor]] = {}
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                for parameter in group["params"]:
                    self.state[parameter] = optimizer.state[parameter] = _state(optimizer, parameter)

    def step(self) -> None:
        """One step along the gradients."""
        for optimizer in self._optimizers:
            optimizer.step()

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for optimizer in self._optimizers:
            optimizer.zero_grad(set_to_none=True)


def _adamw(model: nn.Module, groups: list[dict[str, Any]], settings: OptimizerSettings) -> torch.optim.Optimizer:
    common: dict[str, Any] = {"lr": settings.lr, "betas": settings.betas, "eps": settings.eps}
    eight_bit = settings.states == "8bit"
    wide = all(parameter.dtype == torch.float32 for group in groups for parameter in group["params"])
    if wide and not eight_bit and not settings.offload:
        return torch.optim.AdamW(groups, **common, fused=True)
    names: dict[Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
    return LeanAdamW(groups, names, **common, eight_bit=eight_bit, offload=settings.offload)


def _muon(groups: list[dict[str, Any]], settings: OptimizerSettings) -> torch.optim.Muon:
    """Matrices of one shape together, where they lie whole on this rank."""
    if any(isinstance(parameter, DTensor) for group in groups for parameter in group["params"]):
        return torch.optim.Muon(groups, lr=settings.lr, momentum=MOMENTUM, adjust_lr_fn="match_rms_adamw")
    return StackedMuon(groups, lr=settings.lr, momentum=MOMENTUM)


def _hidden(model: nn.Module) -> set[Tensor]:
    """The weights of linear layers inside the backbone's layers: matrices between hidden states."""
    return {
        module.weight
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and name.startswith(("backbone.layers.", "transformer.layers."))
    }


def _state(optimizer: torch.optim.Optimizer, parameter: Tensor) -> dict[str, Tensor]:
    def zeros() -> Tensor:
        return torch.zeros_like(parameter, memory_format=torch.preserve_format)

    if isinstance(optimizer, LeanAdamW):
        return optimizer.new_state(parameter)
    if isinstance(optimizer, torch.optim.Muon):
        return {"momentum_buffer": zeros()}
    step = torch.zeros((), dtype=torch.float32, device=parameter.device)
    return {"step": step, "exp_avg": zeros(), "exp_avg_sq": zeros()}


def learning_rate(step: int, total: int, optimizer: OptimizerSettings, schedule: ScheduleSettings) -> float:
    """The learning rate of step number `step`, counted from 0, of `total`.

    With w = warmup: for step < w it is lr (step + 1) / (w + 1), so that no step is wasted at zero and step w is
    the first at the full lr. From there, with p = (step - w) / (total - 1 - w), which is 1 at the last step,

        constant: lr
        linear:   lr + (min_lr - lr) p
        cosine:   min_lr + (lr - min_lr) (1 + cos(pi p)) / 2
    """
    lr, warmup, end = optimizer.lr, schedule.warmup, schedule.min_lr
    if step < warmup:
        return lr * (step + 1) / (warmup + 1)
    progress = min(1.0, (step - warmup) / max(1, total - 1 - warmup))
    match schedule.kind:
        case "constant":
            return lr
        case "linear":
            return lr * (1 - progress) + end * progress
        case "cosine":
            share = (1 + math.cos(math.pi * progress)) / 2
            return lr * share + end * (1 - share)
