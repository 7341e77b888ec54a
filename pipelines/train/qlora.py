"""QLoRA (Dettmers et al. 2023, arXiv 2305.14314): LoRA adapters over frozen weights of 4 or 8 bits.

The linear layers of both experts keep their weights quantised and turn them into the type of what passes through, one
at a time, in both passes. Libraries only quantise and restore: their own layers would in part keep every input whatever
checkpointing says, quantise activations, or give no gradient once they have generated.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipelines.train.lora import LoraLinear
from sigma_model.checkpoint_io import Checkpoint
from sigma_model.initialization import fresh_tensor
from sigma_model.model import SigmaModel
from sigma_model.quantization import Quantization, converter, quantise, quantised, restored
from sigma_model.state_dict_adapter import released_name


class QuantizedWeight:
    """A quantised weight [out, in], hidden from its module: FSDP and optimisers see no parameter."""

    def __init__(self, layer: nn.Module) -> None:
        self.layer = layer

    def dequantized(self, dtype: torch.dtype) -> Tensor:
        """The weight it stands for."""
        return restored(self.layer, dtype)


class QuantizedLinear(nn.Linear):
    """A linear layer whose weight is `quantized`, once `quantize_weights` has set it; its bias stays as it was."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear.in_features, linear.out_features, bias=linear.bias is not None, device="meta")
        self.weight, self.bias = None, linear.bias  # type: ignore[assignment]
        self.quantized: QuantizedWeight | None = None

    def forward(self, input: Tensor) -> Tensor:
        return _product(input, self.bias, self.quantized)


class QuantizedLora(LoraLinear):
    """The same with a LoRA adapter."""

    def __init__(self, linear: LoraLinear) -> None:
        super().__init__(linear, linear.rank, linear.alpha)
        self.weight = None  # type: ignore[assignment]
        self.lora_A, self.lora_B = linear.lora_A, linear.lora_B
        self.quantized: QuantizedWeight | None = None

    def base(self, input: Tensor) -> Tensor:
        return _product(input, self.bias, self.quantized)


def detach_weights(model: SigmaModel) -> dict[str, torch.Size]:
    """Take the weights that will be quantised out of a model on the meta device; returns their names and shapes.

    To be called once the trainable parameters are chosen, and before the model is spread over ranks: all other
    parameters keep their names, and are sharded and loaded as without. `quantize_weights` brings the weights back.
    """
    shapes = {}
    for path in quantised(model):
        linear = model.get_submodule(path)
        assert isinstance(linear, nn.Linear)
        assert linear.weight.is_meta
        assert not linear.weight.requires_grad, "a weight of few bits is not trainable: see `check_quantized`"
        shapes[f"{path}.weight"] = linear.weight.shape
        made = QuantizedLora(linear) if isinstance(linear, LoraLinear) else QuantizedLinear(linear)
        model.set_submodule(path, made)
    return shapes


def quantize_weights(model: SigmaModel, kind: Quantization, read: Callable[[str], Tensor]) -> None:
    """Quantise what `read(name)` gives, in the type that layers compute in, for each weight that was taken out.

    Every rank holds all of them: FSDP cannot share them out. Memory: the quantised weights, and one as it is read.
    Raises ConfigError where the library is missing or cannot work on this device.
    """
    convert = converter(kind, setting="model.quantize")
    for path, layer in model.named_modules():
        if isinstance(layer, QuantizedLinear | QuantizedLora):
            plain = nn.Linear(layer.in_features, layer.out_features, bias=False, device="meta")
            plain.weight = nn.Parameter(read(f"{path}.weight"), requires_grad=False)
            layer.quantized = QuantizedWeight(quantise(plain, kind, convert))


def weight_reader(
    model: SigmaModel, directory: Path | None, *, dtype: torch.dtype, device: torch.device, vision: bool, seed: int
) -> Callable[[str], Tensor]:
    """Reads whole weights for `quantize_weights`: from a released directory, or drawn as `init_model` does."""
    if directory is not None:
        stored = Checkpoint(directory, vision=vision, config=model.config)
        return lambda name: stored.read(released_name(name), dtype=dtype, device=device)
    shapes = {f"{path}.weight": _shape(model.get_submodule(path)) for path in quantised(model)}
    return lambda name: fresh_tensor(model.config, name, shapes[name], seed=seed).to(dtype=dtype, device=device)


def quantized_numel(model: nn.Module) -> int:
    """How many numbers are quantised, and so no parameters of the model."""
    return sum(_shape(layer).numel() for layer in model.modules() if isinstance(layer, QuantizedLinear | QuantizedLora))


def _shape(layer: nn.Module) -> torch.Size:
    assert isinstance(layer, nn.Linear)
    return torch.Size((layer.out_features, layer.in_features))


class _Product(torch.autograd.Function):
    """x W' + b for a weight that is restored for the product, and once more for the gradient, and never kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor | None, weight: QuantizedWeight) -> Tensor:
        ctx.weight = weight
        return F.linear(x, weight.dequantized(x.dtype), bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        of_x = gradient @ ctx.weight.dequantized(gradient.dtype) if ctx.needs_input_grad[0] else None
        of_bias = gradient.flatten(0, -2).sum(0) if ctx.needs_input_grad[1] else None
        return of_x, of_bias, None


def _product(x: Tensor, bias: Tensor | None, weight: QuantizedWeight | None) -> Tensor:
    assert weight is not None, "no weight yet: see `quantize_weights`"
    out: Tensor = _Product.apply(x, bias, weight)  # type: ignore[no-untyped-call]
    return out
