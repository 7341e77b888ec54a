"""Positions and noise levels: the stored tables can be recomputed, the formulas are the papers'."""

from __future__ import annotations

import math

import pytest
import torch
from safetensors.torch import load_file
from support.places import TESTS

from sigma_model.embed import TimeEmbedder, rotary, rotate, shifted_time, sincos_table

GOLDEN = TESTS / "golden" / "model.safetensors"


@pytest.mark.parametrize("name", ["latent_pos_embed.pos_embed", "vit_pos_embed.pos_embed"])
def test_the_fixed_position_tables_of_a_checkpoint_can_be_recomputed(name: str) -> None:
    stored = load_file(GOLDEN)[name]
    made = sincos_table(math.isqrt(len(stored)), stored.shape[1])
    torch.testing.assert_close(made, stored, atol=1e-6, rtol=0)


def test_rotary_products_depend_on_the_distance_of_positions_alone() -> None:
    torch.manual_seed(0)
    q, k = torch.randn(2, 1, 1, 16)

    def product(at_q: int, at_k: int) -> float:
        turned = [rotate(x, *rotary(torch.tensor([at]), 16, 1e6)) for x, at in ((q, at_q), (k, at_k))]
        return float((turned[0] * turned[1]).sum())

    assert product(3, 1) == pytest.approx(product(103, 101), abs=1e-4)
    assert product(3, 1) != pytest.approx(product(3, 2), abs=1e-4)
    assert product(0, 0) == pytest.approx(float((q * k).sum()), abs=1e-6)


@pytest.mark.parametrize("shift", [1.0, 2.0, 3.0])
def test_noise_levels_are_shifted_sigmoids(shift: float) -> None:
    u = torch.tensor([-math.inf, -1.0, 0.0, 2.0, math.inf])
    plain = [0.0, 1 / (1 + math.e), 0.5, 1 / (1 + math.exp(-2)), 1.0]
    expected = [shift * t / (1 + (shift - 1) * t) for t in plain]
    assert shifted_time(u, shift).tolist() == pytest.approx(expected)


def test_time_features_are_cosines_then_sines_of_falling_frequency() -> None:
    embedder = TimeEmbedder(256)
    seen: list[torch.Tensor] = []
    embedder.fc1.register_forward_hook(lambda _module, inputs, _output: seen.append(inputs[0]))
    embedder(torch.tensor([0.0, 0.7]))
    frequencies = [10000 ** (-i / 128) for i in range(128)]
    assert seen[0][0].tolist() == [1.0] * 128 + [0.0] * 128
    expected = [math.cos(0.7 * f) for f in frequencies] + [math.sin(0.7 * f) for f in frequencies]
    assert seen[0][1].tolist() == pytest.approx(expected, abs=1e-6)
