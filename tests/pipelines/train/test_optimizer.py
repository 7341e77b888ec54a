"""Every parameter that learns is in one group, matrices alone decay, the rate of each step is the formula's."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.sequences import one_thread, tiny_model  # noqa: F401
from torch import Tensor

from pipelines.train.config import FreezeSettings, LoraSettings, OptimizerSettings, ScheduleSettings, TrainConfig
from pipelines.train.freeze import apply_freeze
from pipelines.train.lora import add_lora
from pipelines.train.optimizer import learning_rate, make_optimizer, parameter_groups
from pipelines.train.preflight import check_optimizer
from sigma_data.errors import ConfigError
from sigma_model.model import SigmaModel

SIGMA = OptimizerSettings()


def with_lora() -> SigmaModel:
    model = tiny_model()
    add_lora(model, LoraSettings(train=("time_embedder", "norm_gen")), seed=0)
    return model


def frozen_und() -> SigmaModel:
    model = tiny_model()
    apply_freeze(model, FreezeSettings(und=True))
    return model


@pytest.mark.parametrize("make", [tiny_model, frozen_und, with_lora])
def test_groups_hold_each_learning_parameter_once_and_no_other(make: type[SigmaModel]) -> None:
    model = make()
    groups = parameter_groups(model, OptimizerSettings(weight_decay=0.1))
    held = [id(parameter) for group in groups for parameter in group["params"]]
    assert len(held) == len(set(held))
    assert set(held) == {id(parameter) for parameter in model.parameters() if parameter.requires_grad}


def test_norms_biases_embeddings_and_positions_do_not_decay_and_matrices_do() -> None:
    model = tiny_model(attribute_projection=True)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decay = {
        names[id(parameter)]: group["weight_decay"]
        for group in parameter_groups(model, OptimizerSettings(weight_decay=0.1))
        for parameter in group["params"]
    }
    spared = {name for name, value in decay.items() if value == 0}
    assert spared == {
        name
        for name in decay
        if name.endswith("bias")
        or "norm" in name
        or name in ("backbone.embed.weight", "vision.position_embedding.weight")
    }
    assert {decay[name] for name in decay.keys() - spared} == {0.1}


def test_a_step_of_no_gradient_shrinks_matrices_by_the_decay_alone() -> None:
    model = tiny_model()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = make_optimizer(model, OptimizerSettings(lr=0.5, weight_decay=0.1))
    assert all(group["fused"] and group["betas"] == (0.9, 0.95) for group in optimizer.param_groups)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    after = dict(model.named_parameters())
    torch.testing.assert_close(after["lm_head.weight"], before["lm_head.weight"] * (1 - 0.5 * 0.1))
    assert torch.equal(after["backbone.norm_gen.weight"], before["backbone.norm_gen.weight"])


def orthogonal(matrix: Tensor) -> Tensor:
    """Muon's polynomial, five times, in double precision: all singular values near one."""
    x = matrix.double()
    x = x.T if len(x) > x.shape[1] else x
    x = x / x.norm()
    for _ in range(5):
        square = x @ x.T
        x = 3.4445 * x + (-4.775 * square + 2.0315 * square @ square) @ x
    return x.T if len(matrix) > matrix.shape[1] else x


@pytest.mark.parametrize("steps", [1, 3])
def test_muon_takes_orthogonal_steps_in_the_layers_matrices_and_adamw_the_rest(steps: int) -> None:
    model = tiny_model()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    muon = make_optimizer(model, OptimizerSettings(kind="muon", lr=0.01, weight_decay=0.1))
    other = tiny_model()
    adamw = make_optimizer(other, OptimizerSettings(lr=0.01, weight_decay=0.1))
    generator = torch.Generator().manual_seed(0)
    gradients = [{n: torch.randn(p.shape, generator=generator) for n, p in before.items()} for _ in range(steps)]
    for gradient in gradients:
        for network, optimizer in ((model, muon), (other, adamw)):
            for name, parameter in network.named_parameters():
                parameter.grad = gradient[name].clone()
            optimizer.step()
            optimizer.zero_grad()
    theirs = dict(other.named_parameters())
    taken = 0
    for name, parameter in model.named_parameters():
        if not (name.startswith("backbone.layers.") and parameter.ndim == 2):
            assert torch.equal(parameter, theirs[name]), name
            continue
        taken += 1
        expected, momentum = before[name].double(), torch.zeros_like(before[name])
        for gradient in gradients:
            momentum = torch.lerp(momentum, gradient[name], 0.05)
            step = 0.2 * math.sqrt(max(parameter.shape)) * orthogonal(torch.lerp(gradient[name], momentum, 0.95))
            expected = expected * (1 - 0.01 * 0.1) - 0.01 * step
        moved = (expected - before[name]).norm()
        assert (parameter - expected).norm() < 0.03 * moved, name  # torch computes the polynomial in bfloat16
    assert taken == 2 * 7 * len(model.backbone.layers)


def test_every_optimiser_has_its_state_before_its_first_step_and_keeps_those_tensors() -> None:
    model = tiny_model()
    optimizer = make_optimizer(model, OptimizerSettings(kind="muon", lr=0.01))
    found = {parameter: dict(state) for parameter, state in optimizer.state.items()}
    assert found.keys() == set(model.parameters())
    assert not any(value.any() for state in found.values() for value in state.values())
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    for parameter, state in optimizer.state.items():
        assert state.keys() == found[parameter].keys()
        assert all(value is found[parameter][name] and value.any() for name, value in state.items())


def test_muon_is_refused_where_ranks_share_matrices() -> None:
    config = TrainConfig.model_validate(
        {"out": "o", "steps": 1, "data": {"corpora": [{"path": "c"}]}, "optimizer": {"kind": "muon"}}
    )
    check_optimizer(config, 1)
    with pytest.raises(ConfigError, match="2 ranks would share them: train on one"):
        check_optimizer(config, 2)


def test_sigma_s_schedule_goes_from_its_rate_to_its_least_one_without_warm_up() -> None:
    schedule = ScheduleSettings()
    rates = [learning_rate(step, 50_000, SIGMA, schedule) for step in (0, 49_999, 50_000)]
    assert rates == [2e-5, 1e-7, 1e-7]
    middle = learning_rate(25_000, 50_001, SIGMA, schedule)
    assert middle == pytest.approx((2e-5 + 1e-7) / 2)
    quarter = learning_rate(1000, 4001, SIGMA, schedule)
    assert quarter == pytest.approx(1e-7 + (2e-5 - 1e-7) * (1 + math.sqrt(0.5)) / 2)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("constant", [1 / 4, 2 / 4, 3 / 4, 1, 1, 1, 1, 1]),
        ("linear", [1 / 4, 2 / 4, 3 / 4, 1, 0.8, 0.6, 0.4, 0.2]),
        (
            "cosine",
            [1 / 4, 2 / 4, 3 / 4, 1, *(0.2 + 0.8 * (1 + math.cos(math.pi * p / 4)) / 2 for p in (1, 2, 3)), 0.2],
        ),
    ],
)
def test_the_rate_rises_over_the_warm_up_to_the_full_one_and_ends_at_the_least(
    kind: str, expected: list[float]
) -> None:
    optimizer = OptimizerSettings(lr=10.0)
    schedule = ScheduleSettings(kind=kind, warmup=3, min_lr=2.0)
    assert [learning_rate(step, 8, optimizer, schedule) for step in range(8)] == pytest.approx(
        [10 * x for x in expected]
    )


@given(
    st.integers(1, 30), st.integers(0, 40), st.sampled_from(["constant", "cosine", "linear"]),
)  # fmt: skip
def test_every_rate_is_above_zero_and_at_most_the_full_one(total: int, warmup: int, kind: str) -> None:
    schedule = ScheduleSettings(kind=kind, warmup=warmup)
    assert all(0 < learning_rate(step, total, SIGMA, schedule) <= SIGMA.lr for step in range(total))
