"""AdamW in fewer bits: right on average, the same on any ranks, exact on resume, and as good as float32 on a model."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from support import ranks
from support.sequences import case, generator, one_thread, pack, tiny_model  # noqa: F401
from support.training_runs import run, same, saved, settings_of
from torch import Tensor

from pipelines.train.adamw import pack_first, pack_second, to_bfloat16, unpack_first, unpack_second
from pipelines.train.config import OptimizerSettings, ParallelSettings, TrainConfig
from pipelines.train.distributed.parallelize import parallelize
from pipelines.train.distributed.process_group import start_process_group, stop_process_group
from pipelines.train.optimizer import Optimizers, make_optimizer
from sigma_model.model import SigmaModel

LEAN = {"states": "8bit"}


def settings(**given: Any) -> OptimizerSettings:
    return OptimizerSettings(**{"lr": 1e-3, "eps": 1e-15, **given})


def train(model: SigmaModel, optimizer: Optimizers, steps: int, *, first: int = 0) -> list[float]:
    """Losses of steps on a pack of its own noise each."""
    losses = []
    for step in range(first, first + steps):
        inputs = pack([case("<style> a <image_1> <subject> b <image_2>", pictures=3)] * 2, seed=step % 4)
        out = model(inputs, model.clean_latents(inputs, inputs.known_latents))
        loss = out.mse.float().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def flat(model: SigmaModel) -> Tensor:
    return torch.cat([parameter.detach().float().flatten() for parameter in model.parameters()])


# Rounding -------------------------------------------------------------------------------------------


def test_numbers_rounded_to_bfloat16_are_right_on_average_and_never_further_than_the_next() -> None:
    value = torch.tensor([1.0, 1 + 2**-10, -3.001, 1e-30, 0.0, 65504.3]).repeat(40_000, 1)
    bits = torch.randint(2**16, value.shape, generator=generator("bits"), dtype=torch.int32)
    found = to_bfloat16(value, bits).float()
    assert ((found - value).abs() <= value.abs() * 2**-7).all()
    torch.testing.assert_close(found.mean(0), value[0], rtol=1e-4, atol=0)
    assert set(found[:, 0].tolist()) == {1.0}, "what bfloat16 holds stays"
    assert set(found[:, 4].tolist()) == {0.0}


def test_infinities_and_nan_stay_what_they_are() -> None:
    value = torch.tensor([float("inf"), -float("inf"), float("nan")])
    found = to_bfloat16(value, torch.full((3,), 2**16 - 1, dtype=torch.int32))
    assert found[0] == float("inf") and found[1] == -float("inf") and found[2].isnan()


@pytest.mark.parametrize("second", [False, True])
def test_packed_moments_are_right_on_average_within_a_step_and_exact_at_a_block_s_largest(second: bool) -> None:
    moment = torch.randn(3, 600, generator=generator("moment")) * torch.logspace(-6, 2, 600)
    moment[1] = 0
    moment = moment.square() if second else moment
    packing, unpacking = (pack_second, unpack_second) if second else (pack_first, unpack_first)
    total = torch.zeros_like(moment)
    for draw in range(200):
        codes, scales = packing(moment, torch.rand(moment.shape, generator=generator("chance", draw)))
        assert codes.dtype == torch.uint8 and scales.shape == (3, 3)
        total += unpacking(codes, scales)
    largest = scales.repeat_interleave(256, 1)[:, :600]
    visible = moment.abs() > largest * 1e-3
    torch.testing.assert_close((total / 200)[visible], moment[visible], rtol=0.03, atol=0)
    torch.testing.assert_close(
        (total / 200)[moment.abs() == largest], moment[moment.abs() == largest], rtol=1e-4, atol=0
    )
    assert (total[1] == 0).all()


def test_a_second_moment_never_becomes_zero_however_far_below_its_block_s_largest() -> None:
    moment = torch.logspace(-30, 0, 256)[None]
    codes, scales = pack_second(moment, torch.full_like(moment, 0.999999))
    found = unpack_second(codes, scales)
    assert (found > 0).all(), "with eps 1e-15 a step would be 1e15 times too long"
    assert (found >= moment * 0.89).all()


# Learning -------------------------------------------------------------------------------------------


def test_with_float32_all_through_it_is_torch_s_adamw() -> None:
    pair = [tiny_model(), tiny_model()]
    made = [
        make_optimizer(pair[0], settings(weight_decay=0.1)),
        make_optimizer(pair[1], settings(weight_decay=0.1, offload=True)),
    ]
    for step in range(5):
        for model, optimizer in zip(pair, made, strict=True):
            for name, parameter in model.named_parameters():
                parameter.grad = torch.randn(parameter.shape, generator=generator(step, name)) * 1e-6
            optimizer.step()
    torch.testing.assert_close(flat(pair[1]), flat(pair[0]), rtol=1e-6, atol=1e-7)


@pytest.mark.slow
def test_small_steps_move_bfloat16_weights_as_far_as_float32_ones_on_average() -> None:
    """Steps of 2e-5 are below half of bfloat16's last bit for nearly all weights: to the nearest, they would stay."""
    wide = tiny_model(dtype=torch.bfloat16).float()
    narrow, nearest = tiny_model(dtype=torch.bfloat16), tiny_model(dtype=torch.bfloat16)
    start = flat(wide)
    steps = 40
    train(wide, make_optimizer(wide, settings(lr=2e-5)), steps)
    train(narrow, make_optimizer(narrow, settings(lr=2e-5)), steps)
    train(nearest, Optimizers([torch.optim.AdamW(nearest.parameters(), lr=2e-5, eps=1e-15, weight_decay=0.0)]), steps)
    moved = [float((flat(model) != start).double().mean()) for model in (wide, narrow, nearest)]
    trainable = (flat(wide) - start).abs() > 1e-4  # what has gone five steps in one direction
    shift = [(flat(model) - start)[trainable] for model in (wide, narrow, nearest)]
    sign = shift[0].sign()
    gone = [float((part * sign).mean() / (shift[0] * sign).mean()) for part in shift]
    assert moved[2] < 0.1 < moved[1], moved
    assert gone[2] < 0.2, gone
    assert gone[1] == pytest.approx(1, abs=0.25), gone


@pytest.fixture(scope="module")
def float32_losses() -> list[float]:
    model = tiny_model()
    return train(model, make_optimizer(model, settings()), 60)


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "given"), [(torch.float32, LEAN), (torch.bfloat16, {}), (torch.bfloat16, LEAN)])
def test_losses_fall_as_with_float32(dtype: torch.dtype, given: dict[str, Any], float32_losses: list[float]) -> None:
    lean = tiny_model(dtype=dtype)
    found = train(lean, make_optimizer(lean, settings(**given)), len(float32_losses))
    falls = [losses[0] - sum(losses[-12:]) / 12 for losses in (float32_losses, found)]
    assert falls[0] > 0.5 * float32_losses[0]
    assert falls[1] == pytest.approx(falls[0], rel=0.05)


# Ranks and resuming ---------------------------------------------------------------------------------


def stepped(given: dict[str, Any], dtype: torch.dtype) -> dict[str, Tensor]:
    """Parameters and states after three steps along gradients that are the same however many ranks there are."""
    group = start_process_group(ParallelSettings(), device="cpu", timeout_s=20)
    model = tiny_model(dtype=dtype)
    parallelize(model, group, ParallelSettings(), dtype=dtype)
    optimizer = make_optimizer(model, settings(**given))
    for step in range(3):
        for name, parameter in model.named_parameters():
            whole = torch.randn(parameter.shape, generator=generator(step, name)).to(dtype)
            parameter.grad = torch.zeros_like(parameter)
            target = parameter.grad
            if isinstance(target, torch.distributed.tensor.DTensor):
                part = torch.distributed.tensor.distribute_tensor(whole, target.device_mesh, target.placements)
                target.to_local().copy_(part.to_local())
            else:
                target.copy_(whole)
        optimizer.step()
    state: dict[str, Tensor] = {name: parameter.detach() for name, parameter in model.named_parameters()}
    for name, parameter in model.named_parameters():
        state |= {f"{name}.{what}": value for what, value in optimizer.state[parameter].items()}
    found = {name: tensor.clone() for name, tensor in ranks.full_state_on_rank0(state, group)}
    stop_process_group()
    return found


@pytest.mark.slow
@pytest.mark.parametrize("given", [{}, LEAN, {**LEAN, "offload": True}])
def test_three_ranks_take_the_steps_of_one_to_the_bit(given: dict[str, Any]) -> None:
    one = stepped(given, torch.bfloat16)
    assert same(one, ranks.run(stepped, 3, given, torch.bfloat16)[0])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("optimizer", "master"),
    [(LEAN, "float32"), ({**LEAN, "offload": True}, "bfloat16"), ({}, "bfloat16")],
    ids=["8bit", "8bit offloaded bfloat16", "bfloat16"],
)
def test_a_run_in_fewer_bits_goes_on_to_the_bit(
    tmp_path: Path, training_corpus: Path, optimizer: dict[str, Any], master: str
) -> None:
    model = {"master": master, "dtype": master}
    given = settings_of(
        tmp_path, training_corpus, steps=4, model=model, optimizer=optimizer, checkpoint={"every": 2, "keep": 5}
    )
    run(given)
    last = saved(tmp_path)
    assert any(tensor.dtype == torch.uint8 for tensor in last.values()) == (optimizer != {})
    assert all(tensor.dtype == torch.float32 for name, tensor in last.items() if name.startswith("ema/")), "bits enough"
    shutil.rmtree(tmp_path / "checkpoints" / "step-00000004")
    run(given)
    assert same(saved(tmp_path), last)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"optimizer": {"kind": "muon"}, "model": {"master": "bfloat16"}}, "model.master bfloat16: is for"),
        ({"optimizer": {"kind": "muon", "states": "8bit"}}, "optimizer.states 8bit: is for"),
        ({"optimizer": {"kind": "muon", "offload": True}}, "optimizer.offload: is for"),
        ({"accumulate": 65, "model": {"master": "bfloat16"}}, "would add up in bfloat16"),
    ],
)
def test_what_would_lose_bits_all_the_same_is_refused(given: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=words):
        TrainConfig.model_validate(settings_of(tmp_path, tmp_path, **given))
