"""Latents out of OmniGen2: guidance over up to three branches, steps of Euler, Heun or DPM-Solver++.

Targets of one call may differ in size; each has the times that its own size asks for. Latents, times and sums stay in
float32 whatever the weights are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sigma_model.attention import Backend
from sigma_model.omnigen2.flow import sampling_times
from sigma_model.omnigen2.pack import Bound, DiffusionSample, image_tokens, latents_of, layout_of
from sigma_model.omnigen2.settings import Omnigen2Sampling
from sigma_model.omnigen2.step_cache import step_cache
from sigma_model.omnigen2.transformer import ModulatedNorm, Omnigen2Transformer
from sigma_model.sampling.reuse import Reuse
from sigma_model.sampling.settings import Solver
from sigma_model.sampling.solvers import DataPrediction


@dataclass(frozen=True)
class SamplingRequest:
    """One image to make: text states [T, F] of the prompt and of the negative prompt, references, and the noise."""

    text: Tensor
    negative: Tensor
    noise: Tensor
    references: tuple[Tensor, ...] = ()
    bound: Bound = ()


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
    reuse: Reuse[list[Tensor]] | None = None
    if settings.reuses:
        reuse = Reuse(StepsOf(run, times), settings.reuse, guidance_threshold=settings.guidance_threshold)
    solvers = [DataPrediction() for _ in latents]
    for number in range(settings.steps):
        if reuse is None:
            velocities, branches = run.velocities(number, latents, times[:, number].float())
        else:
            velocities, branches = reuse.velocities(latents), []
        last = number == settings.steps - 1
        spans = times[:, number : number + 2].tolist()
        if settings.sampler is Solver.DPMPP:
            latents = [
                solver.step(x, v, *span, last=last)
                for solver, x, v, span in zip(solvers, latents, velocities, spans, strict=True)
            ]
        elif settings.sampler is Solver.HEUN and not last:
            ahead = _moved(latents, velocities, spans)
            following, _ = run.velocities(number, ahead, times[:, number + 1].float())
            latents = _moved(latents, [(one + two) / 2 for one, two in zip(velocities, following, strict=True)], spans)
        else:
            latents = _moved(latents, velocities, spans)
        if watch is not None:
            watch(Step(number, latents, velocities, branches, run.computed[: len(branches)]))
    return latents


def _moved(latents: Sequence[Tensor], velocities: Sequence[Tensor], spans: Sequence[Sequence[float]]) -> list[Tensor]:
    """Euler's step of each latent between two times."""
    return [x + (end - start) * v for x, v, (start, end) in zip(latents, velocities, spans, strict=True)]


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

        def of_some(which: Sequence[int]) -> _Branch:
            return _Branch(model, [samples[one] for one in which], settings, backend)

        self._of_some = of_some
        self._parts: dict[tuple[int, ...], _Branch] = {tuple(range(len(samples))): self}

    def of(self, which: Sequence[int]) -> _Branch:
        """The same condition of some of the requests alone."""
        key = tuple(which)
        if key not in self._parts:
            self._parts[key] = self._of_some(key)
        return self._parts[key]

    def velocities(self, targets: Tensor, time: Tensor) -> list[Tensor]:
        """Of the targets' tokens [N, features] at times [S, E]; a latent a request."""
        model, frame = self._model, self.frame

        def joined() -> Tensor:
            refined = model.embed_images(self._references, targets, time, frame)
            return frame.pack.joint_of(self._text, *refined)

        joint = self.stack(joined, time, frame)
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
        self.settings = settings
        self._seen = [bool(request.references) for request in requests]

        def branch(*, negative: bool, references: bool) -> _Branch:
            samples = [
                DiffusionSample(
                    one.negative if negative else one.text,
                    one.noise,
                    0.0,
                    one.references if references else (),
                    () if negative else one.bound,
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
    def branches(self) -> list[_Branch]:
        """The full one, with the negative prompt (with references, if they guide, and without)."""
        return [self._full, *self._negative]

    def needed(self, which: int) -> list[int]:
        """The numbers of the branches that a request's guidance is of."""
        last = len(self.branches) - 1
        return [0, 1, last] if self._by_image and self._seen[which] and last else [0, last]

    def of_some(self, branch: _Branch, which: Sequence[int], latents: Sequence[Tensor], time: Tensor) -> list[Tensor]:
        """The velocities of some requests under one condition; a latent each."""
        targets = image_tokens(latents, self._model.config, latents[0])
        return branch.of(which).velocities(targets, self._model.embed_time(time.to(self._model.device)))

    def inputs(self, latents: Sequence[Tensor], time: Tensor) -> list[Tensor]:
        """The targets' tokens as the first layer would be shown them without refiners, [tokens, D] a request."""
        model = self._model
        tokens = model.x_embedder(image_tokens(latents, model.config, latents[0]).to(model.dtype))
        owner = self._full.frame.pack.target_owner
        norm = model.layers[0].norm1
        assert isinstance(norm, ModulatedNorm)
        scale = norm.modulation(model.embed_time(time.to(model.device)))[0]
        shown = norm(tokens, scale.index_select(0, owner))
        return list(shown.split(self._full.frame.pack.target_lengths))

    def guided_by(self, which: int, parts: Sequence[Tensor]) -> Tensor:
        """The guided velocity of a request from those of `branches`."""
        settings, full, without = self.settings, parts[0], parts[-1]
        if self._by_image and self._seen[which]:
            references = parts[1]
            return without + settings.image_scale * (references - without) + settings.text_scale * (full - references)
        return without + settings.text_scale * (full - without)

    @property
    def computed(self) -> list[bool]:
        """Of each branch, whether its main layers ran when it was last asked."""
        return [branch.stack.computed[-1] for branch in (self._full, *self._negative) if branch.stack.computed]

    def velocities(self, step: int, latents: Sequence[Tensor], time: Tensor) -> tuple[list[Tensor], list[list[Tensor]]]:
        """Guided velocities, and those of the branches."""
        model, settings = self._model, self.settings
        targets = image_tokens(latents, model.config, latents[0])
        embedded = model.embed_time(time.to(model.device))
        full = self._full.velocities(targets, embedded)
        if not settings.guided(step):
            return full, [full]
        others = [branch.velocities(targets, embedded) for branch in self._negative]
        parts = [full, *others]
        return [self.guided_by(which, of_request) for which, of_request in enumerate(zip(*parts, strict=True))], parts


class StepsOf:
    """A run as `Reuse` asks it: context b R + r is branch b of request r, of R requests."""

    def __init__(self, run: _Run, times: Tensor) -> None:
        self._run = run
        self._times = times.float()  # [R, steps + 1]
        self.levels = times[:, :-1].tolist()
        self._requests = len(times)
        self.branches = [
            [number * self._requests + request for number in run.needed(request)] for request in range(self._requests)
        ]

    def guided(self, step: int) -> bool:
        """Whether there is guidance at a step."""
        return self._run.settings.guided(step)

    def velocities(self, contexts: Sequence[int], x: Sequence[Tensor], step: int) -> list[Tensor]:
        """A latent [z, h, w] a context."""
        found = []
        for number, branch in enumerate(self._run.branches):
            which = [context % self._requests for context in contexts if context // self._requests == number]
            if which:
                found += self._run.of_some(branch, which, [x[one] for one in which], self._times[which, step])
        return found

    def inputs(self, x: Sequence[Tensor], step: int) -> list[Tensor]:
        """What the first layer would be shown of each request's target were there no refiners, [tokens, D]."""
        return self._run.inputs(x, self._times[:, step])

    def combined(self, parts: Sequence[Sequence[Tensor]], step: int) -> list[Tensor]:
        """The guided velocity of each request from its branches."""
        if not self.guided(step):
            return [of_request[0] for of_request in parts]
        return [self._run.guided_by(which, of_request) for which, of_request in enumerate(parts)]
