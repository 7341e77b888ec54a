"""`sigma inspect`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipelines.commands.options import CorpusPath, Json, path_option, print_json


def inspect(
    corpus: CorpusPath,
    sample: Annotated[
        str | None, typer.Argument(help="A sample: its id, the start of it, or its row in the manifest.")
    ] = None,
    out: Annotated[Path | None, path_option("--out", "-o", help="Draw the sample into this PNG.")] = None,
    as_json: Json = False,
) -> None:
    """Show a corpus as a table, or one of its samples.

    A sample is shown as text, with --out also as an image.
    """
    from pipelines.inspect.run import inspect_corpus, inspect_sample

    if sample is None and out is not None:
        raise typer.BadParameter("name the sample to draw, by its id or row", param_hint="--out")
    seen = inspect_corpus(corpus) if sample is None else inspect_sample(corpus, sample, out)
    if as_json:
        print_json(seen.as_dict())
    else:
        seen.show()
