"""One optimiser step: several packs forward and backward, one clipped update, or none where it went wrong.

Losses are divided by the tokens of the whole step on all ranks, which are known before the first
forward pass; gradients add up over packs and ranks. So neither accumulation nor the number of ranks
changes what a step means.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pipelines.train.config import TrainConfig
from pipelines.train.distributed.clip import clip_grad_norm
from pipelines.train.distributed.process_group import ProcessGroup, all_reduce_sum
from pipelines.train.ema import Ema
from pipelines.train.latent_cache import LatentCache
from pipelines.train.losses import LossTable, LossWeights
from pipelines.train.optimizer import Optimizers
from sigma_data.loading.batch import PackedBatch
from sigma_data.loading.loader import Loaded
from sigma_model.attention import Backend
from sigma_model.model import Output, SigmaModel
from sigma_model.vae import Vae


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
        model: SigmaModel,
        vae: Vae,
        optimizer: Optimizers,
        ema: Ema | None,
        attribute_ids: Mapping[str, int],
    ) -> None:
        self._config, self._group, self._model, self._vae = config, group, model, vae
        self._optimizer, self._ema, self._attribute_ids = optimizer, ema, attribute_ids
        room = config.loader.latent_cache
        self._latents = LatentCache(vae, room) if room else None
        self._parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.losses = LossTable(group.device)

    def step(self, packs: Sequence[Loaded], lr: float, *, stop: bool = False) -> StepResult:
        """Train on `packs`, this rank's share of the step. `stop` tells all ranks that this one must stop."""
        loss_settings, limits = self._config.loss, self._config.optimizer
        batches = [self._on_device(pack.batch) for pack in packs]
        weights = [LossWeights.of(batch, reweight_text=loss_settings.reweight_text) for batch in batches]
        sums = torch.stack([weight.sums for weight in weights]).sum(0)
        totals = all_reduce_sum(torch.cat((sums, sums.new_tensor([float(stop)]))), self._group)
        scales = totals.new_tensor([loss_settings.image, loss_settings.text]) / totals[:2].clamp(min=1e-12)
        total = torch.zeros((), dtype=torch.float64, device=self._group.device)
        losses = LossTable(self._group.device)
        for pack, batch, weight in zip(packs, batches, weights, strict=True):
            out = forward(self._model, self._vae, batch, self._config)
            image = (out.mse.mean(-1) * weight.image).sum() * scales[0].float()
            text = (out.ce * weight.text).sum() * scales[1].float()
            loss = image + text
            loss.backward()
            total += loss.detach()
            losses.add(batch, out, pack.families, self._attribute_ids)
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

    def _on_device(self, batch: PackedBatch) -> PackedBatch:
        """A batch as it was read on this rank's device, with latents instead of images where those are kept."""
        known = batch if self._latents is None else self._latents.encoded(batch)
        return known.to(self._group.device, non_blocking=True)


def forward(model: SigmaModel, vae: Vae, batch: PackedBatch, config: TrainConfig) -> Output:
    """Encode a batch's images, each by itself, and run the model."""
    encoded: Sequence[Tensor] = batch.known_latents or vae.encode(batch.images)
    latents = model.clean_latents(batch, encoded)
    output: Output = model(
        batch,
        latents,
        timestep_shift=config.loss.timestep_shift,
        group_mask=config.model.group_mask,
        backend=Backend(config.model.attention),
    )
    return output
