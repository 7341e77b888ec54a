"""Segments and what they show -> a `PackedBatch`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sigma_data.loading.batch import ImageKey, Item, PackedBatch, Run, Specials, TokenTags, Widths
from sigma_data.sequence.layout import Kind, Segment


def collate(items: Sequence[Item], specials: Specials, widths: Widths) -> PackedBatch:
    """Pack samples into one batch. Raises KeyError for what a segment needs and its item lacks."""
    packer = _Packer(items, specials)
    for number, item in enumerate(items):
        packer.add(number, item)
    return packer.batch(items, widths)


class _Packer:
    """Collects what the segments of all samples bring, as lists; `batch` makes tensors of them."""

    def __init__(self, items: Sequence[Item], specials: Specials) -> None:
        self._specials = specials
        segments = [segment for item in items for segment in item.segments]
        total, self._n_gen = sum(s.length for s in segments), sum(s.inner for s in segments if s.kind.latent)
        self._n_und = total - self._n_gen
        self._und, self._gen, self._segment = 0, self._n_und, 0
        self._positions = np.zeros(total, np.int64)
        self._places = np.zeros(total, np.int32)
        self._runs: list[Run] = []
        self._spans: list[tuple[int, int, int, int]] = []
        self._text_ids: list[int] = []
        self._text_slots: list[int] = []
        self._patches: list[Tensor] = []
        self._patch_slots: list[Tensor] = []
        self._patch_grids: list[tuple[int, int]] = []
        self._images: list[Tensor] = []
        self._latents: list[Tensor] = []
        self._keys: list[ImageKey] = []
        self._latent_sources: list[int] = []
        self._latent_grids: list[tuple[int, int]] = []
        self._targets: list[tuple[int, float, Tensor]] = []  # image, u, noise
        self._answers: list[tuple[int, tuple[int, ...]]] = []  # first slot, labels
        self._latent_hints: list[tuple[int, int]] = []
        self._patch_hints: list[tuple[int, int]] = []

    def add(self, sample: int, item: Item) -> None:
        """Place the segments of one sample."""
        und, gen, place = self._und, self._gen, 0
        encoded: dict[int, int] = {}  # image number -> index into the images
        for segment in item.segments:
            if segment.kind.latent:
                self._latent(sample, segment, place, item, encoded)
            elif segment.kind is Kind.PATCH:
                self._patch(sample, segment, place, item)
            else:
                self._text(sample, segment, place)
            place += segment.length
            self._segment += 1
        self._spans.append((und, self._und, gen, self._gen))

    def _text(self, sample: int, segment: Segment, place: int) -> None:
        start, length = self._und, segment.length
        self._text_ids += [self._specials.bos, *segment.ids, self._specials.eos]
        self._text_slots += range(start, start + length)
        self._positions[start : start + length] = np.arange(segment.position, segment.position + length)
        self._places[start : start + length] = np.arange(place, place + length)
        if segment.kind is Kind.ANSWER:
            self._answers.append((start, (*segment.ids, self._specials.eos)))
        cuts = [(start + 1 + index, group) for index, group in segment.bound]
        at = start
        for cut, group in cuts:  # an attribute token is a run of its own
            self._run(at, cut, sample)
            self._run(cut, cut + 1, sample, attribute=True, group=group)
            at = cut + 1
        self._run(at, start + length, sample)
        self._und += length

    def _patch(self, sample: int, segment: Segment, place: int, item: Item) -> None:
        start, length = self._und, segment.length
        self._delimiters(start, start + length - 1)
        patches = item.patches[segment.image]
        _expect(patches.shape[0], segment, "patches")
        self._patches.append(patches)
        self._patch_slots.append(torch.arange(start + 1, start + length - 1))
        self._patch_hints += [(token, len(self._patch_grids)) for token in segment.attributes]
        self._patch_grids.append(segment.grid)
        self._positions[start : start + length] = segment.position
        self._places[start : start + length] = np.arange(place, place + length)
        self._run(start, start + length, sample, image=True, group=segment.group)
        self._und += length

    def _latent(self, sample: int, segment: Segment, place: int, item: Item, encoded: dict[int, int]) -> None:
        start, first, count = self._und, self._gen, segment.inner
        self._delimiters(start, start + 1)
        noised = segment.kind is Kind.TARGET
        for begin, end in ((start, start + 2), (first, first + count)):
            self._positions[begin:end] = segment.position
            self._run(begin, end, sample, image=True, noised=noised, group=segment.group)
        self._places[start : start + 2] = place, place + count + 1
        self._places[first : first + count] = np.arange(place + 1, place + 1 + count)
        if segment.image not in encoded:
            encoded[segment.image] = max(len(self._images), len(self._latents))
            shown, kept = (item.latents, self._latents) if item.latents else (item.images, self._images)
            _expect_shape(shown[segment.image], segment)
            kept.append(shown[segment.image])
            if item.keys:
                self._keys.append(item.keys[segment.image])
        if noised:
            noise = item.noise[segment.image]
            _expect(noise.shape[0], segment, "noise tokens")
            self._targets.append((len(self._latent_grids), item.u[segment.image], noise))
        self._latent_hints += [(token, len(self._latent_grids)) for token in segment.attributes]
        self._latent_sources.append(encoded[segment.image])
        self._latent_grids.append(segment.grid)
        self._und += 2
        self._gen += count

    def _delimiters(self, start: int, end: int) -> None:
        self._text_ids += [self._specials.image_start, self._specials.image_end]
        self._text_slots += [start, end]

    def _run(
        self, start: int, stop: int, sample: int, *,
        image: bool = False, noised: bool = False, attribute: bool = False, group: int = 0,
    ) -> None:  # fmt: skip
        if stop > start:
            self._runs.append(Run(start, stop, sample, self._segment, image, noised, attribute, group))

    def batch(self, items: Sequence[Item], widths: Widths) -> PackedBatch:
        """Everything as tensors."""
        if (self._images and self._latents) or len({patches.dtype for patches in self._patches}) > 1:
            raise ValueError("a batch brings images or latents, and patches as bytes or as floats, not both")
        counts = torch.tensor([rows * columns for rows, columns in self._latent_grids], dtype=torch.long)
        firsts = counts.cumsum(0) - counts
        slots = [int(firsts[image]) + torch.arange(len(noise)) for image, _, noise in self._targets]
        hints = self._latent_hints + [(token, len(self._latent_grids) + image) for token, image in self._patch_hints]
        return PackedBatch(
            n_und=self._n_und,
            n_gen=self._n_gen,
            positions=torch.from_numpy(self._positions),
            tags=_tags(self._runs, self._places),
            runs=tuple(self._runs),
            spans=tuple(self._spans),
            names=tuple(item.name for item in items),
            text_ids=_long(self._text_ids),
            text_slots=_long(self._text_slots),
            patches=torch.cat(self._patches) if self._patches else torch.zeros(0, widths.patch),
            patch_slots=torch.cat(self._patch_slots) if self._patch_slots else _long([]),
            patch_grids=tuple(self._patch_grids),
            patch_places=grid_places(self._patch_grids, widths.patch_grid),
            images=tuple(self._images),
            known_latents=tuple(self._latents),
            image_keys=tuple(self._keys),
            latent_sources=tuple(self._latent_sources),
            latent_grids=tuple(self._latent_grids),
            latent_places=grid_places(self._latent_grids, widths.latent_grid),
            latent_image=torch.repeat_interleave(torch.arange(len(counts)), counts),
            target_slots=torch.cat(slots) if slots else _long([]),
            target_images=_long([image for image, _, _ in self._targets]),
            u=torch.tensor([u for _, u, _ in self._targets], dtype=torch.float32),
            noise=torch.cat([noise for _, _, noise in self._targets]) if slots else torch.zeros(0, widths.latent),
            answer_slots=_long([slot for first, ids in self._answers for slot in range(first, first + len(ids))]),
            labels=_long([token for _, ids in self._answers for token in ids]),
            answer_weights=torch.tensor([len(ids) ** -0.5 for _, ids in self._answers for _ in ids]),
            hint_ids=_long([token for token, _ in hints]),
            hint_images=_long([image for _, image in hints]),
        )


def grid_places(grids: Sequence[tuple[int, int]], side: int) -> Tensor:
    """[tokens] row * side + column for the patches of images one behind another, row by row."""
    places = [torch.arange(rows)[:, None] * side + torch.arange(columns) for rows, columns in grids]
    return torch.cat([place.flatten() for place in places]) if places else _long([])


def _tags(runs: Sequence[Run], places: np.ndarray[Any, np.dtype[np.int32]]) -> TokenTags:
    """Expand runs to tokens. Runs are in the order of segments, not of tokens."""
    table = np.array(sorted(runs), dtype=np.int32).reshape(-1, len(Run._fields))
    wide = np.repeat(table[:, 2:], table[:, 1] - table[:, 0], axis=0)
    sample, segment, image, noised, attribute, group = (torch.from_numpy(column.copy()) for column in wide.T)
    return TokenTags(sample, segment, torch.from_numpy(places), image.bool(), noised.bool(), attribute.bool(), group)


def _expect(found: int, segment: Segment, what: str) -> None:
    if found != segment.inner:
        raise ValueError(f"image {segment.image} brings {found} {what} where {segment.inner} were laid out")


def _expect_shape(shown: Tensor, segment: Segment) -> None:
    """An image or its latents [c, h, w] must cover the grid with squares of one size."""
    (height, width), (rows, columns) = shown.shape[-2:], segment.grid
    if height % rows or width % columns or height // rows != width // columns:
        raise ValueError(f"image {segment.image} is {width} x {height} where {columns} x {rows} tokens were laid out")


def _long(values: Sequence[int]) -> Tensor:
    return torch.tensor(values, dtype=torch.long)
