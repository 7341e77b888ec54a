"""A layout: what stands where in the sequence, how long, at which position, under which group."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.sequences import (  # noqa: F401
    SPECIALS,
    Case,
    LetterEncoder,
    WordEncoder,
    attribute_id,
    case,
    cases,
    item,
    one_thread,
    spoken_of,
    tiny_config,
    tiny_geometry,
    word_ids,
)

from sigma_data.errors import SequenceError
from sigma_data.images.resize_rule import ResizeRule
from sigma_data.instruction import Placeholder, parse
from sigma_data.loading.collate import collate
from sigma_data.sample import Turn
from sigma_data.sequence.guidance_layouts import without_references, without_text
from sigma_data.sequence.layout import Geometry, Kind, Segment, layout
from sigma_model.model import widths

TEXT, LATENT, PATCH, TARGET, ANSWER = Kind.TEXT, Kind.LATENT, Kind.PATCH, Kind.TARGET, Kind.ANSWER
some_layouts = settings(max_examples=80, deadline=None)


def outline(segments: tuple[Segment, ...]) -> list[tuple[Kind, object]]:
    """Kinds, each with its picture's number or its words."""
    return [(s.kind, s.image if s.kind.image else s.ids) for s in segments]


def words(text: str) -> tuple[Kind, object]:
    return TEXT, word_ids(text)


# Order ----------------------------------------------------------------------------------------------


def test_pictures_stand_at_their_placeholders_latents_then_patches_and_the_target_last() -> None:
    segments = case("paint <image_2> next to <image_1> in red", pictures=3).layout()
    assert outline(segments) == [
        words("paint"), (LATENT, 2), (PATCH, 2), words("next to"), (LATENT, 1), (PATCH, 1), words("in red"), (TARGET, 3),
    ]  # fmt: skip


def test_a_reference_that_no_placeholder_names_stands_before_the_text() -> None:
    segments = case("paint <image_2> red", pictures=4).layout()
    assert outline(segments)[:5] == [(LATENT, 1), (PATCH, 1), (LATENT, 3), (PATCH, 3), words("paint")]


def test_a_reference_that_only_a_later_turn_names_waits_for_it() -> None:
    segments = case(Turn("paint a cat", target=3), Turn("next to <image_1>", target=4), pictures=4).layout()
    assert outline(segments) == [
        (LATENT, 2), (PATCH, 2), words("paint a cat"), (TARGET, 3),
        (LATENT, 3), (PATCH, 3), words("next to"), (LATENT, 1), (PATCH, 1), (TARGET, 4),
    ]  # fmt: skip


def test_a_second_mention_of_a_picture_adds_no_tokens() -> None:
    once = case("<image_1> <image_2> the cat", pictures=3).layout()
    twice = case("<image_1> <image_2> the <image_1> cat <image_2>", pictures=3).layout()
    assert [s for s in twice if s.kind.image and s.kind is not TARGET] == [
        s for s in once if s.kind.image and s.kind is not TARGET
    ]
    assert [s.ids for s in twice if s.kind is TEXT] == [word_ids("the"), word_ids("cat")]


def test_the_clean_copy_of_an_answer_stands_before_the_next_turn_unless_that_names_it() -> None:
    before = case(Turn("paint <image_1>", target=2), Turn("make it red", target=3), pictures=3).layout()
    assert outline(before)[3:] == [(TARGET, 2), (LATENT, 2), (PATCH, 2), words("make it red"), (TARGET, 3)]
    within = case(Turn("paint <image_1>", target=2), Turn("make <image_2> red", target=3), pictures=3).layout()
    assert outline(within)[3:] == [
        (TARGET, 2), words("make"), (LATENT, 2), (PATCH, 2), words("red"), (TARGET, 3),
    ]  # fmt: skip


def test_the_last_answer_has_no_clean_copy_and_the_one_before_is_not_shown_twice() -> None:
    turns = (Turn("a", target=1), Turn("b", target=2), Turn("what is <image_1>", response="cat"))
    segments = case(*turns, pictures=2).layout()
    assert [s.image for s in segments if s.kind is LATENT] == [1, 2]
    assert outline(segments)[-1] == (ANSWER, word_ids("cat"))


def test_without_a_vit_rule_there_are_no_patches_and_nothing_else_changes() -> None:
    one = case("paint <image_1> next to <image_2>", pictures=3)
    full, generating = one.layout(), one.layout(vision=False)
    assert not [s for s in generating if s.kind is PATCH]
    assert outline(generating) == [entry for entry in outline(full) if entry[0] is not PATCH]
    assert [s.position for s in generating] == [0, 3, 4, 8, 9]


def test_an_answer_of_both_kinds_is_the_text_and_then_the_picture() -> None:
    segments = case(Turn("paint a cat", target=1, response="a red cat"), pictures=1).layout()
    assert outline(segments)[1:] == [(ANSWER, word_ids("a red cat")), (TARGET, 1)]


def test_white_space_around_a_stretch_goes_and_inside_it_stays() -> None:
    turn = Turn(" a  b \n<image_1>\t c <style> <image_2>  <pose>d e ", response=" f  g\n")
    one = case(turn, pictures=2)
    segments = layout(one.sample.turns, one.sizes, LetterEncoder(), tiny_geometry())
    read = ["".join(map(chr, s.ids)) for s in segments if not s.kind.image]
    style, pose = chr(1000), chr(1005)
    assert read == ["a  b", f"c {style}", f"{pose}d e", "f  g"]


@pytest.mark.parametrize("instruction", ["<image_1><image_2>", " <image_1>\n<image_2>\t"])
def test_an_empty_stretch_of_text_gives_no_segment(instruction: str) -> None:
    segments = case(instruction, pictures=3).layout()
    assert [s.kind for s in segments] == [LATENT, PATCH, LATENT, PATCH, TARGET]


def test_an_empty_instruction_leaves_the_references_and_the_target() -> None:
    assert [s.kind for s in case("  ", pictures=2).layout()] == [LATENT, PATCH, TARGET]
    assert [s.kind for s in case("", pictures=1).layout()] == [TARGET]


# Lengths, positions, sizes --------------------------------------------------------------------------


def test_text_advances_by_its_length_a_picture_by_one_and_a_target_by_nothing() -> None:
    turns = (Turn("paint <image_1> in red", target=2), Turn("make it old", response="a b c"))
    segments = case(*turns, pictures=2).layout()
    assert [(s.kind, s.position) for s in segments] == [
        (TEXT, 0),  # <start> paint <end>
        (LATENT, 3), (PATCH, 4), (TEXT, 5),  # <start> in red <end>
        (TARGET, 9), (LATENT, 9), (PATCH, 10), (TEXT, 11),  # <start> make it old <end>
        (ANSWER, 16),
    ]  # fmt: skip
    assert segments[-1].end == 21


def test_a_picture_has_its_rule_s_size_and_as_many_tokens_as_patches_and_two_delimiters() -> None:
    segments = case("<image_1>", pictures=2, sizes={1: (40, 20), 2: (9, 17)}).layout()
    latent, patch, target = segments
    assert (latent.size, latent.grid, latent.length) == ((16, 8), (2, 4), 10)
    assert (patch.size, patch.grid, patch.length) == ((10, 4), (2, 5), 12)
    assert (target.size, target.grid, target.length) == ((8, 16), (4, 2), 10)


def test_dropping_a_picture_leaves_its_position_empty_and_dropping_text_closes_up() -> None:
    one = case("paint <image_1> in red", pictures=2)  # text, latents, patches, text, target
    full = one.layout()
    assert [s.position for s in full] == [0, 3, 4, 5, 9]
    assert [(s.kind, s.position) for s in one.layout(dropped=[1])] == [(TEXT, 0), (PATCH, 4), (TEXT, 5), (TARGET, 9)]
    assert [(s.kind, s.position) for s in one.layout(dropped=[1, 2])] == [(TEXT, 0), (TEXT, 5), (TARGET, 9)]
    assert [(s.kind, s.position) for s in one.layout(dropped=[0, 1])] == [(PATCH, 1), (TEXT, 2), (TARGET, 6)]
    assert [(s.kind, s.position) for s in one.layout(dropped=[0, 1, 2, 3])] == [(TARGET, 2)]


# Groups ---------------------------------------------------------------------------------------------


def groups(segments: tuple[Segment, ...]) -> list[tuple[int, int]]:
    """(id, group) of every attribute token, in the order of the sequence."""
    return [(s.ids[place], group) for s in segments for place, group in s.bound]


def test_an_attribute_token_belongs_to_the_next_picture_else_to_the_last() -> None:
    segments = case("<style> a <image_2> <pose> b <subject> c <image_1> <id>", pictures=3).layout()
    ids = [attribute_id(name) for name in ("style", "pose", "subject", "id")]
    assert groups(segments) == list(zip(ids, (2, 1, 1, 1), strict=True))


def test_a_binding_overrides_the_rule() -> None:
    turn = Turn("<style> a <image_2> <pose> b <image_1>", target=3, bindings=((0, 1), (1, 2)))
    assert [group for _, group in groups(case(turn, pictures=3).layout())] == [1, 2]


def test_a_second_mention_still_binds_an_attribute_token() -> None:
    segments = case("<image_1> <image_2> the <style> <image_1>", pictures=3).layout()
    assert groups(segments) == [(attribute_id("style"), 1)]


def test_without_any_placeholder_the_last_picture_before_the_text_is_meant() -> None:
    segments = case(Turn("make <style> red", target=3), Turn("<pose> red", target=4), pictures=4).layout()
    assert [group for _, group in groups(segments)] == [2, 3]
    later = case(Turn("what is <image_1>", response="cat"), Turn("make <style> red", response="a"), pictures=1)
    assert groups(later.layout()) == [(attribute_id("style"), 1)]
    assert groups(case("paint <style> red", pictures=1).layout()) == [(attribute_id("style"), 0)]


def test_references_form_groups_by_their_numbers_and_targets_form_none() -> None:
    for segment in case(Turn("<image_1>", target=2), Turn("red", target=3), pictures=3).layout():
        assert segment.group == (segment.image if segment.kind in (LATENT, PATCH) else 0)


def test_a_picture_knows_the_attribute_tokens_of_its_turn_that_speak_of_it() -> None:
    turns = (
        Turn("<style> a <pose> b <image_2> <id> c <image_1> <text>", target=3, bindings=((1, 1),)),
        Turn("<icon> red <layout> b <image_1>", target=4, bindings=((0, 3),)),
    )
    segments = case(*turns, pictures=4).layout()
    spoken = {(s.image, s.turn): s.attributes for s in segments if s.kind in (LATENT, PATCH)}
    assert spoken == {
        (2, 0): (attribute_id("style"),),
        (1, 0): (attribute_id("pose"), attribute_id("id"), attribute_id("text")),
        (3, 1): (attribute_id("icon"),),
    }
    assert all(not s.attributes for s in segments if s.kind not in (LATENT, PATCH))


# Contexts for guidance ------------------------------------------------------------------------------


def test_without_text_the_pictures_move_up_and_nothing_speaks_of_them() -> None:
    full = case("<style> a <image_1> b <image_2>", pictures=3).layout()
    kept = without_text(full)
    assert [(s.kind, s.image, s.position) for s in kept] == [
        (LATENT, 1, 0), (PATCH, 1, 1), (LATENT, 2, 2), (PATCH, 2, 3), (TARGET, 3, 4),
    ]  # fmt: skip
    left = [replace(s, position=0, attributes=()) for s in full if s.kind is not TEXT]
    assert [replace(s, position=0) for s in kept] == left


def test_without_references_the_text_moves_up_and_keeps_everything_else() -> None:
    full = case("<style> a <image_1> b <image_2>", pictures=3).layout()
    kept = without_references(full)
    assert [(s.kind, s.position) for s in kept] == [(TEXT, 0), (TEXT, 4), (TARGET, 7)]
    left = [s for s in full if s.kind not in (LATENT, PATCH)]
    assert [replace(s, position=0) for s in kept] == [replace(s, position=0) for s in left]


# Errors ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("turns", "number"),
    [
        ((Turn("paint <image_7>", target=2),), 7),
        ((Turn("paint <image_0>", target=2),), 0),
        ((Turn("paint <image_2>", target=2),), 2),
        ((Turn("<image_1>", target=2), Turn("<image_3>", target=3)), 3),
    ],
    ids=["no such picture", "number 0", "the target itself", "a target to come"],
)
def test_a_placeholder_without_a_picture_to_look_at_is_an_error_that_names_it(
    turns: tuple[Turn, ...], number: int
) -> None:
    with pytest.raises(SequenceError, match=rf"names image {number}\b"):
        case(*turns, pictures=1 + len(turns)).layout()


def test_a_picture_too_elongated_for_the_position_tables_is_an_error() -> None:
    rule = ResizeRule(max_size=32, min_size=4, stride=4)
    one = case("<image_1>", pictures=2, sizes={1: (90, 20), 2: (20, 20)})
    small = Geometry(rule, None, None, latent_grid=5, patch_grid=0, max_tokens=999)
    with pytest.raises(SequenceError, match=r"90 x 20 becomes 8 x 2 latent patches.* 5 a side"):
        layout(one.sample.turns, one.sizes, WordEncoder(), small)
    patches = Geometry(rule, rule, rule, latent_grid=8, patch_grid=7, max_tokens=999)
    with pytest.raises(SequenceError, match=r"90 x 20 becomes 8 x 2 ViT patches.* 7 a side"):
        layout(one.sample.turns, one.sizes, WordEncoder(), patches)
    assert layout(one.sample.turns, one.sizes, WordEncoder(), replace(patches, patch_grid=8))


def test_a_sequence_of_just_the_allowed_length_passes_and_one_token_more_is_an_error() -> None:
    one = case("paint <image_1> in red", pictures=2)
    total = sum(segment.length for segment in one.layout())

    def bounded(tokens: int) -> Geometry:
        return replace(tiny_geometry(), max_tokens=tokens)

    assert layout(one.sample.turns, one.sizes, WordEncoder(), bounded(total)) == one.layout()
    with pytest.raises(SequenceError, match=rf"{total} tokens long, and {total - 1} are the most"):
        layout(one.sample.turns, one.sizes, WordEncoder(), bounded(total - 1))


@pytest.mark.parametrize("turn", [Turn("a <image_1>", target=2), Turn("a <image_1>", response="b")])
def test_what_the_model_must_produce_cannot_be_dropped(turn: Turn) -> None:
    one = case(turn, pictures=2 if turn.target else 1)
    with pytest.raises(SequenceError, match="cannot be dropped"):
        one.layout(dropped=[len(one.layout()) - 1])


def test_dropping_what_is_not_there_is_an_error() -> None:
    one = case("a <image_1>", pictures=2)
    with pytest.raises(SequenceError, match=r"\[4\] are to be dropped, and there are 4"):
        one.layout(dropped=[4])


def test_a_binding_to_a_picture_that_is_not_there_is_an_error() -> None:
    with pytest.raises(SequenceError, match="names image 7"):
        case(Turn("<style> a <image_1>", target=2, bindings=((0, 7),)), pictures=2).layout()


def test_a_question_in_words_shows_its_pictures_to_the_vision_encoder_alone() -> None:
    """As BAGEL is trained, under the rule for questions, whose pixels the pictures share."""
    one = case(Turn("b <image_1> c <image_2>", response="a"), pictures=2, sizes={1: (80, 80), 2: (80, 80)})
    assert [(s.kind, s.image) for s in one.layout() if s.kind.image] == [(PATCH, 1), (PATCH, 2)]
    rule = ResizeRule(max_size=10, min_size=2, stride=2, max_pixels=100)
    shared = replace(tiny_geometry(), vqa=rule)
    sizes = [s.size for s in layout(one.sample.turns, one.sizes, WordEncoder(), shared) if s.kind.image]
    assert sizes == [rule.size(80, 80, images=2)] * 2 != [rule.size(80, 80)] * 2
    assert [s.kind for s in one.layout(vision=False) if s.kind.image] == [LATENT, LATENT]


def test_a_target_that_is_not_there_is_an_error_that_names_it() -> None:
    with pytest.raises(SequenceError, match="image 2 is to be produced, but there is no such image"):
        layout([Turn("a <image_1>", target=2)], {1: (8, 8)}, WordEncoder(), tiny_geometry())


# For every sample -----------------------------------------------------------------------------------


@pytest.mark.slow
@some_layouts
@given(cases(), st.booleans())
def test_every_picture_is_there_as_often_as_it_should(one: Case, vision: bool) -> None:
    segments = one.layout(vision=vision)
    sample = one.sample
    assert sorted(s.image for s in segments if s.kind is TARGET) == sorted(sample.targets)
    # A reference once, and the clean copy of every picture that some later turn may look at.
    clean = sorted(sample.context(len(sample.turns) - 1))
    made = bool(sample.targets) or not vision  # where all is answered in words, there are no latents
    assert sorted(s.image for s in segments if s.kind is LATENT) == (clean if made else [])
    assert sorted(s.image for s in segments if s.kind is PATCH) == (clean if vision else [])
    for index, segment in enumerate(segments):
        if segment.kind is PATCH and made:
            assert segments[index - 1].kind is LATENT and segments[index - 1].image == segment.image


@pytest.mark.slow
@some_layouts
@given(cases())
def test_turns_follow_one_another_and_each_ends_with_its_answer(one: Case) -> None:
    segments = one.layout()
    assert [s.turn for s in segments] == sorted(s.turn for s in segments)
    for number, turn in enumerate(one.sample.turns):
        *before, last = [s for s in segments if s.turn == number]
        assert last.kind is (ANSWER if turn.target is None else TARGET)
        assert not [s for s in before if s.kind.loss]
        assert last.ids == (word_ids(turn.response) if turn.response is not None else ())


@pytest.mark.slow
@some_layouts
@given(cases())
def test_no_word_and_no_attribute_token_of_an_instruction_is_lost(one: Case) -> None:
    segments = one.layout()
    for number, turn in enumerate(one.sample.turns):
        parts = [part for part in parse(turn.instruction).parts if not isinstance(part, Placeholder)]
        expected = WordEncoder().encode_parts(parts).ids
        texts = [s for s in segments if s.turn == number and s.kind is TEXT]
        assert sum((s.ids for s in texts), ()) == expected
        assert all(s.ids for s in texts)
        marked = [s.ids[place] for s in texts for place, _ in s.bound]
        assert marked == [token for token in expected if token >= attribute_id("style")]


@pytest.mark.slow
@some_layouts
@given(cases())
def test_groups_are_those_read_off_the_text(one: Case) -> None:
    segments = one.layout()
    for number, turn in enumerate(one.sample.turns):
        shown = [s.image for s in segments if s.kind is PATCH and s.turn < number]
        for segment in segments:  # and what stands before this turn's text
            if segment.turn == number and segment.kind is PATCH and f"<image_{segment.image}>" not in turn.instruction:
                shown.append(segment.image)
        of_turn = [s for s in segments if s.turn == number]
        assert [group for s in of_turn for _, group in s.bound] == spoken_of(turn, shown)
        for segment in of_turn:
            if segment.kind in (LATENT, PATCH):
                ids = [s.ids[place] for s in of_turn for place, group in s.bound if group == segment.image]
                assert list(segment.attributes) == ids


@pytest.mark.slow
@some_layouts
@given(cases(), st.booleans(), st.data())
def test_positions_follow_the_rule_whatever_is_dropped(one: Case, vision: bool, data: st.DataObject) -> None:
    full = one.layout(vision=vision)
    conditions = [index for index, segment in enumerate(full) if not segment.kind.loss]
    dropped = data.draw(st.sets(st.sampled_from(conditions)) if conditions else st.just(set()))
    position, expected = 0, []
    for index, segment in enumerate(full):
        if index not in dropped:
            words = [text for number, text in enumerate(full) if number not in dropped and text.turn == segment.turn]
            spoken = [text.ids[place] for text in words for place, group in text.bound if group == segment.group != 0]
            expected.append(replace(segment, position=position, attributes=tuple(spoken)))
        if segment.kind in (LATENT, PATCH):
            position += 1
        elif segment.kind is not TARGET and index not in dropped:
            position += segment.length
    assert one.layout(vision=vision, dropped=sorted(dropped)) == tuple(expected)


@pytest.mark.slow
@some_layouts
@given(cases(), st.booleans())
def test_lengths_are_what_the_batch_holds(one: Case, vision: bool) -> None:
    segments = one.layout(vision=vision)
    for segment in segments:
        inside = segment.grid[0] * segment.grid[1] if segment.kind.image else len(segment.ids)
        assert segment.length == inside + 2
    config = tiny_config(vision=vision)
    batch = collate([item(segments, config)], SPECIALS, widths(config))
    assert batch.tokens == sum(segment.length for segment in segments) == torch.numel(batch.positions)


@pytest.mark.slow
@some_layouts
@given(cases())
def test_a_guidance_context_without_both_is_the_targets_alone(one: Case) -> None:
    left = without_references(without_text(one.layout()))
    assert all(segment.kind.loss for segment in left)
    assert [s.image or s.ids for s in left] == [s.image or s.ids for s in one.layout() if s.kind.loss]
    position = 0
    for segment in left:
        assert segment.position == position
        position += segment.length if segment.kind is ANSWER else 0
