"""Segmentation and understanding in the world: maps are to the pixel, answers are right by another reading."""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections import Counter
from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from sigma_data.corpus.check_limits import Limits
from sigma_data.corpus.checks import examine
from sigma_data.errors import ConfigError
from sigma_data.sample import Family, Sample
from sigma_data.sources import open_source
from sigma_data.sources.world import turns_of_families
from sigma_data.synthetic.colours import Colour
from sigma_data.synthetic.draw import render
from sigma_data.synthetic.families.crowds import crowd, odd_one
from sigma_data.synthetic.families.understanding import KINDS, NUMBERS, plural
from sigma_data.synthetic.instances import COLOURS, instance_colours, instance_map
from sigma_data.synthetic.rng import KeyedRng
from sigma_data.synthetic.scene import Backdrop, Scene, Thing
from sigma_data.synthetic.shapes import OBJECTS, parts

indices = st.integers(0, 10**9)
few = hypothesis_settings(max_examples=15, deadline=None, derandomize=True)
DEFAULT = "d1b573c92da42fa5"


@cache
def corpus(spec: str) -> list[Sample]:
    reader = open_source(spec)
    samples = [item for fragment in reader.fragments() for item in reader.read(fragment)]
    return [item for item in samples if isinstance(item, Sample)]


def pixels(data: bytes | None) -> NDArray[np.uint8]:
    return np.asarray(Image.open(io.BytesIO(data or b"")).convert("RGB"))


def truth(sample: Sample) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(sample.truth or "")
    return value


def oracle_map(things: tuple[Thing, ...], size: int) -> NDArray[np.uint8]:
    """The colour map from renderings alone: what a thing covers lets neither white nor black paper through."""
    papers = [Scene(Backdrop("plain", (paper,) * 3, horizon=1.0)) for paper in ((0, 0, 0), (255, 255, 255))]
    names = [(thing.x, number) for number, thing in enumerate(things)]
    rank = {number: place for place, (_, number) in enumerate(sorted(names))}
    drawn = np.zeros((size, size, 3), np.uint8)
    for number, thing in enumerate(things):
        dark, light = (np.asarray(render(Scene(paper.backdrop, (thing,)), size)).astype(int) for paper in papers)
        through = (light - dark).mean(axis=2) / 255
        for y in range(size):
            for x in range(size):
                if through[y, x] < 0.4995:
                    drawn[y, x] = COLOURS[rank[number]]
    return drawn


def inside(points: NDArray[np.float64], x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Even-odd rule."""
    found = np.zeros(x.shape, bool)
    for (x0, y0), (x1, y1) in zip(points, np.roll(points, -1, axis=0), strict=True):
        if y0 != y1:
            found ^= ((y0 > y) != (y1 > y)) & (x < x0 + (y - y0) / (y1 - y0) * (x1 - x0))
    return found


def test_the_default_corpus_is_what_it_was_before_these_families() -> None:
    state = hashlib.sha256()
    for sample in corpus("world:36?size=64&seed=3"):
        state.update(repr((sample.id, sample.turns, sample.truth, sample.source)).encode())
        for image in sample.images:
            state.update(pixels(image.data).tobytes())
    assert state.hexdigest()[:16] == DEFAULT


def test_shares_are_exact_in_every_stretch() -> None:
    samples = corpus("world:30?size=64&families=understanding:1,segmentation:2")
    order = [sample.family.value[0] for sample in samples]
    assert "".join(order) == "sus" * 10
    assert samples == corpus("world:30?size=64&families=segmentation:4,understanding:2")
    assert samples[0].source.location == "seed=0,size=64,format=png,families=segmentation:2+understanding"


@given(st.lists(st.integers(1, 9), min_size=1, max_size=8))
def test_families_take_turns_evenly_and_end_exact(shares: list[int]) -> None:
    families = dict(zip(Family, shares, strict=False))
    order = turns_of_families(families)
    assert Counter(order) == families
    for place in range(1, len(order) + 1):
        taken = Counter(order[:place])
        most = max(1, len(families) - 1)
        assert all(abs(taken[one] - share * place / len(order)) < most for one, share in families.items())
    if len(set(shares)) == 1:
        assert order == tuple(families) * shares[0]


@pytest.mark.parametrize(
    ("families", "said"),
    [
        ("segmentation:0", "not a whole number"),
        ("segmentation:x", "not a whole number"),
        ("segmentation:", "not a whole number"),
        ("segmentation:1,segmentation:2", "named twice"),
        ("segmentation:100,understanding:1", "are the most"),
        ("maps", "not one of"),
    ],
)
def test_shares_that_are_none_are_refused(families: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        open_source(f"world:3?families={families}")


@pytest.mark.slow
@pytest.mark.parametrize("format", ["png", "jpg", "webp"])
def test_every_sample_passes_every_check(format: str) -> None:
    for sample in corpus(f"world:60?size=64&families=segmentation,understanding&format={format}"):
        assert not examine(sample, Limits()).findings, sample.turns


@few
@given(indices)
def test_a_map_equals_an_oracle_drawing(index: int) -> None:
    scene = crowd(KeyedRng("map", index)).scene
    mine, oracle = np.asarray(instance_map(scene.things, 48)), oracle_map(scene.things, 48)
    assert (mine != oracle).any(axis=2).sum() <= 1  # exactly half a pixel is seen through other roundings


@pytest.mark.slow
@few
@given(indices)
def test_a_map_agrees_with_geometry_away_from_edges(index: int) -> None:
    things = crowd(KeyedRng("map", index)).scene.things
    drawn = np.asarray(instance_map(things, 64))
    colours = instance_colours(things)
    y, x = (np.mgrid[0:64, 0:64] + 0.5) / 64
    expected = np.zeros((64, 64, 3), np.uint8)
    for thing, colour in zip(things, colours, strict=True):
        covered = np.zeros((64, 64), bool)
        for part in parts(thing):
            covered[inside(part.points, x, y)] = part.role != "hole"
        expected[covered] = colour
    assert (drawn == expected).all(axis=2).mean() > 0.97


@pytest.mark.slow
def test_maps_are_aligned_with_their_images_and_hold_the_stated_colours() -> None:
    for sample in corpus("world:20?size=128&families=segmentation"):
        facts, image, drawn = truth(sample), pixels(sample.images[0].data), pixels(sample.images[1].data)
        assert image.shape == drawn.shape
        seen = {tuple(colour) for colour in np.unique(drawn.reshape(-1, 3), axis=0).tolist()}
        stated = [tuple(colour) for colour in facts["instances"]]
        assert seen == {(0, 0, 0), *stated}  # every object is seen, and nothing else
        for thing, colour in zip(facts["scene"]["objects"], stated, strict=True):
            ys, xs = np.nonzero((drawn == colour).all(axis=2))
            x0, y0, x1, y1 = (value * 128 for value in thing["box"])
            assert x0 - 1 <= xs.min() and xs.max() <= x1 + 1 and y0 - 1 <= ys.min() and ys.max() <= y1 + 1
        order = sorted(range(len(stated)), key=lambda number: facts["scene"]["objects"][number]["centre"])
        assert [stated[number] for number in order] == list(COLOURS[: len(stated)])


def test_a_map_of_another_size_is_the_same_map() -> None:
    for small, large in zip(
        corpus("world:10?size=64&families=segmentation"), corpus("world:10?size=256&families=segmentation"), strict=True
    ):
        shrunk = pixels(large.images[1].data)[2::4, 2::4]
        assert (pixels(small.images[1].data) == shrunk).all(axis=2).mean() > 0.97


def test_the_target_of_a_segmentation_sample_is_a_mask() -> None:
    for sample in corpus("world:10?size=64&families=segmentation"):
        assert sample.masks == {2} and sample.targets == (2,)


def test_holes_show_what_is_behind() -> None:
    colours = Colour("red", (212, 50, 48)), Colour("blue", (52, 104, 212))
    ball, donut = Thing("ball", *colours, x=0.4, size=0.2), Thing("donut", *colours, x=0.45, size=0.3)
    drawn = instance_map((ball, donut), 64)
    assert drawn.getpixel((29, 32)) == COLOURS[0]  # the ball through the hole
    assert drawn.getpixel((29, 47)) == COLOURS[1]


def answer(question: str, scene: dict[str, Any] | None) -> str:
    """The answer by reading the question's words and the stated scene."""
    words = question.replace("<image_1>", "").strip().lower()
    if scene is None:
        counted = re.match(r"there (?:is|are) (\w+) (.+) and (\w+) (.+)\. how many objects are there\?", words)
        if counted:
            number = {**{name: value for value, name in enumerate(NUMBERS)}, "a": 1, "an": 1}
            return NUMBERS[number[counted[1]] + number[counted[3]]]
        told = re.findall(r"the (\w+) is to the left of the (\w+)", words)
        row = [told[0][0], told[0][1], told[1][1]]
        assert told[0][1] == told[1][0]
        asked = re.search(r"is the (\w+) to the left or to the right of the (\w+)\?", words)
        assert asked
        return "left" if row.index(asked[1]) < row.index(asked[2]) else "right"
    objects = scene["objects"]
    nouns = {(one["character"]["species"] if "character" in one else one["shape"]): one for one in objects}
    if "how many" in words or words.startswith("count"):
        return NUMBERS[len(objects)]
    if "colour" in words:
        named = re.search(r"the (\w+)(?: have)?\?", words)
        assert named
        return str(nouns[named[1]]["colour"]["name"])
    if "left or to the right" in words:
        asked = re.search(r"is the (\w+) to the left or to the right of the (\w+)\?", words)
        assert asked
        return "left" if nouns[asked[1]]["centre"][0] < nouns[asked[2]]["centre"][0] else "right"
    if "nearer" in words or "in front" in words:
        pair = re.search(r"the (\w+) or the (\w+)\?", words)
        assert pair
        later = max(pair.groups(), key=lambda name: objects.index(nouns[name]))
        return f"the {later}"
    looks = Counter((one["shape"], one["colour"]["name"]) for one in objects)
    [(shape, name)] = [look for look, count in looks.items() if count == 1]
    return f"the {name} {shape}"


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_answers_are_right_by_an_independent_reading_of_the_scene(seed: int) -> None:
    kinds: Counter[str] = Counter()
    answers: dict[str, Counter[str]] = {}
    for sample in corpus(f"world:150?size=64&families=understanding&seed={seed}"):
        facts = truth(sample)
        assert len(facts["questions"]) == len(sample.turns)
        assert bool(sample.images) == (facts["scene"] is not None)
        for turn, stated in zip(sample.turns, facts["questions"], strict=True):
            assert turn.target is None and turn.response == stated["answer"]
            assert answer(turn.instruction, facts["scene"]) == turn.response, (turn, facts["scene"])
            kinds[stated["kind"]] += 1
            answers.setdefault(stated["kind"], Counter())[turn.response or ""] += 1
    assert set(kinds) == set(KINDS) and min(kinds.values()) >= 10
    assert all(max(said.values()) < 0.66 * sum(said.values()) for said in answers.values())


@pytest.mark.slow
def test_conversations_have_several_turns_and_some_have_no_image() -> None:
    samples = corpus("world:150?size=64&families=understanding")
    turns = Counter(len(sample.turns) for sample in samples)
    assert set(turns) == {1, 2, 3, 4}
    assert 5 < sum(not sample.images for sample in samples) < 30
    for sample in samples:
        assert sample.source.license == "apache-2.0" and len(sample.images) <= 1
        assert all("<image" not in turn.instruction for turn in sample.turns[1:])


@few
@given(indices)
def test_which_is_nearer_is_to_be_seen_and_nouns_name_one_thing(index: int) -> None:
    seen = crowd(KeyedRng("nearer", index))
    things = list(seen.scene.things)
    assert len({one.noun for one in things}) == len({one.colour.name for one in things}) == len(things)
    if seen.front is None or seen.behind is None:
        return
    assert seen.front > seen.behind
    swapped = list(things)
    swapped[seen.front], swapped[seen.behind] = things[seen.behind], things[seen.front]
    before, after = (np.asarray(render(Scene(seen.scene.backdrop, tuple(some)), 64)) for some in (things, swapped))
    assert (before != after).any(axis=2).sum() >= 15


@few
@given(indices)
def test_one_thing_is_odd_and_all_others_are_alike(index: int) -> None:
    seen = odd_one(KeyedRng("odd", index))
    looks = Counter((one.shape, one.colour) for one in seen.scene.things)
    assert sorted(looks.values())[0] == 1 and len(looks) == 2 and 3 <= sum(looks.values()) <= 6
    assert seen.front is not None
    odd = seen.scene.things[seen.front]
    assert looks[odd.shape, odd.colour] == 1 and max(looks.values()) >= 2


def test_plurals_are_words() -> None:
    assert {plural(name) for name in OBJECTS} >= {"butterflies", "cacti", "crosses", "fish", "stars", "mushrooms"}
    assert not any(plural(name).endswith(("ys", "ss", "shs")) for name in OBJECTS)


def test_an_image_is_drawn_without_what_a_map_does_not_know() -> None:
    for sample in corpus("world:20?size=64&families=segmentation"):
        scene = truth(sample)["scene"]
        assert (scene["style"]["kind"], scene["frame"], scene["environment"]) == ("flat", None, "clear")


def test_the_survey_says_the_families_without_drawing() -> None:
    reader = open_source("world:9?families=segmentation:2,understanding:1")
    assert [row.family for row in reader.survey()] == [
        sample.family for sample in corpus("world:9?size=64&families=segmentation:2,understanding:1")
    ]
