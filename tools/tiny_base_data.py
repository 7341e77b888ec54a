"""What the tiny base learns from: samples of the world with plain captions, as token ids and VAE latents, and batches.

A batch is a list of groups: samples with the same number of references, so that nothing is padded but text.
"""

from __future__ import annotations

import io
import random
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sigma_data.instruction import Text
from sigma_data.sample import Family, Sample, Source, Turn
from sigma_data.sample import Image as SourceImage
from sigma_data.sequence.layout import Kind, outline
from sigma_data.sequence.tokenizer import Tokenizer
from sigma_data.sources import open_source
from sigma_data.sources.world import WorldReader
from sigma_data.synthetic.rng import KeyedRng
from sigma_data.synthetic.sampling import draw_draft
from sigma_model.vae import Vae, to_tokens
from tools.tiny_base_tasks import draft

Array = np.ndarray[Any, np.dtype[Any]]
SIZE = 64
SHARD = 2000
"""Samples a file."""
COPY = "copy"
"""The family of the samples that ask for one of their references again."""
TASK = "task"
"""The family of the simple tasks."""

_COPY_WORDS = (
    ("copy", ""), ("show", "again"), ("the same as", ""), ("draw", "as it is"), ("give back", ""),
    ("an exact copy of", ""), ("Copy", "."), ("Copy", ""), ("copy", "."), ("Show", "again."), ("Draw", "as it is."),
    ("The same as", "."),
)  # fmt: skip


class Words(NamedTuple):
    """A text: its ids without delimiters, and which of them are attribute tokens of which group: (index, group)."""

    ids: tuple[int, ...]
    bound: tuple[tuple[int, int], ...] = ()


Part = Words | int
"""A text, or an image by its number from 1."""


class Drawn(NamedTuple):
    """A sample: the last of `parts` is the target; `first` is the index of image 1 among all latents."""

    family: str
    parts: tuple[Part, ...]
    first: int
    images: int


@dataclass(frozen=True)
class Corpus:
    """All samples in memory; `latents` [images, tokens, features], float16."""

    samples: Sequence[Drawn]
    latents: Tensor


def draw(
    folder: Path, tokenizer: Tokenizer, vae: Vae, *, seed: int, count: int, tasks: int = 0, maps: int = 0,
    first: int = 0, attributes: bool = False, part: tuple[int, int] = (0, 1),
) -> None:  # fmt: skip
    """Draw `count` samples of a world, `tasks` simple tasks and `maps` colour maps into files; those there stay.

    All from number `first` on, in files of `SHARD`; the world's first file, whose first samples are held out, is
    always drawn. `part` (k, n) draws the k-th of every n files, so that n processes share the work.
    """
    folder.mkdir(parents=True, exist_ok=True)
    said = "yes" if attributes else "no"
    options = f"size={SIZE}&seed={seed}&attributes={said}"
    world = open_source(f"world:{first + count + SHARD}?{options}")
    segmentation = open_source(f"world:{first + maps + SHARD}?{options}&families=segmentation")
    assert isinstance(world, WorldReader)
    assert isinstance(segmentation, WorldReader)
    of: dict[str, Callable[[int], Sample]] = {
        "world": world.sample, "tasks": partial(task_sample, seed), "maps": segmentation.sample,
    }  # fmt: skip
    files = [("world", 0, SHARD)] if first and count else []
    for name, total in (("tasks", tasks), ("maps", maps), ("world", count)):
        last = first + total
        files += [(name, begin, min(begin + SHARD, last)) for begin in range(first, last, SHARD)]
    for name, begin, end in files[part[0] :: part[1]]:
        path = folder / f"{name}-{seed}-{begin:07d}.pt"
        if path.exists():
            continue
        samples: list[Drawn] = []
        images: list[Array] = []
        for index in range(begin, end):
            sample = of[name](index)
            family = TASK if name == "tasks" else str(sample.family)
            samples.append(Drawn(family, _parts(sample, tokenizer), len(images), len(sample.images)))
            images += [np.asarray(Image.open(io.BytesIO(one.data or b"")).convert("RGB")) for one in sample.images]
        torch.save({"samples": samples, "latents": _encoded(vae, images)}, path.with_suffix(".tmp"))
        path.with_suffix(".tmp").rename(path)


def task_sample(seed: int, index: int) -> Sample:
    """A simple task as a sample: references, the instruction, the target last."""
    rng = KeyedRng("tiny base tasks", seed, index)
    drawn = draw_draft(draft(rng, index), rng, size=SIZE, format="png")
    images = tuple(SourceImage(number, data) for number, data in enumerate(drawn.images, start=1))
    turns = (Turn(drawn.instruction, target=len(images)),)
    return Sample(f"task-{seed}-{index}", Family.EDITING, images, turns, Source("tasks", f"seed={seed}", index))


def _parts(sample: Sample, tokenizer: Tokenizer) -> tuple[Part, ...]:
    parts: list[Part] = []
    for piece in outline(sample.turns, [image.number for image in sample.images]):
        if piece.kind in (Kind.LATENT, Kind.TARGET):
            parts.append(piece.image)
        else:
            encoded = tokenizer.encode_parts(piece.parts)
            bound = tuple((place, piece.groups[running]) for place, running in encoded.attributes)
            parts.append(Words(encoded.ids, bound))
    return tuple(parts)


@torch.no_grad()
def _encoded(vae: Vae, images: Sequence[Array]) -> Tensor:
    """In batches: the last bits depend on the neighbours then, which a training can do with."""
    config = vae.config
    found = []
    for start in range(0, len(images), 64):
        pixels = torch.from_numpy(np.stack(images[start : start + 64])).permute(0, 3, 1, 2)
        moments = vae.autoencoder.encoder(pixels.float() / 127.5 - 1)
        latents = (moments[:, : config.z_channels] - config.shift_factor) * config.scale_factor
        found += [to_tokens(latent, 2).half() for latent in latents]
    return torch.stack(found)


def load(folder: Path) -> Corpus:
    """All files of a folder: the world's samples, then tasks and maps."""
    samples: list[Drawn] = []
    latents: list[Tensor] = []
    images = 0
    for path in (path for name in ("world", "tasks", "maps") for path in sorted(folder.glob(f"{name}-*.pt"))):
        stored = torch.load(path, weights_only=False)  # our own file: named tuples
        samples += [one._replace(first=one.first + images) for one in stored["samples"]]
        latents.append(stored["latents"])
        images += len(stored["latents"])
    return Corpus(samples, torch.cat(latents))


@dataclass(frozen=True)
class Group:
    """B samples of n references: U understanding tokens each, then (n + 1) * M latent tokens, the target's last.

    `ids` [B, U], `positions` [B, U + (n + 1) * M], `hidden` bool [B, N, N] (True where row does not see column),
    `latents` [B, n + 1, M, F], `level` [B], `noise` [B, M, F].
    """

    references: int
    families: tuple[str, ...]
    ids: Tensor
    positions: Tensor
    hidden: Tensor
    latents: Tensor
    level: Tensor
    noise: Tensor


class _Token(NamedTuple):
    """An understanding token; `segment` -1 is padding."""

    id: int
    position: int
    segment: int
    place: int
    image: int
    noised: int
    attribute: int
    group: int


class _Tags(NamedTuple):
    """The same of B samples of N tokens, [B, N] each."""

    id: Array
    position: Array
    segment: Array
    place: Array
    image: Array
    noised: Array
    attribute: Array
    group: Array


_PADDING = _Token(0, 0, -1, 0, 0, 0, 0, 0)


@dataclass
class _Laid:
    """A sample laid out as `sigma_data.sequence.layout` does; `position`, `segment`, `group` of every image kept."""

    family: str
    tokens: list[_Token] = field(default_factory=list)
    images: list[tuple[int, int, int, int]] = field(default_factory=list)  # number, position, segment, group


@dataclass
class Maker:
    """Makes batches. `copy`: share of samples that ask for a reference again; `drop`: of conditions left out.

    `shifts` are timestep shifts with their shares.
    """

    tokenizer: Tokenizer
    rng: random.Random
    generator: torch.Generator
    copy: float = 0.0
    drop: float = 0.0
    shifts: Mapping[float, float] = field(default_factory=lambda: {8.0: 0.5, 32.0: 0.5})
    group_mask: bool = True

    def batch(self, corpus: Corpus, numbers: Sequence[int], *, level: float | None = None) -> list[Group]:
        """Groups of the samples with these numbers; `level` None draws noise levels."""
        groups: dict[int, list[tuple[_Laid, int]]] = defaultdict(list)
        tokens = corpus.latents.shape[1]
        for number in numbers:
            sample = corpus.samples[number]
            laid = self._lay_out(sample, tokens)
            groups[len(laid.images) - 1].append((laid, sample.first))
        return [self._group(count, groups[count], corpus, level) for count in sorted(groups)]

    def _asked(self, sample: Drawn) -> tuple[str, tuple[Part, ...]]:
        """The sample, or one that asks for one of its references among the others."""
        if sample.images == 1 or self.rng.random() >= self.copy:
            return sample.family, sample.parts
        chosen = self.rng.randrange(1, sample.images)
        others = [number for number in range(1, sample.images) if number != chosen]
        self.rng.shuffle(others)
        before = self.rng.randrange(len(others) + 1) if self.rng.random() < 0.5 else len(others)
        head, tail = self.rng.choice(_COPY_WORDS)
        named: list[Part] = [Words(self.tokenizer.encode_parts([Text(head)]).ids), chosen]
        if tail:
            named.append(Words(self.tokenizer.encode_parts([Text(tail)]).ids))
        return COPY, (*others[:before], *named, *others[before:], chosen)

    def _lay_out(self, sample: Drawn, count: int) -> _Laid:
        family, parts = self._asked(sample)
        laid = _Laid(family)
        position = place = segment = 0
        for index, part in enumerate(parts):
            target = index == len(parts) - 1
            dropped = not target and self.rng.random() < self.drop
            if isinstance(part, int):
                if not dropped:
                    group = 0 if target else part
                    for id_, where in (
                        (self.tokenizer.image_start, place),
                        (self.tokenizer.image_end, place + count + 1),
                    ):
                        laid.tokens.append(_Token(id_, position, segment, where, 1, int(target), 0, group))
                    laid.images.append((part, position, segment, group))
                    place, segment = place + count + 2, segment + 1
                position += 1
            elif not dropped:
                bound = {index + 1: group for index, group in part.bound}
                for index_, id_ in enumerate((self.tokenizer.bos, *part.ids, self.tokenizer.eos)):
                    laid.tokens.append(
                        _Token(id_, position, segment, place, 0, 0, int(index_ in bound), bound.get(index_, 0))
                    )
                    position, place = position + 1, place + 1
                segment += 1
        return laid

    def _group(self, references: int, rows: Sequence[tuple[_Laid, int]], corpus: Corpus, level: float | None) -> Group:
        count, features = corpus.latents.shape[1:]
        longest = -(-max(len(laid.tokens) for laid, _ in rows) // 8) * 8  # few lengths: few kernels to compile
        table = np.array([laid.tokens + [_PADDING] * (longest - len(laid.tokens)) for laid, _ in rows])
        shown = np.array([laid.images for laid, _ in rows])  # [B, n + 1, 4]
        wide = shown.repeat(count, axis=1)
        zeros = np.zeros_like(wide[..., 0])
        last = zeros.copy()
        last[:, -count:] = 1
        image = _Tags(
            id=zeros, position=wide[..., 1], segment=wide[..., 2], place=zeros, image=zeros + 1, noised=last,
            attribute=zeros, group=wide[..., 3],
        )  # fmt: skip
        tags = _Tags(*(np.concatenate([table[..., k], image[k]], axis=1) for k in range(len(image))))
        which = torch.from_numpy(shown[..., 0] - 1 + np.array([first for _, first in rows])[:, None])
        drawn = self._levels(len(rows)) if level is None else torch.full((len(rows),), level)
        return Group(
            references=references,
            families=tuple(laid.family for laid, _ in rows),
            ids=torch.from_numpy(table[..., 0]),
            positions=torch.from_numpy(tags.position),
            hidden=torch.from_numpy(~_visible(tags, group_mask=self.group_mask)),
            latents=corpus.latents[which].float(),
            level=drawn,
            noise=torch.randn(len(rows), count, features, generator=self.generator),
        )

    def _levels(self, count: int) -> Tensor:
        plain = torch.randn(count, generator=self.generator).sigmoid()
        chosen = torch.multinomial(
            torch.tensor(list(self.shifts.values())), count, replacement=True, generator=self.generator
        )
        shift = torch.tensor(list(self.shifts))[chosen]
        return shift * plain / (1 + (shift - 1) * plain)


def _visible(tags: _Tags, *, group_mask: bool) -> Array:
    """The rule of `sigma_model.attention.visible` for B samples of N tokens, bool [B, N, N]; nobody sees padding."""
    row, column = (_Tags(*(np.expand_dims(tag, axis) for tag in tags)) for axis in (2, 1))
    inside = (row.segment == column.segment) & ((row.image == 1) | (column.place <= row.place))
    before = (column.segment < row.segment) & (column.segment >= 0) & (column.noised == 0)
    if group_mask:
        before &= ~((row.attribute == 1) & (column.image == 1) & (row.group != column.group))
    seen: Array = inside | before
    return seen
