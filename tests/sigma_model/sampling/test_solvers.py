"""Steps made from velocities: the order of each solver, and where they are exact."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from sigma_model.sampling.sampler import times
from sigma_model.sampling.settings import Solver
from sigma_model.sampling.solvers import step_solver


def solved(solver: Solver, steps: int, *, curve: float) -> float:
    """From x = 1 at level 1 to level 0 along dx/dt = curve x, in float64."""

    def velocity(x: Tensor, level: float) -> Tensor:
        return curve * x

    x = torch.ones(1, dtype=torch.float64)
    levels = times(steps + 1, 1.0)
    made = step_solver(solver)
    for level, following in pairwise(levels):
        x = made.step(x, velocity(x, level), level, following, velocity)
    return float(x)


@pytest.mark.parametrize(("solver", "least"), [(Solver.EULER, 1.8), (Solver.HEUN, 3.3)])
def test_half_the_step_divides_the_error_by_the_order_of_the_solver(solver: Solver, least: float) -> None:
    exact = math.exp(-1.5)
    errors = [abs(solved(solver, steps, curve=1.5) - exact) for steps in (16, 32)]
    assert errors[0] / errors[1] > least


def test_the_second_order_solvers_need_fewer_evaluations() -> None:
    exact = math.exp(-1.5)
    euler, heun, dpmpp = (
        abs(solved(solver, steps, curve=1.5) - exact)
        for solver, steps in ((Solver.EULER, 16), (Solver.HEUN, 8), (Solver.DPMPP, 16))
    )
    assert heun < euler / 3 and dpmpp < euler / 2


@pytest.mark.parametrize("solver", list(Solver))
def test_a_straight_way_is_walked_exactly(solver: Solver) -> None:
    data, x = torch.tensor([2.0, -1.0]), torch.tensor([0.5, 0.5])

    def velocity(x: Tensor, level: float) -> Tensor:
        return (x - data) / level

    levels, made = times(6, 3.0), step_solver(solver)
    for level, following in pairwise(levels):
        x = made.step(x, velocity(x, level), level, following, velocity)
    torch.testing.assert_close(x, data, atol=1e-5, rtol=0)
