"""A linear layer with a LoRA adapter: y = W x + b + (alpha / rank) B A x, where A and B are trainable."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class LoraLinear(nn.Linear):
    """A linear layer with a LoRA adapter; `lora_A` [rank, in] and `lora_B` [out, rank] are float32."""

    def __init__(self, base: nn.Linear, rank: int, alpha: float) -> None:
        super().__init__(base.in_features, base.out_features, bias=base.bias is not None, device="meta")
        self.weight, self.bias = base.weight, base.bias
        self.rank, self.alpha = rank, alpha
        self.lora_A = _empty_linear(base.in_features, rank, base.weight.device)
        self.lora_B = _empty_linear(rank, base.out_features, base.weight.device)

    def forward(self, input: Tensor) -> Tensor:
        a, b = self.lora_A.weight.to(input.dtype), self.lora_B.weight.to(input.dtype)
        return self.base(input) + F.linear(F.linear(input, a), b) * (self.alpha / self.rank)

    def base(self, input: Tensor) -> Tensor:
        """What the layer gives without its adapter."""
        return super().forward(input)

    def merge(self) -> nn.Linear:
        """The plain linear layer that computes the same; takes over this one's weight and changes it."""
        plain = nn.Linear(self.in_features, self.out_features, bias=self.bias is not None, device="meta")
        with torch.no_grad():
            update = self.lora_B.weight.float() @ self.lora_A.weight.float() * (self.alpha / self.rank)
            self.weight.copy_(update.add_(self.weight))
        plain.weight, plain.bias = self.weight, self.bias
        return plain


def _empty_linear(inputs: int, outputs: int, device: torch.device) -> nn.Linear:
    """Without the numbers that PyTorch would draw from its global generator."""
    made: nn.Linear = nn.Linear(inputs, outputs, bias=False, device="meta").to_empty(device=device)
    return made
