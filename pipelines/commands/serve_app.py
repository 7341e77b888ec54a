"""`sigma app`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipelines.commands.options import (
    Adapter,
    Base,
    Device,
    DeviceMap,
    Dtype,
    Quantize,
    model_option,
    path_option,
    typed,
)
from sigma_model.dtypes import DType


def serve_app(
    context: typer.Context,
    models: Annotated[
        list[str] | None,
        model_option(
            "--model",
            "-m",
            help="A directory in the released layout, or a preset; repeat it to compare two. By default tiny-base.",
        ),
    ] = None,
    out: Annotated[
        Path, path_option("--out", "-o", help="The gallery: a folder in which every result is kept.")
    ] = Path("sigma-app"),
    host: Annotated[str, typer.Option(help="Address to listen on; others than 127.0.0.1 let others in.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 takes a free one.")] = 7860,
    base: Base = None,
    device: Device = "auto",
    dtype: Dtype = DType.AUTO,
    device_map: DeviceMap = None,
    quantize: Quantize = None,
    adapter: Adapter = None,
) -> None:
    """Compose images in a browser.

    Upload references, write an instruction, watch the image come; every result is kept. Nothing leaves this machine.
    """
    from pipelines.app.config import AppConfig
    from pipelines.app.run import run_app
    from pipelines.common.settings import load_settings

    given = typed(context, AppConfig)
    run_app(load_settings(AppConfig, None, (), typed={"models": "--model"}, **given))
