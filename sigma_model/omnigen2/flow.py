"""The rectified flow: times, mixtures and the loss. Time 0 is noise and 1 is data; the velocity is data - noise."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sigma_model.attention import Backend
from sigma_model.omnigen2.pack import Bound, DiffusionSample
from sigma_model.omnigen2.settings import TimeShift as TimeShift
from sigma_model.omnigen2.transformer import Omnigen2Transformer

STATIC_TOKENS = 4096
"""Target tokens that the static shift takes every sample to have."""


def training_time(u: Tensor, tokens: int, *, shift: TimeShift = TimeShift.V1, static: bool = False) -> Tensor:
    """Times of standard normal draws `u` for targets of so many tokens, in float32."""
    plain = u.float().sigmoid()
    return plain / (plain + shift.factor(STATIC_TOKENS if static else tokens) * (1 - plain))


def mixture(data: Tensor, noise: Tensor, time: Tensor | float) -> Tensor:
    """The latent at a time, in float32."""
    return time * data.float() + (1 - time) * noise.float()


def sampling_times(steps: int, height: int, width: int, *, dynamic: bool = True) -> list[float]:
    """Steps + 1 times from 0 to 1 for a latent of height x width; `dynamic` shifts them by sqrt(height width) / 40."""
    if steps < 1:
        raise ValueError(f"{steps} steps: at least one is needed")
    factor = math.sqrt(height * width) / 40 if dynamic else 1.0
    plain = [number / steps for number in range(steps + 1)]
    return [tau / (tau + factor * (1 - tau)) for tau in plain]


@dataclass(frozen=True)
class FlowLoss:
    """Sums, not means: what is averaged, and over what, is for whoever knows all ranks and packs of a step.

    `squared_errors` [S]: summed over a sample's latent. `elements`: numbers in all targets. `velocities`: a
    latent [z, h, w] a sample.
    """

    squared_errors: Tensor
    elements: int
    velocities: list[Tensor]

    @property
    def mean(self) -> Tensor:
        """Mean over the elements of these samples: a large image weighs as much as its share of elements."""
        return self.squared_errors.sum() / self.elements


@dataclass(frozen=True)
class FlowTarget:
    """The clean latent `data` and the `noise` of a sample, [z, h, w]; `time` in [0, 1]."""

    data: Tensor
    noise: Tensor
    time: Tensor | float
    text: Tensor
    references: tuple[Tensor, ...] = ()
    bound: Bound = ()


def flow_loss(
    model: Omnigen2Transformer, targets: Sequence[FlowTarget], *, backend: Backend = Backend.AUTO
) -> FlowLoss:
    """The squared errors of the predicted velocities; no weighting by time. Raises ConfigError as the model does."""
    samples = [
        DiffusionSample(one.text, mixture(one.data, one.noise, one.time), one.time, one.references, one.bound)
        for one in targets
    ]
    velocities = model(samples, backend=backend)
    errors = [
        ((velocity - (one.data.float() - one.noise.float())) ** 2).sum()
        for velocity, one in zip(velocities, targets, strict=True)
    ]
    return FlowLoss(torch.stack(errors), sum(one.data.numel() for one in targets), velocities)
