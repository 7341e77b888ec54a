"""`sigma export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipelines.commands.options import path_argument, path_option, print_result
from pipelines.commands.upload import PushToHub, Yes, check_push, push
from sigma_model.dtypes import DType


def export(
    run: Annotated[Path, path_argument(help="A run: the folder `sigma train` wrote to; or an adapter, to merge.")],
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
    push_to_hub: PushToHub = None,
    yes: Yes = False,
    settings: Annotated[
        list[str] | None,
        typer.Argument(help="model.path=DIR or model.base=DIR, if the run's base has moved.", show_default=False),
    ] = None,
) -> None:
    """Export a checkpoint as a model directory.

    An adapter in peft's files is merged into its base, or into that of model.path=DIR.

    In the released layout, for `sigma generate --model` and `sigma eval --model`, BAGEL's own code, vLLM-Omni and NeMo
    Automodel.
    """
    from pipelines.train.export import export_run
    from pipelines.train.merge_adapter import export_adapter
    from pipelines.train.omnigen2.export import Layout
    from sigma_model.omnigen2.lora import is_adapter
    from sigma_model.sharded_files import parse_shard_size

    if layout not in list(Layout):
        raise typer.BadParameter(f"{layout!r}: choose one of {', '.join(Layout)}", param_hint="--layout")
    check_push(push_to_hub, yes=yes)
    if is_adapter(run):
        if step is not None or adapter or released_names or layout != Layout.RELEASED or ema is not None:
            raise typer.BadParameter(f"{run} is an adapter: of the options, those of a run do not apply to it")
        shard_bytes = None if max_shard_size is None else parse_shard_size(max_shard_size)
        merged = export_adapter(run, out, dtype=dtype, shard_bytes=shard_bytes, overrides=tuple(settings or ()))
        print_result(f"{merged}\n")
        push(merged, push_to_hub, yes=yes)
        return
    made = export_run(
        run, out, step=step, ema=ema, adapter=adapter, released_names=released_names, dtype=dtype,
        layout=Layout(layout), overrides=tuple(settings or ()),
        shard_bytes=None if max_shard_size is None else parse_shard_size(max_shard_size),
    )  # fmt: skip
    print_result(f"{made}\n")
    push(made, push_to_hub, yes=yes)
