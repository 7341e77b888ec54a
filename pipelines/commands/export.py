"""`sigma export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipelines.commands.options import path_argument, path_option, print_result
from sigma_model.dtypes import DType


def export(
    run: Annotated[Path, path_argument(help="A run: the folder `sigma train` wrote to.")],
    out: Annotated[Path, path_option("--out", "-o", help="Folder to write, a new one.", show_default=False)],
    step: Annotated[int | None, typer.Option(min=0, help="Which checkpoint; by default the newest.")] = None,
    ema: Annotated[
        bool | None,
        typer.Option(
            "--ema/--raw",
            help="EMA weights, or those of the last step; by default EMA, if the run keeps it.",
            show_default=False,
        ),
    ] = None,
    adapter: Annotated[
        bool, typer.Option("--adapter", help="Only the LoRA adapters, as a file; otherwise they are merged.")
    ] = False,
    released_names: Annotated[
        bool,
        typer.Option("--released-names", help="Name an adapter's layers as the release does, for BAGEL's own model."),
    ] = False,
    dtype: Annotated[
        DType, typer.Option(help="Type of the weights; auto is that of the weights the run started from.")
    ] = DType.AUTO,
    max_shard_size: Annotated[
        str | None,
        typer.Option(
            help="Largest file of weights, e.g. 5GB: several files with an index; by default one file.",
            show_default=False,
        ),
    ] = None,
    layout: Annotated[
        str, typer.Option(help="Of an OmniGen2: `released`, a whole model, or `sgt-gen2`, what was trained alone.")
    ] = "released",
    settings: Annotated[
        list[str] | None,
        typer.Argument(help="model.path=DIR or model.base=DIR, if the run's base has moved.", show_default=False),
    ] = None,
) -> None:
    """Export a checkpoint as a model directory.

    In the released layout, for `sigma generate --model` and `sigma eval --model`, BAGEL's own code, vLLM-Omni and NeMo
    Automodel.
    """
    from pipelines.train.export import export_run
    from pipelines.train.omnigen2.export import Layout
    from sigma_model.sharded_files import parse_shard_size

    if layout not in list(Layout):
        raise typer.BadParameter(f"{layout!r}: choose one of {', '.join(Layout)}", param_hint="--layout")
    made = export_run(
        run, out, step=step, ema=ema, adapter=adapter, released_names=released_names, dtype=dtype,
        layout=Layout(layout), overrides=tuple(settings or ()),
        shard_bytes=None if max_shard_size is None else parse_shard_size(max_shard_size),
    )  # fmt: skip
    print_result(f"{made}\n")
