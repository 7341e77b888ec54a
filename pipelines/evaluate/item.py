"""What a benchmark asks and what a model made of it: the one record of readers, metrics and reports."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sigma_data.sample import Turn


@dataclass(frozen=True)
class Item:
    """A question of a benchmark.

    `family` is the group it counts in. `references` are encoded images, the first is <image_1>; `answer` is the encoded
    reference answer, if any, `answer_text` the right answer as text. `size` (width, height) is that of the output; None
    leaves it to the model. `condition` and `style` are the numbers of the references that hold a control map or a
    style, 0 without. `bindings` are those of `Turn`; `before` are the turns that came before, the images that they
    produced are among `references`; `masks` are the numbers of those that are maps of labels. `truth` is what is known
    exactly: its keys are the benchmark's own. `question` is the same for items that differ in their noise alone, "" if
    an item is the only one of its question.
    """

    id: str
    family: str
    instruction: str
    references: tuple[bytes, ...] = ()
    answer: bytes | None = None
    answer_text: str | None = None
    size: tuple[int, int] | None = None
    condition: int = 0
    style: int = 0
    truth: Mapping[str, Any] = field(default_factory=dict)
    question: str = ""
    bindings: tuple[tuple[int, int], ...] = ()
    before: tuple[Turn, ...] = ()
    masks: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Result:
    """An item with what a model made: an encoded image, or text, or why there is neither."""

    item: Item
    image: bytes | None = None
    text: str | None = None
    failure: str | None = None


@dataclass(frozen=True)
class Score:
    """A number for one item under one metric; None where the metric does not apply, or `reason` says why it failed."""

    item: str
    metric: str
    value: float | None
    reason: str = ""
