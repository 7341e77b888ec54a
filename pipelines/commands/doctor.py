"""`sigma doctor`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from pipelines.commands.options import Json, path_argument, print_json, print_result


def doctor(
    config: Annotated[
        Path | None, path_argument(help="YAML of a training run, or the name of a bundled one: is it possible here?")
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Argument(help="Settings as name=value, e.g. data.budget=8192.", show_default=False),
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Start no processes, measure no disk.")] = False,
    as_json: Json = False,
) -> None:
    """Check this machine, and a run that it is for.

    Python, packages, torch against the driver, GPUs, shared memory, file handles, processes that meet, the disk; with
    CONFIG also the model's files, corpora, memory and room for checkpoints. A line each: ok, warn or fail, and what to
    do. Exit code 1 if anything fails.
    """
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    from pipelines.doctor.finding import as_dict, failed, show
    from pipelines.doctor.run import doctor as look

    findings = look(config, settings or [], quick=quick)
    if as_json:
        print_json(as_dict(findings))
    else:
        print_result(f"{show(findings)}\n")
    if failed(findings):
        raise typer.Exit(1)
