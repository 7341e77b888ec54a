"""`sigma train`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from pipelines.commands.options import Json, PrintConfig, path_argument, print_json, print_result, refuse_given

INTERRUPTED = 130
"""Exit code of a run that was told to stop: what a shell expects after Ctrl-C."""


def train(
    context: typer.Context,
    config: Annotated[
        Path, path_argument(help="YAML of the run, e.g. configs/quickstart.yaml, or the name of a bundled one.")
    ],
    settings: Annotated[
        list[str] | None,
        typer.Argument(help="Settings as name=value, e.g. optimizer.lr=1e-4.", show_default=False),
    ] = None,
    nproc: Annotated[
        int | None, typer.Option(min=1, help="Processes on this machine; by default one per GPU, or one.")
    ] = None,
    nnodes: Annotated[int, typer.Option(min=1, help="Machines; run the same command on each.")] = 1,
    rdzv: Annotated[str | None, typer.Option(help="HOST:PORT of the rendezvous on one of the machines.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check data and weights; show memory, FLOPs and hours; do not train.")
    ] = False,
    ranks: Annotated[int | None, typer.Option(min=1, help="Ranks that a dry run assumes.")] = None,
    print_config: PrintConfig = False,
    as_json: Json = False,
) -> None:
    """Train a model, or resume a run.

    The same command on a laptop and on 64 GPUs; a run that was stopped goes on from its last checkpoint.
    """
    # Before torch is loaded: what its network code warns of we say ourselves, in a line.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    from pipelines.common.bundled_configs import config_file
    from pipelines.common.settings import dump_settings, load_settings
    from pipelines.train.config import TrainConfig
    from pipelines.train.settings_checks import check_settings
    from pipelines.train.start_lines import result_line

    chosen = load_settings(TrainConfig, config_file(config), settings or [])
    check_settings(chosen)
    if print_config:
        print_result(dump_settings(chosen))
        return
    from pipelines.train.launch import Launch, default_nproc, launch

    if not dry_run:
        refuse_given(context, ("ranks",), "belongs to --dry-run; --nproc starts processes")
        if (origin := context.get_parameter_source("nnodes")) is not None and origin.name == "DEFAULT":
            refuse_given(context, ("rdzv",), "is where several machines meet: say how many with --nnodes")
    if dry_run:
        from pipelines.train.estimate.dry_run import dry_run as look

        seen = look(chosen, ranks=ranks or (nproc or default_nproc()) * nnodes)
        if as_json:
            print_json(seen.as_dict())
        else:
            print_result(seen.show())
        return
    said = nproc is not None or nnodes > 1 or rdzv is not None
    where = Launch(nproc=nproc or default_nproc(), nnodes=nnodes, rdzv=rdzv, chosen=said)
    result = launch(chosen, where)
    if result is None:  # another machine has rank 0
        return
    if as_json:
        print_json(result)
    else:
        print_result(result_line(result))
    if result["stopped"]:
        raise typer.Exit(INTERRUPTED)
