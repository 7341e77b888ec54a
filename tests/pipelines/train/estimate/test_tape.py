"""The tape keeps what autograd keeps of an operation, whatever is trained."""

from __future__ import annotations

from itertools import product

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipelines.train.estimate.tape import Tape, Value
from sigma_model.lora_linear import LoraLinear

ROWS, WIDTH, OUT, RANK = 5, 8, 12, 3
SHAPES = {
    "w.weight": (OUT, WIDTH), "w.bias": (OUT,), "w.lora_A.weight": (RANK, WIDTH), "w.lora_B.weight": (OUT, RANK),
    "up.weight": (OUT, WIDTH), "down.weight": (WIDTH, OUT),
}  # fmt: skip


class Counter:
    """Numbers that autograd keeps, without parameters."""

    def __init__(self, *parameters: Tensor) -> None:
        self._own = {one.untyped_storage().data_ptr() for one in parameters}
        self._kept: dict[int, Tensor] = {}

    def __call__(self, tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in self._own:
            self._kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    @property
    def numbers(self) -> int:
        return sum(one.untyped_storage().nbytes() // 4 for one in self._kept.values())


def trained_of(module: nn.Module, name: str, flags: dict[str, bool]) -> set[str]:
    for part, parameter in module.named_parameters():
        parameter.requires_grad_(flags[f"{name}.{part}"])
    return {one for one, trained in flags.items() if trained}


@pytest.mark.parametrize("needs", [False, True])
@pytest.mark.parametrize("flags", list(product([False, True], repeat=4)))
def test_a_linear_layer_with_an_adapter(needs: bool, flags: tuple[bool, ...]) -> None:
    layer = LoraLinear(nn.Linear(WIDTH, OUT), RANK, 1.0)
    trained = trained_of(layer, "w", dict(zip(list(SHAPES)[:4], flags, strict=True)))
    tape, counter = Tape(SHAPES, trained), Counter(*layer.parameters())
    with torch.autograd.graph.saved_tensors_hooks(counter, lambda tensor: tensor):
        out = layer(torch.ones(ROWS, WIDTH, requires_grad=needs))
    found = tape.linear("w", Value(ROWS, WIDTH, needs))
    assert tape.numbers == counter.numbers
    assert (found.rows, found.width, found.needs) == (ROWS, OUT, out.requires_grad)


@pytest.mark.parametrize("needs", [False, True])
@pytest.mark.parametrize("flags", list(product([False, True], repeat=3)))
def test_a_gated_mlp(needs: bool, flags: tuple[bool, ...]) -> None:
    gate, up, down = (nn.Linear(*sides, bias=False) for sides in ((WIDTH, OUT), (WIDTH, OUT), (OUT, WIDTH)))
    trained = set()
    for name, layer, flag in zip(("w", "up", "down"), (gate, up, down), flags, strict=True):
        trained |= trained_of(layer, name, {f"{name}.weight": flag})
    tape, counter = Tape(SHAPES, trained), Counter(gate.weight, up.weight, down.weight)
    with torch.autograd.graph.saved_tensors_hooks(counter, lambda tensor: tensor):
        x = torch.ones(ROWS, WIDTH, requires_grad=needs)
        out = down(F.silu(gate(x)) * up(x))
    found = tape.gated_mlp("w", "up", "down", Value(ROWS, WIDTH, needs))
    assert found.needs == out.requires_grad
    assert tape.numbers == counter.numbers
