"""The reference's files as batches and contexts: what benchmarks/parity.py computes anew and compares."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from sigma_data.images.resample import patchify
from sigma_data.loading.batch import Item, PackedBatch
from sigma_data.loading.collate import collate
from sigma_data.sequence.layout import Kind, Segment
from sigma_model.config import ModelConfig
from sigma_model.model import widths
from sigma_model.sampling.context import Context


@dataclass(frozen=True)
class Delimiters:
    """The ids of the four delimiters, as train.json has them."""

    bos: int
    eos: int
    image_start: int
    image_end: int

    @classmethod
    def of(cls, ids: Mapping[str, int]) -> Delimiters:
        """From the names of the reference."""
        return cls(ids["bos_token_id"], ids["eos_token_id"], ids["start_of_image"], ids["end_of_image"])


def training_batch(directory: Path) -> PackedBatch:
    """The samples of train.json as a batch, laid out by their plans."""
    facts = json.loads((directory / "train.json").read_text())
    arrays = load_file(directory / "train.safetensors")
    config = ModelConfig.from_directory(directory)
    latents = iter(_cut(arrays["in.padded_latent"], facts["latent_shapes"], config.latent.patch_size))
    levels = iter(_per_picture(arrays["in.packed_timesteps"], facts["latent_shapes"]))
    noises = iter(arrays["in.noise"].split([rows * columns for rows, columns in facts["latent_shapes"]]))
    items = []
    for number, plan in enumerate(facts["plans"]):
        texts = iter([arrays[f"sample.{number}.text.{i}"].tolist() for i in range(_count(arrays, number, "text"))])
        images = iter([arrays[f"sample.{number}.image.{i}"] for i in range(_count(arrays, number, "image"))])
        segments: list[Segment] = []
        content: dict[str, dict[int, Any]] = {"latents": {}, "patches": {}, "noise": {}, "u": {}}
        position = 0
        for index, entry in enumerate(plan):
            image = index + 1  # every segment's picture gets a number of its own
            if entry["kind"] == "text":
                ids = tuple(next(texts))
                kind = Kind.ANSWER if entry["loss"] else Kind.TEXT
                segment = Segment(kind, len(ids) + 2, position, ids=ids)
            elif entry["kind"] == "vit_image":
                patches, grid = _patches(next(images), config)
                content["patches"][image] = patches
                segment = Segment(Kind.PATCH, len(patches) + 2, position, image=image, grid=grid)
            else:
                next(images)
                latent = next(latents)
                content["latents"][image] = latent
                content["u"][image], content["noise"][image] = next(levels), next(noises)
                p = config.latent.patch_size
                grid = (latent.shape[1] // p, latent.shape[2] // p)
                kind = Kind.TARGET if entry["loss"] else Kind.LATENT
                segment = Segment(kind, grid[0] * grid[1] + 2, position, image=image, grid=grid)
            segments.append(segment)
            position = segment.end
        items.append(
            Item(
                segments, latents=content["latents"], patches=content["patches"], noise=content["noise"], u=content["u"]
            )
        )
    return collate(items, Delimiters.of(facts["special_ids"]), widths(config))


def sequence_order(batch: PackedBatch) -> Tensor:
    """[N] where in the batch each token of the samples' sequences, one behind another, stands."""
    key = batch.tags.sample.long() * batch.tokens + batch.tags.place
    return key.argsort()


def whole(order: list[str], arrays: Mapping[str, Tensor], config: ModelConfig, length: int) -> list[Segment]:
    """The first segments of a context, `length` tokens of them."""
    segments = segments_of(order, arrays, config)
    while sum(segment.length for segment in segments) > length:
        segments.pop()
    return segments


def segments_of(order: list[str], arrays: Mapping[str, Tensor], config: ModelConfig) -> list[Segment]:
    """'text a', 'vae img1', 'vit vit1' -> segments, in the positions of a context of its own."""
    segments: list[Segment] = []
    position = 0
    for entry in order:
        kind, name = entry.split()
        if kind == "text":
            ids = tuple(arrays[f"in.text.{name}"].tolist())
            segment = Segment(Kind.TEXT, len(ids) + 2, position, ids=ids)
        elif kind == "vae":
            p = config.latent.patch_size
            shape = arrays[f"in.{name}_latent"].shape
            grid = (shape[-2] // p, shape[-1] // p)
            segment = Segment(Kind.LATENT, grid[0] * grid[1] + 2, position, image=_number(name), grid=grid)
        else:
            assert config.vision is not None
            shape = arrays[f"in.{name}"].shape
            grid = (shape[-2] // config.vision.patch_size, shape[-1] // config.vision.patch_size)
            segment = Segment(Kind.PATCH, grid[0] * grid[1] + 2, position, image=_number(name), grid=grid)
        segments.append(segment)
        position = segment.end
    return segments


def context(order: list[str], arrays: Mapping[str, Tensor], config: ModelConfig, grid: tuple[int, int]) -> Context:
    """A context with the target behind it."""
    segments = segments_of(order, arrays, config)
    target = Segment(Kind.TARGET, grid[0] * grid[1] + 2, segments[-1].end if segments else 0, image=99, grid=grid)
    return Context([*segments, target], item(segments, arrays, config))


def item(segments: list[Segment], arrays: Mapping[str, Tensor], config: ModelConfig) -> Item:
    """The pictures of inference.safetensors, whichever of them the segments show."""
    latents, patches = {}, {}
    for name, array in arrays.items():
        if match := re.fullmatch(r"in\.(\w+)_latent", name):
            latents[_number(match[1])] = array.reshape(array.shape[-3:])
        elif re.fullmatch(r"in\.vit\d+", name):
            assert config.vision is not None
            patches[_number(name)] = torch.from_numpy(patchify(array.numpy(), config.vision.patch_size))
    return Item(segments, latents=latents, patches=patches)


def _number(name: str) -> int:
    return int(re.findall(r"\d+", name)[-1])


def _count(arrays: Mapping[str, Tensor], sample: int, what: str) -> int:
    return sum(name.startswith(f"sample.{sample}.{what}.") for name in arrays)


def _cut(padded: Tensor, shapes: list[list[int]], patch: int) -> Iterator[Tensor]:
    for latent, (rows, columns) in zip(padded, shapes, strict=True):
        yield latent[:, : rows * patch, : columns * patch]


def _per_picture(values: Tensor, shapes: list[list[int]]) -> Iterator[float]:
    for part in values.split([rows * columns for rows, columns in shapes]):
        yield float(part[0])


def _patches(image: Tensor, config: ModelConfig) -> tuple[Tensor, tuple[int, int]]:
    assert config.vision is not None
    patch = config.vision.patch_size
    return torch.from_numpy(patchify(image.numpy(), patch)), (image.shape[1] // patch, image.shape[2] // patch)
