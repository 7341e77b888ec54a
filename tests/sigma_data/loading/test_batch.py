"""A batch: every token once, ordered by expert, with all that the network and its losses must know of it."""

from __future__ import annotations

import dataclasses
import pickle
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.sequences import (  # noqa: F401
    SPECIALS,
    Case,
    attribute_id,
    case,
    cases,
    item,
    one_thread,
    pack,
    sequence_order,
    tiny_config,
    word_ids,
)
from torch import Tensor

from sigma_data.loading.batch import PackedBatch, Run, TokenTags, unit_range
from sigma_data.loading.collate import collate
from sigma_data.sample import Turn
from sigma_data.sequence.layout import Kind, Segment
from sigma_model.model import widths

some_batches = settings(max_examples=40, deadline=None)
packs = st.tuples(st.lists(cases(max_turns=2), max_size=3), st.booleans())
WIDTHS = widths(tiny_config())


def tokens(one: list[Case], vision: bool) -> Iterator[tuple[int, int, Segment, int]]:
    """(sample, segment, its segment, index in it) of every token, in the order of the sequences."""
    count = 0
    for sample, laid in enumerate(one):
        for segment in laid.layout(vision=vision):
            for index in range(segment.length):
                yield sample, count, segment, index
            count += 1


def is_latent(segment: Segment, index: int) -> bool:
    return segment.kind.latent and 0 < index < segment.length - 1


def tensors(value: Any) -> Iterator[Tensor]:
    """Every tensor in a batch."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple):
        for part in value:
            yield from tensors(part)
    elif isinstance(value, PackedBatch):
        for entry in dataclasses.fields(value):
            yield from tensors(getattr(value, entry.name))


# Order ----------------------------------------------------------------------------------------------


@some_batches
@given(packs)
def test_each_token_is_there_once_understanding_first_each_half_by_sample_and_place(
    drawn: tuple[list[Case], bool],
) -> None:
    batch = pack(drawn[0], vision=drawn[1])
    expected = list(tokens(*drawn))
    und = [(s, place) for s, place, segment, index in _placed(expected) if not is_latent(segment, index)]
    gen = [(s, place) for s, place, segment, index in _placed(expected) if is_latent(segment, index)]
    found = list(zip(batch.tags.sample.tolist(), batch.tags.place.tolist(), strict=True))
    assert found == und + gen
    assert (batch.n_und, batch.n_gen, batch.tokens) == (len(und), len(gen), len(expected))


def _placed(expected: list[tuple[int, int, Segment, int]]) -> Iterator[tuple[int, int, Segment, int]]:
    sample, place = -1, 0
    for number, _, segment, index in expected:
        place = place + 1 if number == sample else 0
        sample = number
        yield sample, place, segment, index


@pytest.mark.slow
@some_batches
@given(packs)
def test_tags_positions_and_spans_are_those_of_the_layouts(drawn: tuple[list[Case], bool]) -> None:
    batch = pack(drawn[0], vision=drawn[1])
    order = sequence_order(batch)
    expected = list(tokens(*drawn))
    attribute = [dict(s.bound).get(i - 1) if not s.kind.image else None for _, _, s, i in expected]

    def in_sequence(field: Tensor) -> list[Any]:
        return list(field[order].tolist())

    assert in_sequence(batch.tags.sample) == [sample for sample, _, _, _ in expected]
    assert in_sequence(batch.tags.segment) == [segment for _, segment, _, _ in expected]
    assert in_sequence(batch.tags.image) == [s.kind.image for _, _, s, _ in expected]
    assert in_sequence(batch.tags.noised) == [s.kind is Kind.TARGET for _, _, s, _ in expected]
    assert in_sequence(batch.tags.attribute) == [group is not None for group in attribute]
    assert in_sequence(batch.tags.group) == [
        s.image if s.kind in (Kind.LATENT, Kind.PATCH) else group or 0
        for (_, _, s, _), group in zip(expected, attribute, strict=True)
    ]
    assert in_sequence(batch.positions) == [s.position + (0 if s.kind.image else i) for _, _, s, i in expected]
    samples = batch.tags.sample.tolist()
    for number, (und, und_end, gen, gen_end) in enumerate(batch.spans):
        mine = [*range(und, und_end), *range(gen, gen_end)]
        assert mine == [place for place, sample in enumerate(samples) if sample == number]


@some_batches
@given(packs)
def test_runs_tile_the_batch_and_agree_with_the_tags(drawn: tuple[list[Case], bool]) -> None:
    batch = pack(drawn[0], vision=drawn[1])
    covered: list[Run | None] = [None] * batch.tokens
    for run in batch.runs:
        assert run.start < run.stop
        for token in range(run.start, run.stop):
            assert covered[token] is None
            covered[token] = run
    tags = {name: field.tolist() for name, field in batch.tags._asdict().items()}
    for token, run in enumerate(covered):
        assert run is not None
        assert all(tags[name][token] == getattr(run, name) for name in tags if name != "place")
        if not run.image and token > run.start:  # a text's neighbours in the batch are so in the sequence
            assert tags["place"][token] == tags["place"][token - 1] + 1


@some_batches
@given(packs)
def test_text_patches_and_latents_share_out_the_tokens(drawn: tuple[list[Case], bool]) -> None:
    batch = pack(drawn[0], vision=drawn[1])
    assert sorted([*batch.text_slots.tolist(), *batch.patch_slots.tolist()]) == list(range(batch.n_und))
    assert sum(rows * columns for rows, columns in batch.latent_grids) == batch.n_gen
    assert sum(rows * columns for rows, columns in batch.patch_grids) == len(batch.patches)
    ids = dict(zip(batch.text_slots.tolist(), batch.text_ids.tolist(), strict=True))
    order = sequence_order(batch).tolist()
    for slot, (_, _, segment, index) in zip(order, tokens(*drawn), strict=True):
        last = index == segment.length - 1
        if index == 0 or last:
            ends = (SPECIALS.image_start, SPECIALS.image_end) if segment.kind.image else (SPECIALS.bos, SPECIALS.eos)
            assert ids[slot] == ends[last]
        elif not segment.kind.image:
            assert ids[slot] == segment.ids[index - 1]
        else:
            assert slot not in ids


# Content --------------------------------------------------------------------------------------------


@some_batches
@given(packs)
def test_every_picture_s_content_stands_in_the_order_of_its_tokens(drawn: tuple[list[Case], bool]) -> None:
    config = tiny_config(vision=drawn[1])
    items = [item(one.layout(vision=drawn[1]), config, seed=i) for i, one in enumerate(drawn[0])]
    batch = collate(items, SPECIALS, widths(config))
    shown = [(one, s) for one in items for s in one.segments]
    patches = [one.patches[s.image] for one, s in shown if s.kind is Kind.PATCH]
    assert torch.equal(batch.patches, torch.cat(patches) if patches else torch.zeros(0, widths(config).patch))
    latents = [(one, s) for one, s in shown if s.kind.latent]
    assert list(batch.latent_grids) == [s.grid for _, s in latents]
    for index, (one, segment) in zip(batch.latent_sources, latents, strict=True):
        assert batch.known_latents[index] is one.latents[segment.image]
    targets = [(place, one, s) for place, (one, s) in enumerate(latents) if s.kind is Kind.TARGET]
    assert batch.target_images.tolist() == [place for place, _, _ in targets]
    assert batch.u.tolist() == pytest.approx([one.u[s.image] for _, one, s in targets])
    if targets:
        assert torch.equal(batch.noise, torch.cat([one.noise[s.image] for _, one, s in targets]))
    noised = batch.tags.noised[batch.n_und :].nonzero().flatten()
    assert torch.equal(batch.target_slots, noised)
    counts = [rows * columns for rows, columns in batch.latent_grids]
    assert batch.latent_image.tolist() == [place for place, count in enumerate(counts) for _ in range(count)]


def test_places_index_the_position_tables_row_by_row() -> None:
    batch = pack([case("<image_1>", pictures=2, sizes={1: (12, 8), 2: (4, 12)})])
    side = WIDTHS.latent_grid
    assert batch.latent_grids == ((2, 3), (3, 1))
    assert batch.latent_places.tolist() == [0, 1, 2, side, side + 1, side + 2, 0, side, 2 * side]
    side = WIDTHS.patch_grid
    assert batch.patch_grids == ((4, 5),)  # 12 x 8 becomes 10 x 8
    assert batch.patch_places.tolist() == [row * side + column for row in range(4) for column in range(5)]


@pytest.mark.parametrize("as_pictures", [False, True])
def test_a_target_and_its_clean_copy_are_encoded_once_and_samples_share_nothing(as_pictures: bool) -> None:
    one = case(Turn("paint <image_1>", target=2), Turn("red", target=3), pictures=3)
    items = [item(one.layout(), tiny_config(), seed=seed, as_pictures=as_pictures) for seed in range(2)]
    batch = collate(items, SPECIALS, WIDTHS)
    assert batch.latent_sources == (0, 1, 1, 2, 3, 4, 4, 5)  # reference, target, its copy, target; twice
    given_ = batch.images if as_pictures else batch.known_latents
    assert len(given_) == 6 and len(batch.images) + len(batch.known_latents) == 6
    content = [one.images if as_pictures else one.latents for one in items]
    assert all(found is content[index // 3][index % 3 + 1] for index, found in enumerate(given_))
    assert batch.target_images.tolist() == [1, 3, 5, 7]


def test_an_answer_predicts_its_words_and_the_end_each_weighing_its_length_to_the_minus_half() -> None:
    turns = (Turn("what is 3", response="a red cat"), Turn("what is <image_1>", response=""), Turn("a", target=2))
    batch = pack([case(*turns, pictures=2), case(Turn("b", response="c"), pictures=0)])
    cat, c = [*word_ids("a red cat"), SPECIALS.eos], [*word_ids("c"), SPECIALS.eos]
    assert batch.labels.tolist() == [*cat, SPECIALS.eos, *c]
    weights = [4**-0.5] * 4 + [1.0] + [2**-0.5] * 2
    assert batch.answer_weights.tolist() == pytest.approx(weights)
    ids = dict(zip(batch.text_slots.tolist(), batch.text_ids.tolist(), strict=True))
    fed = [ids[slot] for slot in batch.answer_slots.tolist()]
    assert fed == [SPECIALS.bos, *cat[:-1], SPECIALS.bos, SPECIALS.bos, *c[:-1]]
    assert [ids[slot + 1] for slot in batch.answer_slots.tolist()] == batch.labels.tolist()


def test_hints_name_each_picture_that_an_attribute_token_speaks_of() -> None:
    plain = case("<image_1> red", pictures=2)
    bound = case("<style> a <image_2> <pose> b <image_1> <id>", pictures=3)
    batch = pack([plain, bound])
    style, pose, person = (attribute_id(name) for name in ("style", "pose", "id"))
    # Latent pictures: 1 and the target, then 2, 1 and the target. Patches: 1, then 2 and 1.
    found = set(zip(batch.hint_ids.tolist(), batch.hint_images.tolist(), strict=True))
    assert found == {(style, 2), (pose, 3), (person, 3), (style, 5 + 1), (pose, 5 + 2), (person, 5 + 2)}
    assert len(batch.hint_ids) == 6


# Use ------------------------------------------------------------------------------------------------

EVERYTHING = (
    case("<style> a <image_2> next to <image_1>", pictures=3),
    case(Turn("what is <image_1>", response="a red cat"), pictures=1),
)


def test_to_moves_every_tensor_and_leaves_the_rest() -> None:
    batch = pack(EVERYTHING)
    moved = batch.to("meta")
    assert len(list(tensors(moved))) == len(list(tensors(batch))) > 25
    assert {tensor.device.type for tensor in tensors(moved)} == {"meta"}
    assert {tensor.device.type for tensor in tensors(batch)} == {"cpu"}
    assert (moved.runs, moved.spans, moved.names, moved.tokens) == (batch.runs, batch.spans, batch.names, batch.tokens)
    assert isinstance(moved.tags, TokenTags)


def test_bytes_and_floats_of_one_picture_enter_the_network_alike() -> None:
    levels = np.arange(256, dtype=np.uint8).repeat(3).reshape(16, 16, 3)
    # By the usual to-tensor and normalise, to the bit.
    expected = (levels.astype(np.float32) / np.float32(255) - np.float32(0.5)) / np.float32(0.5)
    for picture in (levels.transpose(2, 0, 1), levels.transpose(2, 0, 1).copy()):
        floats = unit_range(torch.from_numpy(picture))
        assert floats.dtype == torch.float32
        assert (floats.min(), floats.max()) == (-1, 1)
        assert np.array_equal(floats.numpy(), expected.transpose(2, 0, 1))
        assert unit_range(floats) is floats
    assert np.array_equal(levels, np.arange(256).repeat(3).reshape(16, 16, 3))  # what is given stays as it is


def test_patches_as_bytes_and_as_floats_do_not_mix_in_one_batch() -> None:
    floats = item(EVERYTHING[0].layout(), tiny_config())
    as_bytes = dataclasses.replace(floats, patches={n: (p * 9).to(torch.uint8) for n, p in floats.patches.items()})
    assert collate([as_bytes], SPECIALS, WIDTHS).patches.dtype == torch.uint8
    with pytest.raises(ValueError, match="not both"):
        collate([floats, as_bytes], SPECIALS, WIDTHS)


@pytest.mark.parametrize("as_pictures", [False, True])
def test_a_batch_survives_pickling(as_pictures: bool) -> None:
    items = [item(one.layout(), tiny_config(), as_pictures=as_pictures) for one in EVERYTHING]
    batch = collate(items, SPECIALS, WIDTHS)
    again = pickle.loads(pickle.dumps(batch))
    for entry in dataclasses.fields(PackedBatch):
        one, other = getattr(batch, entry.name), getattr(again, entry.name)
        assert type(one) is type(other)
        if list(tensors(one)):
            assert all(torch.equal(a, b) for a, b in zip(tensors(one), tensors(other), strict=True))
        elif not isinstance(one, Tensor):
            assert one == other


@pytest.mark.parametrize(
    "cases_",
    [
        [],
        [case(Turn("a b", response="c"), pictures=0)],  # text only
        [case("paint a cat", pictures=1)],  # no reference
        [case("", pictures=1)],  # a picture alone
        [case(Turn("what is <image_1>", response="cat"), pictures=1)],  # no target
        [case(Turn("", response=""), pictures=0)] * 2,
    ],
    ids=["nothing", "text", "no reference", "a target alone", "no target", "empty answers"],
)
@pytest.mark.parametrize("vision", [True, False])
def test_kinds_may_be_missing(cases_: list[Case], vision: bool) -> None:
    batch = pack(cases_, vision=vision)
    kinds = [segment.kind for one in cases_ for segment in one.layout(vision=vision)]
    assert batch.tokens == sum(segment.length for one in cases_ for segment in one.layout(vision=vision))
    assert len(batch.target_images) == len(batch.u) == kinds.count(Kind.TARGET)
    assert len(batch.latent_grids) == kinds.count(Kind.TARGET) + kinds.count(Kind.LATENT)
    assert len(batch.patch_grids) == kinds.count(Kind.PATCH)
    assert (len(batch.labels) > 0) == (Kind.ANSWER in kinds)
    assert batch.noise.shape == (len(batch.target_slots), WIDTHS.latent)
    assert all(tensor.dtype == torch.long for tensor in (batch.text_ids, batch.text_slots, batch.labels))
    assert len(batch.spans) == len(batch.names) == len(cases_)


@pytest.mark.parametrize("what", ["patches", "noise"])
def test_content_of_another_size_than_was_laid_out_is_an_error_that_names_the_picture(what: str) -> None:
    one = item(EVERYTHING[0].layout(), tiny_config())
    number = 2 if what == "patches" else 3
    content = dict(getattr(one, what))
    expected = len(content[number])
    content[number] = content[number][:-1]
    with pytest.raises(ValueError, match=f"image {number} brings {expected - 1} .*{expected} were laid out"):
        collate([dataclasses.replace(one, **{what: content})], SPECIALS, WIDTHS)


@pytest.mark.parametrize("what", ["latents", "patches"])
def test_a_picture_that_is_shown_and_missing_is_an_error(what: str) -> None:
    one = item(EVERYTHING[0].layout(), tiny_config())
    content = {number: tensor for number, tensor in getattr(one, what).items() if number != 1}
    with pytest.raises(KeyError):
        collate([dataclasses.replace(one, **{what: content})], SPECIALS, WIDTHS)


def test_pictures_and_latents_do_not_mix_in_one_batch() -> None:
    items = [item(EVERYTHING[0].layout(), tiny_config(), as_pictures=flag) for flag in (True, False)]
    with pytest.raises(ValueError, match="not both"):
        collate(items, SPECIALS, WIDTHS)
