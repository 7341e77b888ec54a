"""All at once, else one by one: the items at fault are found, the others are kept, nothing else is caught."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.common.together import together_or_each


class Spoilt(Exception):
    """An item that spoils all it is computed with."""


class Doubling:
    """Doubles numbers, and refuses negative ones together with all that came with them."""

    def __init__(self) -> None:
        self.calls: list[list[int]] = []

    def __call__(self, numbers: Sequence[int]) -> list[int]:
        self.calls.append([*numbers])
        for number in numbers:
            if number < 0:
                raise Spoilt(f"{number} is negative")
        return [2 * number for number in numbers]


@given(st.lists(st.integers(-3, 9), max_size=12))
def test_an_item_at_fault_costs_no_other_its_result_and_the_order_stays(numbers: list[int]) -> None:
    act = Doubling()
    made = together_or_each(act, numbers, Spoilt)
    assert [str(one) if isinstance(one, Spoilt) else one for one in made] == [
        f"{number} is negative" if number < 0 else 2 * number for number in numbers
    ]
    alone = [[number] for number in numbers] if len(numbers) > 1 and min(numbers) < 0 else []
    assert act.calls == ([numbers] if numbers else []) + alone


def test_without_items_nothing_is_called() -> None:
    assert together_or_each(lambda _: pytest.fail("called"), [], Spoilt) == []


def test_a_fault_while_results_are_read_counts_too() -> None:
    """`act` may be a generator, which fails only when it is read."""
    made = together_or_each(lambda numbers: (12 // number for number in numbers), [3, 0, 4], ZeroDivisionError)
    assert made[0] == 4
    assert made[2] == 3
    assert isinstance(made[1], ZeroDivisionError)


@pytest.mark.parametrize("count", [1, 3])
def test_another_exception_is_not_caught(count: int) -> None:
    def broken(_: Sequence[int]) -> list[int]:
        raise KeyError("a bug")

    with pytest.raises(KeyError):
        together_or_each(broken, range(count), Spoilt)
