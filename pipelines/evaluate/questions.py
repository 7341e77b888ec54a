"""The questions of an evaluation: the items of a benchmark, with an optional limit, fixed size and repetitions.

The same arguments give the same items, which is how a report finds its questions again long after.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from pipelines.evaluate.benchmarks import Benchmark, open_benchmark
from pipelines.evaluate.item import Item
from pipelines.evaluate.stored import ImageStore
from sigma_data.errors import ConfigError


@dataclass(frozen=True)
class QuestionSet:
    """Which questions of a benchmark to answer; None leaves each to it.

    `limit` counts items, families taking turns. `size` (width, height) is that of every output instead of each
    item's own. `images` are made per prompt, each from noise of its own.
    """

    split: str | None = None
    limit: int | None = None
    size: tuple[int, int] | None = None
    images: int | None = None

    def open(self, spec: str, store: ImageStore | None = None) -> tuple[Benchmark, list[Item]]:
        """The benchmark and its items. Raises ConfigError, CorpusError if unreadable or unfit for these options."""
        benchmark = self.benchmark(spec)
        return benchmark, self.items(benchmark, store)

    def benchmark(self, spec: str) -> Benchmark:
        """The benchmark alone, its questions not read yet. Raises ConfigError."""
        if self.images is not None and self.images < 1:
            raise ConfigError(f"--images-per-prompt {self.images}: at least one image is made of a prompt")
        # GenEval makes several images of a prompt by its own definition, and numbers them for its scorer.
        images = self.images if spec.startswith("geneval:") else None
        benchmark = open_benchmark(spec, split=self.split, images=images)
        if benchmark.answers == "text" and (self.size or self.images):
            option = "--size" if self.size else "--images-per-prompt"
            raise ConfigError(f"benchmark {benchmark.name} is answered with text: leave {option} out")
        return benchmark

    def items(self, benchmark: Benchmark, store: ImageStore | None = None) -> list[Item]:
        """The items of an open benchmark; with a `store`, never more than one has its images in memory."""
        items = _limited(
            benchmark.iter_items(), self.limit, lambda item: item.stored(store, benchmark.places) if store else item
        )
        if self.size is not None:
            items = [replace(item, size=self.size) for item in items]
        if self.images is None or benchmark.name == "geneval":
            return items
        return [again for item in items for again in repeated(item, self.images)]


def limited(items: Sequence[Item], limit: int | None) -> list[Item]:
    """At most `limit` items, families taking turns, so that a few show all of them; in the order of `items`."""
    return _limited(items, limit, lambda item: item)


def _limited(items: Iterable[Item], limit: int | None, keep: Callable[[Item], Item]) -> list[Item]:
    """`limited` of items that come one by one; those that may be in it pass through `keep`."""
    if limit is None:
        return [keep(item) for item in items]
    seen: dict[str, int] = defaultdict(int)
    best: list[tuple[int, int, Item]] = []  # a heap, the last of the turns first
    for number, item in enumerate(items):
        turn = (-seen[item.family], -number)
        seen[item.family] += 1
        if len(best) < limit:
            heapq.heappush(best, (*turn, keep(item)))
        elif turn > best[0][:2]:
            heapq.heapreplace(best, (*turn, keep(item)))
    return [item for _, _, item in sorted(best, key=lambda one: -one[1])]


def repeated(item: Item, count: int) -> list[Item]:
    """The item `count` times: ID, ID#2, ID#3 ... so that the first image is the one made without repeating."""
    return [
        replace(item, id=item.id if number == 1 else f"{item.id}#{number}", question=item.question or item.id)
        for number in range(1, count + 1)
    ]
