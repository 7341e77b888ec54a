"""Latents out of OmniGen2: guidance over up to three branches, Euler or DPM-Solver++ steps.

Targets of one call may differ in size; each has the times that its own size asks for. Latents, times and sums stay in
float32 whatever the weights are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sigma_model.attention import Backend
from sigma_model.omnigen2.flow import sampling_times
from sigma_model.omnigen2.pack import DiffusionSample, image_tokens, latents_of, layout_of
from sigma_model.omnigen2.settings import Omnigen2Sampling, Solver
from sigma_model.omnigen2.step_cache import step_cache
from sigma_model.omnigen2.transformer import Omnigen2Transformer


@dataclass(frozen=True)
class SamplingRequest:
    """One image to make: text states [T, F] of the prompt and of the negative prompt, references, and the noise."""

    text: Tensor
    negative: Tensor
    noise: Tensor
    references: tuple[Tensor, ...] = ()


@dataclass(frozen=True)
class Step:
    """What happened in a step: a latent a request after it, its guided velocity, the velocities of the branches.

    `computed` says of each branch whether its main layers ran.
    """

    number: int
    latents: list[Tensor]
    velocities: list[Tensor]
    branches: list[list[Tensor]]
    computed: list[bool]


@torch.no_grad()
def sample(
    model: Omnigen2Transformer,
    requests: Sequence[SamplingRequest],
    settings: Omnigen2Sampling | None = None,
    *,
    backend: Backend = Backend.AUTO,
    watch: Callable[[Step], None] | None = None,
) -> list[Tensor]:
    """The latents [z, h, w] of the requests, float32. `watch` is called after every step.

    Raises ConfigError for settings that make no sense and for requests that the model cannot take.
    """
    settings = settings or Omnigen2Sampling()
    settings.check()
    if not requests:
        return []
    run = _Run(model, requests, settings, backend)
    latents = [request.noise.to(model.device, torch.float32) for request in requests]
    times = torch.tensor(
        [sampling_times(settings.steps, *x.shape[1:], dynamic=settings.dynamic_time_shift) for x in latents],
        dtype=torch.float64,
    )  # [S, steps + 1]
    solver = _Dpm() if settings.solver is Solver.DPM else _Euler()
    for number in range(settings.steps):
        velocities, branches = run.velocities(number, latents, times[:, number].float())
        latents = [
            solver.step(which, x, v, times[which, number : number + 2].tolist(), last=number == settings.steps - 1)
            for which, (x, v) in enumerate(zip(latents, velocities, strict=True))
        ]
        if watch is not None:
            watch(Step(number, latents, velocities, branches, run.computed[: len(branches)]))
    return latents


class _Branch:
    """One condition of all requests: its frame, its refined text, its cache."""

    def __init__(
        self,
        model: Omnigen2Transformer,
        samples: Sequence[DiffusionSample],
        settings: Omnigen2Sampling,
        backend: Backend,
    ) -> None:
        self._model = model
        self.frame = model.frame([layout_of(one, model.config) for one in samples], backend=backend)
        self._text = model.embed_text(torch.cat([one.text.to(model.device) for one in samples]), self.frame)
        references = [one for each in samples for one in each.references]
        self._references = image_tokens(references, model.config, self._text)
        self.stack = step_cache(settings.cache, model, settings.steps, threshold=settings.threshold)

    def velocities(self, targets: Tensor, time: Tensor) -> list[Tensor]:
        """Of the targets' tokens [N, features] at times [S, E]; a latent a request."""
        model, frame = self._model, self.frame
        refined = model.embed_images(self._references, targets, time, frame)
        joint = self.stack(frame.pack.joint_of(self._text, *refined), time, frame)
        return latents_of(model.head(joint, time, frame).float(), frame.pack.layouts, model.config)


class _Run:
    """The branches of one call."""

    def __init__(
        self,
        model: Omnigen2Transformer,
        requests: Sequence[SamplingRequest],
        settings: Omnigen2Sampling,
        backend: Backend,
    ) -> None:
        self._model = model
        self._settings = settings
        self._seen = [bool(request.references) for request in requests]

        def branch(*, negative: bool, references: bool) -> _Branch:
            samples = [
                DiffusionSample(
                    one.negative if negative else one.text, one.noise, 0.0, one.references if references else ()
                )
                for one in requests
            ]
            return _Branch(model, samples, settings, backend)

        # Without references nothing is to be guided towards, and the two negative branches would be one.
        self._by_image = settings.image_scale > 1 and any(self._seen)
        self._full = branch(negative=False, references=True)
        self._negative: list[_Branch] = []
        if any(settings.guided(step) for step in range(settings.steps)):
            if self._by_image:
                self._negative.append(branch(negative=True, references=True))
            self._negative.append(branch(negative=True, references=False))

    @property
    def computed(self) -> list[bool]:
        """Of each branch, whether its main layers ran when it was last asked."""
        return [branch.stack.computed[-1] for branch in (self._full, *self._negative) if branch.stack.computed]

    def velocities(self, step: int, latents: Sequence[Tensor], time: Tensor) -> tuple[list[Tensor], list[list[Tensor]]]:
        """Guided velocities, and those of the branches."""
        model, settings = self._model, self._settings
        targets = image_tokens(latents, model.config, latents[0])
        embedded = model.embed_time(time.to(model.device))
        full = self._full.velocities(targets, embedded)
        if not settings.guided(step):
            return full, [full]
        others = [branch.velocities(targets, embedded) for branch in self._negative]
        guided = []
        for which, v in enumerate(full):
            without = others[-1][which]
            if self._by_image and self._seen[which]:
                references = others[0][which]
                v = without + settings.image_scale * (references - without) + settings.text_scale * (v - references)
            else:
                v = without + settings.text_scale * (v - without)
            guided.append(v)
        return guided, [full, *others]


class _Euler:
    def step(self, which: int, x: Tensor, velocity: Tensor, times: Sequence[float], *, last: bool) -> Tensor:
        return x + (times[1] - times[0]) * velocity


class _Dpm:
    """Data prediction x1 = x + s v with s = 1 - t; lambda = log(t / s) is infinite at both ends."""

    def __init__(self) -> None:
        self._before: dict[int, tuple[Tensor, float]] = {}

    def step(self, which: int, x: Tensor, velocity: Tensor, times: Sequence[float], *, last: bool) -> Tensor:
        time, following = times
        data = x + (1 - time) * velocity
        before, self._before[which] = self._before.get(which), (data, _lambda(time))
        if last:
            return data  # s becomes 0
        width = _lambda(following) - _lambda(time)
        shrink = math.exp(-width)  # 0 at the first step
        out = (1 - following) / (1 - time) * x + following * (1 - shrink) * data
        if before is not None and math.isfinite(before[1]):
            ratio = (_lambda(time) - before[1]) / width
            out = out + 0.5 * following * (1 - shrink) * (data - before[0]) / ratio
        return out


def _lambda(time: float) -> float:
    return math.log(time / (1 - time)) if 0 < time < 1 else math.copysign(math.inf, time - 0.5)
