"""How OmniGen2 samples: the one place of every default. Importable without torch, for options and settings."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import StrEnum

from sigma_data.errors import ConfigError
from sigma_model.omnigen2.prompts import Route

TEACACHE_THRESHOLD = 0.05


class StepCacheKind(StrEnum):
    """What reuses the main layers' results."""

    TEACACHE = "teacache"
    """Compute when the input of the first layer has moved enough since (arXiv 2411.19108)."""
    TAYLORSEER = "taylorseer"
    """Compute every third step, and continue by Taylor's series between (arXiv 2503.06923)."""


class Solver(StrEnum):
    """How a step is made from velocities."""

    EULER = "euler"
    DPM = "dpmsolver++"
    """Second order, midpoint; first order at the first and at the last step (arXiv 2211.01095)."""


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
    solver: Solver = Solver.EULER
    cache: StepCacheKind | None = None
    threshold: float = TEACACHE_THRESHOLD
    """Of TeaCache."""
    dynamic_time_shift: bool = True

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

    def guided(self, step: int) -> bool:
        """Whether there is guidance at a step, counting from 0."""
        return self.text_scale > 1 and self.interval[0] <= step / self.steps <= self.interval[1]


@dataclass(frozen=True)
class Omnigen2Generation:
    """How requests are answered: sampling, the negative prompt, and where references go, as in training."""

    sampling: Omnigen2Sampling = field(default_factory=Omnigen2Sampling)
    negative: str = ""
    route: Route = Route.VAE
