"""Guidance: the formulas of the paper written a second way, where it is on, and what keeps it from growing."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.sequences import generator, one_thread  # noqa: F401
from torch import Tensor

from sigma_model.sampling.guidance import combine
from sigma_model.sampling.settings import Guidance, Rescale

examples = settings(max_examples=60, deadline=None)
strengths = st.one_of(st.floats(1.01, 12), st.sampled_from([0.0, 0.5, 1.0]))
guidances = st.builds(
    Guidance,
    text=strengths,
    image=strengths,
    rescale=st.sampled_from(Rescale),
    rescale_min=st.sampled_from([0.0, 0.3, 1.0]),
)
shapes = st.tuples(st.integers(1, 4), st.integers(1, 5))
seeds = st.integers(0, 10_000)


def velocities(shape: tuple[int, int], seed: int) -> list[Tensor]:
    """Full, without text, without pictures; of different sizes."""
    draw = generator("velocities", shape, seed)
    return [torch.randn(shape, generator=draw) * scale for scale in (1.0, 0.7, 1.6)]


def length(row: list[float]) -> float:
    return math.sqrt(sum(value * value for value in row))


def by_hand(full: Tensor, no_text: Tensor, no_image: Tensor, guidance: Guidance) -> list[list[float]]:
    """Number by number. A strength s takes the unguided one s - 1 times its distance beyond."""
    v, t, i = (x.double().tolist() for x in (full, no_text, no_image))
    rows, columns = range(len(v)), range(len(v[0]))

    def factor(before: float, after: float) -> float:
        return min(max(before / (after + 1e-8), guidance.rescale_min), 1.0)

    out = [list(row) for row in v]
    if guidance.text > 1:
        out = [[out[r][c] + (guidance.text - 1) * (out[r][c] - t[r][c]) for c in columns] for r in rows]
        if guidance.rescale == "text_channel":
            out = [[x * factor(length(v[r]), length(out[r])) for x in out[r]] for r in rows]
    if guidance.image > 1:
        out = [[out[r][c] + (guidance.image - 1) * (out[r][c] - i[r][c]) for c in columns] for r in rows]
    if guidance.rescale == "channel":
        out = [[x * factor(length(v[r]), length(out[r])) for x in out[r]] for r in rows]
    if guidance.rescale == "global":
        whole = factor(length([x for row in v for x in row]), length([x for row in out for x in row]))
        out = [[x * whole for x in row] for row in out]
    return out


@examples
@given(shapes, seeds, guidances)
def test_combine_is_the_formula(shape: tuple[int, int], seed: int, guidance: Guidance) -> None:
    three = velocities(shape, seed)
    expected = torch.tensor(by_hand(*three, guidance))
    torch.testing.assert_close(combine(*three, guidance), expected, atol=1e-4, rtol=1e-4)


def test_the_defaults_are_sigma_s() -> None:
    chosen = Guidance()
    assert (chosen.text, chosen.image, chosen.interval, chosen.rescale) == (4.0, 2.0, (0.0, 1.0), "text_channel")
    assert chosen.rescale_min == 0.0


@examples
@given(shapes, seeds, st.floats(-3, 1), st.floats(-3, 1), st.sampled_from(Rescale))
def test_strengths_of_one_or_less_switch_guidance_off(
    shape: tuple[int, int], seed: int, text: float, image: float, rescale: Rescale
) -> None:
    guidance = Guidance(text=text, image=image, rescale=rescale)
    assert not guidance.uses_text and not guidance.uses_image
    assert not guidance.applies(0.5)
    three = velocities(shape, seed)
    torch.testing.assert_close(combine(*three, guidance), three[0])


@pytest.mark.parametrize("rescale", Rescale)
def test_text_guidance_alone_never_looks_at_the_context_without_pictures(rescale: Rescale) -> None:
    full, no_text, no_image = velocities((3, 4), 1)
    guidance = Guidance(text=3.0, image=1.0, rescale=rescale)
    assert guidance.uses_text and not guidance.uses_image and guidance.applies(0.5)
    found = combine(full, no_text, no_image, guidance)
    assert torch.equal(found, combine(full, no_text, no_image * torch.nan, guidance))
    # With the text's guidance alone, `text_channel` and `channel` are the same.
    direction = no_text + 3.0 * (full - no_text)
    shorter = direction.norm() if rescale is Rescale.GLOBAL else direction.norm(dim=-1, keepdim=True)
    unguided = full.norm() if rescale is Rescale.GLOBAL else full.norm(dim=-1, keepdim=True)
    torch.testing.assert_close(found, direction * (unguided / shorter).clamp(max=1))


def test_image_guidance_alone_is_applied_and_never_looks_at_the_context_without_text() -> None:
    full, no_text, no_image = velocities((3, 4), 2)
    guidance = Guidance(text=1.0, image=2.0)
    assert guidance.uses_image and not guidance.uses_text and guidance.applies(0.5)
    found = combine(full, no_text * torch.nan, no_image, guidance)
    torch.testing.assert_close(found, 2 * full - no_image)


@pytest.mark.parametrize(
    ("interval", "on", "off"),
    [
        ((0.0, 1.0), (1.0, 0.5, 1e-9), (0.0,)),
        ((0.4, 1.0), (0.41, 1.0), (0.4, 0.39, 0.0)),
        ((0.2, 0.8), (0.8, 0.21), (0.2, 0.81, 1.0)),
    ],
)
def test_the_interval_excludes_its_lower_and_includes_its_upper_end(
    interval: tuple[float, float], on: tuple[float, ...], off: tuple[float, ...]
) -> None:
    for text, image in ((4.0, 2.0), (4.0, 1.0), (1.0, 2.0)):
        guidance = Guidance(text=text, image=image, interval=interval)
        assert all(guidance.applies(level) for level in on)
        assert not any(guidance.applies(level) for level in off)


@examples
@given(shapes, seeds, st.floats(1.01, 12), st.floats(1.01, 12))
def test_rescaling_never_makes_a_velocity_longer_than_the_unguided_one(
    shape: tuple[int, int], seed: int, text: float, image: float
) -> None:
    three = velocities(shape, seed)
    full = three[0]
    slack = 1 + 1e-5
    by_channel = combine(*three, Guidance(text=text, image=image, rescale=Rescale.CHANNEL))
    assert (by_channel.norm(dim=-1) <= full.norm(dim=-1) * slack).all()
    whole = combine(*three, Guidance(text=text, image=image, rescale=Rescale.GLOBAL))
    assert whole.norm() <= full.norm() * slack
    text_only = combine(*three, Guidance(text=text, image=1.0, rescale=Rescale.TEXT_CHANNEL))
    assert (text_only.norm(dim=-1) <= full.norm(dim=-1) * slack).all()


@examples
@given(shapes, seeds, guidances, st.sampled_from([0.2, 0.6]))
def test_the_rescaling_factor_lies_between_its_least_and_one(
    shape: tuple[int, int], seed: int, guidance: Guidance, least: float
) -> None:
    three = velocities(shape, seed)
    if guidance.rescale is Rescale.TEXT_CHANNEL:
        guidance = Guidance(text=guidance.text, image=1.0)  # the pictures' guidance follows its rescaling
    free = Guidance(text=guidance.text, image=guidance.image, rescale=guidance.rescale, rescale_min=1.0)
    bounded = Guidance(text=guidance.text, image=guidance.image, rescale=guidance.rescale, rescale_min=least)
    unscaled, found = combine(*three, free), combine(*three, bounded)
    factor = found.norm(dim=-1) / unscaled.norm(dim=-1)
    assert (factor >= least - 1e-5).all() and (factor <= 1 + 1e-5).all()
    torch.testing.assert_close(found, unscaled * factor[:, None], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("rescale", Rescale)
def test_a_guided_velocity_shorter_than_the_unguided_one_stays_as_it_is(rescale: Rescale) -> None:
    full, beyond = torch.tensor([[3.0, 4.0]]), torch.tensor([[6.0, 8.0]])
    found = combine(full, beyond, beyond, Guidance(text=1.5, image=1.0, rescale=rescale))
    torch.testing.assert_close(found, full / 2)


@pytest.mark.parametrize("rescale", Rescale)
def test_velocities_of_zero_stay_finite(rescale: Rescale) -> None:
    zero = torch.zeros(2, 3)
    assert torch.equal(combine(zero, zero, zero, Guidance(rescale=rescale)), zero)


def test_only_global_rescaling_mixes_tokens() -> None:
    three = velocities((3, 4), 5)
    other = [torch.cat((part[:1], 9 * part[1:].flip(0))) for part in three]
    for rescale in Rescale:
        guidance = Guidance(rescale=rescale)
        same = torch.equal(combine(*three, guidance)[0], combine(*other, guidance)[0])
        assert same == (rescale is not Rescale.GLOBAL)
