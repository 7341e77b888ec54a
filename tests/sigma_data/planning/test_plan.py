"""An epoch as a list of packs: nothing lost, nothing over the budget, the same on every machine."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from support import planning
from support.places import TESTS
from support.planning import (
    BAGEL,
    dropped_by_kind,
    families,
    index_of,
    mixed_corpus,
    packs_digest,
    planner_of,
    row_of,
    write_corpus,
)
from support.sequences import Case, case, cases, tiny_geometry

from sigma_data.errors import ConfigError
from sigma_data.planning.plan import Planner, PlanSettings, SampleRandomness
from sigma_data.sample import Family
from sigma_data.sequence.layout import Kind, layout

GOLDEN = "448e77377be00904849a5f7224bc2e98d41db80e4d08374023fab10f43599aab"
GOLDEN_SETTINGS: dict[str, Any] = {"budget": 12_000, "window": 16, "seed": 5, "open_shards": 2}


def golden(folder: Path) -> str:
    mixed_corpus(folder / "one")
    mixed_corpus(folder / "two", seed=1)
    return packs_digest(planner_of(folder / "one", folder / "two", **GOLDEN_SETTINGS), 0, 1)


def planned(planner: Planner, epoch: int) -> Counter[tuple[int, int, int]]:
    draws = planner.plan(epoch).draws
    return Counter(zip(draws.corpus.tolist(), draws.row.tolist(), draws.round.tolist(), strict=True))


def packed(planner: Planner, epoch: int) -> Counter[tuple[int, int, int]]:
    plan = planner.plan(epoch)
    tickets = [plan.ticket(number) for number in range(len(plan))]
    return Counter((entry.corpus, entry.row, entry.round) for ticket in tickets for entry in ticket.entries)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return mixed_corpus(tmp_path_factory.mktemp("plan") / "corpus")


# What an epoch holds --------------------------------------------------------------------------------


@pytest.mark.slow
@settings(deadline=None, max_examples=40)
@given(
    some=st.lists(cases(), min_size=1, max_size=15),
    budget=st.integers(10, 400),
    window=st.integers(1, 20),
    repeat=st.sampled_from([0.5, 1.0, 1.0, 2.3]),
    vision=st.booleans(),
    epoch=st.integers(0, 3),
)
def test_what_is_planned_is_packed_within_the_budget_and_what_is_not_is_named(
    some: list[Case], budget: int, window: int, repeat: float, vision: bool, epoch: int
) -> None:
    geometry = tiny_geometry(vision=vision)
    with tempfile.TemporaryDirectory() as folder:
        index = index_of(Path(folder), some)
        asked = PlanSettings.model_validate(
            {"corpora": [{"path": folder, "repeat": repeat}], "budget": budget, "window": window}
        )
        try:
            planner = Planner(asked, [index], geometry, tokenizer="")
        except ConfigError:
            fitting = sum(sum(s.length for s in one.layout(vision=vision)) <= budget for one in some)
            assert fitting * repeat < 1
            return
        plan = planner.plan(epoch)
        assert packed(planner, epoch) == planned(planner, epoch)
        assert plan.fills.sum() == plan.lengths.sum()
        assert plan.fills.max() <= budget
        left_out = {unfit.sample for unfit in planner.unfit}
        for row, one in enumerate(some):
            total = sum(segment.length for segment in one.layout(vision=vision))
            assert (index.ids[row].decode() in left_out) == (total > budget)
        shown = {index.ids[row].decode() for _, row, _ in packed(planner, epoch)}
        assert not shown & left_out
        if repeat == 1:
            assert len(shown) + len(left_out) == len(some)


@pytest.mark.slow
@settings(deadline=None, max_examples=40)
@given(some=st.lists(cases(), min_size=1, max_size=8), vision=st.booleans(), seed=st.integers(0, 2**63 - 1))
def test_what_is_dropped_is_what_the_lengths_count_and_the_answer_stays(
    some: list[Case], vision: bool, seed: int
) -> None:
    geometry = tiny_geometry(vision=vision)
    rates = {"text": 0.4, "latent": 0.6, "patch": 0.5}
    with tempfile.TemporaryDirectory() as folder:
        planner = planner_of(planning.write_corpus(
            Path(folder), [planning.row_of(one, i) for i, one in enumerate(some)]
        ), geometry=geometry, seed=seed, dropout=rates)  # fmt: skip
        plan, index = planner.plan(0), planner.indexes[0]
        tokens: Counter[Kind] = Counter()
        for place, row in enumerate(plan.draws.row.tolist()):
            dropped = planner.recipe.dropped(index, row, int(plan.draws.round[place]), geometry)
            whole = some[row].layout(vision=vision)
            kept = layout(some[row].sample.turns, some[row].sizes, planning.Counter(), geometry, dropped=dropped)
            assert plan.lengths[place] == sum(segment.length for segment in kept)
            assert [s.kind for s in kept] == [s.kind for i, s in enumerate(whole) if i not in dropped]
            assert [s for s in kept if s.kind.loss] != []
            for segment in kept:
                tokens[segment.kind] += segment.length
        assert (
            Counter({kind: n for kinds in planner.tokens(plan.draws).values() for kind, n in kinds.items()}) == tokens
        )


def test_a_pack_holds_the_budget_though_a_single_sample_may_not_be_that_long(corpus: Path) -> None:
    geometry = replace(BAGEL, max_tokens=9_000)
    planner = planner_of(corpus, geometry=geometry, budget=40_000)
    assert planner.plan(0).fills.max() > 30_000
    assert planner.unfit
    assert all("9,000 are the most" in unfit.reason and unfit.tokens > 9_000 for unfit in planner.unfit)


def test_samples_that_cannot_be_laid_out_are_listed_with_the_reason_and_in_no_pack(tmp_path: Path) -> None:
    square = {1: (64, 64), 2: (64, 64)}
    sound = case("make it <image_1>", pictures=2, sizes=square)
    some = [
        sound,
        case("make it <image_7>", pictures=2, sizes=square),
        replace(sound, sizes={1: (64, 64), 2: (40_000, 64)}),
        replace(sound, sizes={1: (640, 640), 2: (640, 640)}),
        *[sound] * 3,
    ]
    rows = [planning.row_of(one, number) for number, one in enumerate(some)]
    rows[4]["turns"][0]["target"] = None
    rows[5]["turns"][0]["target"] = 9
    rows[6]["images"][1]["number"] = 1
    geometry = replace(BAGEL, latent_grid=40, vit=None, vqa=None)
    planner = planner_of(planning.write_corpus(tmp_path, rows), geometry=geometry, budget=2100)
    assert set(packed(planner, 0)) == {(0, 0, 0)}
    assert [unfit.sample for unfit in planner.unfit] == [row["id"] for row in rows[1:]]
    words = [
        "names image 7",
        "an image of 40000 x 64 becomes 64 x 1 latent patches",
        "it is 3,208 tokens long, and 2,100 are the most",
        "must have either an image or a text as its answer",
        "image 9 is to be produced, but there is no such image",
        "two images have one number",
    ]
    for unfit, expected in zip(planner.unfit, words, strict=True):
        assert expected in unfit.reason


def test_without_one_sample_that_fits_there_is_an_error_that_says_why(corpus: Path) -> None:
    with pytest.raises(ConfigError, match=r"none of 125 samples fits .* are the most; look at budget"):
        planner_of(corpus, budget=3)
    with pytest.raises(ConfigError, match="has no split 'val'; there are train"):
        planner_of(corpus, corpora=[{"path": str(corpus), "split": "val"}])
    with pytest.raises(ConfigError, match="look at split and families"):
        planner_of(corpus, corpora=[{"path": str(corpus), "families": ["layout"]}])


def test_packs_are_nearly_full(tmp_path: Path) -> None:
    plan = planner_of(mixed_corpus(tmp_path, scale=20)).plan(0)
    assert plan.fills[:-1].mean() > 0.98 * 30_000


def test_a_part_of_a_corpus_is_planned_alone(corpus: Path) -> None:
    planner = planner_of(corpus, corpora=[{"path": str(corpus), "families": ["editing", "layout"]}])
    assert set(planner.tokens(planner.plan(0).draws)) == {Family.EDITING}
    assert sum(planned(planner, 0).values()) == 25


# The same everywhere --------------------------------------------------------------------------------


def test_the_plan_is_the_one_that_was_always_made(tmp_path: Path) -> None:
    assert golden(tmp_path) == GOLDEN, "plans have changed: raise _VERSION in plan.py, and resuming will refuse"


@pytest.mark.slow
@pytest.mark.parametrize("seed", ["0", "1"])
def test_the_process_and_its_hash_seed_do_not_matter(seed: str, tmp_path: Path) -> None:
    code = (
        f"import sys; sys.path[:0] = [{str(TESTS)!r}, {str(TESTS / 'sigma_data' / 'planning')!r}]\n"
        "import pathlib, test_plan; print(test_plan.golden(pathlib.Path(sys.argv[1])))"
    )
    environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(TESTS.parent)}
    command = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
    assert done.stdout.strip() == GOLDEN, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("chunk", [1, 7, 64])
def test_how_the_work_is_cut_does_not_matter(chunk: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("index_writer", "segment_table", "plan"):
        monkeypatch.setattr(f"sigma_data.planning.{module}._CHUNK", chunk)
    assert golden(tmp_path) == GOLDEN


def test_an_epoch_is_the_same_whichever_was_planned_before(corpus: Path) -> None:
    one, other = planner_of(corpus), planner_of(corpus)
    assert packs_digest(one, 0, 1, 2, 1) == packs_digest(other, 0, 1, 2, 1)
    assert packs_digest(one, 2) == packs_digest(other, 2)
    assert packs_digest(one, 1) != packs_digest(one, 2)


def test_where_a_corpus_lies_does_not_matter_but_what_it_holds_does(corpus: Path, tmp_path: Path) -> None:
    moved = mixed_corpus(tmp_path / "elsewhere" / "corpus")
    assert planner_of(moved).digest == planner_of(corpus).digest
    assert packs_digest(planner_of(moved), 0) == packs_digest(planner_of(corpus), 0)
    assert planner_of(mixed_corpus(tmp_path / "corpus", seed=1)).digest != planner_of(corpus).digest


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("budget", {"budget": 29_999}), ("window", {"window": 9}), ("seed", {"seed": 1}), ("shuffle", {"shuffle": False}),
        ("dropout", {"dropout": {"text": 0.2}}), ("open_shards", {"open_shards": 1}),
        ("mixture", {"mixture": {"shares": {"editing": 1}}}), ("geometry", {"geometry": replace(BAGEL, vit=None)}),
    ],
)  # fmt: skip
def test_every_setting_is_in_the_digest_under_its_name(name: str, change: dict[str, Any], corpus: Path) -> None:
    one, other = planner_of(corpus), planner_of(corpus, **change)
    assert one.digest != other.digest
    assert [field for field in one.fields if one.fields[field] != other.fields[field]] == [name]


# Chance ---------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_dropout_has_its_rates(tmp_path: Path) -> None:
    planner = planner_of(mixed_corpus(tmp_path, scale=10), dropout={"text": 0.1, "latent": 0.3, "patch": 0.5})
    found = dropped_by_kind(planner, 0)
    assert found[Kind.TEXT] == pytest.approx(0.1, abs=0.03)
    assert found[Kind.LATENT] == pytest.approx(0.3, abs=0.03)
    assert found[Kind.PATCH] == pytest.approx(0.5, abs=0.03)
    assert found[Kind.TARGET] == 0


def test_dropping_everything_leaves_what_carries_the_loss(corpus: Path) -> None:
    planner = planner_of(corpus, dropout={"text": 1, "latent": 1, "patch": 1})
    tokens = planner.tokens(planner.plan(0).draws)
    for family in (Family.COMPOSITIONAL, Family.EDITING):
        assert set(tokens[family]) == {Kind.TARGET}
    kept = planner_of(corpus, dropout={"text": 0, "latent": 0, "patch": 0})
    assert set(dropped_by_kind(kept, 0).values()) == {0.0}


def test_what_is_answered_in_words_alone_keeps_question_and_images(corpus: Path) -> None:
    everything = planner_of(corpus, dropout={"text": 1, "latent": 1, "patch": 1})
    nothing = planner_of(corpus, dropout={"text": 0, "latent": 0, "patch": 0})
    asked = [planner.tokens(planner.plan(0).draws)[Family.UNDERSTANDING] for planner in (everything, nothing)]
    assert asked[0] == asked[1] and {Kind.TEXT, Kind.PATCH, Kind.ANSWER} <= set(asked[0])
    index = everything.indexes[0]
    for row in np.flatnonzero(index.words_only).tolist():
        assert everything.recipe.dropped(index, row, 0, BAGEL) == ()


def test_only_plans_with_questions_say_how_these_are_dropped(corpus: Path, tmp_path: Path) -> None:
    field = "dropout of questions"
    assert planner_of(corpus).fields[field] == '"never"'
    images = write_corpus(tmp_path / "images", [row_of(one, i) for i, one in enumerate(families({Family.EDITING: 5}))])
    assert field not in planner_of(images).fields


def test_a_sample_is_dropped_anew_in_every_round_and_its_noise_is_its_own(corpus: Path) -> None:
    planner = planner_of(corpus)
    index, recipe = planner.indexes[0], planner.recipe
    drops = {recipe.dropped(index, 0, number, BAGEL) for number in range(30)}
    assert len(drops) > 1
    keys = {recipe.noise_key(index, row, number, image) for row in range(9) for number in range(9) for image in (1, 2)}
    assert len(keys) == 9 * 9 * 2
    assert recipe.noise_key(index, 3, 2, 1) == SampleRandomness(0, recipe.dropout).noise_key(index, 3, 2, 1)
    assert recipe.noise_key(index, 3, 2, 1) != SampleRandomness(1, recipe.dropout).noise_key(index, 3, 2, 1)


def test_a_sample_is_dropped_alike_in_any_corpus(tmp_path: Path) -> None:
    some = planning.families({Family.EDITING: 20})
    rows = [planning.row_of(one, number) for number, one in enumerate(some)]
    whole, half = (planner_of(planning.write_corpus(tmp_path / str(n), rows[20 - n :])) for n in (20, 10))
    for row in range(10):
        dropped = [
            planner.recipe.dropped(planner.indexes[0], r, 0, BAGEL) for planner, r in ((whole, row + 10), (half, row))
        ]
        assert dropped[0] == dropped[1]


# Order ----------------------------------------------------------------------------------------------


def test_a_window_touches_few_shards(tmp_path: Path) -> None:
    planner = planner_of(mixed_corpus(tmp_path, scale=8), open_shards=3, window=40)
    draws, index = planner.plan(0).draws, planner.indexes[0]
    shards = index.shard[draws.row]
    touched = [len(np.unique(shards[start : start + 40])) for start in range(0, len(shards) - 40, 20)]
    assert max(touched) <= 3 * 2 * 3
    assert float(np.mean(touched)) <= 3 * (3 + 1)
    assert len(np.unique(shards)) > 90


def test_every_stretch_of_packs_has_every_family(tmp_path: Path) -> None:
    planner = planner_of(mixed_corpus(tmp_path, scale=8), window=64)
    plan, index = planner.plan(0), planner.indexes[0]
    whole = np.bincount(index.families[plan.draws.row], minlength=8) / len(plan.draws.row)
    for start in range(0, len(plan) - 20, 20):
        rows = np.concatenate([plan.draws.row[plan.members(number)] for number in range(start, start + 20)])
        share = np.bincount(index.families[rows], minlength=8) / len(rows)
        assert abs(share - whole).max() < 0.25


@pytest.mark.parametrize(
    "values",
    [
        {}, {"corpora": []}, {"corpora": [{"path": "a"}, {"path": "b/a"}]}, {"corpora": [{"path": ""}]},
        {"corpora": [{"path": "a", "repeat": 0}]}, {"corpora": [{"path": "a"}], "budget": 0},
        {"corpora": [{"path": "a"}], "dropout": {"text": 1.1}}, {"corpora": [{"path": "a"}], "bugdet": 3},
        {"corpora": [{"path": "a", "families": ["painting"]}]},
    ],
)  # fmt: skip
def test_settings_of_nonsense_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        PlanSettings.model_validate(values)


def test_a_moved_corpus_keeps_the_digest_and_another_order_of_corpora_does_not(tmp_path: Path) -> None:
    first, second = mixed_corpus(tmp_path / "one"), mixed_corpus(tmp_path / "two", seed=1)
    before, swapped = planner_of(first, second).digest, planner_of(second, first).digest
    moved = first.rename(tmp_path / "elsewhere")
    assert planner_of(moved, second).digest == before != swapped
