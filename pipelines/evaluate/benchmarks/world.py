"""The world as a benchmark: exact answers, so every attribute of an output is known to be right or wrong.

The answer is known to the pixel and so is every wrong answer that takes an attribute from the wrong reference
(`world_scenes`); an output is scored by what it is nearest to and how far off (`world_pixels`).
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from statistics import fmean

import numpy as np
import numpy.typing as npt

from pipelines.evaluate.aggregate import MetricInfo
from pipelines.evaluate.benchmarks.base import Benchmark, share
from pipelines.evaluate.benchmarks.samples import corpus_samples, is_corpus, items_of
from pipelines.evaluate.benchmarks.world_pixels import Grid, cells, distance, mean, shift, silhouettes
from pipelines.evaluate.benchmarks.world_scenes import ATTRIBUTES, agrees, alternatives, before, redraw
from pipelines.evaluate.item import Item, Result, Score
from pipelines.evaluate.stored import bytes_of
from sigma_data.errors import ConfigError
from sigma_data.images.decode import ImageFault, load
from sigma_data.sample import Family, Sample
from sigma_data.synthetic.draw import render

VISIBLE = 5.0
"""Two images differ in a cell where its colours are farther apart than this (Delta E)."""
_FEWEST = 4
"""An alternative or a change that shows in fewer cells than this is left out."""
_LEAST_COVER = 4.0
"""An object of which fewer cells than this are to be seen has no scores of its own."""

_LOCATION = re.compile(r"seed=(?P<seed>\d+),size=(?P<size>\d+),format=\w+,families=[\w+:]+(?:,attributes=no)?")

_VERSION = "1"
_info = partial(MetricInfo, version=_VERSION)
_GRID = "on a grid of 32 x 32 cell means, CIELAB (D65), Delta E 1976"

ERROR = _info(name="world-error", better="down", definition=(
    f"Mean colour distance of output and exact answer {_GRID}; mean over regions, which count the same: the background"
    " and every object, by their exact silhouettes. 0 is the answer itself."
))  # fmt: skip
CHANGE = _info(name="world-change", better="down", definition=(
    f"Mean colour distance of output and exact answer {_GRID}, over the cells that the change asked for must alter"
    " (input and answer differ by more than 5). Handing back the input scores what the change amounts to."
))  # fmt: skip
ACCURACY = _info(name="world-accuracy", better="up", definition=(
    "Share of attributes that are right: the output is nearer to the answer than to any picture that differs from it in"
    f" this attribute alone, {_GRID}, over the cells in which the two differ by more than 5. The wrong values are those"
    " that the references show, at most three an attribute; also each object left out; and each reference as a whole"
    " (copy). An alternative that shows in fewer than four cells is not asked about."
))  # fmt: skip
LEAKAGE = _info(name="world-leakage", better="down", definition=(
    "Share of the references' wrong values (as for world-accuracy, without objects left out) to which the output is at"
    " least as near as to the answer."
))  # fmt: skip
COLOUR = _info(name="world-colour", better="down", definition=(
    "Distance (Delta E 1976) of the mean CIELAB colours of output and answer inside an object's exact silhouette; mean"
    " over objects."
))  # fmt: skip
BACKGROUND = _info(name="world-background", better="down", definition=(
    f"Mean colour distance of output and exact answer {_GRID}, outside all silhouettes."
))  # fmt: skip
PLACEMENT = _info(name="world-placement", better="down", definition=(
    "Distance in sides of the picture between where an object should be and where it is best found: the object with one"
    " cell around it, cut out of the answer, is laid over the output wherever it stays inside, in steps of 1/32; where"
    " several places are equally good their mean distance counts. Mean over objects."
))  # fmt: skip
COPY = "copy"
"""The attribute of not being one of the references as a whole."""
BY_ATTRIBUTE = {
    attribute: _info(
        name=f"world-accuracy-{attribute}",
        better="up",
        definition=f"world-accuracy of the attribute {attribute} alone.",
    )
    for attribute in (*ATTRIBUTES, COPY)
}


_ELSEWHERE = (Family.SEGMENTATION, Family.UNDERSTANDING)
"""Families that have benchmarks of their own."""


class WorldBenchmark(Benchmark):
    """`path`: a corpus built of `world:` alone, whose `split` has the questions."""

    name = "world"
    version = _VERSION
    answers = "image"
    metrics = (ERROR, CHANGE, ACCURACY, LEAKAGE, COLOUR, BACKGROUND, PLACEMENT, *BY_ATTRIBUTE.values())
    main = {
        Family.COMPOSITIONAL: ERROR.name,
        Family.SELECTIVE: ERROR.name,
        Family.STYLIZATION: ERROR.name,
        Family.RELATION: CHANGE.name,
        Family.EDITING: CHANGE.name,
        Family.LAYOUT: ERROR.name,
    }

    split: str

    def __init__(self, path: str, *, split: str = "test") -> None:
        if not is_corpus(path):
            raise ConfigError(
                f"benchmark world: {path}: no corpus; make one with sigma build-dataset world:COUNT --out {path}"
            )
        self.path = path
        self.split = split

    def iter_items(self) -> Iterator[Item]:
        empty = True
        for sample in corpus_samples(self.path, self.split, self.places):
            if sample.family in _ELSEWHERE:
                continue
            try:
                item = item_of(sample)
            except ConfigError as error:
                raise ConfigError(f"benchmark world: {self.path}: {error}") from None
            empty = False
            yield item
        if empty:
            raise ConfigError(
                f"benchmark world: {self.path}: has colour maps and questions alone; ask segmentation:{self.path} or "
                f"questions:{self.path}"
            )

    def own_scores(self, results: Sequence[Result]) -> list[Score]:
        """A score a metric and result; None without a reason where a metric does not apply."""
        return [score for result in results for score in self._scores(result)]

    def _scores(self, result: Result) -> list[Score]:
        if result.image is None:
            return self._failed(result, result.failure or "there is no image")
        try:
            output = cells(load(bytes_of(result.image)))
        except ImageFault as fault:
            return self._failed(result, fault.message)
        values = Exact(result.item).measure(output)
        return [Score(result.item.id, metric.name, values.get(metric.name)) for metric in self.metrics]

    def _failed(self, result: Result, reason: str) -> list[Score]:
        return [Score(result.item.id, metric.name, None, reason) for metric in self.metrics]

    def summary(self, results: Sequence[Result], scores: Sequence[Score]) -> dict[str, float]:
        """Accuracy of each family and their plain mean, an item without a score counted as all wrong."""
        families: dict[str, list[Result]] = defaultdict(list)
        for result in results:
            families[result.item.family].append(result)
        each = {family: share(some, scores, ACCURACY.name) or 0.0 for family, some in families.items()}
        if not each:
            return {}
        return {
            "accuracy": sum(each.values()) / len(each),
            **{f"accuracy, {family}": value for family, value in each.items()},
        }


def item_of(sample: Sample) -> Item:
    """The item of a sample that `world:` has drawn. Raises ConfigError for any other."""
    place = _LOCATION.fullmatch(sample.source.location)
    if sample.truth is None or place is None:
        raise ConfigError(f"sample {sample.id} was not drawn by the world; evaluate the corpus as sigma:PATH")
    truth = json.loads(sample.truth)
    origin = {"seed": int(place["seed"]), "size": int(place["size"]), "index": sample.source.row}
    if not agrees(redraw(sample.family, origin["seed"], origin["index"]), truth):
        raise ConfigError(f"sample {sample.id} was drawn by another version of the world; build the corpus again")
    (item,) = items_of(sample)
    assert item.answer is not None
    maps = [reference["image"] for reference in truth["references"] if reference["map"]]
    return replace(
        item,
        size=load(bytes_of(item.answer)).size,
        condition=next(iter(maps), 0),
        style=item.style or truth["sources"].get("style", 0),  # of a corpus without attribute tokens, too
        truth={**truth, "origin": origin},
    )


@dataclass(frozen=True)
class _WrongAnswer:
    """A wrong answer as cells [G, G, 3]; `differ` [G, G] is where it differs from the right one."""

    attribute: str
    thing: int
    cells: Grid
    differ: npt.NDArray[np.bool_]
    leak: bool


class Exact:
    """All that is known of an item of the world, to measure any number of outputs against."""

    def __init__(self, item: Item) -> None:
        origin = item.truth["origin"]
        self.draft = redraw(item.family, origin["seed"], origin["index"])
        self.size: int = origin["size"]
        assert item.answer is not None
        self.answer = cells(load(bytes_of(item.answer)))
        self.references = [cells(load(bytes_of(reference))) for reference in item.references]
        self.roles: dict[str, int] = {one["role"]: one["image"] for one in item.truth["references"]}
        covers, self.free = silhouettes(self.draft.target.things)
        self.covers = [cover for cover in covers if cover.sum() >= _LEAST_COVER]

    def measure(self, output: Grid) -> dict[str, float]:
        """The metrics of an output, cells [G, G, 3]; those that apply."""
        off = distance(output, self.answer)
        return {**self.regions(output, off), **self.change(off), **self.attributes(output, off)}

    def regions(self, output: Grid, off: Grid) -> dict[str, float]:
        """Errors of the background and of the objects; `off` [G, G] is how far the output is from the answer."""
        values = {BACKGROUND.name: mean(off, self.free)}
        errors = [values[BACKGROUND.name], *(mean(off, cover) for cover in self.covers)]
        values[ERROR.name] = sum(errors) / len(errors)
        if self.covers:
            colours = [float(distance(_colour(output, cover), _colour(self.answer, cover))) for cover in self.covers]
            values[COLOUR.name] = sum(colours) / len(colours)
        places = [shift(output, self.answer, cover) for cover in self._distinct]
        if places:
            values[PLACEMENT.name] = sum(places) / len(places)
        return values

    @cached_property
    def _distinct(self) -> list[Grid]:
        """The objects that stand out from their surroundings in the answer itself: others cannot be located."""
        return [cover for cover in self.covers if shift(self.answer, self.answer, cover) == 0]

    def change(self, off: Grid) -> dict[str, float]:
        """The error where the change that was requested must show."""
        role = before(self.draft)
        if role is None:
            return {}
        changed = distance(self.references[self.roles[role] - 1], self.answer) > VISIBLE
        return {CHANGE.name: float(off[changed].mean())} if changed.sum() >= _FEWEST else {}

    def attributes(self, output: Grid, off: Grid) -> dict[str, float]:
        """Accuracy, of all and by attribute, and leakage."""
        right: dict[tuple[str, int], bool] = {}
        leaked = []
        for wrong in self._wrong_answers:
            nearer = bool(off[wrong.differ].mean() < distance(output, wrong.cells)[wrong.differ].mean())
            key = (wrong.attribute, wrong.thing)
            right[key] = right.get(key, True) and nearer
            if wrong.leak:
                leaked.append(not nearer)
        values = {}
        if right:
            values[ACCURACY.name] = fmean(right.values())
        if leaked:
            values[LEAKAGE.name] = fmean(leaked)
        for attribute, metric in BY_ATTRIBUTE.items():
            answers = [good for (name, _), good in right.items() if name == attribute]
            if answers:
                values[metric.name] = fmean(answers)
        return values

    @cached_property
    def _wrong_answers(self) -> list[_WrongAnswer]:
        """The references as they are and the alternatives, where they differ visibly from the answer."""
        images = [(COPY, -1, reference, True) for reference in self.references]
        for other in alternatives(self.draft):
            images.append((other.attribute, other.thing, cells(render(other.scene, self.size)), other.leak))
        found = []
        for attribute, thing, image, leak in images:
            differ = distance(image, self.answer) > VISIBLE
            if differ.sum() >= _FEWEST:
                found.append(_WrongAnswer(attribute, thing, image, differ, leak))
        return found


def _colour(image: Grid, cover: Grid) -> Grid:
    """The mean colour [3] of what is covered."""
    colour: Grid = (image * cover[..., None]).sum(axis=(0, 1)) / cover.sum()
    return colour
