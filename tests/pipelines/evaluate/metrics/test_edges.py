"""F1 of edge maps."""

from __future__ import annotations

import numpy as np
import pytest

from pipelines.evaluate.metrics.edges import f1


class TestF1:
    wanted = np.zeros((6, 8), bool)
    wanted[2, 1:7] = True

    def test_the_same_map_scores_1_and_an_empty_or_disjoint_one_0(self) -> None:
        assert f1(self.wanted, self.wanted) == 1
        assert f1(np.zeros_like(self.wanted), self.wanted) == 0
        assert f1(self.wanted, np.zeros_like(self.wanted)) == 0
        assert f1(np.roll(self.wanted, 2, 0), self.wanted) == 0

    def test_no_edges_where_none_are_wanted_is_right(self) -> None:
        assert f1(np.zeros((3, 3), bool), np.zeros((3, 3), bool)) == 1

    def test_it_is_the_harmonic_mean_of_precision_and_recall(self) -> None:
        found = self.wanted.copy()
        found[2, 1:3] = False  # 4 of 6 are found
        found[0, :4] = True  # 4 of 8 are right
        assert f1(found, self.wanted) == pytest.approx(2 * (4 / 8) * (4 / 6) / (4 / 8 + 4 / 6))

    def test_tolerance_forgives_that_many_pixels_and_no_more(self) -> None:
        off = np.roll(self.wanted, 2, 0)
        assert f1(off, self.wanted, tolerance=1) == 0
        assert f1(off, self.wanted, tolerance=2) == 1

    def test_tolerance_does_not_reach_round_the_border(self) -> None:
        first, last = np.zeros((5, 5), bool), np.zeros((5, 5), bool)
        first[0], last[-1] = True, True
        assert f1(first, last, tolerance=1) == 0
