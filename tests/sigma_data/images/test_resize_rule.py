"""One rule for one picture and for many: the same sizes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sigma_data.images.resize_rule import VAE_RULE, VIT_RULE, VQA_RULE, ResizeRule

RULES = (VAE_RULE, VIT_RULE, VQA_RULE, ResizeRule(max_size=64, min_size=32, stride=16), ResizeRule(16, 4, 4, 99))
sides = st.one_of(st.integers(1, 5000), st.sampled_from([1, 7, 223, 224, 518, 980, 1023, 1024, 1025, 4096, 30_000]))


@pytest.mark.slow
@pytest.mark.parametrize("rule", RULES)
@settings(deadline=None, max_examples=200)
@given(pictures=st.lists(st.tuples(sides, sides, st.integers(1, 9)), min_size=1, max_size=20))
@example(pictures=[(30_000, 1, 1), (1, 30_000, 2), (1024, 1024, 1)])
def test_many_pictures_at_once_get_the_sizes_of_each(rule: ResizeRule, pictures: list[tuple[int, int, int]]) -> None:
    widths, heights, images = (np.array(column, np.int32) for column in zip(*pictures, strict=True))
    found = [size.tolist() for size in rule.sizes(widths, heights, images)]
    expected = [rule.size(width, height, images=count) for width, height, count in pictures]
    assert list(zip(*found, strict=True)) == expected
    alone = [size.tolist() for size in rule.sizes(widths, heights)]
    assert list(zip(*alone, strict=True)) == [rule.size(width, height) for width, height, _ in pictures]
