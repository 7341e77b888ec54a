"""Options of the commands that run a model, written once; as light to import as `cli`."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer


class QuantizedTo(StrEnum):
    """What weights are stored as, by the names of `sigma_model.quantization.Quantization`."""

    NF4 = "nf4"
    INT8 = "int8"
    FP8 = "fp8"


DeviceMap = Annotated[
    str | None,
    typer.Option(
        help="Where the layers lie: balanced, auto, or a list, e.g. cuda:0,cuda:1,cpu,disk; by default on --device.",
        show_default=False,
    ),
]
Quantize = Annotated[
    QuantizedTo | None,
    typer.Option(help="Store the layers' weights in 4 or 8 bits (needs the extra `quant`).", show_default=False),
]
