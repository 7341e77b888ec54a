"""Main layers left out of some sampling steps: what they would give is taken from the steps before.

One cache a guidance branch: the branches' hidden states differ, and so do their sequences. A cache lives for one image
(or one batch of them) and is then gone.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Protocol

from torch import Tensor

from sigma_model.omnigen2.settings import TEACACHE_THRESHOLD, StepCacheKind
from sigma_model.omnigen2.transformer import Frame, ModulatedNorm, Omnigen2Transformer

Joined = Callable[[], Tensor]
"""Gives the main layers' input, [M, D]."""


class StepCache(Protocol):
    """The main layers, or what stands for them: hidden states [M, D] out, and in where they are needed.

    `joined` refines the images and joins them with the text: what continues the output alone spares that, too.
    """

    computed: list[bool]
    """Of each step, whether the layers ran."""

    def __call__(self, joined: Joined, time: Tensor, frame: Frame) -> Tensor: ...


def step_cache(
    kind: StepCacheKind | None, model: Omnigen2Transformer, steps: int, *, threshold: float = TEACACHE_THRESHOLD
) -> StepCache:
    """A fresh cache for one branch of a run of `steps` steps."""
    if kind is StepCacheKind.TEACACHE:
        return TeaCache(model, steps, threshold)
    return TaylorSeer(model) if kind is StepCacheKind.TAYLORSEER else NoCache(model)


class NoCache:
    """Every step computes."""

    def __init__(self, model: Omnigen2Transformer) -> None:
        self._model = model
        self.computed: list[bool] = []

    def __call__(self, joined: Joined, time: Tensor, frame: Frame) -> Tensor:
        self.computed.append(True)
        return self._model.stack(joined(), time, frame)


def teacache_polynomial(r: float) -> float:
    """How far the output moves when the input moved by r, as fitted for OmniGen2."""
    return (((-5.48259225 * r + 11.48772289) * r - 4.47407401) * r + 2.47730926) * r - 0.03316487


class TeaCache:
    """Adds the stored residual of the main layers while little has changed.

    Change is measured on the first layer's modulated input, over all samples of the batch, padded or not: what is not
    there counts nothing. The first and the last step are always computed.
    """

    def __init__(self, model: Omnigen2Transformer, steps: int, threshold: float) -> None:
        self._model = model
        self._steps = steps
        self._threshold = threshold
        self._moved = 0.0
        self._before: Tensor | None = None
        self._residual: Tensor | None = None
        self.computed: list[bool] = []

    def __call__(self, joined: Joined, time: Tensor, frame: Frame) -> Tensor:
        joint, norm = joined(), self._model.layers[0].norm1
        assert isinstance(norm, ModulatedNorm)
        seen = norm(joint, norm.modulation(time)[0].index_select(0, frame.joint_owner))
        if self._before is not None:
            change = (seen - self._before).float().abs().mean() / self._before.float().abs().mean()
            self._moved += teacache_polynomial(float(change))
        self._before = seen
        step = len(self.computed)
        if self._residual is None or step in (0, self._steps - 1) or not self._moved < self._threshold:
            self._moved = 0.0
            out = self._model.stack(joint, time, frame)
            self._residual = out - joint
            self.computed.append(True)
            return out
        self.computed.append(False)
        return joint + self._residual


class TaylorSeer:
    """Continues the main layers' output by finite differences, from step 4 on in every step that is not a third."""

    FIRST, EVERY, ORDER = 4, 3, 4

    def __init__(self, model: Omnigen2Transformer) -> None:
        self._model = model
        self._factors: list[Tensor] = []
        self._at = 0
        self.computed: list[bool] = []

    def __call__(self, joined: Joined, time: Tensor, frame: Frame) -> Tensor:
        step = len(self.computed)
        computes = step <= self.FIRST or (step - self.FIRST) % self.EVERY == 0
        self.computed.append(computes)
        if not computes:
            distance = step - self._at
            series = self._factors[0]
            for order, factor in enumerate(self._factors[1:], 1):
                series = series + factor * (distance**order / math.factorial(order))
            return series
        out = self._model.stack(joined(), time, frame)
        factors = [out]
        if step >= self.FIRST:
            for order in range(min(self.ORDER, len(self._factors))):
                factors.append((factors[order] - self._factors[order]) / (step - self._at))
        self._factors, self._at = factors, step
        return out
