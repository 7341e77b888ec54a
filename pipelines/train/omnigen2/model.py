"""What is trained of an OmniGen2: the transformer, and for SGT or attribute tokens its language model as well.

One module, so that sharding, optimiser, EMA and checkpoints see one network. The loss of an image reaches the language
model through the text states.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sigma_model.answer_loss import answer_loss
from sigma_model.attention import Backend
from sigma_model.omnigen2.conditioning import IGNORED, MllmInputs, hidden_states, text_states
from sigma_model.omnigen2.flow import FlowTarget, flow_loss
from sigma_model.omnigen2.pack import Bound
from sigma_model.omnigen2.transformer import Omnigen2Transformer


@dataclass(frozen=True)
class Wanted:
    """An image to be learnt: the clean latent `data` and the `noise` [z, h, w], the time, clean references."""

    data: Tensor
    noise: Tensor
    time: Tensor
    references: tuple[Tensor, ...]
    bound: Bound = ()


@dataclass(frozen=True)
class TrainInputs:
    """One forward pass: images to be learnt, and answers.

    The first rows of `prompts`, or `states`, belong to `wanted`, in order; more are computed and not used. `prompts`
    where the language model is trained, else its states. `answers`: inputs and labels [B, L].
    """

    wanted: Sequence[Wanted]
    prompts: MllmInputs | None = None
    states: Sequence[Tensor] = ()
    keep_image_states: bool = False
    answers: tuple[MllmInputs, Tensor] | None = None


class TrainOutput(NamedTuple):
    """`squared_errors` [S] of each wanted image's latent, summed; `ce` [C] of each learnt token, row by row.

    `rest`: a zero that depends on all that was computed and is not used.
    """

    squared_errors: Tensor
    ce: Tensor
    rest: Tensor


class Omnigen2Model(nn.Module):
    """The transformer, and the language model where it is trained."""

    def __init__(self, transformer: Omnigen2Transformer, mllm: Any = None) -> None:
        super().__init__()
        self.transformer = transformer
        self.mllm = mllm

    @property
    def device(self) -> torch.device:
        """Where the transformer lies."""
        return self.transformer.device

    def forward(self, inputs: TrainInputs, *, backend: Backend = Backend.AUTO) -> TrainOutput:
        """The losses of images and answers, each by itself."""
        states = list(inputs.states)
        rest = torch.zeros((), device=self.device)
        ce = rest.new_zeros(0)
        if inputs.prompts is not None:
            states = text_states(self.mllm, inputs.prompts, keep_image_states=inputs.keep_image_states)
            rest = rest + sum(one.float().sum() * 0 for one in states[len(inputs.wanted) :])
        wanted, text = list(inputs.wanted), states[: len(inputs.wanted)]
        used = len(wanted)
        if not wanted:  # all ranks run all layers, whatever their packs hold
            config = self.transformer.config
            nothing = torch.zeros(config.in_channels, config.patch_size, config.patch_size, device=self.device)
            wanted = [Wanted(nothing, nothing, torch.zeros((), device=self.device), ())]
            text = [torch.zeros(1, config.text_feat_dim, device=self.device)]
        targets = [
            FlowTarget(one.data, one.noise, one.time, states_of, one.references, one.bound)
            for one, states_of in zip(wanted, text, strict=True)
        ]
        errors = flow_loss(self.transformer, targets, backend=backend).squared_errors
        if inputs.answers is not None:
            ce, unused = self._answers(*inputs.answers)
            rest = rest + unused
        return TrainOutput(errors[:used], ce, rest + errors[used:].sum() * 0)

    def _answers(self, inputs: MllmInputs, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Cross entropy [C] of labelled tokens; only rows before a label go through the text head."""
        states = hidden_states(self.mllm, inputs)[:, :-1]
        following = labels[:, 1:]
        wanted = following != IGNORED
        ce = answer_loss(self.mllm.lm_head, states[wanted], following[wanted])
        return ce, states.float().sum() * 0 + ce.sum() * 0
