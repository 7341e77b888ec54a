"""Classifier-free guidance towards the text and towards the reference images, pure arithmetic."""

from __future__ import annotations

import torch
from torch import Tensor

from sigma_model.sampling.settings import Guidance, Rescale

_EPSILON = 1e-8


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
