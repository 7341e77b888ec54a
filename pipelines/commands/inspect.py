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
    out: Annotated[
        Path | None, path_option("--out", "-o", help="Draw the sample, or one of each family, into this PNG.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Show a corpus as a table, or one of its samples.

    A sample is shown as text, with --out also as an image. --out without a sample draws one sample of each family.
    """
    from pipelines.inspect.run import inspect_corpus, inspect_sample

    seen = inspect_corpus(corpus, out) if sample is None else inspect_sample(corpus, sample, out)
    if as_json:
        print_json(seen.as_dict())
    else:
        seen.show()
