"""One optimiser step: several packs forward and backward, one clipped update, or none where it went wrong.

Losses are divided by the tokens of the whole step on all ranks, which are known before the first
forward pass; gradients add up over packs and ranks. So neither accumulation nor the number of ranks
changes what a step means.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from pipelines.train.backbone import Backbone
from pipelines.train.config import TrainConfig
from pipelines.train.distributed.clip import clip_grad_norm
from pipelines.train.distributed.process_group import ProcessGroup, all_reduce_sum
from pipelines.train.ema import Ema
from pipelines.train.latent_cache import LatentCache
from pipelines.train.losses import LossTable
from pipelines.train.optimizer import Optimizers
from sigma_data.loading.batch import Batch
from sigma_data.loading.loader import Loaded


@dataclass(frozen=True)
class StepResult:
    """What a step did. `norm`: the gradient's, before clipping. `loss`: of this step, on all ranks."""

    taken: bool
    norm: float
    loss: float
    stop: bool
    """A rank was asked to stop."""


class TrainStep:
    """Carries out optimiser steps on the parts it is given."""

    def __init__(
        self,
        config: TrainConfig,
        group: ProcessGroup,
        backbone: Backbone,
        optimizer: Optimizers,
        ema: Ema | None,
    ) -> None:
        self._config, self._group, self._backbone = config, group, backbone
        self._optimizer, self._ema = optimizer, ema
        room = config.loader.latent_cache
        self._latents = LatentCache(backbone.vae, room) if room else None
        self._parameters = [parameter for parameter in backbone.model.parameters() if parameter.requires_grad]
        self.losses = LossTable(group.device)

    def step(self, packs: Sequence[Loaded], lr: float, *, stop: bool = False) -> StepResult:
        """Train on `packs`, this rank's share of the step. `stop` tells all ranks that this one must stop."""
        loss_settings, limits = self._config.loss, self._config.optimizer
        batches = [self._on_device(pack.batch) for pack in packs]
        sums = torch.stack([self._backbone.counts(batch) for batch in batches]).sum(0)
        totals = all_reduce_sum(torch.cat((sums, sums.new_tensor([float(stop)]))), self._group)
        scales = totals.new_tensor([loss_settings.image, loss_settings.text]) / totals[:2].clamp(min=1e-12)
        total = torch.zeros((), dtype=torch.float64, device=self._group.device)
        losses = LossTable(self._group.device)
        for pack, batch in zip(packs, batches, strict=True):
            found = self._backbone.losses(batch)
            loss = found.image * scales[0].float() + found.text * scales[1].float()
            loss.backward()
            total += loss.detach()
            found.note(losses, pack.families)
        norm = clip_grad_norm(self._parameters, self._group, limits.clip)
        read = torch.stack((norm.double(), all_reduce_sum(total, self._group), totals[2]))
        # But for latents to be kept, the one place where a step waits for the device.
        norm_value, loss_value, stops = read.tolist()
        taken = norm_value < (limits.spike or float("inf"))  # not where it is NaN or infinite
        if taken:
            for group in self._optimizer.param_groups:
                group["lr"] = lr
            self._optimizer.step()
            if self._ema is not None:
                self._ema.update()
            self.losses.table += losses.table  # of a step that is not taken, nothing is shown as trained
        self._optimizer.zero_grad()
        return StepResult(taken, norm_value, loss_value, stops > 0)

    def _on_device(self, batch: Batch) -> Batch:
        """A batch as it was read on this rank's device, with latents instead of images where those are kept."""
        known = batch if self._latents is None else self._latents.encoded(batch)
        return known.to(self._group.device, non_blocking=True)
