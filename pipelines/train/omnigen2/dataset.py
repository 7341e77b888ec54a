"""Planned packs read for OmniGen2: each image decoded once, prompts and conversations as token ids."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from PIL import Image as Pillow

from pipelines.train.omnigen2.batch import AnswerSample, ImageSample, Omnigen2Batch, Shown, collate
from pipelines.train.omnigen2.chat import Asked, ChatWords, Told
from pipelines.train.omnigen2.description import ImageProcessor
from pipelines.train.omnigen2.shapes import Omnigen2Randomness, Omnigen2Shapes
from sigma_data.errors import SequenceError
from sigma_data.images.decode import DEFAULT_MAX_PIXELS, ImageFault, load
from sigma_data.loading.batch import ImageKey
from sigma_data.loading.pack_dataset import BadImage, PackReader
from sigma_data.loading.shard_cache import ShardCache
from sigma_data.planning.index import CorpusIndex
from sigma_data.planning.plan import PackEntry
from sigma_data.sample import Sample, Turn
from sigma_data.sequence.layout import Size
from sigma_model.omnigen2.attribute_tokens import bound_tokens
from sigma_model.omnigen2.conditioning import IGNORED
from sigma_model.omnigen2.images import pixel_bytes
from sigma_model.omnigen2.pack import Bound
from sigma_model.omnigen2.prompts import dropped_text, text_of, without_opening


class Omnigen2Dataset(PackReader):
    """Packs of images to be made and of conversations. `recipe` is the planner's.

    `downsample` and `channels` are the autoencoder's.
    """

    def __init__(
        self,
        indexes: Sequence[CorpusIndex],
        recipe: Omnigen2Randomness,
        words: ChatWords,
        shapes: Omnigen2Shapes,
        processor: ImageProcessor,
        *,
        downsample: int,
        channels: int,
        cache: ShardCache | None = None,
    ) -> None:
        super().__init__(indexes, cache=cache)
        self._recipe, self._words, self._shapes, self._processor = recipe, words, shapes, processor
        self._downsample, self._channels = downsample, channels

    def collate(self, items: Sequence[ImageSample | AnswerSample]) -> tuple[Omnigen2Batch, int]:
        """The batch, and how many images it has."""
        batch = collate(items)
        return batch, len(batch.images) + sum(len(grids) for grids in batch.answer_grids)

    def read_sample(self, entry: PackEntry) -> ImageSample | AnswerSample | BadImage:
        """A sample, decoded. Raises CorpusError where it is not what was planned."""
        sample = self.readers[entry.corpus].sample(entry.row)
        sizes = self.sizes(entry)
        try:
            found = self._words.sample(sample.turns, list(sizes))
        except SequenceError as error:
            raise self.changed(entry, sample.id, f"cannot be laid out ({error})") from None
        numbers = found.images if isinstance(found, Told) else (*found.references, found.target)
        images = self._decoded(entry, sizes, numbers)
        if isinstance(images, BadImage):
            return images
        if isinstance(found, Told):
            return self._answers(entry, sample, found, images)
        return self._image(entry, sample, found, images)

    def _decoded(
        self, entry: PackEntry, sizes: Mapping[int, Size], numbers: Sequence[int]
    ) -> dict[int, Pillow.Image] | BadImage:
        found = {}
        for number, data in self.readers[entry.corpus].images(entry.row, set(numbers)).items():
            size = sizes[number]
            try:
                image = load(data, max_pixels=max(DEFAULT_MAX_PIXELS, size[0] * size[1]))
                if image.size != size:
                    told = f"the image is {image.size[0]} x {image.size[1]} pixels, and was {size[0]} x {size[1]}"
                    raise ImageFault("other_size", told)
            except ImageFault as fault:
                return BadImage(number, fault)
            found[number] = image
        return found

    def _answers(
        self, entry: PackEntry, sample: Sample, found: Told, images: Mapping[int, Pillow.Image]
    ) -> AnswerSample:
        shown, counts = self._processor.patches([images[number] for number in found.images])
        at = iter(counts)
        ids: list[int] = []
        labels: list[int] = []
        for text, learnt in found.pieces:
            held = self._words.pads(text)
            part = self._words.ids(text, [next(at) for _ in range(held)])
            ids += part
            labels += part if learnt else [IGNORED] * len(part)
        self._check(entry, sample, len(ids))
        return AnswerSample(sample.id, tuple(ids), tuple(labels), shown)

    def _image(self, entry: PackEntry, sample: Sample, found: Asked, images: Mapping[int, Pillow.Image]) -> ImageSample:
        index, route, shapes = self.indexes[entry.corpus], self._shapes.route, self._shapes
        without_prompt, without_references = self._recipe.conditions(index, entry.row, entry.round)
        views = [images[number] for number in found.references]
        shown, counts = self._processor.patches(views if route.shows_images else [])
        text = text_of(found.prompt, len(views), route)
        ids = self._words.ids(text, counts, max_tokens=shapes.text_tokens)
        sizes = [shapes.reference_size(view.size, len(views)) for view in views]
        target = shapes.target_size(images[found.target].size)
        tokens = sum(width * height for width, height in (*(sizes if route.has_latents else ()), target))
        self._check(entry, sample, len(ids) + tokens // shapes.stride**2)
        if not views and self._recipe.drops_opening(index, entry.row, entry.round):
            ids = self._words.ids(text_of(without_opening(found.prompt), 0, route), (), max_tokens=shapes.text_tokens)
        if without_prompt:
            kept = len(views) if not without_references else 0
            text = dropped_text() if not route.shows_images else text_of("", kept, route)
            shown, counts = (shown, counts) if kept else (Shown(), [])
            ids = self._words.ids(text, counts, max_tokens=shapes.text_tokens)
        if without_references:
            views, sizes = [], []
        references, keys = [], []
        if route.has_latents:
            for number, view, size in zip(found.references, views, sizes, strict=False):
                references.append(pixel_bytes(view, size, colour_map=number in sample.masks))
                keys.append(ImageKey(entry.corpus, entry.row, number, size))
        key = self._recipe.noise_key(index, entry.row, entry.round, found.target)
        # Of its own for each target: what it draws depends on no process, machine or device.
        generator = np.random.Generator(np.random.Philox(key=np.array(key, np.uint64)))
        u = float(generator.standard_normal())
        shape = (self._channels, target[1] // self._downsample, target[0] // self._downsample)
        return ImageSample(
            sample.id,
            tuple(ids),
            shown,
            tuple(references),
            pixel_bytes(images[found.target], target, colour_map=found.target in sample.masks),
            (*keys, ImageKey(entry.corpus, entry.row, found.target, target)),
            torch.from_numpy(generator.standard_normal(shape, dtype=np.float32)),
            u,
            () if without_prompt else self._bound(ids, sample.turns[0], found.references),
        )

    def _bound(self, ids: Sequence[int], turn: Turn, references: Sequence[int]) -> Bound:
        own = self._words.attribute_ids
        return bound_tokens(ids, own, turn.instruction, references, dict(turn.bindings)) if own else ()

    def _check(self, entry: PackEntry, sample: Sample, tokens: int) -> None:
        if tokens != entry.length:
            raise self.changed(entry, sample.id, f"has {tokens:,}")
