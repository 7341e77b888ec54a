"""What weights are computed and stored in. Importable without torch, for options and settings."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


class DType(StrEnum):
    """A floating-point type, by torch's name; `auto` is decided from the device and the model's size."""

    AUTO = "auto"
    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"

    @property
    def torch(self) -> torch.dtype:
        """The torch type. Raises ValueError for `auto`."""
        if self is DType.AUTO:
            raise ValueError("dtype auto has not been decided yet")
        import torch

        return {DType.FLOAT32: torch.float32, DType.BFLOAT16: torch.bfloat16}[self]


class Quantization(StrEnum):
    """What quantized weights are stored as."""

    NF4 = "nf4"
    """4 bits in blocks of 64, their scales quantized again: 4.1 bits a weight."""
    INT8 = "int8"
    """8 bits a weight; activations are quantized on the way, their outliers are not (LLM.int8)."""
    FP8 = "fp8"
    """8 bits a weight, e4m3 with a scale for each row; computed in the model's dtype."""
