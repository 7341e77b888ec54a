"""How OmniGen2 samples: the one place of every default. Importable without torch, for options and settings."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

from sigma_data.errors import ConfigError
from sigma_model.omnigen2.prompts import Route
from sigma_model.sampling.settings import CacheMethod, Solver, StepCaching

TEACACHE_THRESHOLD = 0.05


class StepCacheKind(StrEnum):
    """What reuses the main layers' results."""

    TEACACHE = "teacache"
    """Compute when the input of the first layer has moved enough since (arXiv 2411.19108)."""
    TAYLORSEER = "taylorseer"
    """Compute every third step, and continue by Taylor's series between (arXiv 2503.06923)."""


class TimeShift(StrEnum):
    """How the number of target tokens n moves training times towards noise: t <- t / (t + factor (1 - t))."""

    V1 = "v1"
    """factor = exp(0.5 + 0.65 (n - 256) / 3840), OmniGen2's."""
    V2 = "v2"
    """factor = sqrt(n) / 20, that of sampling."""

    def factor(self, tokens: int) -> float:
        """For `tokens` target tokens."""
        if self is TimeShift.V1:
            return math.exp(0.5 + 0.65 * (tokens - 256) / 3840)
        return math.sqrt(tokens) / 20


@dataclass(frozen=True)
class Omnigen2Sampling:
    """How to sample. The defaults are those of the released library.

    Guidance is on at steps i of N with `interval[0] <= i / N <= interval[1]`. A scale of 1 or less switches it off, and
    without text guidance there is none towards the images.
    """

    steps: int = 28
    text_scale: float = 4.0
    image_scale: float = 1.0
    interval: tuple[float, float] = (0.0, 1.0)
    sampler: Solver = Solver.EULER
    cache: StepCacheKind | None = None
    threshold: float = TEACACHE_THRESHOLD
    """Of TeaCache."""
    dynamic_time_shift: bool = True
    reuse: StepCaching = field(default_factory=StepCaching)
    """Whole velocities taken from steps before, as with BAGEL; `cache` is what its library has."""
    guidance_threshold: float = 0.0

    def check(self) -> None:
        """Raises ConfigError for values that make no sense."""
        low, high = self.interval
        if self.steps < 1:
            raise ConfigError(f"{self.steps} steps: at least 1 is needed")
        if not (math.isfinite(self.text_scale) and math.isfinite(self.image_scale)):
            raise ConfigError(f"guidance of {self.text_scale} and {self.image_scale}: both must be numbers")
        if not 0 <= low <= high <= 1:
            raise ConfigError(f"a guidance interval from {low} to {high}: it must lie in 0 to 1, the lower one first")
        if not self.threshold >= 0:
            raise ConfigError(f"a TeaCache threshold of {self.threshold}: it must be 0 or more")
        if not 0 <= self.guidance_threshold < math.inf:
            raise ConfigError(f"a guidance threshold of {self.guidance_threshold}: it must be a number of 0 or more")
        self.reuse.check()
        if self.reuses and self.cache is not None:
            raise ConfigError("--step-cache is the library's way: leave out --cache and --guidance-threshold with it")
        if self.sampler is Solver.HEUN and (self.reuses or self.cache is not None):
            raise ConfigError("--sampler heun computes two velocities a step and takes none from steps before")

    @property
    def reuses(self) -> bool:
        """Whether velocities are taken from steps before."""
        return self.reuse.method is not CacheMethod.NONE or self.guidance_threshold > 0

    @property
    def recorded(self) -> dict[str, Any]:
        """All of it by name, for metadata; what `reuse` and its like say only where they are in use."""
        found = asdict(self)
        del found["reuse"], found["guidance_threshold"]
        if self.reuse.method is not CacheMethod.NONE:
            found["cache"] = self.reuse.recorded
        if self.guidance_threshold:
            found["guidance_threshold"] = self.guidance_threshold
        return found

    def guided(self, step: int) -> bool:
        """Whether there is guidance at a step, counting from 0."""
        return self.text_scale > 1 and self.interval[0] <= step / self.steps <= self.interval[1]


@dataclass(frozen=True)
class Omnigen2Generation:
    """How requests are answered: sampling, the negative prompt, and where references go, as in training."""

    sampling: Omnigen2Sampling = field(default_factory=Omnigen2Sampling)
    negative: str = ""
    route: Route = Route.VAE
    group_mask: bool = True
    """Hide the latents of other references from attribute tokens, where the tokenizer has such."""
