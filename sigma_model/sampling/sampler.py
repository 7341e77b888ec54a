"""Images out of a model: contexts prefilled once, then an Euler sampler.

All requests and all guidance branches share one prefill and one forward pass a step. The loop never waits for the
device.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise

import torch
from torch import Tensor

from sigma_data.loading.batch import Specials
from sigma_data.loading.collate import collate, grid_places
from sigma_data.sequence.layout import Segment
from sigma_model.attention import Backend, spans_of
from sigma_model.model import SigmaModel, widths
from sigma_model.sampling.cache import Cache, cached_attention, prefill
from sigma_model.sampling.context import Context
from sigma_model.sampling.guidance import combine
from sigma_model.sampling.settings import Guidance, SamplingSettings

Branches = Sequence[Context]
"""Contexts of one request: full, without text, without reference images; the same target behind each."""


def times(steps: int, shift: float) -> list[float]:
    """`steps` noise levels from 1 to 0, shifted: t <- s t / (1 + (s - 1) t). At least two are needed."""
    if steps < 2:
        raise ValueError(f"{steps} noise levels make no step")
    plain = [1 - index / (steps - 1) for index in range(steps)]
    return [shift * t / (1 + (shift - 1) * t) for t in plain]


@torch.no_grad()
def sample_latents(
    model: SigmaModel,
    requests: Sequence[Branches],
    noise: Sequence[Tensor],
    specials: Specials,
    *,
    steps: int = SamplingSettings.steps,
    timestep_shift: float = SamplingSettings.timestep_shift,
    guidance: Guidance | None = None,
    group_mask: bool = True,
    backend: Backend = Backend.AUTO,
    progress: Callable[[int, int], None] | None = None,
    watch: Callable[[list[Tensor]], None] | None = None,
) -> list[Tensor]:
    """Sample the latent tokens [tokens, F] of every request's target, float32.

    `noise` [tokens, F] is where each starts. `steps` counts noise levels, so there are one fewer
    Euler steps. `progress(done, all)` is called after every step, and before it `watch` with where that step's
    velocity leads: x - v t, the latent tokens as they are estimated then. What either raises ends the sampling.
    Targets may differ in size.
    """
    if not requests:
        return []
    sampler = Sampler(model, requests, specials, guidance=guidance, group_mask=group_mask, backend=backend)
    if [len(one) for one in noise] != sampler.counts:
        raise ValueError(f"noise of {[len(one) for one in noise]} tokens for targets of {sampler.counts}")
    x = torch.cat(list(noise)).to(model.device, torch.float32)
    seen = None if watch is None else lambda estimate: watch(list(estimate.split(sampler.counts)))
    levels = times(steps, timestep_shift)
    return list(sampler.integrate(x, levels, progress=progress, watch=seen).split(sampler.counts))


class Sampler:
    """Prefilled contexts of many requests, and the velocity at any point and noise level."""

    @torch.no_grad()
    def __init__(
        self,
        model: SigmaModel,
        requests: Sequence[Branches],
        specials: Specials,
        *,
        guidance: Guidance | None = None,
        group_mask: bool = True,
        backend: Backend = Backend.AUTO,
    ) -> None:
        self._model = model
        self._guidance = guidance or Guidance()
        self.counts = [branches[0].answer.inner for branches in requests]
        wanted = (True, self._guidance.uses_text, self._guidance.uses_image)
        # Full contexts first: where there is no guidance, they alone are computed.
        contexts: list[Context] = []
        owners: list[int] = []
        self._rows: list[Tensor] = []  # for each branch, the rows of its velocities
        index: dict[tuple[int, tuple[Segment, ...]], int] = {}
        which: list[list[int]] = []
        for branch in range(3):
            of_branch = []
            for owner, branches in enumerate(requests):
                context = branches[branch if wanted[branch] else 0]
                key = (owner, tuple(context.segments))
                if key not in index:  # a branch equal to another (no images, say) is computed once
                    index[key] = len(contexts)
                    contexts.append(context)
                    owners.append(owner)
                of_branch.append(index[key])
            which.append(of_branch)
        items = [replace(context.item, segments=context.prefix) for context in contexts]
        batch = collate(items, specials, widths(model.config)).to(model.device)
        prefixes = [sum(segment.length for segment in context.prefix) for context in contexts]
        capacities = [prefix + context.answer.length for prefix, context in zip(prefixes, contexts, strict=True)]
        self._cache = Cache(model.config.language, capacities, dtype=model.dtype, device=model.device)
        prefill(model, batch, self._cache, group_mask=group_mask, backend=backend)
        row_spans = spans_of([context.answer.inner for context in contexts])
        for of_branch in which:
            self._rows.append(torch.cat([torch.arange(*row_spans[s]) for s in of_branch]).to(model.device))
        shared = (self.counts, self._cache, prefixes, specials, backend)
        self._all = _Step(model, contexts, owners, *shared)
        full = len(requests)
        self._full = _Step(model, contexts[:full], owners[:full], *shared)

    def integrate(
        self,
        x: Tensor,
        levels: Sequence[float],
        *,
        progress: Callable[[int, int], None] | None = None,
        watch: Callable[[Tensor], None] | None = None,
    ) -> Tensor:
        """Euler steps x <- x - v dt from the first noise level to the last; never waits for the device."""
        for index, (level, following) in enumerate(pairwise(levels)):
            velocity = self.velocity(x, level)
            if watch is not None:
                watch(x - velocity * level)
            x = x - velocity * (level - following)
            if progress is not None:
                progress(index + 1, len(levels) - 1)
        return x

    @torch.no_grad()
    def velocity(self, x: Tensor, level: float) -> Tensor:
        """Guided velocity of all targets, [sum of tokens, F] like `x`, float32."""
        if not self._guidance.applies(level):
            return self._full.velocity(x, level)
        velocity = self._all.velocity(x, level)
        full, without_text, without_image = (velocity[rows].split(self.counts) for rows in self._rows)
        of_each = zip(full, without_text, without_image, strict=True)
        return torch.cat([combine(one, text, image, self._guidance) for one, text, image in of_each])


class _Step:
    """One forward pass of some sequences' targets: all that does not change from step to step."""

    def __init__(
        self,
        model: SigmaModel,
        contexts: Sequence[Context],
        owners: Sequence[int],
        counts: Sequence[int],
        cache: Cache,
        prefixes: Sequence[int],
        specials: Specials,
        backend: Backend,
    ) -> None:
        device = model.device
        self._model = model
        spans = spans_of(counts)
        self._gather = torch.cat([torch.arange(*spans[owner]) for owner in owners]).to(device)
        answers = [context.answer for context in contexts]
        tokens = [answer.inner for answer in answers]
        n_und = 2 * len(answers)
        delimiters = torch.tensor([specials.image_start, specials.image_end] * len(answers), device=device)
        self._und = model.backbone.embed_tokens(delimiters)
        places = grid_places([answer.grid for answer in answers], model.config.latent.grid)
        self._places = model.latent_positions[places.to(device)]
        positions = torch.tensor([answer.position for answer in answers])
        repeated = positions.repeat_interleave(torch.tensor(tokens))
        self._positions = torch.cat((positions.repeat_interleave(2), repeated)).to(device)
        slots = [torch.zeros(0, dtype=torch.long)] * (2 * len(answers))
        order = []
        for index, (span, length) in enumerate(zip(spans_of(tokens), tokens, strict=True)):
            first = cache.starts[index] + prefixes[index]
            slots[index] = torch.arange(first, first + 2)
            slots[len(answers) + index] = torch.arange(first + 2, first + 2 + length)
            order += [torch.arange(2 * index, 2 * index + 2), torch.arange(n_und + span[0], n_und + span[1])]
        self._rows = (order[0][:0].to(device), torch.arange(sum(tokens), device=device))
        self._attend = cached_attention(
            cache,
            torch.cat(slots).to(device),
            torch.cat(order).to(device),
            [length + 2 for length in tokens],
            [(cache.starts[i], cache.starts[i] + prefixes[i] + length + 2) for i, length in enumerate(tokens)],
            backend=backend,
        )

    def velocity(self, x: Tensor, level: float) -> Tensor:
        model = self._model
        time = model.time_embedder(torch.full((1,), level, device=x.device))
        gen = (model.latent_in(x.to(model.dtype)) + time)[self._gather] + self._places
        _, gen = model.backbone(self._und, gen, self._positions, self._attend, rows=self._rows)
        velocity: Tensor = model.latent_out(gen)
        return velocity.float()
