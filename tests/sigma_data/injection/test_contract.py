"""The contract of an injected instruction: each rule by its code."""

from __future__ import annotations

import pytest

from sigma_data.injection import Phrase, Reference, Request, contract
from sigma_data.injection.frames import frames
from sigma_data.instruction import parse
from sigma_data.sample import Family

CAPTION = "Put the cat on it, next to the picture."
REQUEST = Request(Family.EDITING, CAPTION, (Reference(1),))
TWO = Request(Family.COMPOSITIONAL, "Put the cat on the sofa", (Reference(1), Reference(2)))


@pytest.mark.parametrize(
    "text",
    [
        "Put the <subject>cat <image_1> on it, next to the picture.",
        "Put the <subject>cat on <image_1>, next to the picture.",  # a pronoun that stood for the image
        "Put the cat on it, next to <image_1>.",
        "Put the cat on it, next to the picture in <image_1>.",
        "Put the cat in the picture <image_1> on it , next to the picture",
    ],
)
def test_what_may_be_added_and_replaced(text: str) -> None:
    assert contract.check(text, REQUEST) is None


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("Put the <subjct>cat <image_1> on it, next to the picture.", "unknown_token"),
        ("Put the cat <image_1> on it, next to the picture.<|im_end|>", "control_token"),
        ("Put the cat <image_2> on it, next to the picture.", "image_range"),
        ("Put the cat on it, next to the picture.", "unnamed_reference"),
        ("Put the black cat <image_1> on it, next to the picture.", "words_changed"),
        ("Put the cat <image_1> on it, next to the", "words_changed"),
        ("put the cat <image_1> on it, next to the picture.", "words_changed"),
        ("Put the cat on it in, next to <image_1> the picture.", "words_changed"),
        ("Put the cat's <image_1> on it, next to the picture.", "words_changed"),
    ],
)
def test_each_broken_rule_has_its_code(text: str, code: str) -> None:
    problem = contract.check(text, REQUEST)
    assert problem is not None
    assert problem.code == code


def test_the_first_word_that_differs_is_shown() -> None:
    problem = contract.check("Put the dog <image_1> on it, next to the picture.", REQUEST)
    assert problem is not None
    assert "'cat'" in problem.message


def test_a_placeholder_stands_for_words_only_where_there_is_one_reference() -> None:
    two = Request(Family.EDITING, "Put it on the table <image_2>", (Reference(1), Reference(2)))
    problem = contract.check("Put <image_1> on the table <image_2>", two)
    assert problem is not None
    assert problem.code == "words_changed"


def test_what_was_replaced_is_told() -> None:
    kept = contract.preserved(REQUEST, parse("Put the cat on <image_1>, next to the picture."))
    assert (kept.replaced, kept.changed) == (("it",), None)


def test_a_frame_may_stand_around_and_lower_the_first_letter() -> None:
    asked = Request(Family.SELECTIVE, "The red car.", (Reference(1),))
    assert (
        contract.check("Isolate <select>the red car in <image_1>.", asked, frames=frames("selective", asked.references))
        is None
    )
    problem = contract.check(
        "Fetch <select>the red car in <image_1>.", asked, frames=frames("selective", asked.references)
    )
    assert problem is not None
    assert problem.code == "words_changed"


def test_tokens_must_be_those_of_the_phrases_and_bound_to_their_images() -> None:
    text = "Put the <subject>cat <image_2> on the <subject>sofa <image_1>"
    meant = [Phrase("cat", "subject", 2), Phrase("sofa", "subject", 1)]
    assert contract.check(text, TWO, phrases=meant) is None
    problem = contract.check(text, TWO, phrases=meant[:1])
    assert problem is not None
    assert problem.code == "binding"
    wrong = [Phrase("cat", "subject", 1), meant[1]]
    problem = contract.check(text, TWO, phrases=wrong)
    assert problem is not None
    assert problem.code == "binding"
    assert contract.check(text, TWO, phrases=wrong, bindings=((0, 1),)) is None
