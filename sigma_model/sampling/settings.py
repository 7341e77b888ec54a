"""How to sample: the one place of every default. Importable without torch, for options and settings."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

from sigma_data.errors import ConfigError

MAX_TOKENS, TEMPERATURE = 512, 0.0
"""Of a text answer: at most so many tokens, and how it is drawn; 0 is greedy."""


class Order(StrEnum):
    """Where images stand: at their placeholders, as in training, or behind all text, as the release generates."""

    INTERLEAVED = "interleaved"
    TEXT_FIRST = "text-first"


class Rescale(StrEnum):
    """What keeps a guided velocity from growing: its norm is brought back to the unguided one's."""

    TEXT_CHANNEL = "text_channel"
    """After the text's guidance, a token at a time; the images' guidance follows."""
    CHANNEL = "channel"
    """After both, a token at a time."""
    GLOBAL = "global"
    """After both, the whole latent at once."""


@dataclass(frozen=True)
class Guidance:
    """Strengths and where they apply; a strength of 1 or less switches that guidance off.

    The defaults are SIGMA's. Guidance is on at noise levels t with `interval[0] < t <= interval[1]`;
    the rescaling factor lies between `rescale_min` and 1.
    """

    text: float = 4.0
    image: float = 2.0
    interval: tuple[float, float] = (0.0, 1.0)
    rescale: Rescale = Rescale.TEXT_CHANNEL
    rescale_min: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "rescale", Rescale(self.rescale))  # its name will do, as read from JSON

    @property
    def uses_text(self) -> bool:
        """Whether the context without text is needed."""
        return self.text > 1

    @property
    def uses_image(self) -> bool:
        """Whether the context without reference images is needed."""
        return self.image > 1

    def applies(self, level: float) -> bool:
        """Whether there is guidance at a noise level."""
        return (self.uses_text or self.uses_image) and self.interval[0] < level <= self.interval[1]


class Solver(StrEnum):
    """How a step is made from velocities."""

    EULER = "euler"
    """One velocity a step."""
    HEUN = "heun"
    """Second order: two velocities a step, the last step as Euler."""
    DPMPP = "dpmpp"
    """Second order from one velocity a step: DPM-Solver++ (arXiv 2211.01095), first order at both ends."""

    @classmethod
    def _missing_(cls, value: object) -> Solver | None:
        """OmniGen2's library, and settings written before 0.2, call it `dpmsolver++`."""
        return cls.DPMPP if value == "dpmsolver++" else None


class CacheMethod(StrEnum):
    """What stands for the network at the steps that leave it out."""

    NONE = "none"
    TAYLOR = "taylor"
    """Velocities continued by Taylor's series at fixed steps (TaylorSeer, arXiv 2503.06923)."""
    TEA = "tea"
    """The same while the network's input has moved little, a request for itself (TeaCache, arXiv 2411.19108)."""


TEA_THRESHOLD = 0.05
"""Where nothing was fitted for a model."""


@dataclass(frozen=True)
class StepCaching:
    """Which steps take their velocities from steps before: a polynomial in the noise level of degree `order`.

    Taylor: two steps more than every `every`-th are computed, the first and the last among them, closer together where
    the noise level falls faster. Tea: a step is computed once the estimated change of the velocity since the last
    computed one, summed over steps, reaches `threshold`; `polynomial` gives a step's change from that of the network's
    input, highest power first. With order 0 the velocity stays as it was, which is TeaCache's own rule.
    """

    method: CacheMethod = CacheMethod.NONE
    every: int = 4
    order: int = 1
    threshold: float = TEA_THRESHOLD
    polynomial: tuple[float, ...] = (1.0, 0.0)

    def __post_init__(self) -> None:
        object.__setattr__(self, "method", CacheMethod(self.method))
        object.__setattr__(self, "polynomial", tuple(self.polynomial))

    def check(self) -> None:
        """Raises ConfigError for values that make no sense."""
        if self.every < 1:
            raise ConfigError(f"a cache that computes every {self.every}th step: it must be 1 or more")
        if not 0 <= self.order <= 4:
            raise ConfigError(f"a Taylor series of order {self.order}: it must lie in 0 to 4")
        if not 0 <= self.threshold < math.inf:
            raise ConfigError(f"a cache threshold of {self.threshold}: it must be a number of 0 or more")
        if not self.polynomial or not all(map(math.isfinite, self.polynomial)):
            raise ConfigError(f"a cache polynomial of {list(self.polynomial)}: it must have coefficients, all numbers")

    @property
    def recorded(self) -> dict[str, Any]:
        """What decides images, by name: the settings of the method in use."""
        used = {CacheMethod.TAYLOR: ("order", "every"), CacheMethod.TEA: ("order", "threshold", "polynomial")}
        found: dict[str, Any] = {"method": self.method.value}
        return found | {name: getattr(self, name) for name in used.get(self.method, ())}


@dataclass(frozen=True)
class SamplingSettings:
    """How to sample. The defaults are SIGMA's (arXiv 2602.07564), and every step is computed.

    A guidance branch whose velocity differs from the full one by less than `guidance_threshold` of its norm is not
    computed in the next steps: the difference is kept (after arXiv 2312.12487). 0 computes all of them.
    """

    steps: int = 50
    timestep_shift: float = 3.0
    guidance: Guidance = field(default_factory=Guidance)
    group_mask: bool = True
    sampler: Solver = Solver.EULER
    cache: StepCaching = field(default_factory=StepCaching)
    guidance_threshold: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "sampler", Solver(self.sampler))

    def check(self) -> None:
        """Raises ConfigError for values that make no sense."""
        low, high = self.guidance.interval
        if self.steps < 2:
            raise ConfigError(f"{self.steps} steps: at least 2 are needed, for they count noise levels")
        if not 0 < self.timestep_shift < math.inf:
            raise ConfigError(f"a timestep shift of {self.timestep_shift}: it must be a number greater than 0")
        for name in ("text", "image"):
            if not math.isfinite(getattr(self.guidance, name)):
                raise ConfigError(
                    f"a guidance of {getattr(self.guidance, name)} towards the {name}: it must be a number"
                )
        if not 0 <= self.guidance.rescale_min <= 1:
            raise ConfigError(f"a least rescaling of {self.guidance.rescale_min}: it must lie in 0 to 1")
        if not 0 <= low <= high <= 1:
            raise ConfigError(f"a guidance interval from {low} to {high}: it must lie in 0 to 1, the lower one first")
        if not 0 <= self.guidance_threshold < math.inf:
            raise ConfigError(f"a guidance threshold of {self.guidance_threshold}: it must be a number of 0 or more")
        self.cache.check()
        if self.sampler is Solver.HEUN and (self.cache.method is not CacheMethod.NONE or self.guidance_threshold):
            raise ConfigError(
                "--sampler heun computes two velocities a step and takes none from steps before: use euler or dpmpp "
                "with --cache and --guidance-threshold"
            )

    @property
    def recorded(self) -> dict[str, Any]:
        """All of it by name, for metadata; what speeds sampling up only where it is in use."""
        found = asdict(self)
        faster = {name: found.pop(name) for name in ("sampler", "cache", "guidance_threshold")}
        if self.sampler is not Solver.EULER:
            found["sampler"] = self.sampler.value
        if self.cache.method is not CacheMethod.NONE:
            found["cache"] = self.cache.recorded
        if self.guidance_threshold:
            found["guidance_threshold"] = faster["guidance_threshold"]
        return found
