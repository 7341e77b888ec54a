"""An epoch's samples: exact shares, everything shown as often as everything else, few shards at a time."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from sigma_data.errors import ConfigError
from sigma_data.planning.mixture import CorpusSettings, Mixture, Part, draw, shares, stretch
from sigma_data.sample import Family

FAMILIES = list(Family)


def index(size: int, per_shard: int = 10) -> Any:
    """What drawing asks of an index."""
    shard = np.arange(size, dtype=np.int32) // per_shard
    names = np.random.default_rng(size).integers(0, 2**63, size).astype(np.uint64)
    return SimpleNamespace(shard=shard, names=names, shards=[f"train/editing-{n:05d}.tar" for n in range(size)])


def parts_of(sizes: list[int], repeats: list[float]) -> tuple[list[Part], list[Any]]:
    """A part a corpus, each of another family."""
    parts = [
        Part(number, FAMILIES[number % 8], np.arange(size), repeat)
        for number, (size, repeat) in enumerate(zip(sizes, repeats, strict=True))
    ]
    return parts, [index(size) for size in sizes]


some_parts = st.lists(
    st.tuples(st.integers(1, 60), st.sampled_from([0.1, 0.3, 0.5, 1.0, 1.0, 1.5, 2.0, 3.7])), min_size=1, max_size=6
)


@settings(deadline=None)
@given(some_parts, st.integers(1, 5), st.booleans(), st.integers(0, 2**63 - 1))
def test_over_epochs_each_sample_of_a_part_is_shown_within_one_of_every_other(
    some: list[tuple[int, float]], epochs: int, shuffle: bool, seed: int
) -> None:
    parts, indexes = parts_of([size for size, _ in some], [repeat for _, repeat in some])
    counts = [Fraction(str(part.repeat)) * len(part.rows) for part in parts]
    shown: Counter[tuple[int, int]] = Counter()
    rounds: set[tuple[int, int, int]] = set()
    for epoch in range(epochs):
        drawn = draw(
            parts, [max(count, Fraction(1)) for count in counts], indexes, seed=seed, epoch=epoch, shuffle=shuffle
        )
        triples = list(zip(drawn.corpus.tolist(), drawn.row.tolist(), drawn.round.tolist(), strict=True))
        shown.update((corpus, row) for corpus, row, _ in triples)
        assert rounds.isdisjoint(triples), "no sample twice in a round of its part"
        rounds.update(triples)
    assert len(rounds) == sum(shown.values())
    for number, part in enumerate(parts):
        times = [shown[number, row] for row in part.rows.tolist()]
        assert max(times) - min(times) <= 1
        assert abs(sum(times) - epochs * max(counts[number], Fraction(1))) <= Fraction(1, 2)


@given(st.fractions(0, 1000, max_denominator=97), st.integers(0, 10**6))
def test_epochs_take_stretches_that_follow_one_another_and_never_drift(count: Fraction, epoch: int) -> None:
    (start, middle), (again, stop) = stretch(count, epoch), stretch(count, epoch + 1)
    assert start <= middle == again <= stop
    assert abs(stop - (epoch + 2) * count) <= Fraction(1, 2)
    assert abs(middle - start - count) <= 1


@pytest.mark.parametrize("repeat", [1, 2, 7])
def test_without_a_mixture_every_sample_comes_repeat_times_whatever_stands_beside_it(repeat: int) -> None:
    parts, indexes = parts_of([1000, 1, 1, 1], [repeat, 0.2, 0.2, 0.2])
    drawn = draw(parts, shares(parts, None, ["a", "b", "c", "d"]), indexes, seed=1, epoch=0)
    assert set(Counter(drawn.row[drawn.corpus == 0].tolist()).values()) == {repeat}


@settings(deadline=None)
@given(
    st.lists(
        st.one_of(st.floats(1e-12, 1e12), st.integers(1, 10**15).map(float), st.sampled_from([0.1, 1 / 3, 1e300, 1e-300])),
        min_size=2, max_size=8,
    ),
    st.integers(1, 10**7),
)  # fmt: skip
def test_ratios_are_exact_to_one_sample_however_odd(ratios: list[float], size: int) -> None:
    parts, _ = parts_of([5] * len(ratios), [1.0] * len(ratios))
    mixture = Mixture(shares={FAMILIES[i].value: ratio for i, ratio in enumerate(ratios)}, size=size)
    try:
        counts = shares(parts, mixture, [])
    except ConfigError:
        assert all(Fraction(ratio) * size < 1.001 * sum(map(Fraction, ratios)) for ratio in ratios)
        return
    assert sum(counts) == size
    whole = sum(Fraction(str(ratio)) for ratio in ratios)
    for epoch in (0, 1, 1000):
        for ratio, count in zip(ratios, counts, strict=True):
            start, stop = stretch(count, epoch)
            assert abs((stop - start) - Fraction(str(ratio)) * size / whole) <= 1


def test_decimals_mean_what_they_say() -> None:
    parts, _ = parts_of([10, 10], [0.3, 1.0])
    assert shares(parts, None, ["a", "b"]) == [3, 10]
    mixture = Mixture(shares={parts[0].family.value: 0.1, parts[1].family.value: 0.3})
    assert shares(parts, mixture, []) == [3, 9]


def test_by_default_nothing_comes_more_often_than_repeat_and_the_scarcest_sets_the_size() -> None:
    parts, _ = parts_of([100, 30], [1.0, 2.0])
    mixture = Mixture(shares={parts[0].family.value: 1, parts[1].family.value: 1})
    assert shares(parts, mixture, []) == [60, 60]


def test_a_corpus_share_is_divided_among_its_families_by_what_they_hold() -> None:
    rows = np.arange(40)
    parts = [
        Part(0, Family.EDITING, rows[:30], 1.0), Part(0, Family.LAYOUT, rows[:10], 1.0), Part(1, Family.EDITING, rows, 1.0),
        Part(2, Family.EDITING, rows, 1.0),
    ]  # fmt: skip
    mixture = Mixture(by="corpus", shares={"a": 1, "b": 3}, size=80)
    assert shares(parts, mixture, ["a", "b", "c"]) == [15, 5, 60, 0]


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(1, 400), min_size=2, max_size=6))
def test_families_are_spread_evenly_over_an_epoch(sizes: list[int]) -> None:
    parts, indexes = parts_of(sizes, [1.0] * len(sizes))
    drawn = draw(parts, [Fraction(size) for size in sizes], indexes, seed=3, epoch=0)
    total = sum(sizes)
    for number, size in enumerate(sizes):
        so_far = np.cumsum(drawn.corpus == number)
        expected = np.arange(1, total + 1) * size / total
        assert abs(so_far - expected).max() <= len(sizes)


def test_a_stretch_of_an_epoch_comes_from_few_shards() -> None:
    parts, indexes = parts_of([600, 600, 600], [1.0] * 3)  # 60 shards of 10 each
    drawn = draw(parts, [Fraction(600)] * 3, indexes, seed=5, epoch=0, open_shards=4)
    touched = []
    for start in range(0, 1800 - 90, 30):
        window = slice(start, start + 90)  # 30 of a part, and a group of its shards holds 40
        shards = {(c, r // 10) for c, r in zip(drawn.corpus[window].tolist(), drawn.row[window].tolist(), strict=True)}
        touched.append(len(shards))
    assert max(touched) <= 3 * 2 * 4, "at a border two groups"
    whole = draw(parts, [Fraction(600)] * 3, indexes, seed=5, epoch=0, open_shards=60)
    assert len({(c, r // 10) for c, r in zip(whole.corpus[:90].tolist(), whole.row[:90].tolist(), strict=True)}) > 40


def test_rounds_seeds_and_parts_have_orders_of_their_own_and_none_is_the_shards() -> None:
    parts, indexes = parts_of([200], [1.0])
    orders = [
        tuple(draw(parts, [Fraction(200)], indexes, seed=seed, epoch=epoch).row.tolist())
        for seed in (0, 1) for epoch in (0, 1)
    ]  # fmt: skip
    assert len(set(orders)) == 4
    assert tuple(range(200)) not in orders
    plain = draw(parts, [Fraction(200)], indexes, seed=0, epoch=1, shuffle=False)
    assert plain.row.tolist() == list(range(200))


@pytest.mark.parametrize(
    ("mixture", "words"),
    [
        (Mixture(shares={"layout": 1, "compositional": 1}), "'layout' has no samples"),
        (Mixture(by="corpus", shares={"x": 1}), "'x' has no samples"),
        (Mixture(shares={"compositional": 1, "selective": 1}, size=1), "less than one sample"),
    ],
)
def test_a_share_that_cannot_be_given_is_an_error_that_names_it(mixture: Mixture, words: str) -> None:
    parts, _ = parts_of([10, 10], [1.0, 1.0])
    with pytest.raises(ConfigError, match=words):
        shares(parts, mixture, ["a", "b"])


@pytest.mark.parametrize(
    "values",
    [
        {"shares": {}}, {"shares": {"editing": 0}}, {"shares": {"editing": -1}}, {"shares": {"editing": float("nan")}},
        {"shares": {"editing": float("inf")}}, {"shares": {"painting": 1}}, {"shares": {"editing": 1}, "size": 0},
    ],
)  # fmt: skip
def test_a_mixture_of_nonsense_is_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Mixture.model_validate(values)


def test_a_corpus_is_called_by_its_name_or_the_end_of_its_path() -> None:
    assert CorpusSettings(path="s3://bucket/data/one/").title == "one"
    assert CorpusSettings(path="/data/one", name="two").title == "two"
