"""Packs as batches: a planned epoch in, what a training step works on out, the same to the bit every time.

A position in the endless list of packs is all the state there is. Whatever else a sample needs, its
dropped segments and its noise, follows from the plan, so neither the number of ranks nor that of workers
matters, and stopping anywhere loses nothing.
"""

from __future__ import annotations

import json
import re
import sys
from collections import deque
from collections.abc import Generator, Iterator, Mapping
from contextlib import closing
from dataclasses import replace
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from pydantic import Field

from sigma_data.errors import ConfigError
from sigma_data.loading.pack_dataset import Loaded as Loaded
from sigma_data.loading.pack_dataset import PackDataset as PackDataset
from sigma_data.loading.pack_dataset import PackReader
from sigma_data.loading.shard_cache import ShardCache
from sigma_data.loading.shard_reader import shard_of
from sigma_data.loading.workers import Place, Workers
from sigma_data.planning.plan import PackRequest, Planner
from sigma_data.planning.settings_diff import changed, shown
from sigma_data.settings_base import StrictModel
from sigma_data.storage.path_settings import LocalPath
from sigma_data.storage.paths import is_uri


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
        dataset: PackReader,
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


def _load(dataset: PackReader, ticket: PackRequest, place: Place) -> Loaded:
    """A pack, in a worker."""
    torch.set_num_threads(1)  # the others are the training's
    return dataset.load(ticket, place)
