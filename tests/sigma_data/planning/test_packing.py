"""Packing loses nothing, overfills nothing, and wastes next to nothing."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sigma_data.planning.packing import best_fit, pack_windows

lengths_and_budget = st.integers(1, 400).flatmap(
    lambda budget: st.tuples(st.lists(st.integers(1, budget), max_size=120), st.just(budget))
)


@settings(deadline=None, max_examples=200)
@given(lengths_and_budget)
def test_every_sample_is_in_one_pack_and_no_pack_is_over_the_budget(case: tuple[list[int], int]) -> None:
    lengths, budget = case
    packs = best_fit(lengths, budget)
    assert Counter(index for pack in packs for index in pack) == Counter(range(len(lengths)))
    assert all(0 < sum(lengths[index] for index in pack) <= budget for pack in packs)


@settings(deadline=None, max_examples=200)
@given(lengths_and_budget)
def test_best_fit_decreasing_is_what_its_name_says(case: tuple[list[int], int]) -> None:
    lengths, budget = case
    rooms: list[int] = []
    expected: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        fitting = [(room, pack) for pack, room in enumerate(rooms) if room >= lengths[index]]
        if not fitting:
            rooms.append(budget)
            expected.append([])
            fitting = [(budget, len(rooms) - 1)]
        pack = min(fitting)[1]
        rooms[pack] -= lengths[index]
        expected[pack].append(index)
    assert best_fit(lengths, budget) == expected


@settings(deadline=None, max_examples=100)
@given(lengths_and_budget, st.integers(1, 60), st.sampled_from([0.0, 0.9, 0.99, 1.0]))
def test_windows_hand_on_what_they_cannot_pack_well_and_lose_nothing(
    case: tuple[list[int], int], window: int, least: float
) -> None:
    lengths, budget = np.array(case[0], dtype=np.int64), case[1]
    packs = list(pack_windows(lengths, budget=budget, window=window, least_fill=least))
    assert Counter(place for pack in packs for place in pack) == Counter(range(len(lengths)))
    fills = [int(lengths[pack].sum()) for pack in packs]
    assert all(fill <= budget for fill in fills)
    if least == 0:
        assert all(len({place // window for place in pack}) == 1 for pack in packs), "nothing is handed on"
    if len(packs) > 1 and window >= len(lengths):
        best = sorted(best_fit(lengths.tolist(), budget), key=lambda pack: pack[0])
        assert packs == [sorted(pack) for pack in best], "one window is one best fit, by its packs' longest samples"


@pytest.mark.parametrize("lengths", [[0], [11], [5, 11]])
def test_a_sample_that_fits_no_pack_is_an_error_not_a_loss(lengths: list[int]) -> None:
    with pytest.raises(ValueError, match="a pack holds"):
        best_fit(lengths, 10)


def test_a_mix_of_long_and_short_samples_fills_the_budget() -> None:
    random = np.random.default_rng(0)
    lengths = random.choice([1_100, 2_300, 4_200, 7_900, 12_000, 14_500], 20_000) + random.integers(0, 900, 20_000)
    packs = list(pack_windows(lengths, budget=30_000, window=512))
    assert lengths.sum() / (30_000 * len(packs)) > 0.98
