"""Packs as batches: a planned epoch in, what a training step works on out, the same to the bit every time.

A position in the endless list of packs is all the state there is. Whatever else a sample needs, its
dropped segments and its noise, follows from the plan, so neither the number of ranks nor that of workers
matters, and stopping anywhere loses nothing.
"""

from __future__ import annotations

import json
import re
import sys
import time
from collections import deque
from collections.abc import Callable, Collection, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from torch.utils.data import Dataset

from sigma_data.errors import ConfigError, CorpusError, SequenceError
from sigma_data.images.decode import DEFAULT_MAX_PIXELS, ImageFault
from sigma_data.loading.batch import ImageKey, Item, PackedBatch, Widths
from sigma_data.loading.collate import collate
from sigma_data.loading.decode_sample import Bytes, Content, decode_content
from sigma_data.loading.shard_cache import ShardCache
from sigma_data.loading.shard_reader import ShardReader, shard_of
from sigma_data.loading.skip_log import SkippedSample
from sigma_data.loading.workers import Place, Workers
from sigma_data.planning.index import CorpusIndex
from sigma_data.planning.plan import PackEntry, PackRequest, Planner, SampleRandomness
from sigma_data.planning.settings_diff import changed, shown
from sigma_data.sample import Family, Sample
from sigma_data.sequence.layout import Geometry, Kind, Segment, Size, layout
from sigma_data.sequence.tokenizer import Tokenizer
from sigma_data.settings_base import StrictModel
from sigma_data.storage.path_settings import LocalPath
from sigma_data.storage.paths import is_uri

_FAMILIES = tuple(Family)


class LoaderSettings(StrictModel):
    """How training reads its data."""

    workers: int = Field(2, ge=0)
    """Processes that read and decode; 0 does it in the training process, between its steps."""
    prefetch: int = Field(2, ge=1)
    """Packs that each worker is ahead."""
    start_method: Literal["auto", "fork", "spawn"] = "auto"
    """How workers start; auto forks on Linux where every corpus is local: clients of remote places do not
    survive it."""
    timeout: float = Field(900.0, gt=0, allow_inf_nan=False)
    """Seconds that a pack may take; a worker that needs more is taken for hung."""
    cache: LocalPath | None = None
    """A folder for whole shards of remote corpora; without it every sample is read over the network."""
    cache_bytes: int = Field(100 * 2**30, ge=1)
    """What the cache may hold."""
    max_bad: float = Field(0.01, ge=0, le=1)
    """The share of samples with bad images that is allowed before training stops; a few always are, unless it is 0."""
    pin_memory: bool = False
    """Where there is a GPU: hand out batches in page-locked memory, from which it copies while it computes."""
    latent_cache: int = Field(0, ge=0)
    """Bytes of latents that a rank keeps in the memory of the CPU, so that images it meets again, from the second
    epoch on, need not be encoded again; 0 keeps none. Each rank keeps its own, and an epoch shuffles packs over all.
    Those of held-out images may take as much again. Where training runs on the CPU, its loader's workers encode, beside
    the steps, and share this room."""

    def shard_cache(self) -> ShardCache | None:
        """The cache that these settings describe."""
        return ShardCache(self.cache, self.cache_bytes) if self.cache is not None else None


class Position(NamedTuple):
    """The next pack to be worked on."""

    epoch: int
    pack: int


START = Position(0, 0)


@dataclass(frozen=True)
class Loaded:
    """A pack as read: its batch, and what reading it took.

    `skips` are the samples that are not in the batch, `images` counts decoded images, `seconds` is what
    a worker spent.
    """

    batch: PackedBatch
    families: tuple[Family, ...]
    """Of the batch's samples, in their order."""
    epoch: int
    pack: int
    skips: tuple[SkippedSample, ...]
    images: int
    bytes_read: int
    seconds: float

    @property
    def samples(self) -> int:
        """Samples that were planned, skipped ones included."""
        return len(self.batch.names) + len(self.skips)


class PackDataset(Dataset[Loaded]):
    """Map-style over tickets: `dataset[ticket]` reads a pack. `indexes` and `recipe` are the planner's.

    Raises CorpusError where a shard or a record cannot be read, or is not what was planned with; an image
    that cannot be used costs its sample alone.
    """

    def __init__(
        self,
        indexes: Sequence[CorpusIndex],
        recipe: SampleRandomness,
        tokenizer: Tokenizer,
        geometry: Geometry,
        widths: Widths,
        *,
        cache: ShardCache | None = None,
    ) -> None:
        self.indexes = tuple(indexes)
        self._recipe = recipe
        self._tokenizer = tokenizer
        self._geometry = geometry
        self._widths = widths
        self.encode: Callable[[PackedBatch], PackedBatch] | None = None
        """What else to do to a batch where it is read, say put latents in place of images."""
        self.readers = tuple(ShardReader(index, cache) for index in indexes)

    def __getitem__(self, ticket: PackRequest) -> Loaded:
        return self.load(ticket, [-1, -1])

    def load(self, ticket: PackRequest, place: Place) -> Loaded:
        """Read a pack; corpus and row of the sample that is being read stand in `place`."""
        begin = time.perf_counter()
        before = sum(reader.bytes_read for reader in self.readers)
        items: list[Item] = []
        families: list[Family] = []
        skips: list[SkippedSample] = []
        for entry in ticket.entries:
            place[:] = entry.corpus, entry.row
            item = self._item(entry)
            index = self.indexes[entry.corpus]
            if isinstance(item, Item):
                items.append(item)
                families.append(_FAMILIES[index.families[entry.row]])
                continue
            sample, shard = index.ids[entry.row].decode(), index.shards[index.shard[entry.row]]
            code, message = item.fault.code, item.fault.message
            skips.append(SkippedSample(ticket.epoch, ticket.pack, index.uri, sample, shard, item.image, code, message))
        batch = collate(items, self._tokenizer, self._widths)
        return Loaded(
            batch=batch if self.encode is None else self.encode(batch),
            families=tuple(families),
            epoch=ticket.epoch,
            pack=ticket.pack,
            skips=tuple(skips),
            images=sum(len({*item.images, *item.patches}) for item in items),
            bytes_read=sum(reader.bytes_read for reader in self.readers) - before,
            seconds=time.perf_counter() - begin,
        )

    def _item(self, entry: PackEntry) -> Item | _Bad:
        index, reader, row = self.indexes[entry.corpus], self.readers[entry.corpus], entry.row
        sample = reader.sample(row)
        there = slice(index.image_first[row], index.image_first[row + 1])
        sizes = dict(
            zip(
                index.image_number[there].tolist(),
                zip(index.image_width[there].tolist(), index.image_height[there].tolist(), strict=True),
                strict=True,
            )
        )
        segments = self._layout(sample, sizes, entry)
        content = self._content(segments, reader, row, sizes, sample.masks)
        if isinstance(content, _Bad):
            return content
        u: dict[int, float] = {}
        noise: dict[int, Tensor] = {}
        for segment in segments:
            if segment.kind is Kind.TARGET:
                key = self._recipe.noise_key(index, row, entry.round, segment.image)
                # Of its own for each target: what it draws depends on no process, machine or device.
                generator = np.random.Generator(np.random.Philox(key=np.array(key, np.uint64)))
                u[segment.image] = float(generator.standard_normal())
                shape = (segment.inner, self._widths.latent)
                noise[segment.image] = torch.from_numpy(generator.standard_normal(shape, dtype=np.float32))
        return Item(
            segments,
            images={number: torch.from_numpy(pixels) for number, pixels in content.images.items()},
            keys={s.image: ImageKey(entry.corpus, row, s.image, s.size) for s in segments if s.kind.latent},
            patches={number: torch.from_numpy(pixels) for number, pixels in content.patches.items()},
            noise=noise,
            u=u,
            name=sample.id,
        )

    def _layout(self, sample: Sample, sizes: Mapping[int, Size], entry: PackEntry) -> tuple[Segment, ...]:
        index = self.indexes[entry.corpus]
        dropped = self._recipe.dropped(index, entry.row, entry.round, self._geometry)
        try:
            segments = layout(sample.turns, sizes, self._tokenizer, self._geometry, dropped=dropped)
            tokens = sum(segment.length for segment in segments)
            if tokens == entry.length:
                return segments
            found = f"has {tokens:,}"
        except SequenceError as error:
            found = f"cannot be laid out ({error})"
        raise CorpusError(
            f"{shard_of(index, entry.row)}: sample {sample.id} was planned with {entry.length:,} tokens and {found}: "
            "the corpus changed since it was planned; start again, or put the old corpus back"
        )

    def _content(
        self,
        segments: Sequence[Segment],
        reader: ShardReader,
        row: int,
        sizes: Mapping[int, Size],
        masks: Collection[int],
    ) -> Content | _Bad:
        """What the segments show, or the first image that cannot be used."""
        shown = {segment.image for segment in segments if segment.kind.image}
        patch = self._geometry.vit.stride if self._geometry.vit is not None else 0
        images: dict[int, Bytes] = {}
        patches: dict[int, Bytes] = {}
        for number, data in reader.images(row, shown).items():
            width, height = sizes[number]
            try:
                content = decode_content(
                    segments,
                    {number: data},
                    patch=patch,
                    known=sizes,
                    masks=masks,
                    max_pixels=max(DEFAULT_MAX_PIXELS, width * height),
                )
            except ImageFault as fault:
                return _Bad(number, fault)
            images |= content.images
            patches |= content.patches
        return Content(images, patches)


class _Bad(NamedTuple):
    """An image, by number, that cannot be used."""

    image: int
    fault: ImageFault


class Loader:
    """The packs of one rank, in order.

    Of the endless list of packs from `position` on, epoch after epoch, a rank takes the numbers `rank`,
    `rank + world`, and so on. With `epochs` it ends where so many epochs have ended; ranks may then get
    different numbers of packs. An iterator goes on where the one before it was left. Raises what PackDataset
    does, and LoaderError where a worker dies or hangs.
    """

    def __init__(
        self,
        planner: Planner,
        dataset: PackDataset,
        *,
        rank: int = 0,
        world: int = 1,
        settings: LoaderSettings | None = None,
        position: Position = START,
        epochs: int | None = None,
    ) -> None:
        assert 0 <= rank < world
        self._planner = planner
        self._dataset = dataset
        self._rank = rank
        self._world = world
        self._settings = settings or LoaderSettings()
        self._position = position
        self._end = None if epochs is None else position.epoch + epochs

    def __iter__(self) -> Generator[Loaded]:
        settings = self._settings
        positions: deque[Position] = deque()  # after each ticket that is given out
        tickets = self._tickets(positions)
        if settings.workers:
            workers = Workers(
                partial(_load, self._dataset),
                count=settings.workers,
                start_method=self._start_method(),
                ahead=settings.prefetch,
                timeout=settings.timeout,
                describe=self._describe,
            )
            packs: Generator[Loaded] = workers.run(tickets)
        else:
            packs = (self._dataset[ticket] for ticket in tickets)
        pin = settings.pin_memory and torch.cuda.is_available()
        with closing(packs):
            for loaded in packs:
                self._position = positions.popleft()
                yield replace(loaded, batch=loaded.batch.pin_memory()) if pin else loaded

    def state(self) -> dict[str, Any]:
        """Where to go on after the pack handed out last, once every rank has got as many; plain JSON."""
        plan = {"digest": self._planner.digest, "fields": dict(self._planner.fields)}
        return {"plan": plan, "epoch": self._position.epoch, "next_pack": self._position.pack}

    def _tickets(self, positions: deque[Position]) -> Iterator[PackRequest]:
        first = self._position
        while (own := self._moved(first, self._rank)).epoch != self._end:
            ticket = self._planner.plan(own.epoch).ticket(own.pack)
            # From `own` on, never back: the planner keeps one epoch.
            first = self._moved(own, self._world - self._rank)
            positions.append(first)
            yield ticket

    def _moved(self, position: Position, packs: int) -> Position:
        """The position so many packs on; in the last epoch's end it stops."""
        epoch, pack = position.epoch, position.pack + packs
        while epoch != self._end and pack >= (count := len(self._planner.plan(epoch))):
            assert count, "an epoch has packs"
            epoch, pack = epoch + 1, pack - count
        return Position(epoch, pack if epoch != self._end else 0)

    def _start_method(self) -> str:
        if self._settings.start_method != "auto":
            return self._settings.start_method
        remote = any(is_uri(index.uri) for index in self._dataset.indexes)
        return "fork" if sys.platform == "linux" and not remote else "spawn"

    def _describe(self, place: Place) -> str:
        corpus, row = place
        if corpus < 0:
            return "between two packs"
        index = self._dataset.indexes[corpus]
        return f"while reading sample {index.ids[row].decode()} in {shard_of(index, row)}"


def check_state(state: Mapping[str, Any], planner: Planner) -> Position:
    """The position of a saved `Loader.state`, for any number of ranks and workers.

    Raises ConfigError naming everything that has changed in the plan since, or where `state` is none.
    """
    try:
        digest, saved = str(state["plan"]["digest"]), dict(state["plan"]["fields"])
        position = Position(int(state["epoch"]), int(state["next_pack"]))
    except (KeyError, TypeError, ValueError):
        raise ConfigError("the checkpoint holds no position in the data; resume from another checkpoint") from None
    if digest == planner.digest:
        return position
    changes = [
        line
        for name in sorted({*saved, *planner.fields})
        if saved.get(name) != planner.fields.get(name)
        for line in _changes(name, saved.get(name), planner.fields.get(name))
    ]
    raise ConfigError(
        f"the data is not what the checkpoint was trained on: {'; '.join(changes) or 'the saved plan is damaged'}: "
        "resume with the settings and the corpora it was started with, or start a new run"
    )


_DIGESTS = {"tokenizer": "the tokenizer is another", "version": "packs were planned by another version of sigma"}


def _changes(name: str, was: str | None, now: str | None) -> list[str]:
    """What differs in a field of a plan, in words. Values are JSON, as `Planner.fields` has them."""
    if was is None or now is None:
        return [f"{name} was {'not there' if was is None else 'there'} and is {'there' if was is None else 'gone'}"]
    if name in _DIGESTS:
        return [_DIGESTS[name]]
    before, after = json.loads(was), json.loads(now)
    if name == "geometry":
        before, after = (dict(re.findall(r"(\w+)=([^,()]+)", str(value))) for value in (before, after))
        return [f"the model's {line}" for line in changed(before, after)]
    if not (isinstance(before, dict) and isinstance(after, dict)):
        return [f"{name} was {shown(before)} and is {shown(after)}"]
    differ = [key for key in dict.fromkeys([*before, *after]) if before.get(key) != after.get(key)]
    told = [f"{name} holds other samples than then" for key in differ if key == "manifest"]
    rest = [key for key in differ if key != "manifest"]
    if rest:
        was_, is_ = (", ".join(f"{key} {shown(side.get(key))}" for key in rest) for side in (before, after))
        told.append(f"{name} was {was_} and is {is_}")
    return told


def _load(dataset: PackDataset, ticket: PackRequest, place: Place) -> Loaded:
    """A pack, in a worker."""
    torch.set_num_threads(1)  # the others are the training's
    return dataset.load(ticket, place)
