"""`sigma browse`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipelines.commands.options import path_argument


def browse(
    place: Annotated[
        Path, path_argument(help="A corpus (corpus.json), a training run (metrics.jsonl) or an evaluation's folder.")
    ],
    host: Annotated[str, typer.Option(help="Address to listen on; others than 127.0.0.1 let others in.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 takes a free one.")] = 7870,
) -> None:
    """Look at a corpus, a run or an evaluation.

    A server for a browser on this machine; it reads and never writes.
    """
    from pipelines.browse.run import run_browse

    run_browse(place, host=host, port=port)
