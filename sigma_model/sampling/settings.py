"""How to sample: the one place of every default. Importable without torch, for options and settings."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import StrEnum

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


@dataclass(frozen=True)
class SamplingSettings:
    """How to sample. The defaults are SIGMA's (arXiv 2602.07564)."""

    steps: int = 50
    timestep_shift: float = 3.0
    guidance: Guidance = field(default_factory=Guidance)
    group_mask: bool = True

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
