"""Images out of a model: contexts prefilled once, then the steps of a solver.

All requests and all guidance branches share one prefill and one forward pass a step. The loop never waits for the
device, unless it is to leave steps out by what it measures.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from sigma_data.loading.batch import Specials
from sigma_data.loading.collate import collate, grid_places
from sigma_data.sequence.layout import Segment
from sigma_model.attention import Backend, spans_of
from sigma_model.model import SigmaModel, widths
from sigma_model.sampling.cache import Cache, cached_attention, prefill
from sigma_model.sampling.context import Context
from sigma_model.sampling.guidance import combine
from sigma_model.sampling.reuse import Reuse
from sigma_model.sampling.settings import CacheMethod, Guidance, SamplingSettings, Solver, StepCaching
from sigma_model.sampling.solvers import Velocity, step_solver

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
    solver: Solver = SamplingSettings.sampler,
    cache: StepCaching | None = None,
    guidance_threshold: float = SamplingSettings.guidance_threshold,
) -> list[Tensor]:
    """Sample the latent tokens [tokens, F] of every request's target, float32.

    `noise` [tokens, F] is where each starts. `steps` counts noise levels, so there are one fewer
    steps of the `solver`. `progress(done, all)` is called after every step, and before it `watch` with where that
    step's velocity leads: x - v t, the latent tokens as they are estimated then. What either raises ends the sampling.
    Targets may differ in size. `cache` and `guidance_threshold` are as in `SamplingSettings`.
    """
    if not requests:
        return []
    sampler = Sampler(model, requests, specials, guidance=guidance, group_mask=group_mask, backend=backend)
    if [len(one) for one in noise] != sampler.counts:
        raise ValueError(f"noise of {[len(one) for one in noise]} tokens for targets of {sampler.counts}")
    x = torch.cat(list(noise)).to(model.device, torch.float32)
    seen = None if watch is None else lambda estimate: watch(list(estimate.split(sampler.counts)))
    levels = times(steps, timestep_shift)
    velocity: Velocity | None = None
    if guidance_threshold or (cache is not None and cache.method is not CacheMethod.NONE):
        reuse: Reuse[Tensor] = Reuse(
            StepsOf(sampler, levels), cache or StepCaching(), guidance_threshold=guidance_threshold
        )
        velocity = lambda x, _level: torch.cat(reuse.velocities(x))  # noqa: E731
    found = sampler.integrate(x, levels, solver=solver, velocity=velocity, progress=progress, watch=seen)
    return list(found.split(sampler.counts))


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
        self.branches = list(zip(*which, strict=True))

        def step(numbers: Sequence[int]) -> _Step:
            return _Step(
                model, contexts, owners, self.counts, self._cache, prefixes, specials, backend, numbers=numbers
            )

        self._step_of = step
        self._all = step(range(len(contexts)))
        self._full = step(range(len(requests)))
        self._some: dict[tuple[int, ...], _Step] = {}

    def integrate(
        self,
        x: Tensor,
        levels: Sequence[float],
        *,
        solver: Solver = Solver.EULER,
        velocity: Velocity | None = None,
        progress: Callable[[int, int], None] | None = None,
        watch: Callable[[Tensor], None] | None = None,
    ) -> Tensor:
        """Steps from the first noise level to the last; `velocity` stands for our own.

        Never waits for the device, where `velocity` does not.
        """
        evaluate = velocity or self.velocity
        made = step_solver(solver)
        for index, (level, following) in enumerate(pairwise(levels)):
            found = evaluate(x, level)
            if watch is not None:
                watch(x - found * level)
            x = made.step(x, found, level, following, evaluate)
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
        return torch.cat(self.combined(list(zip(full, without_text, without_image, strict=True)), level))

    def guided(self, level: float) -> bool:
        """Whether there is guidance at a noise level."""
        return self._guidance.applies(level)

    @torch.no_grad()
    def velocities(self, contexts: Sequence[int], x: Tensor, level: float) -> list[Tensor]:
        """The velocities [tokens, F] of these contexts, float32; `branches` has their numbers."""
        key = tuple(contexts)
        if key not in self._some:
            self._some[key] = self._step_of(key)
        step = self._some[key]
        return list(step.velocity(x, level).split(step.tokens))

    @torch.no_grad()
    def inputs(self, x: Tensor, level: float) -> list[Tensor]:
        """What the first layer is shown of each request's latents, normed, [tokens, D]: the same in every branch."""
        embedded = self._full.embedded(x, level).float()
        return list(F.rms_norm(embedded, embedded.shape[-1:]).split(self.counts))

    def combined(self, parts: Sequence[Sequence[Tensor]], level: float) -> list[Tensor]:
        """The guided velocity of each request from its branches."""
        if not self._guidance.applies(level):
            return [of_request[0] for of_request in parts]
        return [combine(full, text, image, self._guidance) for full, text, image in parts]


class StepsOf:
    """A sampler as `Reuse` asks it: by steps, whose noise levels all requests share."""

    def __init__(self, sampler: Sampler, levels: Sequence[float]) -> None:
        self._sampler = sampler
        self.branches = sampler.branches
        self.levels = [list(levels[:-1])] * len(sampler.branches)

    def guided(self, step: int) -> bool:
        """Whether there is guidance at a step."""
        return self._sampler.guided(self.levels[0][step])

    def velocities(self, contexts: Sequence[int], x: Tensor, step: int) -> list[Tensor]:
        """`Sampler.velocities` at a step."""
        return self._sampler.velocities(contexts, x, self.levels[0][step])

    def inputs(self, x: Tensor, step: int) -> list[Tensor]:
        """`Sampler.inputs` at a step."""
        return self._sampler.inputs(x, self.levels[0][step])

    def combined(self, parts: Sequence[Sequence[Tensor]], step: int) -> list[Tensor]:
        """`Sampler.combined` at a step."""
        return self._sampler.combined(parts, self.levels[0][step])


class _Step:
    """One forward pass of some sequences' targets: all that does not change from step to step.

    `numbers` says which of the contexts; each lies in the cache at its number.
    """

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
        *,
        numbers: Sequence[int],
    ) -> None:
        device = model.device
        self._model = model
        spans = spans_of(counts)
        self._gather = torch.cat([torch.arange(*spans[owners[number]]) for number in numbers]).to(device)
        answers = [contexts[number].answer for number in numbers]
        tokens = self.tokens = [answer.inner for answer in answers]
        starts, before = [cache.starts[number] for number in numbers], [prefixes[number] for number in numbers]
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
            first = starts[index] + before[index]
            slots[index] = torch.arange(first, first + 2)
            slots[len(answers) + index] = torch.arange(first + 2, first + 2 + length)
            order += [torch.arange(2 * index, 2 * index + 2), torch.arange(n_und + span[0], n_und + span[1])]
        self._rows = (order[0][:0].to(device), torch.arange(sum(tokens), device=device))
        self._attend = cached_attention(
            cache,
            torch.cat(slots).to(device),
            torch.cat(order).to(device),
            [length + 2 for length in tokens],
            [(starts[i], starts[i] + before[i] + length + 2) for i, length in enumerate(tokens)],
            backend=backend,
        )

    def velocity(self, x: Tensor, level: float) -> Tensor:
        model = self._model
        _, gen = model.backbone(self._und, self.embedded(x, level), self._positions, self._attend, rows=self._rows)
        velocity: Tensor = model.latent_out(gen)
        return velocity.float()

    def embedded(self, x: Tensor, level: float) -> Tensor:
        """What the first layer is shown of the latents, [tokens, D]."""
        model = self._model
        time = model.time_embedder(torch.full((1,), level, device=x.device))
        embedded: Tensor = (model.latent_in(x.to(model.dtype)) + time)[self._gather] + self._places
        return embedded
