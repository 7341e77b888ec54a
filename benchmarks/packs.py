"""Packs to measure on, drawn up from sizes alone, and clocks for a noisy machine.

What the pictures show does not matter to speed, so they are random numbers of the right shapes.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from sigma_data.loading.batch import Item, PackedBatch, Widths
from sigma_data.loading.collate import collate
from sigma_data.sequence.guidance_layouts import without_references, without_text
from sigma_data.sequence.layout import Kind, Segment
from sigma_model.sampling.context import Context

Grid = tuple[int, int]
WIDTHS = Widths(latent=64, patch=588, latent_grid=64, patch_grid=70)
"""BAGEL's."""


@dataclass(frozen=True)
class Delimiters:
    """Delimiter ids, any."""

    bos: int = 1
    eos: int = 2
    image_start: int = 3
    image_end: int = 4


def sample(references: Sequence[tuple[Grid, Grid]], target: Grid, *, words: int) -> list[Segment]:
    """Segments: each reference (latent grid, patch grid) behind a text that speaks of it, a text, the target.

    Each text has `words` ids; two of a reference's are attribute tokens.
    """
    found: list[Segment] = []

    def add(kind: Kind, tokens: int, **content: Any) -> None:
        found.append(Segment(kind, tokens + 2, found[-1].end if found else 0, **content))

    ids = tuple(range(10, 10 + words))
    for image, (latents, patches) in enumerate(references, 1):
        add(Kind.TEXT, words, ids=ids, bound=((words // 3, image), (2 * words // 3, image)))
        add(Kind.LATENT, latents[0] * latents[1], image=image, grid=latents)
        add(Kind.PATCH, patches[0] * patches[1], image=image, grid=patches)
    add(Kind.TEXT, words, ids=ids)
    add(Kind.TARGET, target[0] * target[1], image=len(references) + 1, grid=target)
    return found


def item(segments: Sequence[Segment], widths: Widths = WIDTHS, *, seed: int = 0) -> Item:
    """What the segments show."""
    random = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=random)

    latent = [s for s in segments if s.kind.latent]
    patch = [s for s in segments if s.kind is Kind.PATCH]
    target = [s for s in segments if s.kind is Kind.TARGET]
    return Item(
        segments,
        latents={s.image: draw(widths.latent // 4, 2 * s.grid[0], 2 * s.grid[1]) for s in latent},
        patches={s.image: draw(s.grid[0] * s.grid[1], widths.patch) for s in patch},
        noise={s.image: draw(s.grid[0] * s.grid[1], widths.latent) for s in target},
        u={s.image: 0.0 for s in target},
    )


def pack(samples: Sequence[Sequence[Segment]]) -> PackedBatch:
    """The samples in one batch."""
    return collate([item(segments, seed=number) for number, segments in enumerate(samples)], Delimiters(), WIDTHS)


def branches(segments: Sequence[Segment], widths: Widths) -> list[Context]:
    """A sample as a request: the contexts of guidance."""
    shown = item([s for s in segments if not s.kind.loss], widths)
    return [Context(layout, shown) for layout in (segments, without_text(segments), without_references(segments))]


@dataclass(frozen=True)
class Clocks:
    """Seconds of each round: on the wall, and of this process's CPU time."""

    wall: list[float]
    cpu: list[float]

    @property
    def wall_ms(self) -> float:
        """Median milliseconds."""
        return statistics.median(self.wall) * 1e3

    @property
    def cpu_ms(self) -> float:
        """Median milliseconds."""
        return statistics.median(self.cpu) * 1e3


def interleave(arms: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, Clocks]:
    """Run every arm in turn, `rounds` times, and time each run."""
    clocks = {name: Clocks([], []) for name in arms}
    for _ in range(rounds):
        for name, arm in arms.items():
            wall, cpu = time.perf_counter(), time.process_time()
            arm()
            clocks[name].cpu.append(time.process_time() - cpu)
            clocks[name].wall.append(time.perf_counter() - wall)
    return clocks


def speedup(ours: Clocks, other: Clocks) -> float:
    """How many times faster ours is: the median over rounds of the ratio of CPU times."""
    return statistics.median(b / a for a, b in zip(ours.cpu, other.cpu, strict=True))
