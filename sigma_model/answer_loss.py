"""Hidden states of answers' tokens -> cross entropy, with few logits in memory at a time."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

LOGIT_ROWS = 1024
"""Tokens whose logits are held at a time: at Qwen2.5's 152,064 words in float32, with their gradients, 1.2 GB."""


def answer_loss(head: Callable[[Tensor], Tensor], hidden: Tensor, labels: Tensor) -> Tensor:
    """Cross entropy [C], float32, of labels [C] under the logits `head` gives for hidden states [C, D].

    More than `LOGIT_ROWS` tokens go through the head in parts, whose logits are made again in the backward pass: long
    conversations would otherwise hold gigabytes of them.
    """
    if len(labels) <= LOGIT_ROWS:
        return _loss(head, hidden, labels)
    parts = zip(hidden.split(LOGIT_ROWS), labels.split(LOGIT_ROWS), strict=True)
    return torch.cat([checkpoint(_loss, head, *part, use_reentrant=False) for part in parts])


def _loss(head: Callable[[Tensor], Tensor], hidden: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(head(hidden).float(), labels, reduction="none")
