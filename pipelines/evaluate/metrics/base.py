"""What a metric is: a named, versioned, defined number for a result, or one for a set of results.

A score is worth what its definition says, so every metric carries it, backbone included, and reports print it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Literal, TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image

from pipelines.evaluate.item import Item, Result
from pipelines.evaluate.stored import bytes_of
from sigma_data.images.decode import load
from sigma_data.sample import Family

Pixels = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float64]

_NEAREST, _BICUBIC = Image.Resampling.NEAREST, Image.Resampling.BICUBIC

_T = TypeVar("_T")


class Unavailable(Exception):
    """A metric cannot run here: weights or a package cannot be had. A report lists it as skipped with `reason`."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Measure(ABC):
    """What metrics of a result and of a set have in common.

    `name` is unique and heads a table's column; `version` grows whenever scores would change; `better` says which
    way is better; `scale` gives the range or unit; `definition` is a sentence or two with formula and backbone.
    """

    name: str
    version: str = "1"
    better: Literal["up", "down"]
    scale: str
    definition: str

    @abstractmethod
    def applies(self, item: Item) -> bool:
        """Whether the item has what the metric compares with; no model runs.

        Raises ImageFault where it takes a look at an image that cannot be decoded.
        """


class Metric(Measure):
    """A number for each result."""

    @abstractmethod
    def score(self, results: Sequence[Result]) -> list[float]:
        """One number a result, in order; all have images, and the metric applies to their items.

        Raises ImageFault where an image cannot be decoded or is too small.
        """


class SetMetric(Measure):
    """One number for a set of results, such as a family; it takes at least `least` of them."""

    least: int

    @abstractmethod
    def score_set(self, results: Sequence[Result]) -> float:
        """The number of the set; all have images, and the metric applies to their items.

        Raises ValueError for fewer than `least`, ImageFault as `Metric.score` does.
        """


def image_of(result: Result) -> bytes:
    """The output of a result that is known to have one."""
    assert result.image is not None
    return bytes_of(result.image)


def answer_of(result: Result) -> bytes:
    """The reference answer of a result that is known to have one."""
    assert result.item.answer is not None
    return bytes_of(result.item.answer)


def at_size(data: bytes, size: tuple[int, int], *, mask: bool = False) -> Image.Image:
    """The image as RGB at `size` (width, height): Pillow's bicubic filter, antialiased; a `mask` by nearest neighbour.

    Not the resampling of `sigma_data.images.resample`, which serves the model: scores must not change with it.
    """
    image = load(data)
    return image if image.size == size else image.resize(size, _NEAREST if mask else _BICUBIC)


def pixel_pair(result: Result) -> tuple[Pixels, Pixels]:
    """Output and reference answer, uint8 [h, w, 3] each: the output is brought to the answer's size."""
    answer = load(answer_of(result))
    mask = result.item.family == Family.SEGMENTATION
    return np.asarray(at_size(image_of(result), answer.size, mask=mask)), np.asarray(answer)


def chunks(values: Sequence[_T], size: int) -> Iterator[Sequence[_T]]:
    """The values in order, `size` at a time."""
    for start in range(0, len(values), size):
        yield values[start : start + size]
