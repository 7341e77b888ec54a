"""The average is the formula's, resumes to the bit, and lends itself to the model without a trace, sharded or not."""

from __future__ import annotations

import contextlib
import datetime
from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist
from support.sequences import one_thread  # noqa: F401
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard

from pipelines.train.ema import Ema

DECAY = 0.97


def model(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    torch.manual_seed(0)
    made = nn.Sequential(nn.Linear(5, 7), nn.Linear(7, 3), nn.Linear(3, 2)).to(dtype)
    made[1].requires_grad_(False)
    return made


def step(trained: nn.Module, number: int) -> None:
    """As an optimiser would: every learning parameter moves, in place."""
    generator = torch.Generator().manual_seed(number)
    with torch.no_grad():
        for parameter in trained.parameters():
            if parameter.requires_grad:
                parameter += torch.randn(parameter.shape, generator=generator).to(parameter.dtype)


def bits(tensors: dict[str, Tensor]) -> dict[str, list[object]]:
    return {name: tensor.detach().flatten().tolist() for name, tensor in tensors.items()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_averages_are_those_of_a_plain_loop_in_float64(dtype: torch.dtype) -> None:
    trained = model(dtype)
    ema = Ema(trained.named_parameters(), DECAY)
    plain = {name: p.detach().double() for name, p in trained.named_parameters() if p.requires_grad}
    for number in range(200):
        step(trained, number)
        ema.update()
        for name, parameter in trained.named_parameters():
            if name in plain:
                plain[name] = DECAY * plain[name] + (1 - DECAY) * parameter.detach().double()
    averages = ema.state_dict()
    assert averages.keys() == plain.keys() == {"0.weight", "0.bias", "2.weight", "2.bias"}
    for name, expected in plain.items():
        assert averages[name].dtype == torch.float32
        torch.testing.assert_close(averages[name].double(), expected, rtol=1e-5, atol=1e-5)


def test_averages_that_are_loaded_go_on_to_the_bit() -> None:
    trained = model()
    whole = Ema(trained.named_parameters(), DECAY)
    for number in range(6):
        step(trained, number)
        whole.update()
        if number == 2:
            saved = {name: average.clone() for name, average in whole.state_dict().items()}
            weights = {name: tensor.clone() for name, tensor in trained.state_dict().items()}
    resumed = model()
    resumed.load_state_dict(weights)
    ema = Ema(resumed.named_parameters(), DECAY)
    ema.load_state_dict(saved)
    for number in range(3, 6):
        step(resumed, number)
        ema.update()
    assert bits(ema.state_dict()) == bits(whole.state_dict())


def test_averages_of_other_parameters_are_refused() -> None:
    ema = Ema(model().named_parameters(), DECAY)
    with pytest.raises(AssertionError, match="not the averages of these"):
        ema.load_state_dict({"0.weight": torch.zeros(7, 5)})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_swapped_puts_the_averages_into_the_model_and_gives_the_weights_back_to_the_bit(dtype: torch.dtype) -> None:
    trained = model(dtype)
    ema = Ema(trained.named_parameters(), DECAY)
    for number in range(3):
        step(trained, number)
        ema.update()
    before, averages = bits(trained.state_dict()), bits(ema.state_dict())
    with contextlib.suppress(RuntimeError), ema.swapped(trained):
        lent = trained.state_dict()
        assert all(torch.equal(lent[name], average.to(dtype)) for name, average in ema.state_dict().items())
        assert lent["1.weight"].flatten().tolist() == before["1.weight"], "what does not learn stays"
        raise RuntimeError("sampling failed")
    assert bits(trained.state_dict()) == before
    assert bits(ema.state_dict()) == averages
    assert trained[0].weight.requires_grad


@pytest.fixture
def one_process() -> Iterator[None]:
    limit = datetime.timedelta(seconds=60)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1, timeout=limit)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("one_process")
def test_a_sharded_model_computes_with_the_averages_even_in_what_it_keeps_gathered() -> None:
    plain, sharded = model(), model()
    fully_shard(sharded[0], mesh=dist.device_mesh.init_device_mesh("cpu", (1,)))
    fully_shard(
        sharded, mesh=dist.device_mesh.init_device_mesh("cpu", (1,))
    )  # the root keeps its weights after a forward pass
    x = torch.ones(4, 5)
    emas = [Ema(each.named_parameters(), DECAY) for each in (plain, sharded)]
    outputs: list[list[Tensor]] = [[], []]
    for each, ema, output in zip((plain, sharded), emas, outputs, strict=True):
        for _ in range(2):
            each(x).square().mean().backward()
            for parameter in each.parameters():
                if parameter.grad is not None:
                    with torch.no_grad():
                        parameter -= parameter.grad
            each.zero_grad()
            ema.update()
        with torch.no_grad():
            output.append(each(x))
            with ema.swapped(each):
                output.append(each(x))
            output.append(each(x))
    assert not torch.allclose(outputs[0][0], outputs[0][1])
    torch.testing.assert_close(outputs[1], outputs[0])
    assert torch.equal(outputs[1][0], outputs[1][2])
    for name, average in emas[1].state_dict().items():
        torch.testing.assert_close(average.full_tensor(), emas[0].state_dict()[name])
