"""AdamW over what learns, and the learning rate of each step, a pure function of its number."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from pipelines.train.config import OptimizerSettings, ScheduleSettings


def parameter_groups(model: nn.Module, settings: OptimizerSettings) -> list[dict[str, Any]]:
    """The parameters that learn, in groups of one weight decay each; every one is in one group.

    Matrices of linear layers decay. Norms, biases, embeddings and the learned table of positions do not.
    """
    matrices = {module.weight for module in model.modules() if isinstance(module, nn.Linear)}
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = (
        ([parameter for parameter in learning if parameter in matrices], settings.weight_decay),
        ([parameter for parameter in learning if parameter not in matrices], 0.0),
    )
    return [{"params": parameters, "weight_decay": decay} for parameters, decay in groups if parameters]


def make_optimizer(model: nn.Module, settings: OptimizerSettings) -> torch.optim.AdamW:
    """AdamW over the parameters that learn. To be made after the model is sharded and frozen.

    Fused: the foreach kind would plan every step anew over sharded tensors.
    """
    groups = parameter_groups(model, settings)
    return torch.optim.AdamW(groups, lr=settings.lr, betas=settings.betas, eps=settings.eps, fused=True)


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
