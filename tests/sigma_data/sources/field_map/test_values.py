"""Scores, texts and names of rows as publishers write them."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sigma_data.sources.field_map.values import ABSENT, RowFault, is_empty, look_up, numbers, printed_list, texts


@pytest.mark.parametrize(
    ("value", "scores"),
    [
        (7, [7.0]), (4.5, [4.5]), ("4.5", [4.5]), ("[5, 4]", [5.0, 4.0]), ("(5, 4)", [5.0, 4.0]), ([5, "4"], [5.0, 4.0]),
        (" [9] ", [9.0]), ("-1e2", [-100.0]), ("[9,]", [9.0]),
        (None, None), ("None", None), ("", None), (math.nan, None), (math.inf, None), ("nan", None), ("[5, None]", None),
        ("1e9999", None), (True, None), ([], None), ([1, math.nan], None), ("__import__('os')", None), ({"a": 1}, None),
        (10**400, None), (b"5", None), ("good", None), ("9" * 2000, None),
    ],
)  # fmt: skip
def test_scores_are_finite_numbers_or_none_at_all(value: object, scores: list[float] | None) -> None:
    assert numbers(value) == scores


@pytest.mark.slow
@settings(deadline=None)
@given(st.text() | st.lists(st.floats() | st.none() | st.text()) | st.floats() | st.integers() | st.none())
def test_whatever_stands_there_scores_are_finite_or_none(value: object) -> None:
    found = numbers(value)
    assert found is None or (found and all(math.isfinite(number) for number in found))


@settings(deadline=None)
@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=9))
def test_the_text_of_a_list_reads_as_the_list(scores: list[float]) -> None:
    assert numbers(str(scores)) == numbers(scores) == scores


@pytest.mark.parametrize(
    "text", ["", " ", "None", "null", "NULL.", "无", "no change", "No change.", "nan", "...", "12"]
)
def test_words_for_nothing_are_empty(text: str) -> None:
    assert is_empty(text)
    assert texts(text, "instruction") == []


@pytest.mark.parametrize("text", ["改", "Remove it", "None of the trees should stay", "é"])
def test_words_are_words(text: str) -> None:
    assert texts(text, "instruction") == [text]


def test_phrasings_come_as_lists_printed_lists_and_json() -> None:
    assert texts(["a b", None, "", "c"], "f") == ["a b", "c"]
    assert texts("['a b', 'c']", "f") == ["a b", "c"]
    assert texts('["a b", "c"]', "f") == ["a b", "c"]
    assert texts('{"short": "a", "long": "b"}', "f", from_json=True) == ["a", "b"]
    assert texts("[a cat", "f") == ["[a cat"]
    assert printed_list("[1, 2]") == "[1, 2]"


@pytest.mark.parametrize("value", [3, {"a": 3}, [["a"]], b"\xff"])
def test_what_is_no_text_is_a_bad_field(value: object) -> None:
    with pytest.raises(RowFault) as fault:
        texts(value, "f")
    assert fault.value.code == "bad_fields"


def test_text_that_must_be_json_is_a_bad_field_if_it_is_not() -> None:
    with pytest.raises(RowFault, match="not JSON"):
        texts("a cat", "f", from_json=True)


def test_names_lead_into_structs_and_lists_and_may_have_others_beside() -> None:
    row = {"a": {"b": None, "c": [1, {"d": 2}]}, "x.y": 3, "1.0": 4}
    assert look_up(row, "a.c.1.d") == 2
    assert look_up(row, "a.c.-2") == 1
    assert look_up(row, "a.b.c") is None
    assert look_up(row, "x.y") == 3
    assert look_up(row, "2.0|1.0") == 4
    assert look_up(row, "a.z|q") is ABSENT
    assert look_up(row, "a.c.7") is ABSENT
