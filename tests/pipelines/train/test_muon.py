"""Muon over stacks of matrices: torch's steps, in an order that depends on nothing but the shapes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from pipelines.train import muon
from pipelines.train.muon import StackedMuon, orthogonal, stacks

SHAPES = ((8, 24), (24, 8), (8, 24), (16, 16), (24, 8))


def parameters() -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(*shape, generator=generator)) for shape in SHAPES]


def trained(optimizer: torch.optim.Optimizer, some: list[nn.Parameter]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    for _ in range(4):
        for parameter in some:
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizer.step()
    return [parameter.detach() for parameter in some]


def stacked(some: list[nn.Parameter], decay: float = 0.1) -> StackedMuon:
    made = StackedMuon([{"params": some, "weight_decay": decay}], lr=0.05, momentum=0.95)
    for parameter in some:
        made.state[parameter] = {"momentum_buffer": torch.zeros_like(parameter)}
    return made


def test_its_steps_are_those_of_torch_but_for_rounding() -> None:
    ours, theirs = parameters(), parameters()
    plain = torch.optim.Muon(theirs, lr=0.05, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw")
    before = parameters()
    for mine, other, start in zip(trained(stacked(ours), ours), trained(plain, theirs), before, strict=True):
        moved = (other - start).norm()
        assert (mine - other).norm() < 0.02 * moved
        assert not torch.equal(mine, start)


def test_it_repeats_itself_to_the_bit() -> None:
    first, second = parameters(), parameters()
    for one, two in zip(trained(stacked(first), first), trained(stacked(second), second), strict=True):
        assert torch.equal(one, two)


def test_what_has_no_gradient_stays() -> None:
    some = parameters()
    optimizer = stacked(some)
    some[0].grad = torch.ones_like(some[0])
    optimizer.step()
    moved = [not torch.equal(one, before) for one, before in zip(some, parameters(), strict=True)]
    assert moved == [True, False, False, False, False]


def test_stacks_hold_one_shape_each_and_not_too_much(monkeypatch: pytest.MonkeyPatch) -> None:
    some = parameters()
    found = [[index for one in stack for index, known in enumerate(some) if one is known] for stack in stacks(some)]
    assert found == [[0, 2], [1, 4], [3]]
    monkeypatch.setattr(muon, "MOST", 200)
    assert [len(stack) for stack in stacks(some)] == [1, 1, 1, 1, 1]


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(3, 8, 24), (3, 24, 8), (1, 16, 16)])
def test_singular_values_come_near_one(
    shape: tuple[int, ...], kind: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(muon, "_type", lambda _device: kind)
    made = orthogonal(
        torch.randn(shape, generator=torch.Generator().manual_seed(0)), (3.4445, -4.7750, 2.0315), 5, 1e-7
    )
    values = torch.linalg.svdvals(made.float())
    assert made.shape == shape and made.dtype == kind and values.min() > 0.4 and values.max() < 1.3
