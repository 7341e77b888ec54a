"""What a benchmark asks and what a model made of it: the one record of readers, metrics and reports."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from pipelines.evaluate.stored import Encoded, ImageStore, StoredBytes
from sigma_data.sample import Turn


@dataclass(frozen=True)
class Item:
    """A question of a benchmark.

    `family` is the group it counts in. `references` are encoded images (at hand or in a file), the first is <image_1>;
    `answer` is the encoded reference answer, if any, `answer_text` the right answer as text. `size` (width, height) is
    that of the output; None leaves it to the model. `condition` and `style` are the numbers of the references that hold
    a control map or a style, 0 without. `bindings` are those of `Turn`; `before` are the turns that came before, the
    images that they produced are among `references`; `masks` are the numbers of those that are maps of labels. `truth`
    is what is known exactly: its keys are the benchmark's own. `question` is the same for items that differ in their
    noise alone, "" if an item is the only one of its question.
    """

    id: str
    family: str
    instruction: str
    references: tuple[Encoded, ...] = ()
    answer: Encoded | None = None
    answer_text: str | None = None
    size: tuple[int, int] | None = None
    condition: int = 0
    style: int = 0
    truth: Mapping[str, Any] = field(default_factory=dict)
    question: str = ""
    bindings: tuple[tuple[int, int], ...] = ()
    before: tuple[Turn, ...] = ()
    masks: frozenset[int] = frozenset()

    def stored(self, store: ImageStore, places: Mapping[str, StoredBytes]) -> Item:
        """The same without its images in memory. Raises BuildError where the disk refuses."""
        references = tuple(store.keep(data, places) for data in self.references)
        answer = None if self.answer is None else store.keep(self.answer, places)
        return replace(self, references=references, answer=answer)


@dataclass(frozen=True)
class Result:
    """An item with what a model made: an encoded image, or text, or why there is neither."""

    item: Item
    image: Encoded | None = None
    text: str | None = None
    failure: str | None = None


@dataclass(frozen=True)
class Score:
    """A number for one item under one metric; None where the metric does not apply, or `reason` says why it failed."""

    item: str
    metric: str
    value: float | None
    reason: str = ""
