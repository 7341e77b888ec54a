"""An epoch as a list of packs: which samples, what of them is dropped, packed to a budget of tokens.

A pure function of the corpora's manifests, the tokenizer, the geometry, the settings, and the epoch's
number. No image is read, so a plan is there before a GPU is, and training only works it off.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import Field, field_validator, model_validator

from sigma_data.errors import ConfigError
from sigma_data.planning.index import CorpusIndex
from sigma_data.planning.keyed_random import Words, mixed, mixed_one, units
from sigma_data.planning.mixture import CorpusSettings, EpochSamples, Mixture, Part, draw, shares
from sigma_data.planning.packing import pack_windows
from sigma_data.planning.segment_table import SampleShapes, SegmentTable, segment_table, why_unfit
from sigma_data.sample import Family
from sigma_data.sequence.layout import Geometry, Kind
from sigma_data.settings_base import StrictModel

Integers = npt.NDArray[np.int64]

_VERSION = 1
_CHUNK = 100_000
_DROP, _NOISE = 1, 2  # what a number is drawn for


class Dropout(StrictModel):
    """How often a segment of each kind is left out, so that guidance can be learnt. SIGMA's values.

    Only images are guided, so samples that are answered in words alone keep all of theirs.
    """

    text: float = Field(0.1, ge=0, le=1)
    """The instruction."""
    latent: float = Field(0.3, ge=0, le=1)
    """A reference as VAE latents."""
    patch: float = Field(0.3, ge=0, le=1)
    """A reference as ViT patches."""


class PlanSettings(StrictModel):
    """What an epoch is made of."""

    corpora: tuple[CorpusSettings, ...] = Field(min_length=1)
    """Corpora to train on; a path alone is a corpus with the defaults below."""
    mixture: Mixture | None = None
    """Shares of families or corpora; without it every corpus comes `repeat` times."""
    budget: int = Field(30_000, ge=1)
    """Tokens in a pack, at most: what one forward pass of one rank works on."""
    window: int = Field(512, ge=1)
    """Samples that are packed together; more fill packs better and mix sample lengths less evenly."""
    open_shards: int = Field(4, ge=1)
    """Shards of each family that the samples of one stretch come from."""
    shuffle: bool = True
    """Draw the order of samples anew in every epoch."""
    dropout: Dropout = Dropout()
    seed: int = Field(0, ge=0, lt=2**63)
    """Seeds order, dropout and noise."""

    @field_validator("corpora", mode="before")
    @classmethod
    def _from_paths(cls, value: Any) -> Any:
        """A path alone is a corpus with all that is usual."""
        listed = [value] if isinstance(value, str | dict) else value
        if not isinstance(listed, list | tuple):
            return value
        return [{"path": corpus} if isinstance(corpus, str) else corpus for corpus in listed]

    @model_validator(mode="after")
    def _told_apart(self) -> PlanSettings:
        titles = [corpus.title for corpus in self.corpora]
        if twice := sorted({title for title in titles if titles.count(title) > 1}):
            raise ValueError(f"two corpora are called {twice[0]!r}; give each a name")
        return self


@dataclass(frozen=True)
class PackEntry:
    """A sample of a pack: corpus, row of its index, how often its part was gone through before, tokens."""

    corpus: int
    row: int
    round: int
    length: int


@dataclass(frozen=True)
class PackRequest:
    """A pack, as small as can be: what a loader worker is told to read."""

    epoch: int
    pack: int
    entries: tuple[PackEntry, ...]


@dataclass(frozen=True)
class OversizedSample:
    """A sample that no pack holds, and why."""

    corpus: str
    sample: str
    tokens: int
    reason: str


@dataclass(frozen=True)
class SampleRandomness:
    """The random choices of a sample. Each comes from (seed, round, sample id) alone."""

    seed: int
    dropout: Dropout

    def rates(self) -> npt.NDArray[np.float64]:
        """[kinds] how often a segment of each `Kind` is dropped; what carries a loss never is."""
        rates = np.zeros(len(Kind))
        rates[[Kind.TEXT, Kind.LATENT, Kind.PATCH]] = self.dropout.text, self.dropout.latent, self.dropout.patch
        return rates

    def drops(
        self,
        name: Words,
        round: npt.NDArray[Any] | int,
        segment: npt.NDArray[Any],
        kind: npt.NDArray[Any],
        words_only: npt.NDArray[np.bool_] | bool,
    ) -> npt.NDArray[np.bool_]:
        """Whether segments are left out, by sample word, round, index in the complete layout, and kind.

        `words_only`: whether the sample is answered in words alone. A question without its image, or an answer without
        its question, would only teach to guess.
        """
        chance = units(mixed(self.seed, _DROP, round, name, segment))
        drops: npt.NDArray[np.bool_] = (chance < self.rates()[kind]) & ~np.asarray(words_only)
        return drops

    def dropped(self, index: CorpusIndex, row: int, round: int, geometry: Geometry) -> tuple[int, ...]:
        """Indices in the complete layout of the segments of a sample that are left out."""
        words_only = bool(index.words_only[row])
        references = geometry.kinds(text_only=words_only)
        pieces = index.piece_kind[index.piece_first[row] : index.piece_first[row + 1]].tolist()
        kinds = np.array([kind for piece in pieces for kind in (references if piece == Kind.LATENT else (piece,))])
        drops = self.drops(index.name(row), round, np.arange(len(kinds)), kinds, words_only)
        return tuple(np.flatnonzero(drops).tolist())

    def noise_key(self, index: CorpusIndex, row: int, round: int, image: int) -> tuple[int, int]:
        """Key of the generator (numpy's Philox) that draws level and noise of a target."""
        first = mixed_one(self.seed, _NOISE, round, int(index.name(row)[0]), image)
        return first, mixed_one(first)


class Plan:
    """The packs of an epoch. `len` counts them."""

    def __init__(self, epoch: int, draws: EpochSamples, lengths: Integers, packs: Sequence[Sequence[int]]) -> None:
        self.epoch = epoch
        self.draws = draws
        self.lengths = lengths
        """[m] tokens of each drawn sample, after dropout."""
        self._first = np.concatenate([[0], np.cumsum([len(pack) for pack in packs], dtype=np.int64)])
        self._members = np.fromiter((place for pack in packs for place in pack), np.int32, int(self._first[-1]))

    def __len__(self) -> int:
        return len(self._first) - 1

    def members(self, pack: int) -> npt.NDArray[np.int32]:
        """Places in `draws` of a pack's samples."""
        return self._members[self._first[pack] : self._first[pack + 1]]

    def ticket(self, pack: int) -> PackRequest:
        """What a worker must read for a pack."""
        draws, places = self.draws, self.members(pack)
        columns = (draws.corpus[places], draws.row[places], draws.round[places], self.lengths[places])
        rows = zip(*(column.tolist() for column in columns), strict=True)
        return PackRequest(self.epoch, pack, tuple(PackEntry(*row) for row in rows))

    @property
    def fills(self) -> Integers:
        """[packs] tokens in each pack."""
        return np.add.reduceat(self.lengths[self._members], self._first[:-1]) if len(self) else np.zeros(0, np.int64)


class Planner:
    """Plans epochs. `indexes` belong to `settings.corpora`, one each; `recipe` is by default that of the settings.

    Raises ConfigError where the settings find no samples.
    """

    def __init__(
        self,
        settings: PlanSettings,
        indexes: Sequence[CorpusIndex],
        geometry: Geometry | SampleShapes,
        *,
        tokenizer: str,
        recipe: SampleRandomness | None = None,
    ) -> None:
        self.settings = settings
        self.indexes = tuple(indexes)
        self.geometry = geometry
        self.recipe = recipe or SampleRandomness(settings.seed, settings.dropout)
        self.fields = self._fields(tokenizer)
        self.digest = hashlib.sha256(json.dumps(self.fields, sort_keys=True).encode()).hexdigest()
        self._most = min(settings.budget, geometry.max_tokens)
        self._tables = tuple(segment_table(index, geometry) for index in self.indexes)
        self._last: Plan | None = None
        self.parts = self._parts()
        self.counts = shares(self.parts, settings.mixture, [corpus.title for corpus in settings.corpora])

    def _fields(self, tokenizer: str) -> Mapping[str, str]:
        """All that decides a plan, by name, as text: what a saved position is compared with."""
        settings = self.settings.model_dump(mode="json", exclude={"corpora"})
        fields = {"version": _VERSION, "tokenizer": tokenizer, "geometry": repr(self.geometry), **settings}
        # By number: their order counts, and a corpus may be moved. Its name counts where the mixture speaks of it.
        named = self.settings.mixture is not None and self.settings.mixture.by == "corpus"
        if any(bool(index.words_only.any()) for index in self.indexes):
            fields["dropout of questions"] = "never"  # until 0.2 they were dropped from like the others
        for number, (corpus, index) in enumerate(zip(self.settings.corpora, self.indexes, strict=True), 1):
            chosen = corpus.model_dump(mode="json", exclude={"path", "name"})
            chosen["families"] = corpus.families and sorted(corpus.families)
            chosen |= {"name": corpus.title} if named else {}
            fields[f"corpus {number}"] = {"manifest": index.digest, **chosen}
        return {name: json.dumps(value, sort_keys=True) for name, value in fields.items()}

    def _parts(self) -> tuple[Part, ...]:
        parts = []
        for number, (corpus, index, table) in enumerate(
            zip(self.settings.corpora, self.indexes, self._tables, strict=True)
        ):
            chosen = self._chosen(number) & (table.total > 0) & (table.total <= self._most)
            for place, family in enumerate(Family):
                rows = np.flatnonzero(chosen & (index.families == place))
                if len(rows):
                    parts.append(Part(number, family, rows, corpus.repeat))
        if not parts:
            raise ConfigError(self._nothing())
        return tuple(parts)

    def _nothing(self) -> str:
        if not self.unfit:
            return "the corpora hold none of the samples asked for: look at split and families"
        first = self.unfit[0]
        return (
            f"none of {len(self.unfit):,} samples fits into a pack; of {first.corpus} {first.sample}: {first.reason}; "
            "look at budget"
        )

    def _chosen(self, number: int) -> npt.NDArray[np.bool_]:
        """[n] which samples of a corpus the settings ask for. Raises ConfigError for a split that is not there."""
        corpus, index = self.settings.corpora[number], self.indexes[number]
        splits = index.meta["splits"]
        if corpus.split not in splits:
            raise ConfigError(f"{corpus.path}: has no split {corpus.split!r}; there are {', '.join(splits)}")
        chosen: npt.NDArray[np.bool_] = index.splits == splits.index(corpus.split)
        if corpus.families is not None:
            chosen &= np.isin(index.families, [list(Family).index(family) for family in corpus.families])
        return chosen

    @cached_property
    def unfit(self) -> tuple[OversizedSample, ...]:
        """The samples that were asked for and that no pack can hold."""
        found = []
        for number, (corpus, index, table) in enumerate(
            zip(self.settings.corpora, self.indexes, self._tables, strict=True)
        ):
            for row in np.flatnonzero(
                self._chosen(number) & ((table.total == 0) | (table.total > self._most))
            ).tolist():
                total = int(table.total[row])
                reason = why_unfit(index, row, total, self.geometry, self.settings.budget)
                found.append(OversizedSample(corpus.title, index.ids[row].decode(), total, reason))
        return tuple(found)

    def kinds(self) -> dict[Family, dict[Kind, int]]:
        """Tokens of the samples that epochs show, each sample once and whole, by family and kind."""
        totals: dict[Family, Integers] = {}
        for part, count in zip(self.parts, self.counts, strict=True):
            if not count:
                continue
            table = self._tables[part.corpus]
            chosen = np.zeros(len(table.total), np.bool_)
            chosen[part.rows] = True
            segments = np.repeat(chosen, np.diff(table.first))
            tokens = np.bincount(table.kind[segments], table.length[segments], len(Kind)).astype(np.int64)
            totals[part.family] = totals.get(part.family, 0) + tokens
        return {family: {kind: int(n[kind]) for kind in Kind if n[kind]} for family, n in totals.items()}

    def plan(self, epoch: int) -> Plan:
        """The plan of an epoch; the last one asked for is kept."""
        if self._last is None or self._last.epoch != epoch:
            self._last = None  # two at once would take twice the memory
            settings = self.settings
            draws = draw(
                self.parts, self.counts, self.indexes,
                seed=settings.seed, epoch=epoch, shuffle=settings.shuffle, open_shards=settings.open_shards,
            )  # fmt: skip
            lengths = self.lengths(draws)
            packs = list(pack_windows(lengths, budget=settings.budget, window=settings.window))
            self._last = Plan(epoch, draws, lengths, packs)
        return self._last

    def lengths(self, draws: EpochSamples) -> Integers:
        """[m] tokens of drawn samples after dropout."""
        lengths = np.zeros(len(draws.row), np.int64)
        for number, (index, table) in enumerate(zip(self.indexes, self._tables, strict=True)):
            places = np.flatnonzero(draws.corpus == number)
            for start in range(0, len(places), _CHUNK):
                some = places[start : start + _CHUNK]
                lengths[some] = self._kept(index, table, draws.row[some], draws.round[some]).sum(axis=1)
        return lengths

    def tokens(self, draws: EpochSamples) -> dict[Family, dict[Kind, int]]:
        """Tokens of drawn samples after dropout, by family and kind."""
        totals = np.zeros((len(Family), len(Kind)), np.int64)
        for number, (index, table) in enumerate(zip(self.indexes, self._tables, strict=True)):
            places = np.flatnonzero(draws.corpus == number)
            for start in range(0, len(places), _CHUNK):
                some = places[start : start + _CHUNK]
                kept = self._kept(index, table, draws.row[some], draws.round[some])
                np.add.at(totals, index.families[draws.row[some]], kept)
        return {
            family: {kind: int(totals[place, kind]) for kind in Kind if totals[place, kind]}
            for place, family in enumerate(Family)
            if totals[place].any()
        }

    def _kept(
        self, index: CorpusIndex, table: SegmentTable, rows: npt.NDArray[np.int32], rounds: npt.NDArray[np.int32]
    ) -> Integers:
        """[m, kinds] tokens that dropout leaves of each sample, by kind of segment."""
        counts = table.first[rows + 1] - table.first[rows]
        owner = np.repeat(np.arange(len(rows)), counts)
        nth = np.arange(len(owner)) - np.repeat(np.cumsum(counts) - counts, counts)
        segments = table.first[rows][owner] + nth
        kind = table.kind[segments]
        stays = ~self.recipe.drops(index.names[rows][owner], rounds[owner], nth, kind, index.words_only[rows][owner])
        cells = owner[stays] * len(Kind) + kind[stays]
        weights = table.length[segments[stays]]
        return np.bincount(cells, weights, len(rows) * len(Kind)).astype(np.int64).reshape(len(rows), len(Kind))
