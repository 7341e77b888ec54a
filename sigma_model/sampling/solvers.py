"""How a step is made from velocities: Euler, Heun, DPM-Solver++. All of a step's arithmetic is in float32."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Protocol

from torch import Tensor

from sigma_model.sampling.settings import Solver

Velocity = Callable[[Tensor, float], Tensor]
"""The velocity at a point and a noise level."""


class StepSolver(Protocol):
    """Steps of one run, from noise level 1 down to 0."""

    def step(self, x: Tensor, velocity: Tensor, level: float, following: float, evaluate: Velocity) -> Tensor:
        """From `x` at `level`, where its `velocity` is known, to the `following` level."""


def step_solver(solver: Solver) -> StepSolver:
    """A solver for one run."""
    if solver is Solver.EULER:
        return Euler()
    return Heun() if solver is Solver.HEUN else Dpmpp()


class Euler:
    """x - v dt."""

    def step(self, x: Tensor, velocity: Tensor, level: float, following: float, evaluate: Velocity) -> Tensor:
        return x - velocity * (level - following)


class Heun:
    """Euler's step, then again with the mean of the velocities at both ends; the last step has one end."""

    def step(self, x: Tensor, velocity: Tensor, level: float, following: float, evaluate: Velocity) -> Tensor:
        ahead = x - velocity * (level - following)
        if following <= 0:
            return ahead
        return x - (velocity + evaluate(ahead, following)) * ((level - following) / 2)


class Dpmpp:
    """`DataPrediction` in noise levels: time is 1 - level, and the velocity points from noise to data."""

    def __init__(self) -> None:
        self._inner = DataPrediction()

    def step(self, x: Tensor, velocity: Tensor, level: float, following: float, evaluate: Velocity) -> Tensor:
        return self._inner.step(x, -velocity, 1 - level, 1 - following, last=following <= 0)


class DataPrediction:
    """DPM-Solver++ (2M, arXiv 2211.01095) of a flow from noise (time 0) to data (time 1): one instance a latent.

    Data prediction x1 = x + s v with s = 1 - t; lambda = log(t / s) is infinite at both ends, where the step is of
    first order.
    """

    def __init__(self) -> None:
        self._before: tuple[Tensor, float] | None = None

    def step(self, x: Tensor, velocity: Tensor, time: float, following: float, *, last: bool) -> Tensor:
        """From `x` at `time` to the `following` time; `last`: that one is 1."""
        data = x + (1 - time) * velocity
        before, self._before = self._before, (data, _lambda(time))
        if last:
            return data  # s becomes 0
        width = _lambda(following) - _lambda(time)
        shrink = math.exp(-width)  # 0 at the first step
        out = (1 - following) / (1 - time) * x + following * (1 - shrink) * data
        if before is not None and math.isfinite(before[1]):
            ratio = (_lambda(time) - before[1]) / width
            out = out + 0.5 * following * (1 - shrink) * (data - before[0]) / ratio
        return out


def _lambda(time: float) -> float:
    return math.log(time / (1 - time)) if 0 < time < 1 else math.copysign(math.inf, time - 0.5)
