"""Which samples an epoch shows, how often, and in what order: the part of a plan before packing.

Every part of the data (a family of a corpus) is an endless stream: round after round of all its samples,
each round in an order of its own. An epoch takes the next stretch of each stream, so a part that is
shown half or twice an epoch is still shown evenly over the epochs, and shares are exact to one sample
however many epochs have passed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import floor
from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field, model_validator

from sigma_data.errors import ConfigError
from sigma_data.planning.index import CorpusIndex
from sigma_data.planning.keyed_random import mixed, names
from sigma_data.sample import Family
from sigma_data.settings_base import StrictModel
from sigma_data.storage.path_settings import PathOrUri

Integers = npt.NDArray[np.int64]


class CorpusSettings(StrictModel):
    """A corpus, or a part of one."""

    path: Annotated[PathOrUri, Field(min_length=1)]
    """A folder, or an fsspec URI."""
    name: str = ""
    """What the mixture calls it; by default the last part of its path."""
    split: str = "train"
    """The split that is trained on."""
    families: tuple[Family, ...] | None = None
    """Only these; by default all."""
    repeat: float = Field(1.0, gt=0, le=1000, allow_inf_nan=False)
    """How often an epoch shows each sample, where the mixture sets no shares: 2 is twice, 0.5 every other."""

    @property
    def title(self) -> str:
        """`name`, or the last part of the path."""
        return self.name or self.path.rstrip("/").rsplit("/", 1)[-1]


class Mixture(StrictModel):
    """Exact shares of samples in an epoch."""

    by: Literal["family", "corpus"] = "family"
    """What the names in `shares` are."""
    shares: dict[str, float] = Field(min_length=1)
    """Family or corpus -> its share, in any unit: {segmentation: 2, understanding: 1}. Others are left out."""
    size: int | None = Field(None, ge=1)
    """Samples in an epoch, give or take one a part; by default so many that none comes more often than `repeat`."""

    @model_validator(mode="after")
    def _positive(self) -> Mixture:
        if not all(0 < share < float("inf") for share in self.shares.values()):
            raise ValueError("every share must be more than 0; leave out what is not wanted")
        if self.by == "family" and (unknown := sorted(set(self.shares) - set(Family))):
            raise ValueError(f"{unknown[0]!r} is no family; there are {', '.join(Family)}")
        return self


@dataclass(frozen=True)
class Part:
    """A family of a corpus: `rows` of its index, `repeat` as the settings say."""

    corpus: int
    family: Family
    rows: Integers
    repeat: float


@dataclass(frozen=True)
class EpochSamples:
    """The samples of an epoch in order, [m] each: corpus, row of its index, round of its part's stream."""

    corpus: npt.NDArray[np.int32]
    row: npt.NDArray[np.int32]
    round: npt.NDArray[np.int32]


def shares(parts: Sequence[Part], mixture: Mixture | None, titles: Sequence[str]) -> list[Fraction]:
    """Samples that each part gives to an epoch, on average. Raises ConfigError where a share finds no samples.

    Exact: a number that a user wrote in decimals is taken as it was written.
    """
    weights = [len(part.rows) * _exact(part.repeat) for part in parts]
    if mixture is None:
        counts = weights
    else:
        groups: Mapping[str, list[int]] = {name: [] for name in mixture.shares}
        for index, part in enumerate(parts):
            name = part.family.value if mixture.by == "family" else titles[part.corpus]
            if name in groups:
                groups[name].append(index)
        if empty := [name for name, members in groups.items() if not members]:
            raise ConfigError(
                f"mixture: {mixture.by} {empty[0]!r} has no samples that fit into a pack; leave it out of shares"
            )
        exact = {name: _exact(share) for name, share in mixture.shares.items()}
        asked = {name: share / sum(exact.values()) for name, share in exact.items()}
        held = {name: sum(weights[index] for index in members) for name, members in groups.items()}
        size = mixture.size or min(held[name] / asked[name] for name in groups)
        counts = [Fraction(0)] * len(parts)
        for name, members in groups.items():
            for index in members:
                counts[index] = size * asked[name] * weights[index] / held[name]
    if max(counts, default=0) < 1:
        raise ConfigError(
            "an epoch would hold less than one sample of each family: look at split, families, repeat and mixture"
        )
    return counts


def stretch(count: Fraction, epoch: int) -> tuple[int, int]:
    """Where in a stream an epoch starts and ends that takes `count` samples of it on average."""
    start, stop = (floor(number * count + Fraction(1, 2)) for number in (epoch, epoch + 1))
    return start, stop


def _exact(number: float) -> Fraction:
    return Fraction(str(number))  # 0.1 as a tenth, which no float is


def draw(
    parts: Sequence[Part],
    counts: Sequence[Fraction],
    indexes: Sequence[CorpusIndex],
    *,
    seed: int,
    epoch: int,
    shuffle: bool = True,
    open_shards: int = 4,
) -> EpochSamples:
    """The samples of an epoch, `counts` of each part on average, spread evenly over it.

    Within a part they come from `open_shards` shards at a time, so that a reader works in a few files.
    Without `shuffle` they come as they stand in the corpus.
    """
    rows, rounds, corpora, places = [], [], [], []
    for part, average in zip(parts, counts, strict=True):
        start, stop = stretch(average, epoch)
        if start == stop:
            continue
        size, count = len(part.rows), stop - start
        for number in range(start // size, (stop - 1) // size + 1):
            order = _order(part, indexes[part.corpus], seed, number, open_shards) if shuffle else np.arange(size)
            chosen = order[max(start - number * size, 0) : stop - number * size]
            rows.append(part.rows[chosen])
            rounds.append(np.full(len(chosen), number))
            corpora.append(np.full(len(chosen), part.corpus))
        places.append((np.arange(count) + 0.5) / count)
    order = np.argsort(np.concatenate(places), kind="stable")
    return EpochSamples(*(np.concatenate(values)[order].astype(np.int32) for values in (corpora, rows, rounds)))


def _order(part: Part, index: CorpusIndex, seed: int, number: int, open_shards: int) -> Integers:
    """Places in `part.rows` in the order of round `number`: groups of shards, and in a group by chance."""
    shards = index.shard[part.rows]
    there = np.unique(shards)
    chance = mixed(seed, number, names(np.array([index.shards[shard].encode() for shard in there])))
    group = np.empty(len(there), np.int64)
    group[np.lexsort((there, chance))] = np.arange(len(there)) // open_shards
    luck = mixed(seed, number, index.names[part.rows])
    return np.lexsort((part.rows, luck, group[np.searchsorted(there, shards)]))
