"""Segments -> PackedBatch: the tensors of one forward pass over many samples.

Tokens are ordered by expert once, here: first all that the understanding expert computes (text, delimiters, ViT
patches), then all VAE latents, inside each by sample and place. So every projection of the network is a slice, and no
layer gathers or scatters. Visibility does not depend on this order.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, Self, cast

import torch
from torch import Tensor

from sigma_data.sequence.layout import Segment, Size


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
    """What visibility depends on, for each token; every field is [N], in the order of the batch.

    `sample`: number in the batch. `segment`: number in the batch, counting on from sample to sample. `place`: index in
    the sample's sequence. `image`: whether it belongs to an image's segment, delimiters included. `noised`: whether
    that image is a target. `attribute`: whether it is an attribute token. `group`: the image that a reference's token
    shows, or that an attribute token refers to; else 0.
    """

    sample: Tensor
    segment: Tensor
    place: Tensor
    image: Tensor
    noised: Tensor
    attribute: Tensor
    group: Tensor


class Run(NamedTuple):
    """A run of neighbouring tokens that visibility treats alike, except for a text's causal order."""

    start: int
    stop: int
    sample: int
    segment: int
    image: bool
    noised: bool
    attribute: bool
    group: int


class ImageKey(NamedTuple):
    """An image of a run at one size: the pixels of two images with the same key are the same."""

    corpus: int
    row: int
    number: int
    size: Size


@dataclass(frozen=True)
class Item:
    """A laid-out sample with the content of its segments. The mappings' keys are image numbers.

    `images`: [3, h, w] at the latents' size, for the VAE, bytes or floats in [-1, 1]; or `latents`: float [z, h, w],
    if they are known already; `keys` identify these images. `patches`: [rows * columns, patch * patch * 3], bytes or
    floats. `noise`: float [tokens, features] of each target. `u`: a normal number for each target, whose noise level is
    its sigmoid, shifted.
    """

    segments: Sequence[Segment]
    images: Mapping[int, Tensor] = field(default_factory=dict)
    latents: Mapping[int, Tensor] = field(default_factory=dict)
    keys: Mapping[int, ImageKey] = field(default_factory=dict)
    patches: Mapping[int, Tensor] = field(default_factory=dict)
    noise: Mapping[int, Tensor] = field(default_factory=dict)
    u: Mapping[int, float] = field(default_factory=dict)
    name: str = ""


class Batch:
    """What a pack is to a model: a dataclass of tensors, tuples of tensors and plain values, which moves as a whole.

    Every kind of batch has these fields: sample names; distinct images to be encoded, or their latents instead; and
    what identifies the images.
    """

    names: tuple[str, ...]
    images: tuple[Tensor, ...]
    known_latents: tuple[Tensor, ...]
    image_keys: tuple[ImageKey, ...]

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Self:
        """The same on a device."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Self:
        """The same in page-locked memory, for asynchronous copies."""
        return self._map(lambda tensor: tensor.pin_memory())

    def _map(self, change: Callable[[Tensor], Tensor]) -> Self:
        values = {name: _changed(value, change) for name, value in vars(self).items()}
        made: Self = cast(Any, type(self))(**values)
        return made


@dataclass(frozen=True)
class PackedBatch(Batch):
    """One forward pass. N tokens: `n_und` of the understanding expert, then `n_gen` latents.

    Shapes: T text and delimiter tokens, P patches in I_p images, M = n_gen latent tokens in I_l images, of them M_t
    targets' in I_t; C answer tokens; F = patch * patch * channels.
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

    images: tuple[Tensor, ...]
    """Distinct images to be encoded, [3, h, w], bytes or floats in [-1, 1]."""
    known_latents: tuple[Tensor, ...]
    """Their latents [z, h, w] instead, if they were given."""
    image_keys: tuple[ImageKey, ...]
    """What identifies them; empty if the items do not say."""
    latent_sources: tuple[int, ...]
    """I_l times the index into `images`: a target and its clean copy are encoded once."""
    latent_grids: tuple[tuple[int, int], ...]
    """I_l times (rows, columns)."""
    latent_places: Tensor
    """[M] indices into the position table of latents."""
    latent_image: Tensor
    """[M] which of the I_l images a latent token belongs to."""
    target_slots: Tensor
    """[M_t] indices into the M latent tokens."""
    target_images: Tensor
    """[I_t] indices into the I_l images."""
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
    """[J] ids of attribute tokens that speak of an image."""
    hint_images: Tensor
    """[J] the image: I_l latent images first, then I_p patch images."""

    @property
    def tokens(self) -> int:
        """N."""
        return self.n_und + self.n_gen


def _changed(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """A field of a batch with its tensors changed."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, tuple) and value and isinstance(value[0], Tensor):
        return TokenTags(*map(change, value)) if isinstance(value, TokenTags) else tuple(map(change, value))
    return value


def unit_range(pixels: Tensor) -> Tensor:
    """Bytes -> new float32 in [-1, 1], to the bit as to-tensor and normalise make them; floats are there already.

    Those take ((x / 255) - 0.5) / 0.5, which halves and doubles exactly, so two steps do for four.
    """
    return pixels if pixels.is_floating_point() else pixels.float().div_(127.5).sub_(1)
