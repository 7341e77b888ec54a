"""Whole samples: each turn with the images of its context, alternatives, refusals, what is noted."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from sigma_data.injection import VERSION
from sigma_data.injection.samples import inject_sample, requests_of, stays_plain
from sigma_data.sample import Family, Image, ImageKind, Rejection, Sample, Source, Turn


def sample(*turns: Turn, images: int = 2, family: Family = Family.EDITING, **given: Any) -> Sample:
    pictures = tuple(Image(number, b"x") for number in range(1, images + 1))
    return Sample("abc", family, given.pop("pictures", pictures), turns, Source("s", "l", 3, "mit"), **given)


def injected(found: Sample | Rejection) -> Sample:
    assert isinstance(found, Sample)
    return found


def test_a_later_turn_speaks_of_the_answer_before_it() -> None:
    dialogue = sample(Turn("Add a hat to the man", 2), Turn("Make the hat red", 3), Turn("Zoom out", 4), images=4)
    found = injected(inject_sample(dialogue))
    assert [turn.instruction for turn in found.turns] == [
        "Add a hat to the <id>man <image_1>", "Make the <clothing>hat <image_2> red", "Zoom out <image_3>",
    ]  # fmt: skip
    assert [turn.caption for turn in found.turns] == ["Add a hat to the man", "Make the hat red", "Zoom out"]


def test_a_later_turn_that_names_an_earlier_image_keeps_to_it() -> None:
    dialogue = sample(Turn("Add a hat to the man", 2), Turn("Go back to <image_1> and zoom out", 3), images=3)
    found = injected(inject_sample(dialogue))
    assert found.turns[1].instruction == "Go back to <image_1> and zoom out"
    assert {one.image for _, _, request in requests_of(dialogue) for one in request.references} == {1}


def test_a_reference_that_only_a_later_turn_names_is_not_asked_of_the_first() -> None:
    dialogue = sample(Turn("Make the dog red", 3), Turn("Add the hat of <image_2>", 4), images=4)
    first = next(requests_of(dialogue))[2]
    assert [one.image for one in first.references] == [1]


def test_alternatives_are_injected_too_and_those_that_bind_nothing_left_out() -> None:
    turn = Turn("Put the dog of the second picture on the chair of the first picture", 3,
                alternatives=("put the dog there", "Put <image_2> on the chair of <image_1>"))  # fmt: skip
    found = injected(inject_sample(sample(turn, images=3, family=Family.COMPOSITIONAL)))
    assert found.turns[0].alternatives == ("Put <image_2> on the <subject>chair of <image_1>",)
    single = injected(inject_sample(sample(Turn("Mirror the man", 2, alternatives=("mirror it",)))))
    assert single.turns[0].alternatives == ("mirror <image_1>",)


def test_what_binds_nothing_is_rejected_only_where_the_family_needs_it() -> None:
    turn = Turn("A dream of two things", 3)
    rejected = inject_sample(sample(turn, images=3, family=Family.COMPOSITIONAL))
    assert isinstance(rejected, Rejection)
    assert (rejected.code, rejected.row, rejected.family) == ("unbound_reference", 3, Family.COMPOSITIONAL)
    kept = injected(inject_sample(sample(turn, images=3)))
    assert kept.turns == (turn,)
    assert json.loads(kept.provenance or "")["injection"] == {
        "by": "rules", "version": VERSION, "outcome": "refused", "code": "unbound_reference",
    }  # fmt: skip


def test_a_caption_that_reads_as_a_token_is_rejected() -> None:
    found = inject_sample(sample(Turn('Write "<style>" there', 2)))
    assert isinstance(found, Rejection)
    assert found.code == "token_in_text"


def test_kinds_and_labels_of_images_reach_the_frames() -> None:
    pictures = (Image(1, b"x", kind=ImageKind.DEPTH), Image(2, b"x"))
    found = injected(inject_sample(sample(Turn("a red car", 2), family=Family.LAYOUT, pictures=pictures)))
    assert "depth map" in found.turns[0].instruction
    pictures = (Image(1, b"x", label="blue teapot"), Image(2, b"x"))
    found = injected(inject_sample(sample(Turn("On a beach.", 2), family=Family.COMPOSITIONAL, pictures=pictures)))
    assert "<subject>blue teapot" in found.turns[0].instruction


def test_bindings_of_the_source_stay_with_the_tokens_they_belong_to() -> None:
    turn = Turn("Show <style>this of <image_1> and <image_2>", 3, bindings=((0, 2),))
    assert injected(inject_sample(sample(turn, images=3))).turns[0].bindings == ((0, 2),)


def test_what_was_injected_before_stays_and_other_notes_are_kept() -> None:
    once = injected(inject_sample(sample(Turn("Make the dog red", 2), provenance='{"resolved":{"1":"path"}}')))
    assert set(json.loads(once.provenance or "")) == {"injection", "resolved"}
    assert inject_sample(once) is once


def test_families_without_tokens_and_text_answers_are_left_alone() -> None:
    for family in (Family.UNDERSTANDING, Family.SEGMENTATION):
        asked = sample(Turn("What is the man doing?", 2), family=family)
        assert inject_sample(asked) is asked
    answered = sample(Turn("What is it?", response="A dog"), Turn("Make the dog red", 2))
    assert injected(inject_sample(answered)).turns[0] == answered.turns[0]


def test_the_plain_share_is_drawn_by_the_id_and_never_takes_a_frame() -> None:
    drawn = [stays_plain(replace(sample(Turn("x", 2)), id=f"{number}"), 0.2) for number in range(2_000)]
    assert 0.17 < sum(drawn) / 2_000 < 0.23
    assert not stays_plain(sample(Turn("x", 2), family=Family.RELATION), 1.0)
    plain = injected(inject_sample(sample(Turn("Isolate the dog", 2)), plain_share=1.0))
    assert (plain.turns[0].instruction, plain.family) == ("Isolate the dog", Family.SELECTIVE)
