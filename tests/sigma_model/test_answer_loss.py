"""Answers' cross entropy in parts: the same numbers and gradients, without all logits at once."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sigma_model import answer_loss as module
from sigma_model.answer_loss import answer_loss

WORDS, WIDTH = 50, 8


def made(tokens: int, rows: int, monkeypatch: pytest.MonkeyPatch) -> tuple[Tensor, list[Tensor], int]:
    """The loss, gradients of hidden states and head, and the most rows of logits kept for the backward pass."""
    monkeypatch.setattr(module, "LOGIT_ROWS", rows)
    generator = torch.Generator().manual_seed(3)
    head = nn.Linear(WIDTH, WORDS, bias=False)
    with torch.no_grad():
        head.weight.copy_(torch.randn(WORDS, WIDTH, generator=generator))
    hidden = torch.randn(tokens, WIDTH, generator=generator, requires_grad=True)
    labels = torch.randint(WORDS, (tokens,), generator=generator)
    kept = [0]

    def keep(tensor: Tensor) -> Tensor:
        own = tensor.untyped_storage().data_ptr() == head.weight.untyped_storage().data_ptr()
        kept.append(len(tensor) if tensor.dim() == 2 and tensor.shape[1] == WORDS and not own else 0)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = answer_loss(head, hidden, labels)
    (loss * torch.arange(tokens)).sum().backward()
    assert hidden.grad is not None and head.weight.grad is not None
    assert torch.allclose(loss, F.cross_entropy(head(hidden), labels, reduction="none"), atol=1e-6)
    return loss.detach(), [hidden.grad, head.weight.grad], max(kept)


@pytest.mark.parametrize("tokens", [1, 7, 8, 9, 33])
def test_parts_give_the_loss_and_the_gradients_of_the_whole(tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, gradients, kept = made(tokens, 1000, monkeypatch)
    assert kept == tokens
    parts, again, kept = made(tokens, 8, monkeypatch)
    assert kept <= 8 and (tokens <= 8 or kept == 0)
    torch.testing.assert_close(parts, whole, atol=1e-6, rtol=1e-6)
    for one, other in zip(again, gradients, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-5)


def test_no_answer_is_no_loss() -> None:
    head = nn.Linear(WIDTH, WORDS, bias=False)
    loss = answer_loss(head, torch.zeros(0, WIDTH), torch.zeros(0, dtype=torch.long))
    assert loss.shape == (0,)
    loss.sum().backward()
    assert head.weight.grad is not None
