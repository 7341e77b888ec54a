"""Packs as they are read: the samples of a planned pack, decoded, as one batch of a model's kind.

`PackReader` works off tickets whatever the model is; `PackDataset` reads them as segments for BAGEL's kind.
"""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from sigma_data.errors import CorpusError, SequenceError
from sigma_data.images.decode import DEFAULT_MAX_PIXELS, ImageFault
from sigma_data.loading.batch import Batch, ImageKey, Item, PackedBatch, Widths
from sigma_data.loading.collate import collate
from sigma_data.loading.decode_sample import Bytes, Content, decode_content
from sigma_data.loading.shard_cache import ShardCache
from sigma_data.loading.shard_reader import ShardReader, shard_of
from sigma_data.loading.skip_log import SkippedSample
from sigma_data.loading.workers import Place
from sigma_data.planning.index import CorpusIndex
from sigma_data.planning.plan import PackEntry, PackRequest, SampleRandomness
from sigma_data.sample import Family, Sample
from sigma_data.sequence.layout import Geometry, Kind, Segment, Size, layout
from sigma_data.sequence.tokenizer import Tokenizer

_FAMILIES = tuple(Family)


@dataclass(frozen=True)
class Loaded:
    """A pack as read: its batch, and what reading it took.

    `skips` are the samples that are not in the batch, `images` counts decoded images, `seconds` is what
    a worker spent.
    """

    batch: Any
    """A `Batch` of the model's kind."""
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
        names: tuple[str, ...] = self.batch.names
        return len(names) + len(self.skips)


class BadImage(NamedTuple):
    """An image, by number, that cannot be used."""

    image: int
    fault: ImageFault


class PackReader(Dataset[Loaded]):
    """Map-style over tickets: `dataset[ticket]` reads a pack. `indexes` are the planner's.

    Raises CorpusError where a shard or a record cannot be read, or is not what was planned with; an image
    that cannot be used costs its sample alone.
    """

    def __init__(self, indexes: Sequence[CorpusIndex], *, cache: ShardCache | None = None) -> None:
        self.indexes = tuple(indexes)
        self.readers = tuple(ShardReader(index, cache) for index in indexes)
        self.encode: Callable[[Any], Any] | None = None
        """What else to do to a batch where it is read, say put latents in place of images."""

    @abstractmethod
    def read_sample(self, entry: PackEntry) -> Any | BadImage:
        """A planned sample as `collate` takes it, or the first of its images that cannot be used."""

    @abstractmethod
    def collate(self, items: Sequence[Any]) -> tuple[Batch, int]:
        """The batch of some samples, and how many images they have."""

    def __getitem__(self, ticket: PackRequest) -> Loaded:
        return self.load(ticket, [-1, -1])

    def load(self, ticket: PackRequest, place: Place) -> Loaded:
        """Read a pack; corpus and row of the sample that is being read stand in `place`."""
        begin = time.perf_counter()
        before = sum(reader.bytes_read for reader in self.readers)
        items: list[Any] = []
        families: list[Family] = []
        skips: list[SkippedSample] = []
        for entry in ticket.entries:
            place[:] = entry.corpus, entry.row
            item = self.read_sample(entry)
            index = self.indexes[entry.corpus]
            if not isinstance(item, BadImage):
                items.append(item)
                families.append(_FAMILIES[index.families[entry.row]])
                continue
            sample, shard = index.ids[entry.row].decode(), index.shards[index.shard[entry.row]]
            code, message = item.fault.code, item.fault.message
            skips.append(SkippedSample(ticket.epoch, ticket.pack, index.uri, sample, shard, item.image, code, message))
        batch, images = self.collate(items)
        return Loaded(
            batch=batch if self.encode is None else self.encode(batch),
            families=tuple(families),
            epoch=ticket.epoch,
            pack=ticket.pack,
            skips=tuple(skips),
            images=images,
            bytes_read=sum(reader.bytes_read for reader in self.readers) - before,
            seconds=time.perf_counter() - begin,
        )

    def sizes(self, entry: PackEntry) -> dict[int, Size]:
        """Sizes of a sample's upright images by number, as the manifest has them."""
        index, row = self.indexes[entry.corpus], entry.row
        there = slice(index.image_first[row], index.image_first[row + 1])
        sides = zip(index.image_width[there].tolist(), index.image_height[there].tolist(), strict=True)
        return dict(zip(index.image_number[there].tolist(), sides, strict=True))

    def changed(self, entry: PackEntry, sample: str, found: str) -> CorpusError:
        """A sample is not what it was planned as; `found` says what it has or is."""
        return CorpusError(
            f"{shard_of(self.indexes[entry.corpus], entry.row)}: sample {sample} was planned with {entry.length:,} "
            f"tokens and {found}: the corpus changed since it was planned; start again, or put the old corpus back"
        )


class PackDataset(PackReader):
    """Packs as segments, for BAGEL's kind of model. `recipe` is the planner's."""

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
        super().__init__(indexes, cache=cache)
        self._recipe = recipe
        self._tokenizer = tokenizer
        self._geometry = geometry
        self._widths = widths

    def collate(self, items: Sequence[Item]) -> tuple[PackedBatch, int]:
        """The packed batch, and how many images were decoded for it."""
        images = sum(len({*item.images, *item.patches}) for item in items)
        return collate(items, self._tokenizer, self._widths), images

    def read_sample(self, entry: PackEntry) -> Item | BadImage:
        """A sample laid out, with the content of its segments."""
        index, reader, row = self.indexes[entry.corpus], self.readers[entry.corpus], entry.row
        sample = reader.sample(row)
        sizes = self.sizes(entry)
        segments = self._layout(sample, sizes, entry)
        content = self._content(segments, reader, row, sizes, sample.masks)
        if isinstance(content, BadImage):
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
        raise self.changed(entry, sample.id, found)

    def _content(
        self,
        segments: Sequence[Segment],
        reader: ShardReader,
        row: int,
        sizes: Mapping[int, Size],
        masks: Collection[int],
    ) -> Content | BadImage:
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
                return BadImage(number, fault)
            images |= content.images
            patches |= content.patches
        return Content(images, patches)
