"""One parser of lettered answers: the forms models write, and no letter favoured."""

from __future__ import annotations

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.evaluate.benchmarks.choice_letter import choice_letter

NAMED = [
    "{}", "({})", "[{}]", "{}.", "{})", "{}:", "**{}**", "__{}__", "'{}'", "“{}”", "\\boxed{{{}}}",
    "$\\boxed{{\\text{{{}}}}}$", "Answer: {}", "answer:{}", "Answer: ({})", "The answer is {}.", "The answer is ({})",
    "the correct answer is {}", "Option {}", "option {}", "option {} shows it", "choice: ({})", "Letter {}",
    "I choose {}", "I'd go with {}.", "It's {}", "{}. the chair", "{}) the chair", "{}: the chair", "{} - the chair",
    "{}, because it is nearer", "{} is correct", "{} above", "{} because it is nearer", '{{"answer": "{}"}}',
    "<answer>{}</answer>", "答案是{}", "答案：{}", "选{}。", "【{}】", "La respuesta es {}", "Ответ: {}",
    "Between (A) chair and (B) table, the answer is {}.",
]  # fmt: skip
CAPITALS_ONLY = ["正解は{}です", "정답은 {}입니다", "I see a chair and a cat. {}", "It must be {}, I think"]
NO_ANSWER = [
    "{} chair is nearer", "{} cat", "{} small dog is left of it", "{}'s place", "e.{}. the chair", "{}chair",
    "The chair of {}na", "",
]  # fmt: skip


@pytest.mark.parametrize("letter", "ABCD")
@pytest.mark.parametrize("phrase", [*NAMED, *CAPITALS_ONLY])
def test_a_capital_is_read_for_every_letter_alike(phrase: str, letter: str) -> None:
    assert choice_letter(phrase.format(letter), 4) == letter


@pytest.mark.parametrize("letter", "abcd")
@pytest.mark.parametrize("phrase", NAMED)
def test_a_small_letter_is_read_for_every_letter_alike(phrase: str, letter: str) -> None:
    assert choice_letter(phrase.format(letter), 4) == letter.upper()


@pytest.mark.parametrize("letter", "ＡＢＣＤ")
def test_full_width_letters_are_letters(letter: str) -> None:
    expected = chr(ord(letter) - ord("Ａ") + ord("A"))
    assert choice_letter(letter, 4) == choice_letter(f"（{letter}）", 4) == expected


@pytest.mark.parametrize("letter", "ABCDabcd")
@pytest.mark.parametrize("phrase", NO_ANSWER)
def test_a_letter_before_a_noun_or_in_a_word_is_no_answer_whichever_it_is(phrase: str, letter: str) -> None:
    assert choice_letter(phrase.format(letter), 4) is None


@given(st.permutations(range(4)), st.sampled_from([*NAMED, *CAPITALS_ONLY, *NO_ANSWER]), st.integers(0, 3))
def test_permuting_the_choices_permutes_the_answer(order: list[int], phrase: str, chosen: int) -> None:
    texts = ["to the left", "above", "a red chair", "12"]
    before = choice_letter(phrase.format(string.ascii_uppercase[chosen]), texts)
    moved = [texts[number] for number in order]
    after = choice_letter(phrase.format(string.ascii_uppercase[order.index(chosen)]), moved)
    assert (before is None) == (after is None)
    if before is not None and "(A) chair" not in phrase:
        assert after is not None and moved[ord(after) - 65] == texts[ord(before) - 65]


@given(st.permutations(["above", "below", "left", "the red chair"]), st.integers(0, 3))
def test_a_letter_with_its_choices_own_text_is_read(texts: list[str], chosen: int) -> None:
    letter = string.ascii_uppercase[chosen]
    for form in ("{} {}", "{}. {}", "({}) {}", "{}\n{}", "{} {}."):
        assert choice_letter(form.format(letter, texts[chosen]), texts) == letter


@given(st.permutations(["above", "below", "chair", "the red chair", "12"]), st.integers(0, 4))
def test_the_text_of_one_choice_to_the_letter_is_that_choice(texts: list[str], chosen: int) -> None:
    expected = string.ascii_uppercase[chosen]
    for form in ("{}", "{}.", "The answer is {}", "Answer: {}."):
        assert choice_letter(form.format(texts[chosen]), texts) == expected
    assert choice_letter(f"It may be {texts[chosen]} or not", texts) is None


def test_an_article_before_a_choices_text_is_that_choice_and_not_the_letter() -> None:
    assert choice_letter("A chair", ["table", "chair"]) == "B"
    assert choice_letter("A chair", ["chair", "table"]) == "A"
    assert choice_letter("The left one", ["left", "right"]) is None  # a sentence, not the text of a choice


@pytest.mark.slow
@given(st.text(), st.integers(2, 26))
def test_any_text_gives_one_of_the_choices_or_nothing(text: str, choices: int) -> None:
    assert choice_letter(text, choices) in {None, *string.ascii_uppercase[:choices]}
