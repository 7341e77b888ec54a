"""Steps left out: what is off changes no bit, each request decides for itself, series and rules as stated."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.sequences import SPECIALS, case, generator, item, one_thread, tiny_model  # noqa: F401
from torch import Tensor

from sigma_data.errors import ConfigError
from sigma_data.loading.batch import Item
from sigma_data.sequence.guidance_layouts import without_references, without_text
from sigma_model.model import SigmaModel
from sigma_model.sampling.context import Context
from sigma_model.sampling.reuse import History, Reuse, TaylorSteps, TeaSteps, polynomial
from sigma_model.sampling.sampler import Branches, Sampler, StepsOf, sample_latents, times
from sigma_model.sampling.settings import CacheMethod, Guidance, SamplingSettings, StepCaching
from sigma_model.sampling.tea_file import TEA_FILE, fitted

TAYLOR = StepCaching(CacheMethod.TAYLOR, every=3)
TEA = StepCaching(CacheMethod.TEA, threshold=0.4)
PROMPTS = (
    ("<subject> a <image_1> <style> b <image_2>", 3, (16, 12)),
    ("paint <image_1> red", 2, (8, 16)),
    ("a", 1, (12, 12)),
)


@pytest.fixture(scope="module")
def model() -> SigmaModel:
    return tiny_model()


@pytest.fixture(scope="module")
def requests(model: SigmaModel) -> list[Branches]:
    return [branches(model, *prompt, seed=seed) for seed, prompt in enumerate(PROMPTS)]


def branches(model: SigmaModel, prompt: str, images: int, size: tuple[int, int], *, seed: int) -> Branches:
    layout = case(prompt, pictures=images, sizes=dict.fromkeys(range(1, images + 1), size)).layout(vision=True)
    shown: Item = item(layout, model.config, seed=seed)
    return [Context(view, shown) for view in (layout, without_text(layout), without_references(layout))]


def noise(request: Branches, model: SigmaModel) -> Tensor:
    count = request[0].answer.inner
    return torch.randn(count, model.config.latent.features, generator=generator("noise", count))


def sampled(
    model: SigmaModel, requests: Sequence[Branches], caching: StepCaching | None, **more: float
) -> list[Tensor]:
    beginnings = [noise(one, model) for one in requests]
    threshold = more.get("guidance_threshold", 0.0)
    return sample_latents(model, requests, beginnings, SPECIALS, steps=9, cache=caching, guidance_threshold=threshold)


def test_without_the_options_not_a_bit_changes(model: SigmaModel, requests: list[Branches]) -> None:
    found = torch.cat(sampled(model, requests, None))
    sampler = Sampler(model, requests, SPECIALS)
    x = torch.cat([noise(one, model) for one in requests])
    for level, following in pairwise(times(9, SamplingSettings.timestep_shift)):
        x = x - sampler.velocity(x, level) * (level - following)
    assert torch.equal(found, x)
    assert torch.equal(torch.cat(sampled(model, requests, StepCaching())), x)


@pytest.mark.parametrize(
    "caching", [StepCaching(CacheMethod.TAYLOR, every=1), StepCaching(CacheMethod.TEA, threshold=0.0)]
)
def test_a_cache_that_computes_every_step_gives_the_exact_latents(
    model: SigmaModel, requests: list[Branches], caching: StepCaching
) -> None:
    pairs = zip(sampled(model, requests, caching), sampled(model, requests, None), strict=True)
    for found, expected in pairs:
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("caching", "threshold"), [(TAYLOR, 0.0), (TEA, 0.0), (None, 0.5), (TEA, 0.5)])
def test_a_request_decides_for_itself_and_repeats_to_the_bit(
    model: SigmaModel, requests: list[Branches], caching: StepCaching | None, threshold: float
) -> None:
    together = sampled(model, requests, caching, guidance_threshold=threshold)
    again = sampled(model, requests, caching, guidance_threshold=threshold)
    exact = sampled(model, requests, None)
    assert all(torch.equal(*pair) for pair in zip(together, again, strict=True))
    assert not torch.equal(together[0], exact[0]), "something is left out"
    for number, one in enumerate(requests):
        (alone,) = sampled(model, [one], caching, guidance_threshold=threshold)
        torch.testing.assert_close(together[number], alone, atol=1e-5, rtol=1e-5)


def counted(
    model: SigmaModel, requests: list[Branches], caching: StepCaching, *, threshold: float = 0.0, guidance: Guidance
) -> list[int]:
    """How many contexts are computed, a step."""
    levels = times(10, 1.0)
    sampler = Sampler(model, requests, SPECIALS, guidance=guidance)
    reuse = Reuse[Tensor](StepsOf(sampler, levels), caching, guidance_threshold=threshold)
    sampler.integrate(
        torch.cat([noise(one, model) for one in requests]),
        levels,
        velocity=lambda x, _level: torch.cat(reuse.velocities(x)),
    )
    return reuse.computed


def test_left_out_steps_ask_the_network_for_nothing(model: SigmaModel, requests: list[Branches]) -> None:
    assert counted(model, requests[:1], TAYLOR, guidance=Guidance()) == [3, 0, 3, 3, 0, 3, 3, 0, 3]
    assert counted(model, requests[:1], TAYLOR, guidance=Guidance(text=1, image=1)) == [1, 0, 1, 1, 0, 1, 1, 0, 1]


def test_a_branch_that_guidance_needs_for_the_first_time_is_computed(
    model: SigmaModel, requests: list[Branches]
) -> None:
    inside = Guidance(interval=(0.0, 0.6))  # from the fifth step on, which Taylor leaves out
    assert counted(model, requests[:1], TAYLOR, guidance=inside) == [1, 0, 1, 1, 3, 3, 3, 0, 3]


def test_branches_that_hardly_differ_are_left_out_and_measured_again(
    model: SigmaModel, requests: list[Branches]
) -> None:
    found = counted(model, requests[:1], StepCaching(), threshold=1e9, guidance=Guidance())
    assert found == [3, 1, 1, 1, 3, 1, 1, 1, 3]
    assert counted(model, requests[:1], StepCaching(), threshold=1e-9, guidance=Guidance()) == [3] * 9


@pytest.mark.slow
@given(
    st.integers(0, 4),
    st.lists(st.floats(-3, 3), min_size=5, max_size=5),
    st.lists(st.integers(0, 20), min_size=5, max_size=9, unique=True),
)
@settings(max_examples=30, deadline=None)
def test_a_series_of_order_k_continues_polynomials_of_degree_k(
    order: int, coefficients: list[float], places: list[int]
) -> None:
    def value(level: float) -> Tensor:
        powers = torch.tensor([level**power for power in range(order + 1)], dtype=torch.float64)
        return powers @ torch.tensor(coefficients[: order + 1], dtype=torch.float64)

    history = History(order)
    for place in places:
        history.add(place / 20, value(place / 20))
    assert torch.equal(history.at(places[-1] / 20), value(places[-1] / 20))
    torch.testing.assert_close(history.at(0.33), value(0.33), atol=1e-6, rtol=1e-6)


def test_the_series_starts_with_fewer_terms() -> None:
    history = History(2)
    history.add(1.0, torch.tensor([3.0]))
    assert history.at(0.5) == 3.0
    history.add(0.8, torch.tensor([2.0]))
    torch.testing.assert_close(history.at(0.4), torch.tensor([0.0]))


def due(steps: TaylorSteps, request: int, count: int) -> list[int]:
    return [step for step in range(count) if steps.due(step, None)[request]]


def test_taylor_computes_two_steps_more_than_every_so_manieth_and_both_ends() -> None:
    caching = StepCaching(CacheMethod.TAYLOR, every=4, order=2)
    even = [1 - step / 13 for step in range(13)]
    assert due(TaylorSteps([even], caching), 0, 13) == [0, 2, 5, 7, 10, 12]
    default = due(TaylorSteps([times(50, 3.0)[:-1]], StepCaching(CacheMethod.TAYLOR)), 0, 49)
    assert len(default) == 15 and (default[0], default[-1]) == (0, 48)


def test_taylor_s_steps_lie_closer_where_the_level_falls_faster() -> None:
    levels = times(50, 3.0)[:-1]
    found = due(TaylorSteps([levels], StepCaching(CacheMethod.TAYLOR)), 0, 49)
    gaps = [following - step for step, following in pairwise(found)]
    assert gaps[0] > gaps[-1] and sum(gaps[:7]) > sum(gaps[7:])
    turned = [1 - level for level in reversed(levels)]  # by its own levels, whatever else is asked for
    both = TaylorSteps([levels, turned], StepCaching(CacheMethod.TAYLOR))
    assert due(both, 0, 49) == found and due(both, 1, 49) != found


@given(st.integers(2, 60), st.integers(1, 9), st.floats(0.2, 5))
def test_taylor_computes_as_many_steps_as_it_says(steps: int, every: int, shift: float) -> None:
    found = due(TaylorSteps([times(steps, shift)[:-1]], StepCaching(CacheMethod.TAYLOR, every=every)), 0, steps - 1)
    assert len(found) == min(steps - 1, -(-(steps - 2) // every) + 3)
    assert found[0] == 0 and found[-1] == steps - 2


def test_tea_sums_the_polynomial_of_the_input_s_relative_change() -> None:
    caching = StepCaching(CacheMethod.TEA, threshold=0.5, polynomial=(1.0, 0.0, 0.1))  # r^2 + 0.1
    steps = TeaSteps(2, 100, caching)
    shown = [torch.ones(3, 2), torch.ones(4, 2)]
    found = []
    for step in range(6):
        found.append(steps.due(step, shown))
        shown = [shown[0] * 1.5, shown[1]]  # changes of 0.5 and 0: 0.35 and 0.1 a step
    assert [first for first, _ in found] == [True, False, True, False, True, False]
    assert [second for _, second in found] == [True, False, False, False, False, True]
    assert polynomial((2.0, 0.0, -1.0), 3.0) == 17.0


def test_what_was_fitted_lies_beside_the_weights(tmp_path: Path) -> None:
    assert fitted(TEA, [tmp_path]) == TEA
    (tmp_path / TEA_FILE).write_text('{"polynomial": [2, 0.5], "threshold": 0.2}')
    assert fitted(TEA, [tmp_path / "weights", tmp_path]) == StepCaching(
        CacheMethod.TEA, threshold=0.2, polynomial=(2.0, 0.5)
    )
    for text in ("{", "[]", '{"polynomial": [], "threshold": 1}', '{"polynomial": ["x"], "threshold": 1}'):
        (tmp_path / TEA_FILE).write_text(text)
        with pytest.raises(ConfigError, match=TEA_FILE):
            fitted(TEA, [tmp_path])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"cache": StepCaching(every=0)}, "every 0th step"),
        ({"cache": StepCaching(order=5)}, "order 5"),
        ({"cache": StepCaching(threshold=-1.0)}, "cache threshold of -1.0"),
        ({"cache": StepCaching(polynomial=())}, "must have coefficients"),
        ({"guidance_threshold": float("inf")}, "guidance threshold of inf"),
        ({"sampler": "heun", "cache": TAYLOR}, "use euler or dpmpp"),
        ({"sampler": "heun", "guidance_threshold": 0.1}, "use euler or dpmpp"),
    ],
)
def test_settings_that_make_no_sense_are_refused(changes: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        SamplingSettings(**changes).check()  # type: ignore[arg-type]


def test_metadata_name_what_was_used_and_nothing_else() -> None:
    plain = SamplingSettings()
    assert set(plain.recorded) == {"steps", "timestep_shift", "guidance", "group_mask"}
    used = SamplingSettings(sampler="dpmpp", cache=TAYLOR, guidance_threshold=0.1)  # type: ignore[arg-type]
    assert used.recorded == {
        **plain.recorded,
        "sampler": "dpmpp",
        "cache": {"method": "taylor", "order": 1, "every": 3},
        "guidance_threshold": 0.1,
    }
    assert SamplingSettings(cache=TEA).recorded["cache"] == {
        "method": "tea", "order": 1, "threshold": 0.4, "polynomial": (1.0, 0.0)
    }  # fmt: skip
