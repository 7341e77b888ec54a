"""One optimiser step of OmniGen2: packs of images, and for SGT packs of answers, one clipped update.

Each loss is a mean over all its elements of the step, on all ranks: squared errors over latent elements, cross entropy
over answer tokens. So neither accumulation, nor how samples are packed, nor the number of ranks changes what a step
means, and the weights of the two losses are what they are said to be.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pipelines.train.distributed.clip import clip_grad_norm
from pipelines.train.distributed.process_group import ProcessGroup, all_reduce_sum
from pipelines.train.ema import Ema
from pipelines.train.optimizer import Optimizers
from sigma_model.attention import Backend
from sigma_model.omnigen2.conditioning import IGNORED, MllmInputs, answer_loss
from sigma_model.omnigen2.flow import FlowTarget, flow_loss
from sigma_model.omnigen2.transformer import Omnigen2Transformer


@dataclass(frozen=True)
class ImagePack:
    """Samples whose target images are learnt."""

    targets: tuple[FlowTarget, ...]

    @property
    def elements(self) -> int:
        """Numbers in all targets."""
        return sum(target.data.numel() for target in self.targets)


@dataclass(frozen=True)
class AnswerPack:
    """Conversations whose answers are learnt: what Qwen2.5-VL takes, and labels [B, L]."""

    inputs: MllmInputs
    labels: Tensor

    @property
    def elements(self) -> int:
        """Tokens that are learnt."""
        return int((self.labels[:, 1:] != IGNORED).sum())


Pack = ImagePack | AnswerPack


@dataclass(frozen=True)
class Weights:
    """What the two mean losses count."""

    image: float = 1.0
    text: float = 1.0


@dataclass(frozen=True)
class StepResult:
    """`image` and `text`: mean losses of the step on all ranks, 0 without such packs. `norm`: before clipping."""

    taken: bool
    norm: float
    image: float
    text: float


class Omnigen2Step:
    """Carries out steps on a transformer, and on the language model `mllm` where answers are learnt.

    A rank's packs of a step must be of the same kinds, in the same order, on every rank: what one reduces, all reduce.
    """

    def __init__(
        self,
        group: ProcessGroup,
        model: Omnigen2Transformer,
        optimizer: Optimizers,
        *,
        mllm: Any = None,
        ema: Ema | None = None,
        weights: Weights = Weights(),
        clip: float = 1.0,
        backend: Backend = Backend.AUTO,
    ) -> None:
        self._group, self._model, self._optimizer, self._ema = group, model, optimizer, ema
        self._mllm, self._weights, self._clip, self._backend = mllm, weights, clip, backend
        modules: list[nn.Module] = [model, *([mllm] if mllm is not None else ())]
        self._parameters = [one for module in modules for one in module.parameters() if one.requires_grad]

    def step(self, packs: Sequence[Pack], lr: float) -> StepResult:
        """Train on `packs`, this rank's share of the step."""
        counts = torch.zeros(2, dtype=torch.float64, device=self._group.device)
        for pack in packs:
            counts[isinstance(pack, AnswerPack)] += pack.elements
        totals = all_reduce_sum(counts, self._group).clamp(min=1)
        sums = torch.zeros(2, dtype=torch.float64, device=self._group.device)
        for pack in packs:
            kind = int(isinstance(pack, AnswerPack))
            loss = self._sum_of(pack)
            weight = self._weights.text if kind else self._weights.image
            (loss * (weight / totals[kind]).float()).backward()
            sums[kind] += loss.detach()
        norm = clip_grad_norm(self._parameters, self._group, self._clip)
        means = all_reduce_sum(sums, self._group) / totals
        norm_value, image, text = torch.cat((norm.double()[None], means)).tolist()
        taken = norm_value < float("inf")  # not where it is NaN
        if taken:
            for group in self._optimizer.param_groups:
                group["lr"] = lr
            self._optimizer.step()
            if self._ema is not None:
                self._ema.update()
        self._optimizer.zero_grad()
        return StepResult(taken, norm_value, image, text)

    def _sum_of(self, pack: Pack) -> Tensor:
        if isinstance(pack, AnswerPack):
            return answer_loss(self._mllm, pack.inputs, pack.labels)[0]
        return flow_loss(self._model, pack.targets, backend=self._backend).squared_errors.sum()
