"""Segments -> PackedBatch: the tensors of one forward pass over many samples.

Tokens are ordered by expert once, here: first all that the understanding expert computes (text,
delimiters, ViT patches), then all VAE latents, inside each by sample and place. So every projection of
the network is a slice, and no layer gathers or scatters. Who sees whom never looks at this order.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple, Protocol, Self

import numpy as np
import torch
from torch import Tensor

from sigma_data.sequence.layout import Kind, Segment


class Specials(Protocol):
    """The four delimiter ids (`sigma_data.sequence.tokenizer.Tokenizer` has them)."""

    @property
    def bos(self) -> int: ...
    @property
    def eos(self) -> int: ...
    @property
    def image_start(self) -> int: ...
    @property
    def image_end(self) -> int: ...


@dataclass(frozen=True)
class Widths:
    """What a batch must know of the model: features a latent token (F) and a ViT patch, table sides."""

    latent: int
    patch: int
    latent_grid: int
    patch_grid: int


class TokenTags(NamedTuple):
    """What visibility asks of each token; every field is [N], in the order of the batch.

    `sample`: number in the batch. `segment`: number in the batch, counting on from sample to sample.
    `place`: index in the sample's sequence. `image`: it belongs to a picture's segment, delimiters
    included. `noised`: that picture is a target. `attribute`: it is an attribute token. `group`: the
    picture a reference's token shows, or an attribute token speaks of; else 0.
    """

    sample: Tensor
    segment: Tensor
    place: Tensor
    image: Tensor
    noised: Tensor
    attribute: Tensor
    group: Tensor


class Run(NamedTuple):
    """A stretch of neighbouring tokens that visibility treats alike, but for a text's causal order."""

    start: int
    stop: int
    sample: int
    segment: int
    image: bool
    noised: bool
    attribute: bool
    group: int


@dataclass(frozen=True)
class Item:
    """A sample as laid out, with what its segments show. Mappings go by picture number.

    `pictures`: [3, h, w] at the latents' size, for the VAE, bytes or floats in [-1, 1]; or `latents`:
    float [z, h, w], where they are known already. `patches`: [rows * columns, patch * patch * 3], bytes
    or floats. `noise`: float [tokens, features] a target. `u`: the draw of the noise level a target, a
    normal number; the level is its sigmoid, shifted.
    """

    segments: Sequence[Segment]
    pictures: Mapping[int, Tensor] = field(default_factory=dict)
    latents: Mapping[int, Tensor] = field(default_factory=dict)
    patches: Mapping[int, Tensor] = field(default_factory=dict)
    noise: Mapping[int, Tensor] = field(default_factory=dict)
    u: Mapping[int, float] = field(default_factory=dict)
    name: str = ""


@dataclass(frozen=True)
class PackedBatch:
    """One forward pass. N tokens: `n_und` of the understanding expert, then `n_gen` latents.

    Shapes: T text and delimiter tokens, P patches in I_p pictures, M = n_gen latent tokens in I_l
    pictures, of them M_t targets' in I_t; C answer tokens; F = patch * patch * channels.
    """

    n_und: int
    n_gen: int
    positions: Tensor
    """[N] RoPE positions."""
    tags: TokenTags
    runs: tuple[Run, ...]
    spans: tuple[tuple[int, int, int, int], ...]
    """A sample's tokens: [first, last) of its understanding tokens, [first, last) of its latents."""
    names: tuple[str, ...]

    text_ids: Tensor
    """[T] token ids."""
    text_slots: Tensor
    """[T] where they stand in the batch."""

    patches: Tensor
    """[P, patch * patch * 3], bytes or floats in [-1, 1] (`unit_range`)"""
    patch_slots: Tensor
    """[P] where they stand in the batch."""
    patch_grids: tuple[tuple[int, int], ...]
    """I_p times (rows, columns)."""
    patch_places: Tensor
    """[P] indices into the position tables of ViT patches."""

    pictures: tuple[Tensor, ...]
    """Different pictures to be encoded, [3, h, w], bytes or floats in [-1, 1]."""
    known_latents: tuple[Tensor, ...]
    """The same as latents [z, h, w], where they were given instead."""
    latent_pictures: tuple[int, ...]
    """I_l times the index into `pictures`: a target and its clean copy are encoded once."""
    latent_grids: tuple[tuple[int, int], ...]
    """I_l times (rows, columns)."""
    latent_places: Tensor
    """[M] indices into the position table of latents."""
    latent_image: Tensor
    """[M] which of the I_l pictures a latent token belongs to."""
    target_slots: Tensor
    """[M_t] indices into the M latent tokens."""
    target_images: Tensor
    """[I_t] indices into the I_l pictures."""
    u: Tensor
    """[I_t] the draw of each target's noise level."""
    noise: Tensor
    """[M_t, F]"""

    answer_slots: Tensor
    """[C] tokens whose output predicts `labels`."""
    labels: Tensor
    """[C] token ids."""
    answer_weights: Tensor
    """[C] length^-1/2 of each token's answer."""
    hint_ids: Tensor
    """[J] ids of attribute tokens that speak of a picture."""
    hint_images: Tensor
    """[J] the picture: I_l latent pictures first, then I_p patch pictures."""

    @property
    def tokens(self) -> int:
        """N."""
        return self.n_und + self.n_gen

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Self:
        """The batch on a device."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Self:
        """The batch in page-locked memory, for asynchronous copies."""
        return self._map(lambda tensor: tensor.pin_memory())

    def _map(self, change: Callable[[Tensor], Tensor]) -> Self:
        return replace(self, **{name: _changed(value, change) for name, value in vars(self).items()})

    def __reduce__(self) -> tuple[Any, ...]:
        # All tensors as one: between processes each would take a shared-memory segment of its own.
        places: list[tuple[partial[Tensor], Tensor]] = []
        end = 0

        def put(tensor: Tensor) -> partial[Tensor]:
            nonlocal end
            strides = torch.empty_like(tensor, device="meta").stride()  # pictures lie [h, w, 3] in memory
            places.append((partial(_view, tensor.dtype, tensor.shape, strides, end), tensor))
            end += -(-tensor.nbytes // 64) * 64  # where every type may start
            return places[-1][0]

        values = {name: _changed(value, put) for name, value in vars(self).items()}
        flat = torch.empty(end, dtype=torch.uint8, device=self.positions.device)
        for view, tensor in places:
            view(flat).copy_(tensor)
        return _restored, (values, flat)


def _view(dtype: torch.dtype, shape: torch.Size, strides: tuple[int, ...], start: int, flat: Tensor) -> Tensor:
    """The tensor that starts at this byte of a buffer."""
    return flat[start : start + shape.numel() * dtype.itemsize].view(dtype).as_strided(shape, strides)


def _restored(values: Mapping[str, Any], flat: Tensor) -> PackedBatch:
    return PackedBatch(**{name: _changed(value, lambda view: view(flat)) for name, value in values.items()})


def _changed(value: Any, change: Callable[[Any], Any]) -> Any:
    """A field of a batch with its tensors, or the views that stand for them, changed."""
    if isinstance(value, Tensor | partial):
        return change(value)
    if isinstance(value, tuple) and value and isinstance(value[0], Tensor | partial):
        return TokenTags(*map(change, value)) if isinstance(value, TokenTags) else tuple(map(change, value))
    return value


def unit_range(pixels: Tensor) -> Tensor:
    """Bytes -> new float32 in [-1, 1], by the steps of to-tensor and normalise; floats are there already."""
    return pixels if pixels.is_floating_point() else pixels.float().div_(255).sub_(0.5).div_(0.5)


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
        total, self._n_gen = sum(s.length for s in segments), sum(s.length - 2 for s in segments if s.kind.latent)
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
        self._pictures: list[Tensor] = []
        self._latents: list[Tensor] = []
        self._latent_pictures: list[int] = []
        self._latent_grids: list[tuple[int, int]] = []
        self._targets: list[tuple[int, float, Tensor]] = []  # picture, u, noise
        self._answers: list[tuple[int, tuple[int, ...]]] = []  # first slot, labels
        self._latent_hints: list[tuple[int, int]] = []
        self._patch_hints: list[tuple[int, int]] = []

    def add(self, sample: int, item: Item) -> None:
        """Place the segments of one sample."""
        und, gen, place = self._und, self._gen, 0
        encoded: dict[int, int] = {}  # picture number -> index into the pictures
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
        start, first, count = self._und, self._gen, segment.length - 2
        self._delimiters(start, start + 1)
        noised = segment.kind is Kind.TARGET
        for begin, end in ((start, start + 2), (first, first + count)):
            self._positions[begin:end] = segment.position
            self._run(begin, end, sample, image=True, noised=noised, group=segment.group)
        self._places[start : start + 2] = place, place + count + 1
        self._places[first : first + count] = np.arange(place + 1, place + 1 + count)
        if segment.image not in encoded:
            encoded[segment.image] = max(len(self._pictures), len(self._latents))
            shown, kept = (item.latents, self._latents) if item.latents else (item.pictures, self._pictures)
            _expect_shape(shown[segment.image], segment)
            kept.append(shown[segment.image])
        if noised:
            noise = item.noise[segment.image]
            _expect(noise.shape[0], segment, "noise tokens")
            self._targets.append((len(self._latent_grids), item.u[segment.image], noise))
        self._latent_hints += [(token, len(self._latent_grids)) for token in segment.attributes]
        self._latent_pictures.append(encoded[segment.image])
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
        if (self._pictures and self._latents) or len({patches.dtype for patches in self._patches}) > 1:
            raise ValueError("a batch brings pictures or latents, and patches as bytes or as floats, not both")
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
            pictures=tuple(self._pictures),
            known_latents=tuple(self._latents),
            latent_pictures=tuple(self._latent_pictures),
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
    """[tokens] row * side + column for the patches of pictures one behind another, row by row."""
    places = [torch.arange(rows)[:, None] * side + torch.arange(columns) for rows, columns in grids]
    return torch.cat([place.flatten() for place in places]) if places else _long([])


def _tags(runs: Sequence[Run], places: np.ndarray[Any, np.dtype[np.int32]]) -> TokenTags:
    """Expand runs to tokens. Runs are in the order of segments, not of tokens."""
    table = np.array(sorted(runs), dtype=np.int32).reshape(-1, len(Run._fields))
    wide = np.repeat(table[:, 2:], table[:, 1] - table[:, 0], axis=0)
    sample, segment, image, noised, attribute, group = (torch.from_numpy(column.copy()) for column in wide.T)
    return TokenTags(sample, segment, torch.from_numpy(places), image.bool(), noised.bool(), attribute.bool(), group)


def _expect(found: int, segment: Segment, what: str) -> None:
    if found != segment.length - 2:
        raise ValueError(f"picture {segment.image} brings {found} {what} where {segment.length - 2} were laid out")


def _expect_shape(shown: Tensor, segment: Segment) -> None:
    """A picture or its latents [c, h, w] must cover the grid with squares of one size."""
    (height, width), (rows, columns) = shown.shape[-2:], segment.grid
    if height % rows or width % columns or height // rows != width // columns:
        raise ValueError(f"picture {segment.image} is {width} x {height} where {columns} x {rows} tokens were laid out")


def _long(values: Sequence[int]) -> Tensor:
    return torch.tensor(values, dtype=torch.long)
