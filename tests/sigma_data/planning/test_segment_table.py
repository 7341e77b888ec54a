"""Lengths without pictures are those of the layout, token for token and kind for kind."""

from __future__ import annotations

import itertools
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.planning import BAGEL, Counter, index_of
from support.sequences import Case, case, cases, tiny_geometry

from sigma_data.errors import SequenceError
from sigma_data.planning.index import CorpusIndex
from sigma_data.planning.segment_table import segment_table, why_unfit
from sigma_data.sample import Turn
from sigma_data.sequence.layout import Geometry, layout

GEOMETRIES = {
    "tiny": tiny_geometry(),
    "tiny, generating": tiny_geometry(vision=False),
    "small tables": replace(tiny_geometry(), latent_grid=3, patch_grid=4),
    "bagel": BAGEL,
    "bagel, generating": replace(BAGEL, vit=None, vqa=None),
}


@st.composite
def enlarged(draw: st.DrawFn) -> Case:
    """A conversation with pictures of a few pixels to some thousands."""
    one = draw(cases())
    factor = draw(st.sampled_from([1, 1, 10, 60]))
    return replace(one, sizes={n: (width * factor, height * factor) for n, (width, height) in one.sizes.items()})


def check(some: list[Case], index: CorpusIndex, geometry: Geometry) -> None:
    table = segment_table(index, geometry)
    for row, one in enumerate(some):
        found = slice(table.first[row], table.first[row + 1])
        try:
            segments = layout(one.sample.turns, one.sizes, Counter(), geometry)
        except SequenceError as error:
            total = int(table.total[row])
            assert total == 0 or total > geometry.max_tokens
            assert total or why_unfit(index, row, total, geometry, 10**9) == str(error)
            continue
        assert table.kind[found].tolist() == [segment.kind for segment in segments]
        assert table.length[found].tolist() == [segment.length for segment in segments]
        assert table.total[row] == sum(segment.length for segment in segments)


@pytest.mark.slow
@settings(deadline=None, max_examples=60)
@given(some=st.lists(enlarged(), min_size=1, max_size=12), chunk=st.integers(1, 20))
def test_random_conversations_have_the_segments_of_their_layout(some: list[Case], chunk: int) -> None:
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr("sigma_data.planning.segment_table._CHUNK", chunk)
        patch.setattr("sigma_data.planning.index_writer._CHUNK", chunk)
        index = index_of(Path(folder), some)
        for geometry in GEOMETRIES.values():
            check(some, index, geometry)


@pytest.mark.parametrize("geometry", GEOMETRIES.values(), ids=list(GEOMETRIES))
def test_only_the_pictures_of_a_question_share_their_pixels(geometry: Geometry, tmp_path: Path) -> None:
    sizes = {number: (2000 + number, 1900) for number in range(1, 4)}
    question = Turn("what is <image_1> <image_2> <image_3>", response="a cat")
    some = [case(question, pictures=3, sizes=sizes), case("make it <image_1> <image_2>", pictures=3, sizes=sizes)]
    check(some, index_of(tmp_path, some), geometry)


def test_the_picture_at_fault_is_the_one_that_is_named(tmp_path: Path) -> None:
    geometry = replace(BAGEL, latent_grid=64, patch_grid=22)  # the target is never shown as patches
    for reference, target in itertools.permutations([(300, 300), (900, 300)]):
        some = [case("make it <image_1>", pictures=2, sizes={1: reference, 2: target})]
        index = index_of(tmp_path / str(reference), some)
        check(some, index, geometry)
        if reference == (900, 300):
            assert "900 x 300" in why_unfit(index, 0, 0, geometry, 1000)
        else:
            assert segment_table(index, geometry).total[0] > 0


def test_a_sequence_that_is_too_long_is_said_to_be(tmp_path: Path) -> None:
    index = index_of(tmp_path, [case("make it", pictures=1, sizes={1: (1024, 1024)})])
    assert why_unfit(index, 0, 4102, BAGEL, 2000) == "it is 4,102 tokens long, and 2,000 are the most"


def test_a_corpus_of_nothing_has_an_empty_table(tmp_path: Path) -> None:
    table = segment_table(index_of(tmp_path, []), BAGEL)
    assert (len(table.first), len(table.kind), len(table.length), len(table.total)) == (1, 0, 0, 0)
