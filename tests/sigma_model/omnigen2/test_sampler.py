"""Sampling: each request as alone, from its noise alone, whatever was asked before."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from support import omnigen2

from sigma_data.errors import ConfigError
from sigma_model.omnigen2.flow import sampling_times
from sigma_model.omnigen2.sampler import SamplingRequest, Step, sample
from sigma_model.omnigen2.settings import Omnigen2Sampling, StepCacheKind
from sigma_model.omnigen2.step_cache import teacache_polynomial
from sigma_model.sampling.settings import CacheMethod, Solver, StepCaching

MODEL = omnigen2.model()
TAYLOR = StepCaching(CacheMethod.TAYLOR)


def request(seed: int, *, target: tuple[int, int] = (2, 3), references: int = 0) -> SamplingRequest:
    made = omnigen2.sample(seed, text=4, target=target, references=[(1 + n, 2) for n in range(references)])
    return SamplingRequest(made.text, omnigen2.sample(seed + 50, text=2).text, made.latent, made.references)


REQUESTS = [request(1, references=2), request(2, target=(4, 4)), request(3, target=(1, 5), references=1)]


@pytest.mark.slow
@pytest.mark.parametrize("solver", list(Solver))
@pytest.mark.parametrize("scales", [(1.0, 1.0), (4.0, 1.0), (4.0, 2.0)])
def test_requests_of_different_sizes_and_references_give_what_each_gives_alone(
    scales: tuple[float, float], solver: Solver
) -> None:
    settings = Omnigen2Sampling(steps=3, text_scale=scales[0], image_scale=scales[1], sampler=solver)
    together = sample(MODEL, REQUESTS, settings)
    for found, one in zip(together, REQUESTS, strict=True):
        torch.testing.assert_close(found, sample(MODEL, [one], settings)[0], atol=1e-4, rtol=1e-4)


@pytest.mark.slow
def test_a_cache_does_not_stay_for_the_next_call() -> None:
    plain, seer = (Omnigen2Sampling(steps=8, cache=cache) for cache in (None, StepCacheKind.TAYLORSEER))
    before = sample(MODEL, REQUESTS, plain)
    cached = sample(MODEL, REQUESTS, seer)
    after = sample(MODEL, REQUESTS, plain)
    assert all(torch.equal(*pair) for pair in zip(before, after, strict=True))
    assert not torch.equal(before[0], cached[0])


@pytest.mark.parametrize("cache", [None, *StepCacheKind])
def test_the_global_random_state_has_no_part_in_an_image(cache: StepCacheKind | None) -> None:
    settings = Omnigen2Sampling(steps=6, cache=cache, threshold=10.0)
    torch.manual_seed(1)
    first, state = sample(MODEL, REQUESTS[:1], settings)[0], torch.get_rng_state()
    torch.manual_seed(2)
    second = sample(MODEL, REQUESTS[:1], settings)[0]
    assert torch.equal(first, second)
    torch.manual_seed(1)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.slow
def test_caches_leave_steps_out_and_a_threshold_of_zero_none() -> None:
    steps: list[Step] = []
    sample(MODEL, REQUESTS, Omnigen2Sampling(steps=9, cache=StepCacheKind.TAYLORSEER), watch=steps.append)
    assert [one.computed[0] for one in steps] == [True] * 5 + [False, False, True, False]
    plain = sample(MODEL, REQUESTS, Omnigen2Sampling(steps=5))
    steps.clear()
    cached = Omnigen2Sampling(steps=5, cache=StepCacheKind.TEACACHE, threshold=0.0)
    never = sample(MODEL, REQUESTS, cached, watch=steps.append)
    if all(all(one.computed) for one in steps):  # the polynomial is negative where nothing moves
        assert all(torch.equal(*pair) for pair in zip(plain, never, strict=True))
    assert teacache_polynomial(0.0) < 0 < teacache_polynomial(0.1)


@pytest.mark.parametrize("scales", [(1.0, 1.0), (4.0, 1.0), (4.0, 2.0)])
@pytest.mark.parametrize(
    "reuse", [StepCaching(CacheMethod.TAYLOR, every=1), StepCaching(CacheMethod.TEA, threshold=0.0)]
)
def test_reuse_that_computes_every_step_gives_the_exact_latents(
    reuse: StepCaching, scales: tuple[float, float]
) -> None:
    plain = Omnigen2Sampling(steps=4, text_scale=scales[0], image_scale=scales[1])
    for found, expected in zip(
        sample(MODEL, REQUESTS, replace(plain, reuse=reuse)), sample(MODEL, REQUESTS, plain), strict=True
    ):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"reuse": StepCaching(CacheMethod.TAYLOR)},
        {"reuse": StepCaching(CacheMethod.TEA, threshold=0.5)},
        {"guidance_threshold": 1.0},
    ],
)
def test_with_reuse_each_request_decides_for_itself(changes: dict[str, Any]) -> None:
    plain = Omnigen2Sampling(steps=9, text_scale=3.0, image_scale=2.0)
    settings = replace(plain, **changes)
    together = sample(MODEL, REQUESTS, settings)
    assert not torch.equal(together[0], sample(MODEL, REQUESTS, plain)[0]), "something is left out"
    for found, one in zip(together, REQUESTS, strict=True):
        torch.testing.assert_close(found, sample(MODEL, [one], settings)[0], atol=1e-4, rtol=1e-4)


def test_latents_stay_in_float32_under_weights_in_bfloat16() -> None:
    steps: list[Step] = []
    model = omnigen2.model().to(torch.bfloat16)
    sample(model, REQUESTS, Omnigen2Sampling(steps=2), watch=steps.append)
    latents = steps[0].latents[0]
    assert latents.dtype == torch.float32
    assert not torch.equal(latents, latents.bfloat16().float())


def test_times_end_at_one_and_small_images_are_sampled_later() -> None:
    assert sampling_times(4, 40, 40) == [0, 0.25, 0.5, 0.75, 1]
    assert sampling_times(4, 128, 128)[1] < 0.25 < sampling_times(4, 20, 20)[1]
    with pytest.raises(ValueError, match="0 steps"):
        sampling_times(0, 8, 8)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (Omnigen2Sampling(steps=0), "at least 1"),
        (Omnigen2Sampling(text_scale=float("nan")), "must be numbers"),
        (Omnigen2Sampling(interval=(0.6, 0.5)), "the lower one first"),
        (Omnigen2Sampling(threshold=-1.0), "0 or more"),
        (Omnigen2Sampling(guidance_threshold=-1.0), "0 or more"),
        (Omnigen2Sampling(reuse=TAYLOR, cache=StepCacheKind.TEACACHE), "leave out --cache"),
        (Omnigen2Sampling(reuse=TAYLOR, sampler=Solver.HEUN), "heun computes two velocities"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: Omnigen2Sampling, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        sample(MODEL, REQUESTS, settings)


def test_no_requests_give_no_latents() -> None:
    assert sample(MODEL, []) == []
