"""Edits that hold for any image are told from those of one, and the thing of a reference is found by its words."""

from __future__ import annotations

import pytest

from sigma_data.injection.operations import operation_of, thing_of


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("Turn it into a watercolor painting.", "style"),
        ("Transform the image into a pixel art style", "style"),
        ("Turn the photo into a Van Gogh style painting", "style"),
        ("Change the season to winter", "season"),
        ("Make it snowy", "weather"),
        ("Change the time of day to night", "time"),
        ("Apply a sepia filter", "tone"),
        ("Turn it into clay", "material"),
        ("Remove the dog on the left", None),
        ("Turn the dog into a cartoon", None),
        ("Add a red hat to the man", None),
        ("Turn it into a tiger", None),
        ("", None),
    ],
)
def test_an_edit_of_the_whole_image_is_an_operation_and_one_of_a_thing_is_not(text: str, kind: str | None) -> None:
    found = operation_of([text])
    assert (found.kind if found else None) == kind


def test_the_same_edit_has_the_same_key_however_it_is_spelled_and_any_phrasing_counts() -> None:
    spelled = [operation_of([text]) for text in ("Make it  snowy.", "make it snowy", "Please make it snowy")]
    assert len({one.key for one in spelled if one}) == 1 and all(spelled)
    other = operation_of(["Cover the bench with snow, and the man", "Make it snowy"])
    assert other is not None and other.text == "Make it snowy"


SCENE = "Place the red dog from the second image next to the cat in the first picture, at the beach scene of <image_3>."


@pytest.mark.parametrize(
    ("text", "image", "thing"),
    [
        (SCENE, 1, "the cat"),
        (SCENE, 2, "the red dog"),
        (SCENE, 3, None),
        ("Put the <subject>toy of <image_2> on <background>the table in <image_1>", 2, "the toy"),
        ("Put the <subject>toy of <image_2> on <background>the table in <image_1>", 1, None),
        (
            "Position <subject> kangaroo in <image_2> beside <id>woman with brown hair from <image_1>.",
            2,
            "the kangaroo",
        ),
        ("Dress the <id>man of <image_1> in the <clothing>coat of <image_2>, wearing a hat", 1, None),
        ("Dress the <id>man of <image_1> in the <clothing>coat of <image_2>, wearing a hat", 2, "the coat"),
        ("Put the object of <image_1> next to the main subject in <image_2>", 1, None),
        ("Put the object of <image_1> next to the main subject in <image_2>", 2, None),
        ("Use both pictures", 1, None),
    ],
)
def test_a_thing_is_named_by_token_ordinal_or_placeholder_and_a_background_is_none(
    text: str, image: int, thing: str | None
) -> None:
    assert thing_of(text, image, 3) == thing
