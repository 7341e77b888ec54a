"""`sigma train` and `sigma export`: arguments in, one call, a result printed; as light to import as `cli`."""

from __future__ import annotations

import os
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from pipelines.commands.common_options import Json
from pipelines.commands.path_options import path_argument, path_option

INTERRUPTED = 130
"""Exit code of a run that was told to stop: what a shell expects after Ctrl-C."""


class Numbers(StrEnum):
    """What weights are stored as."""

    AUTO = "auto"
    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"


def train(
    config: Annotated[Path, path_argument(help="YAML of the run, such as configs/quickstart.yaml.")],
    settings: Annotated[
        list[str] | None,
        typer.Argument(help="Settings as name=value, as in optimizer.lr=1e-4.", show_default=False),
    ] = None,
    nproc: Annotated[
        int | None, typer.Option(min=1, help="Processes on this machine; by default one a GPU, or one.")
    ] = None,
    nnodes: Annotated[int, typer.Option(min=1, help="Machines; run the same command on each.")] = 1,
    rdzv: Annotated[str | None, typer.Option(help="HOST:PORT of one machine, where all meet.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check data and weights; show memory, FLOPs and hours; do not train.")
    ] = False,
    ranks: Annotated[int | None, typer.Option(min=1, help="Ranks that a dry run assumes.")] = None,
    print_config: Annotated[bool, typer.Option("--print-config", help="Print all settings and stop.")] = False,
    as_json: Json = False,
) -> None:
    """Train, or go on where the run was stopped: the same command on a laptop and on 64 GPUs."""
    # Before torch is loaded: what its network code warns of we say ourselves, in a line.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    from pipelines.common.settings import dump_settings, load_settings
    from pipelines.train.config import TrainConfig
    from pipelines.train.settings_checks import check_settings
    from pipelines.train.start_lines import result_line
    from sigma_data.storage.files import dump_json

    chosen = load_settings(TrainConfig, config, settings or [])
    check_settings(chosen)
    if print_config:
        sys.stdout.write(dump_settings(chosen))
        return
    from pipelines.train.launch import Launch, default_nproc, launch

    if ranks is not None and not dry_run:
        raise typer.BadParameter("belongs to --dry-run; --nproc starts processes", param_hint="--ranks")
    if dry_run:
        from pipelines.train.estimate.dry_run import dry_run as look

        seen = look(chosen, ranks=ranks or (nproc or default_nproc()) * nnodes)
        sys.stdout.write(dump_json(seen.as_dict()) if as_json else seen.show())
        return
    said = nproc is not None or nnodes > 1 or rdzv is not None
    where = Launch(nproc=nproc or default_nproc(), nnodes=nnodes, rdzv=rdzv, chosen=said)
    result = launch(chosen, where)
    if result is None:  # another machine has rank 0
        return
    if as_json:
        sys.stdout.write(dump_json(result))
    else:
        sys.stdout.write(result_line(result))
    if result["stopped"]:
        raise typer.Exit(INTERRUPTED)


def export(
    run: Annotated[Path, path_argument(help="A run: the folder `sigma train` wrote to.")],
    out: Annotated[Path, path_option("--out", "-o", help="Folder to write, a new one.", show_default=False)],
    step: Annotated[int | None, typer.Option(min=0, help="Which checkpoint; by default the newest.")] = None,
    ema: Annotated[
        bool | None,
        typer.Option(
            "--ema/--raw",
            help="The averaged weights, or those of the last step; by default the average, if the run keeps one.",
            show_default=False,
        ),
    ] = None,
    adapter: Annotated[
        bool, typer.Option("--adapter", help="What LoRA learnt alone, for peft; otherwise it is merged.")
    ] = False,
    released_names: Annotated[
        bool,
        typer.Option("--released-names", help="Name an adapter's layers as the release does, for BAGEL's own model."),
    ] = False,
    dtype: Annotated[
        Numbers, typer.Option(help="Type of the weights; auto is that of the weights the run started from.")
    ] = Numbers.AUTO,
    settings: Annotated[
        list[str] | None,
        typer.Argument(help="model.path=DIR or model.base=DIR, where the run's base has moved.", show_default=False),
    ] = None,
) -> None:
    """Export a run's checkpoint to a directory in the released layout, for `sigma generate --model`."""
    from pipelines.train.export import export_run
    from sigma_model.loading import DType

    made = export_run(
        run, out, step=step, ema=ema, adapter=adapter, released_names=released_names, dtype=DType(dtype),
        overrides=tuple(settings or ()),
    )  # fmt: skip
    sys.stdout.write(f"{made}\n")
