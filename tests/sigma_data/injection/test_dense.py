"""Attribute-dense instructions: which captions name a person, clothes and a place, and what is made of them."""

from __future__ import annotations

import pytest

from sigma_data.injection.dense import Parts, dense_instruction, parts_of
from sigma_data.injection.frames import templates
from sigma_data.instruction import parse


@pytest.mark.parametrize(
    ("caption", "parts"),
    [
        ("A young woman in a red dress stands in a sunny garden.", Parts("young woman", "red dress", "sunny garden")),
        ("a man wearing a black leather jacket, on a city street", Parts("man", "black leather jacket", "city street")),
        ("Portrait photo: the girl with a straw hat against a white background", Parts("girl", "straw hat", "white background")),
    ],
)  # fmt: skip
def test_a_caption_that_names_a_person_clothes_and_a_place(caption: str, parts: Parts) -> None:
    assert parts_of(caption) == parts


@pytest.mark.parametrize(
    "caption",
    [
        "A dog in a garden",
        "A woman in a garden",
        "A woman in a red dress",
        "A man in a suit and a woman in a dress in a garden",  # whose clothes are whose?
        "穿红裙子的女人",
        "",
    ],
)
def test_a_caption_that_does_not_name_all_three_of_one_person_gives_none(caption: str) -> None:
    assert parts_of(caption) is None


def test_an_instruction_has_three_tokens_and_one_placeholder_in_at_least_eight_frames() -> None:
    parts = Parts("young woman", "red dress", "garden")
    made = {dense_instruction(parts, "Make her smile.", str(number)) for number in range(200)}
    assert len(made) == len(templates("dense")) >= 8
    for text in made:
        found = parse(text)
        assert found.attributes == ("id", "clothing", "background")
        assert found.placeholders == (1,)
        assert found.groups() == (1, 1, 1)
        assert not found.unknown
        assert text.endswith("Make her smile.")
