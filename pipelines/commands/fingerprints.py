"""`sigma fingerprints`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipelines.commands.options import Json, path_option, print_json, print_result


def fingerprints(
    paths: Annotated[
        list[str],
        typer.Argument(
            help="Corpora, folders of images, parquet files or tars, or sources, e.g. release:DIR.", show_default=False
        ),
    ],
    out: Annotated[Path, path_option("--out", "-o", help="File to write.")] = Path("fingerprints.txt"),
    split: Annotated[str | None, typer.Option(help="Of a corpus, only the images of this split.")] = None,
    as_json: Json = False,
) -> None:
    """List benchmark images that a build must exclude.

    `sigma build-dataset --exclude FILE` then leaves out every sample with one of them, exactly or nearly the same.
    """
    from pipelines.fingerprints.run import write_benchmark_fingerprints
    from sigma_data.text_format import counted

    found = write_benchmark_fingerprints(paths, out, split=split)
    if as_json:
        print_json({"file": str(out), **vars(found)})
        return
    broken = (
        f"; {found.unreadable:,} could not be read, the first: {found.first_unreadable}" if found.unreadable else ""
    )
    print_result(f"{counted(found.images, 'image')}, {found.different:,} different: {out}{broken}\n")
