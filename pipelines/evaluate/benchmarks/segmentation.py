"""Instance colour maps as a benchmark: the samples of the family segmentation of any corpus.

A map's colours say nothing but which pixels belong together, so an output is compared instance by instance
(`metrics.instance_maps`), whatever colours it chose.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial

from pipelines.evaluate.aggregate import MetricInfo
from pipelines.evaluate.benchmarks.base import Benchmark, share
from pipelines.evaluate.benchmarks.samples import corpus_samples, is_corpus, items_of
from pipelines.evaluate.item import Item, Result, Score
from pipelines.evaluate.metrics.instance_maps import Answer, measure
from pipelines.evaluate.stored import bytes_of
from sigma_data.errors import ConfigError
from sigma_data.images.decode import ImageFault, load
from sigma_data.sample import Family

_VERSION = "1"
_info = partial(MetricInfo, version=_VERSION)
_INSTANCES = (
    "An output is brought to the answer's size by nearest neighbour; its instances are its clusters of colours,"
    " whatever these are: of pixels like their four neighbours the most frequent colour takes all within 110 (Euclidean"
    " RGB; half of the least distance of the answer's own colours where that is less) of their mean, then the next,"
    " while there are 0.2 % of all pixels and four; every pixel goes to the nearest mean. A blended edge goes to the"
    " others: a cluster of which less than a quarter lies in the middle of 3 x 3 pixels of it, and whose mean is within"
    " half of that distance of the line between two others, or one and black. The cluster within that distance of"
    " black, if any, is background."
)

HUNGARIAN = _info(name="segmentation-iou", better="up", definition=(
    f"Intersection over union of instances, matched one to one for the largest sum (Hungarian), over the instances of"
    f" answer or output, whichever are more. {_INSTANCES}"
))  # fmt: skip
GREEDY = _info(name="segmentation-iou-greedy", better="up", definition=(
    "segmentation-iou with the largest overlap matched first, then the largest of what is left."
))  # fmt: skip
PIXELS = _info(name="segmentation-pixels", better="up", definition=(
    "Every pixel of the output takes the nearest of the answer's colours, black included; mean intersection over union"
    " over the answer's colours without black. The one metric that asks for the answer's own colours."
))  # fmt: skip
BOUNDARY = _info(name="segmentation-boundary", better="up", definition=(
    "F1 of boundary pixels (another instance to the right or below) of output and answer within 0.8 % of the diagonal,"
    " at least one pixel, counted in rows and columns; instances as for segmentation-iou."
))  # fmt: skip
COUNT = _info(name="segmentation-count", better="down", definition=(
    "How many instances the output has too many or too few; instances as for segmentation-iou."
))  # fmt: skip
_KEYS = {
    HUNGARIAN.name: "hungarian", GREEDY.name: "greedy", PIXELS.name: "pixels", BOUNDARY.name: "boundary",
    COUNT.name: "count",
}  # fmt: skip


class SegmentationBenchmark(Benchmark):
    """`path`: a corpus whose `split` has samples of the family segmentation; others are not asked."""

    name = "segmentation"
    version = _VERSION
    answers = "image"
    metrics = (HUNGARIAN, GREEDY, PIXELS, BOUNDARY, COUNT)
    main = {Family.SEGMENTATION: HUNGARIAN.name}

    split: str

    def __init__(self, path: str, *, split: str = "test") -> None:
        if not is_corpus(path):
            raise ConfigError(f"benchmark segmentation: {path}: no corpus; make one with sigma build-dataset")
        self.path = path
        self.split = split

    def iter_items(self) -> Iterator[Item]:
        empty = True
        for sample in corpus_samples(self.path, self.split, self.places):
            if sample.family is Family.SEGMENTATION:
                for item in items_of(sample):
                    if item.answer is not None:
                        empty = False
                        yield _sized(item, bytes_of(item.answer))
        if empty:
            raise ConfigError(f"benchmark segmentation: {self.path}: the split {self.split!r} has no colour map")

    def own_scores(self, results: Sequence[Result]) -> list[Score]:
        return [score for result in results for score in self._scores(result)]

    def _scores(self, result: Result) -> list[Score]:
        item = result.item
        try:
            if result.image is None or item.answer is None:
                raise ImageFault("absent", result.failure or "there is no image")
            values = measure(load(bytes_of(result.image)), Answer.of(load(bytes_of(item.answer))))
        except ImageFault as fault:
            return [Score(item.id, metric.name, None, fault.message) for metric in self.metrics]
        return [Score(item.id, metric.name, values[_KEYS[metric.name]]) for metric in self.metrics]

    def summary(self, results: Sequence[Result], scores: Sequence[Score]) -> dict[str, float]:
        """The mean segmentation-iou of all items, those without an image as 0."""
        value = share(results, scores, HUNGARIAN.name)
        return {} if value is None else {"iou": value}


def _sized(item: Item, answer: bytes) -> Item:
    """An item whose output has the size of its answer. Raises ConfigError where that cannot be read."""
    try:
        return replace(item, size=load(answer).size)
    except ImageFault as fault:
        raise ConfigError(f"benchmark segmentation: sample {item.id}: its colour map: {fault.message}") from None
