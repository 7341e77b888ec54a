"""Chance that is the same everywhere, and looks like chance."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from sigma_data.planning.keyed_random import mixed, mixed_one, name_of, names, units

words = st.integers(0, 2**64 - 1)


def test_it_is_splitmix64() -> None:
    # The first three outputs of the published generator for the seed 0.
    state = 0x9E3779B97F4A7C15
    found = [int(mixed(np.uint64(i * state % 2**64))) for i in range(3)]
    assert found == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]


@given(st.lists(words, min_size=2, max_size=4, unique=True))
def test_the_order_of_words_matters(some: list[int]) -> None:
    one = mixed(*(np.uint64(word) for word in some))
    other = mixed(*(np.uint64(word) for word in reversed(some)))
    assert one != other


@given(words, st.integers(0, 63))
def test_a_bit_that_changes_changes_about_half_of_the_result(word: int, bit: int) -> None:
    changed = int(mixed(np.uint64(word))) ^ int(mixed(np.uint64(word ^ 1 << bit)))
    assert 8 <= changed.bit_count() <= 56


def test_arrays_give_what_their_elements_give() -> None:
    left, right = np.arange(5, dtype=np.uint64), np.arange(100, 105, dtype=np.uint64)
    assert mixed(7, left, right).tolist() == [
        int(mixed(7, np.uint64(a), np.uint64(b))) for a, b in zip(left, right, strict=True)
    ]


@given(st.lists(words, min_size=1, max_size=5))
def test_numbers_alone_give_what_arrays_give(some: list[int]) -> None:
    assert mixed_one(*some) == int(mixed(*(np.uint64(word) for word in some)))


def test_units_are_spread_evenly_below_one() -> None:
    found = units(mixed(3, np.arange(100_000)))
    assert found.min() >= 0
    assert found.max() < 1
    counts = np.histogram(found, bins=20, range=(0, 1))[0]
    assert (abs(counts - 5_000) < 5 * np.sqrt(5_000)).all()
    assert units(np.array([2**64 - 1], np.uint64))[0] < 1


@given(
    st.lists(st.text("0123456789abcdefABC_-", min_size=1, max_size=64), min_size=1, max_size=20), st.integers(64, 200)
)
def test_a_name_has_one_word_in_any_company_and_names_differ(texts: list[str], width: int) -> None:
    encoded = [text.encode() for text in texts]
    together = names(np.array(encoded)).tolist()
    assert together == [int(names(np.array([text]))[0]) for text in encoded]
    assert together == [name_of(text) for text in encoded]
    assert together == names(np.array(encoded, f"S{width}")).tolist()
    assert len(set(together)) == len(set(texts))
