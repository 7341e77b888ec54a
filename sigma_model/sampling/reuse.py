"""Velocities taken from steps before, where the settings allow it: a sampler that is asked less often.

Whether a request is computed at a step depends on that request alone, so its image does not depend on what else is
asked for (but by rounding). The decisions of TeaCache and of guidance need numbers from the device, a few a request.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Generic, Protocol, TypeVar

import torch
from torch import Tensor

from sigma_model.sampling.settings import CacheMethod, StepCaching

REMEASURED = 4
"""A guidance branch that is left out is computed again so many steps later."""


X = TypeVar("X", contravariant=True)
"""The latents of all requests."""


class Branched(Protocol[X]):
    """What a `Reuse` asks: contexts by number, of which each request has one a branch of guidance.

    `branches` are of each request its contexts, the full one first; some may be the same. `levels` are of each request
    the noise levels (or times) of the steps.
    """

    @property
    def branches(self) -> Sequence[Sequence[int]]: ...

    @property
    def levels(self) -> Sequence[Sequence[float]]: ...

    def guided(self, step: int) -> bool:
        """Whether all branches count at a step, or the full one alone."""

    def velocities(self, contexts: Sequence[int], x: X, step: int) -> list[Tensor]:
        """The velocities of these contexts."""

    def inputs(self, x: X, step: int) -> Sequence[Tensor]:
        """What the network's first layer is shown of each request's latents, [tokens, D]."""

    def combined(self, parts: Sequence[Sequence[Tensor]], step: int) -> list[Tensor]:
        """The guided velocity of each request from its branches."""


class Schedule(Protocol):
    """Which requests are computed at a step."""

    def due(self, step: int, inputs: Sequence[Tensor] | None) -> list[bool]:
        """Of each request, whether it is; called once a step, with what the network is shown if `needs_inputs`."""

    needs_inputs: bool


class EveryStep:
    """All of them."""

    needs_inputs = False

    def __init__(self, requests: int) -> None:
        self._requests = requests

    def due(self, step: int, inputs: Sequence[Tensor] | None) -> list[bool]:
        return [True] * self._requests


class TaylorSteps:
    """Two steps more than every `every`-th, the first and the last among them, spread by `spread_steps`."""

    needs_inputs = False

    def __init__(self, levels: Sequence[Sequence[float]], caching: StepCaching) -> None:
        steps = len(levels[0])
        count = math.ceil((steps - 1) / caching.every) + 3
        self._computed = [spread_steps(of_request, min(count, steps)) for of_request in levels]

    def due(self, step: int, inputs: Sequence[Tensor] | None) -> list[bool]:
        return [step in computed for computed in self._computed]


def spread_steps(levels: Sequence[float], count: int) -> frozenset[int]:
    """`count` of the steps at these levels, both ends among them, even in the mean of their number and their level.

    Even in number alone, the long steps of a shifted schedule's end would be continued too far; even in level alone,
    too few of its beginning would be left. Of a trained model's velocities (docs/performance.md) this leaves an error
    within some percent of the least that any choice of so many steps does.
    """
    last = len(levels) - 1
    if count > last:
        return frozenset(range(len(levels)))
    way = [(step / last + (level - levels[0]) / (levels[-1] - levels[0])) / 2 for step, level in enumerate(levels)]
    free = list(range(len(levels)))
    for number in (0, count - 1, *range(1, count - 1)):
        goal = number / (count - 1)
        free.remove(min(free, key=lambda step: abs(way[step] - goal)))
    return frozenset(range(len(levels))) - frozenset(free)


class TeaSteps:
    """A request when its estimated change since the step that computed it last reaches the threshold; both ends, too.

    The change of a step is the polynomial of the relative L1 change of the input (TeaCache, eq. 5 and 6); a negative
    one counts as none.
    """

    needs_inputs = True

    def __init__(self, requests: int, steps: int, caching: StepCaching) -> None:
        self._steps, self._caching = steps, caching
        self._moved = [0.0] * requests
        self._before: Sequence[Tensor] | None = None

    def due(self, step: int, inputs: Sequence[Tensor] | None) -> list[bool]:
        assert inputs is not None
        if self._before is not None:
            changes = torch.stack([relative_change(*pair) for pair in zip(self._before, inputs, strict=True)]).tolist()
            for request, change in enumerate(changes):
                self._moved[request] += max(0.0, polynomial(self._caching.polynomial, change))
        self._before = inputs
        ends = step in (0, self._steps - 1)
        found = [ends or moved >= self._caching.threshold for moved in self._moved]
        self._moved = [0.0 if computed else moved for computed, moved in zip(found, self._moved, strict=True)]
        return found


def relative_change(before: Tensor, now: Tensor) -> Tensor:
    """The mean absolute difference over the mean absolute value before, a scalar."""
    return (now - before).float().abs().mean() / before.float().abs().mean()


def polynomial(coefficients: Sequence[float], value: float) -> float:
    """By Horner's rule, highest power first."""
    found = 0.0
    for coefficient in coefficients:
        found = found * value + coefficient
    return found


def schedule(caching: StepCaching, levels: Sequence[Sequence[float]]) -> Schedule:
    """The schedule of a run; `levels` are of each request the noise levels of its steps."""
    if caching.method is CacheMethod.TAYLOR:
        return TaylorSteps(levels, caching)
    requests, steps = len(levels), len(levels[0])
    return TeaSteps(requests, steps, caching) if caching.method is CacheMethod.TEA else EveryStep(requests)


class History:
    """The last velocities of a context, and their continuation: a polynomial in the noise level through them."""

    def __init__(self, order: int) -> None:
        self._order = order
        self._levels: list[float] = []
        self._velocities: list[Tensor] = []

    def __bool__(self) -> bool:
        return bool(self._levels)

    def add(self, level: float, velocity: Tensor) -> None:
        """A velocity that was computed."""
        self._levels = [*self._levels, level][-self._order - 1 :]
        self._velocities = [*self._velocities, velocity][-self._order - 1 :]

    def at(self, level: float) -> Tensor:
        """The velocity at a noise level: Taylor's series with derivatives by divided differences (Lagrange's form)."""
        if level == self._levels[-1]:
            return self._velocities[-1]
        found: Tensor | None = None
        for number, (mine, velocity) in enumerate(zip(self._levels, self._velocities, strict=True)):
            weight = 1.0
            for other, theirs in enumerate(self._levels):
                if other != number:
                    weight *= (level - theirs) / (mine - theirs)
            found = velocity * weight if found is None else found + velocity * weight
        assert found is not None, "nothing was computed yet"
        return found


class Reuse(Generic[X]):
    """Guided velocities of all requests, from the network or from steps before.

    `computed` counts, a step, the contexts that the network was asked for; without reuse it would be all of them.
    """

    def __init__(self, sampler: Branched[X], caching: StepCaching, *, guidance_threshold: float = 0.0) -> None:
        self._sampler = sampler
        self._threshold = guidance_threshold
        self._schedule = schedule(caching, sampler.levels)
        order = 0 if caching.method is CacheMethod.NONE else caching.order
        contexts = 1 + max(number for of_request in sampler.branches for number in of_request)
        self._history = [History(order) for _ in range(contexts)]
        self._offsets: dict[int, Tensor] = {}  # of branches that are left out: their difference to the full one
        self._measured = [0] * contexts  # at which step
        self._step = 0
        self.computed: list[int] = []

    @torch.no_grad()
    def velocities(self, x: X) -> list[Tensor]:
        """Of each request at the next step, float32; to be asked once a step."""
        sampler, step = self._sampler, self._step
        guided = sampler.guided(step)
        wanted = [list(contexts) if guided else [contexts[0]] * len(contexts) for contexts in sampler.branches]
        inputs = sampler.inputs(x, step) if self._schedule.needs_inputs else None
        asked: list[int] = []
        for contexts, due in zip(wanted, self._schedule.due(step, inputs), strict=True):
            if due or not all(self._history[number] for number in contexts):
                asked += [number for number in dict.fromkeys(contexts) if self._is_asked(number, contexts[0])]
        asked.sort()
        self.computed.append(len(asked))
        found = dict(zip(asked, sampler.velocities(asked, x, step) if asked else (), strict=True))
        parts = []
        for contexts, levels in zip(wanted, sampler.levels, strict=True):
            level = levels[step]
            for number in dict.fromkeys(contexts):
                if number in found:
                    self._history[number].add(level, found[number])
                elif number in self._offsets and contexts[0] in found:
                    self._history[number].add(level, found[contexts[0]] + self._offsets[number])
            parts.append([self._history[number].at(level) for number in contexts])
        self._measure(wanted, found)
        self._step += 1
        return sampler.combined(parts, step)

    def _is_asked(self, number: int, full: int) -> bool:
        """Whether a context that is due is computed; a branch that hardly differs from the full one waits."""
        if number == full or number not in self._offsets:
            return True
        return self._step - self._measured[number] >= REMEASURED

    def _measure(self, wanted: Sequence[Sequence[int]], found: Mapping[int, Tensor]) -> None:
        """Of the branches that were computed, find those to leave out next."""
        if not self._threshold:
            return
        offsets, ratios = {}, []
        for contexts in wanted:
            for number in dict.fromkeys(contexts[1:]):
                if number != contexts[0] and number in found and contexts[0] in found:
                    full = found[contexts[0]]
                    offsets[number] = found[number] - full
                    ratios.append(offsets[number].norm() / full.norm())
        if not ratios:
            return
        for number, ratio in zip(offsets, torch.stack(ratios).tolist(), strict=True):
            self._offsets.pop(number, None)
            if ratio < self._threshold:
                self._offsets[number], self._measured[number] = offsets[number], self._step
