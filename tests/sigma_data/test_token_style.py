"""An instruction in the parts that every page shows."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from sigma_data.instruction import ATTRIBUTES
from sigma_data.token_style import TOKEN_COLOURS, instruction_parts, printable


def test_instructions_become_words_tokens_and_placeholders() -> None:
    assert instruction_parts("A <id>man of <Image 2>.") == [
        ("text", "A "), ("attribute", "id"), ("text", "man of "), ("image", "2"), ("text", "."),
    ]  # fmt: skip
    assert instruction_parts("<image>", references=1) == [("image", "1")]
    assert instruction_parts(None) == []


def test_words_are_cut_after_the_limit_in_all() -> None:
    assert instruction_parts("x" * 1000, limit=10) == [("text", "x" * 10 + "…")]
    assert instruction_parts("four<id>fourmore<image_1>", limit=8) == [
        ("text", "four"), ("attribute", "id"), ("text", "four…"),
    ]  # fmt: skip


@given(st.text(st.sampled_from("ab\n\x1b<>_1 "), max_size=40))
def test_without_a_limit_no_word_is_lost_and_nothing_is_unprintable(text: str) -> None:
    words = "".join(words for kind, words in instruction_parts(text) if kind == "text")
    assert words == printable(words)
    assert all(one in printable(text) for one in words.split("<"))


def test_every_token_has_a_colour_of_its_own() -> None:
    assert set(TOKEN_COLOURS) == set(ATTRIBUTES)
    assert len(set(TOKEN_COLOURS.values())) == len(ATTRIBUTES)
