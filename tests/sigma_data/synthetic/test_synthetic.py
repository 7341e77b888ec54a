"""The world's promises: nothing but options and index decides a sample, and its truth is true."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from sigma_data import instruction
from sigma_data.corpus.check_limits import Limits
from sigma_data.corpus.checks import examine
from sigma_data.errors import ConfigError
from sigma_data.images import fingerprint
from sigma_data.images.decode import probe
from sigma_data.instruction import ATTRIBUTES, Attribute, canonical, parse
from sigma_data.sample import FAMILY_RULES, Family, Sample
from sigma_data.sources import open_source
from sigma_data.synthetic.casting import busy
from sigma_data.synthetic.colours import Colour
from sigma_data.synthetic.creatures import EMOTIONS, EYES, MARKS, POSES, SPECIES, WEAR
from sigma_data.synthetic.draw import render
from sigma_data.synthetic.families import RECIPES
from sigma_data.synthetic.families.selective import PAPER
from sigma_data.synthetic.glyphs import ICONS
from sigma_data.synthetic.rng import KeyedRng
from sigma_data.synthetic.scene import Character, Emblem, Scene, Thing, Wear
from sigma_data.synthetic.shapes import BROAD, OBJECTS, anchor, box
from sigma_data.synthetic.truth import describe

FAMILIES = list(RECIPES)
indices = st.integers(0, 10**9)
families = st.sampled_from(FAMILIES)
few = settings(max_examples=25, deadline=None, derandomize=True)


@cache
def corpus(spec: str) -> list[Sample]:
    reader = open_source(spec)
    samples = [item for fragment in reader.fragments() for item in reader.read(fragment)]
    assert all(isinstance(item, Sample) for item in samples)
    return [item for item in samples if isinstance(item, Sample)]


def pixels(data: bytes | None) -> NDArray[np.int64]:
    return np.asarray(Image.open(io.BytesIO(data or b"")).convert("RGB")).astype(np.int64)


def truth(sample: Sample) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(sample.truth or "")
    return value


def untouched(scene: dict[str, Any]) -> bool:
    """Whether a thing's seen colour is the pixel's colour: no weather, no style."""
    return bool(scene["style"]["kind"] == "flat" and scene["environment"] == "clear")


@pytest.mark.slow
def test_the_same_options_give_the_same_samples_in_another_process() -> None:
    program = (
        "import hashlib; from sigma_data.sources import open_source; r = open_source('world:24?size=64&seed=3');"
        "print(hashlib.sha256(repr([s for f in r.fragments() for s in r.read(f)]).encode()).hexdigest())"
    )
    hashes = {
        subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout for _ in "ab"
    }
    assert len(hashes) == 1


@pytest.mark.slow
def test_a_longer_corpus_begins_with_the_shorter_one() -> None:
    assert corpus("world:70?size=64")[:40] == corpus("world:40?size=64")


def test_a_sample_does_not_depend_on_its_fragment() -> None:
    reader = open_source("world:70?size=64")
    shorter = reader.fragments()[1]
    whole = list(reader.read(shorter))
    assert whole == corpus("world:70?size=64")[32:64]
    assert [fragment.rows for fragment in reader.fragments()] == [32, 32, 6]


@pytest.mark.slow
def test_another_seed_size_or_name_gives_other_ids() -> None:
    specs = ("world:12?size=64", "world:12?size=64&seed=1", "world:12?size=80", "world:12?size=64&name=mine")
    ids = [sample.id for spec in specs for sample in corpus(spec)]
    assert len(set(ids)) == len(ids)


@pytest.mark.slow
def test_another_size_shows_the_same_scene() -> None:
    for small, large in zip(corpus("world:24?size=64"), corpus("world:24?size=256"), strict=True):
        assert small.truth == large.truth and small.turns == large.turns
        if truth(small)["scene"]["style"]["kind"] == "flat":
            shrunk = Image.open(io.BytesIO(large.images[-1].data or b"")).reduce(4)
            assert np.abs(pixels(small.images[-1].data) - np.asarray(shrunk)).mean() < 12


@pytest.mark.slow
def test_families_take_turns_evenly() -> None:
    assert set(Counter(sample.family for sample in corpus("world:60?size=64")).values()) == {10}
    two = Counter(sample.family for sample in corpus("world:10?size=64&families=layout,editing"))
    assert two == {Family.EDITING: 5, Family.LAYOUT: 5}


def test_the_order_in_which_families_are_named_does_not_matter() -> None:
    assert corpus("world:6?size=64&families=layout,editing") == corpus("world:6?size=64&families=editing,layout")


@pytest.mark.slow
def test_without_attribute_tokens_samples_differ_in_nothing_but_these() -> None:
    tokens = 0
    for told, plain in zip(corpus("world:150?size=64"), corpus("world:150?size=64&attributes=no"), strict=True):
        assert plain == replace(told, turns=plain.turns, source=plain.source)
        assert plain.source == replace(told.source, location=f"{told.source.location},attributes=no")
        text, parts = plain.turns[0].instruction, parse(told.turns[0].instruction).parts
        tokens += sum(isinstance(part, Attribute) for part in parts)
        words = "".join(instruction.render([part]) for part in parts if not isinstance(part, Attribute))
        assert text == " ".join(words.split())
        assert not text[0].islower()
        assert plain.turns == (replace(told.turns[0], instruction=text),)
    assert tokens > 150


def test_attribute_tokens_are_there_unless_they_are_declined() -> None:
    samples = corpus("world:6?size=64")
    assert corpus("world:6?size=64&attributes=yes") == samples
    assert samples[0].source.location == (
        "seed=0,size=64,format=png,families=compositional+selective+stylization+relation+editing+layout"
    )
    assert (samples[0].id, samples[5].id) == ("b9efa9380a8b325010b8", "98d351689b262187f254")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "count"), [("size=64", 240), ("size=256", 36), ("size=1024", 6), ("size=64&attributes=no", 60)]
)
def test_every_sample_passes_every_check(options: str, count: int) -> None:
    size = int(options.partition("&")[0].removeprefix("size="))
    for sample in corpus(f"world:{count}?{options}"):
        examination = examine(sample, Limits())
        assert not examination.findings, (sample.turns[0].instruction, examination.findings)
        assert {(info.width, info.height) for info in examination.infos.values()} == {(size, size)}


@pytest.mark.parametrize("format", ["png", "jpg", "webp"])
def test_every_format_is_what_it_says(format: str) -> None:
    sample = corpus(f"world:6?size=64&format={format}")[0]
    assert {probe(image.data).extension for image in sample.images} == {format}
    assert not examine(sample, Limits()).findings


@pytest.mark.slow
def test_samples_are_numbered_canonical_and_all_tokens_occur() -> None:
    seen: set[str] = set()
    for sample in corpus("world:600?size=64"):
        text = sample.turns[0].instruction
        assert [image.number for image in sample.images] == list(range(1, len(sample.images) + 1))
        assert sample.targets == (len(sample.images),)
        assert 1 <= len(sample.references) <= 4
        assert len(sample.references) >= FAMILY_RULES[sample.family].min_references
        assert canonical(text) == text
        assert set(parse(text).placeholders) == set(sample.references)
        assert set(truth(sample)["sources"].values()) <= set(sample.references)
        seen.update(parse(text).attributes)
    assert seen == set(ATTRIBUTES)


def test_references_of_a_relation_are_exactly_three() -> None:
    for sample in corpus("world:30?size=64&families=relation"):
        assert len(sample.references) == 3


@pytest.mark.slow
def test_things_have_the_stated_colour_at_the_stated_place() -> None:
    looked = 0
    for sample in corpus("world:60?size=256"):
        scene, target = truth(sample)["scene"], pixels(sample.images[-1].data)
        for thing in scene["objects"]:
            if not untouched(scene) or thing["texture"]["kind"] != "plain" or "text" in thing:
                continue
            x, y = thing["anchor"]
            if not (0.08 < x < 0.92 and 0.08 < y < 0.92):
                continue
            seen = target[int(y * 256), int(x * 256)]
            assert np.abs(seen - thing["seen"]).max() <= 3, (sample.turns[0].instruction, thing, seen)
            x0, y0, x1, y1 = thing["box"]
            assert x0 <= x <= x1 and y0 <= y <= y1
            looked += 1
    assert looked > 25


def test_the_anchor_of_every_thing_shows_its_colour() -> None:
    plain = Colour("red", (212, 50, 48)), Colour("blue", (52, 104, 212))
    things = [Thing(shape, *plain) for shape in OBJECTS]
    things += [Thing(shape, *plain, emblem=Emblem(icon, plain[1])) for shape in BROAD for icon in ICONS]
    things += [Thing(shape, *plain, rotation=45, mirror=True) for shape in OBJECTS]
    for pose in POSES:
        for number, kind in enumerate(WEAR):
            who = Character(SPECIES[number], EYES[number % 4], MARKS[number % 5], EMOTIONS[number % 5], pose)
            things.append(Thing("creature", *plain, character=who, wear=(Wear(kind, plain[1]),)))
    for thing in things:
        x, y = anchor(thing)
        picture = render(Scene(PAPER, (thing,)), 128)
        assert picture.getpixel((int(x * 128), int(y * 128))) == (212, 50, 48), thing


@few
@given(indices)
def test_a_selected_thing_stands_alone_in_its_box_on_white(index: int) -> None:
    draft = RECIPES[Family.SELECTIVE](KeyedRng("world", 0, "selective", index))
    picture = np.asarray(render(draft.target, 128)).astype(int)
    [thing] = describe(draft.target)["objects"]
    ys, xs = np.nonzero((picture < 250).any(axis=2))
    found = [xs.min() / 128, ys.min() / 128, (xs.max() + 1) / 128, (ys.max() + 1) / 128]
    assert np.abs(np.array(found) - thing["box"]).max() <= 2 / 128
    assert draft.target.backdrop == PAPER


@few
@given(indices, st.integers(0, 2))
def test_a_removed_thing_is_gone_and_nothing_else_changed(index: int, which: int) -> None:
    scene = busy(KeyedRng("test", index), low=2, high=3)
    gone = scene.things[which % len(scene.things)]
    without = replace(scene, things=tuple(thing for thing in scene.things if thing is not gone))
    before, after = (np.asarray(render(each, 128)).astype(int) for each in (scene, without))
    ys, xs = np.nonzero((before != after).any(axis=2))
    x0, y0, x1, y1 = (value * 128 for value in box(gone))
    # Its shadow falls up to four pixels to the lower right.
    assert xs.min() >= x0 - 2 and xs.max() <= x1 + 4 and ys.min() >= y0 - 2 and ys.max() <= y1 + 5
    assert len(xs) > 60


@few
@given(families, indices)
def test_every_target_differs_from_every_reference(family: Family, index: int) -> None:
    draft = RECIPES[family](KeyedRng("world", 7, family.value, index))
    target = render(draft.target, 64).tobytes()
    for picture in draft.references:
        assert picture.map or render(picture.scene, 64).tobytes() != target, (draft.kind, draft.instruction)


@few
@given(families, indices)
def test_things_of_a_scene_lie_inside_the_picture(family: Family, index: int) -> None:
    scene: Scene = RECIPES[family](KeyedRng("world", 5, family.value, index)).target
    for thing in describe(scene)["objects"]:
        x0, y0, x1, y1 = thing["box"]
        assert 0 <= x0 < x1 <= 1 and 0 <= y0 < y1 <= 1
        assert x1 - x0 > 0.05 and y1 - y0 > 0.02


@pytest.mark.slow
def test_samples_hardly_ever_share_a_picture() -> None:
    samples = corpus("world:600?size=64")
    owners = [number for number, sample in enumerate(samples) for _ in sample.images]
    signatures = [probe(image.data).signature for sample in samples for image in sample.images]
    grid = np.frombuffer(b"".join(signatures), dtype=np.uint8).reshape(len(signatures), -1)
    pairs = np.array(owners)[fingerprint.near_pairs(grid)].reshape(-1, 2)
    sizes = Counter(fingerprint.components(len(samples), pairs).tolist())
    assert max(sizes.values()) <= 3
    assert sum(size == 1 for size in sizes.values()) >= 0.98 * len(samples)


@pytest.mark.parametrize(
    "spec",
    [
        "world:", "world:0", "world:-3", "world:many", "world:3.5", "world:٣", "world:9?size=63", "world:9?size=1025",
        "world:9?seed=x", "world:9?families=layout,layouts", "world:9?families=", "world:9?families=layout,layout",
        "world:9?format=gif", "world:9?colour=red", "world:9?families=maps",
        "world:9?attributes=some", "world:9?attributes=",
    ],
)  # fmt: skip
def test_a_bad_source_string_is_one_clear_error(spec: str) -> None:
    with pytest.raises(ConfigError, match="world"):
        open_source(spec)


def test_the_license_is_ours_and_can_be_set() -> None:
    assert corpus("world:1?size=64")[0].source.license == "apache-2.0"
    assert corpus("world:1?size=64&license=mit")[0].source.license == "mit"
