"""What every benchmark offers: items to answer, scores that only it can give, and its official aggregate.

General metrics (similarity, aesthetics, edges) live elsewhere; a benchmark scores only what needs its own knowledge.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import ClassVar, Literal

from pipelines.evaluate.aggregate import MetricInfo
from pipelines.evaluate.item import Item, Result, Score
from pipelines.evaluate.stored import StoredBytes


class Benchmark(ABC):
    """A benchmark that is open.

    `version` is that of its definitions here, `metrics` defines the numbers of `own_scores`, `skipped` says of those
    that cannot be had here why, and `main` names the main metric of each family, one of its own or a general one.
    `split` is the part of a corpus that the questions come from, None without splits.
    """

    name: ClassVar[str]
    version: ClassVar[str]
    answers: ClassVar[Literal["image", "text"]]
    metrics: ClassVar[tuple[MetricInfo, ...]] = ()
    main: ClassVar[Mapping[str, str]] = {}
    skipped: Mapping[str, str] = {}
    split: str | None = None

    @cached_property
    def places(self) -> dict[str, StoredBytes]:
        """Where images lie that were given and are parts of files, by their SHA-256."""
        return {}

    @abstractmethod
    def iter_items(self) -> Iterator[Item]:
        """The questions in their fixed order, each when it is asked for.

        Raises ConfigError or CorpusError where they cannot be read. An image that lies in a file as it is enters
        `places` before its item is given.
        """

    def items(self) -> list[Item]:
        """All of `iter_items`, with their images."""
        return list(self.iter_items())

    def own_scores(self, results: Sequence[Result]) -> list[Score]:
        """The scores that only this benchmark can give.

        A failed result scores 0 where the official definition counts it as wrong, else it has no value; the score
        says the reason.
        """
        return []

    def summary(self, results: Sequence[Result], scores: Sequence[Score]) -> dict[str, float]:
        """The official aggregates by name, from `own_scores`; failed items stay in every denominator."""
        return {}


def share(results: Sequence[Result], scores: Sequence[Score], metric: str) -> float | None:
    """The mean of a metric over all results, those without a value as 0; None without results."""
    if not results:
        return None
    wanted = {result.item.id for result in results}
    return sum(one.value or 0.0 for one in scores if one.metric == metric and one.item in wanted) / len(results)
