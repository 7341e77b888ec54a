"""Classifier-free guidance towards the text and towards the reference pictures, pure arithmetic."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import torch
from torch import Tensor

_EPSILON = 1e-8


class Rescale(StrEnum):
    """What keeps a guided velocity from growing: its norm is brought back to the unguided one's."""

    TEXT_CHANNEL = "text_channel"
    """After the text's guidance, a token at a time; the pictures' guidance follows."""
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
        """Whether the context without reference pictures is needed."""
        return self.image > 1

    def applies(self, level: float) -> bool:
        """Whether there is guidance at a noise level."""
        return (self.uses_text or self.uses_image) and self.interval[0] < level <= self.interval[1]


def combine(full: Tensor, without_text: Tensor, without_image: Tensor, guidance: Guidance) -> Tensor:
    """The guided velocity of one latent from its three velocities, each [tokens, F]."""
    guided = full
    if guidance.uses_text:
        guided = without_text + guidance.text * (full - without_text)
        if guidance.rescale is Rescale.TEXT_CHANNEL:
            guided = _rescaled(guided, full, guidance, per_token=True)
    if guidance.uses_image:
        guided = without_image + guidance.image * (guided - without_image)
    if guidance.rescale is not Rescale.TEXT_CHANNEL:
        guided = _rescaled(guided, full, guidance, per_token=guidance.rescale is Rescale.CHANNEL)
    return guided


def _rescaled(guided: Tensor, full: Tensor, guidance: Guidance, *, per_token: bool) -> Tensor:
    if per_token:
        before, after = full.norm(dim=-1, keepdim=True), guided.norm(dim=-1, keepdim=True)
    else:
        before, after = full.norm(), guided.norm()
    return guided * torch.clamp(before / (after + _EPSILON), min=guidance.rescale_min, max=1.0)
