"""Quantised weights: the linear layers of both experts in 4 or 8 bits, everything else as it is.

NF4 and INT8 are bitsandbytes', FP8 (e4m3, weights alone) is torchao's; both come with the extra `quant`. Embeddings,
norms, the text head, the vision encoder with its connector, what leads latents in and out, the time embedder and the
autoencoder keep the type the model computes in: they are a tenth of BAGEL's parameters and the most sensitive ones.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sigma_data.errors import ConfigError
from sigma_model.checkpoint_io import Checkpoint, assign, expected
from sigma_model.config import ModelConfig
from sigma_model.dtypes import Quantization as Quantization
from sigma_model.model import SigmaModel
from sigma_model.quiet_imports import quiet_imports
from sigma_model.state_dict_adapter import PROJECTION, released_name

_LIBRARY = {Quantization.NF4: "bitsandbytes", Quantization.INT8: "bitsandbytes", Quantization.FP8: "torchao"}

_BLOCK = 64
"""Numbers that share a scale of NF4."""

_QUANTISED = re.compile(r"^backbone\.layers\.\d+\.(und|gen)\.(q|k|v|o|mlp\.(gate|up|down))$")


def quantised(model: nn.Module) -> list[str]:
    """The layers whose weights are quantised, by our names."""
    return [name for name, _ in model.named_modules() if _QUANTISED.match(name)]


def is_quantised(name: str) -> bool:
    """Whether a parameter of this name is a weight that is quantised."""
    path, _, leaf = name.rpartition(".")
    return leaf == "weight" and _QUANTISED.match(path) is not None


def stored_bytes(kind: Quantization, shape: Sequence[int]) -> float:
    """Bytes of a weight [out, in]: of its numbers and of their scales.

    NF4: half a byte each, a byte for each 64 (their scale, quantised), 4 for each 256 of these. INT8 and FP8: a byte
    each, 4 for each row.
    """
    size = math.prod(shape)
    return size * (1 / 2 + 1 / _BLOCK + 4 / (_BLOCK * 256)) if kind is Quantization.NF4 else size + 4 * shape[0]


def load_quantized(
    directory: Path,
    kind: Quantization,
    *,
    config: ModelConfig,
    dtype: torch.dtype,
    device: torch.device | str = "cpu",
    vision: bool = True,
) -> SigmaModel:
    """Load a model to generate with, quantising one layer's weights after the other while they are read.

    Memory: the quantised model, and one weight as it is stored. Raises ConfigError as `load_model` does, and where the
    library is missing or cannot work on `device`.
    """
    convert = converter(kind)
    with torch.device("meta"):
        model = SigmaModel(config).requires_grad_(False)
    checkpoint = Checkpoint(Path(directory), vision=vision, config=config)
    wanted = expected(model)
    checkpoint.check(wanted)
    ours = {released_name(name): name for name in model.state_dict(keep_vars=True)}
    layers = {f"{path}.weight" for path in quantised(model)}
    order = checkpoint.in_order()
    for released in sorted(order, key=lambda one: ours[one] in layers):  # biases before the layers are replaced
        name = ours[released]
        assign(model, name, checkpoint.read(released, dtype=dtype, device=device))
        if name in layers:
            path = name.removesuffix(".weight")
            linear = model.get_submodule(path)
            assert isinstance(linear, nn.Linear)
            model.set_submodule(path, quantise(linear, kind, convert))
    if PROJECTION in wanted and PROJECTION not in checkpoint.tensors:
        assign(model, PROJECTION, torch.zeros(wanted[PROJECTION], dtype=dtype, device=device))
    return model.eval().requires_grad_(False)


def quantise(linear: nn.Linear, kind: Quantization, convert: Callable[[nn.Linear], nn.Module]) -> nn.Module:
    """A linear layer as `convert`, of `converter`, makes it. Raises ConfigError where it cannot on this device."""
    try:
        return convert(linear)
    except (RuntimeError, NotImplementedError, ImportError) as error:
        reason, device = " ".join(str(error).split())[:200], linear.weight.device
        raise ConfigError(f"{kind} weights cannot be made on {device}: {_LIBRARY[kind]}: {reason}") from None


def restored(layer: nn.Module, dtype: torch.dtype) -> torch.Tensor:
    """The weight [out, in] that a quantised layer stands for, made anew in `dtype`.

    NF4 and FP8 are restored in the type they were quantised from, and rounded from there. An INT8 layer must not have
    computed yet: it hides its scales then.
    """
    weight: Any = layer.weight
    if (state := getattr(weight, "quant_state", None)) is not None:
        from bitsandbytes.functional import dequantize_4bit

        whole: torch.Tensor = dequantize_4bit(weight.data, state)
        return whole.to(dtype)
    if getattr(weight, "SCB", None) is not None:
        return weight.CB.to(dtype, copy=True).mul_((weight.SCB / 127)[:, None])  # type: ignore[no-any-return]
    whole = weight.dequantize()
    return whole.to(dtype)


def converter(kind: Quantization, *, setting: str = "--quantize") -> Callable[[nn.Linear], nn.Module]:
    """What makes a linear layer a quantised one.

    Raises ConfigError where its library is missing; `setting` is where the user asked for it.
    """
    library = _LIBRARY[kind]
    try:
        if library == "bitsandbytes":
            with quiet_imports():
                import bitsandbytes

            made = {Quantization.NF4: _nf4, Quantization.INT8: _int8}[kind]
            return lambda linear: made(bitsandbytes, linear)
        with quiet_imports():
            from torchao.quantization import Float8WeightOnlyConfig, quantize_

        def fp8(linear: nn.Linear) -> nn.Module:
            quantize_(linear, Float8WeightOnlyConfig())
            return linear

        return fp8
    except ImportError:
        raise ConfigError(
            f"{setting} {kind}: needs {library}, which is not installed: pip install 'sigma-multimodal[quant]'"
        ) from None


def _nf4(library: Any, linear: nn.Linear) -> nn.Module:
    if linear.weight.device.type == "cpu" and linear.in_features % _BLOCK:
        # bitsandbytes 0.50 quantises blocks across rows there, and restores them as if each row began a new one.
        raise RuntimeError(f"restores rows of {linear.in_features} numbers wrongly here, not being a multiple of 64")
    layer = _empty_safe(library.nn.Linear4bit)(
        linear.in_features,
        linear.out_features,
        bias=linear.bias is not None,
        compute_dtype=linear.weight.dtype,
        quant_type="nf4",
        device="meta",
    )
    parameter = library.nn.Params4bit(
        linear.weight.data, requires_grad=False, quant_type="nf4", compress_statistics=True
    )
    return _filled(layer, parameter, linear)


def _int8(library: Any, linear: nn.Linear) -> nn.Module:
    layer = _empty_safe(library.nn.Linear8bitLt)(
        linear.in_features,
        linear.out_features,
        bias=linear.bias is not None,
        has_fp16_weights=False,
        threshold=6.0,
        device="meta",
    )
    parameter = library.nn.Int8Params(linear.weight.data, requires_grad=False, has_fp16_weights=False)
    return _filled(layer, parameter, linear)


def _filled(layer: nn.Module, parameter: Any, linear: nn.Linear) -> nn.Module:
    layer.weight = parameter.to(linear.weight.device)  # which quantises
    layer.bias = linear.bias
    return layer.eval()


@cache
def _empty_safe(kind: Any) -> Any:
    """A kind of layer that gives nothing for nothing, as for an expert without tokens.

    bitsandbytes 0.50 on a CPU with AVX512-BF16 ends the process there.
    """

    class EmptySafe(kind):  # type: ignore[misc]
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = super().forward(x) if x.numel() else x.new_empty(*x.shape[:-1], self.out_features)
            return out

    return EmptySafe
