"""`sigma download`."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipelines.commands.options import (
    Json,
    need_terminal,
    path_option,
    print_json,
    print_result,
    refuse_given,
)

if TYPE_CHECKING:
    from pipelines.download.catalog import Entry, Kind

_COMMA = re.compile(r",(?![^(]*\))")
"""One that is not in brackets."""


def download(
    context: typer.Context,
    name: Annotated[
        str | None,
        typer.Argument(help="A name of the list, or a repository on the hub, OWNER/NAME.", show_default=False),
    ] = None,
    out: Annotated[
        Path | None, path_option("--out", "-o", help="The folder; by default models/NAME or data/NAME.")
    ] = None,
    dataset: Annotated[bool, typer.Option("--dataset", help="OWNER/NAME is a data set, not a model.")] = False,
    include: Annotated[
        list[str] | None,
        typer.Option(help="Only these files: paths, folders or globs, e.g. '*.parquet'.", show_default=False),
    ] = None,
    exclude: Annotated[list[str] | None, typer.Option(help="Not these files.", show_default=False)] = None,
    revision: Annotated[
        str | None, typer.Option(help="A branch, tag or commit; by default main.", show_default=False)
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show licenses and sizes; fetch nothing.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    as_json: Json = False,
) -> None:
    """Fetch models and corpora from the hub.

    Only the files that are needed, after showing license and size; a download that was stopped goes on within a file,
    and every file is checked by the hash that the hub names. HF_ENDPOINT chooses a mirror, HF_TOKEN an account.
    Without a name: the list.
    """
    from pipelines.download.catalog import catalog, find_entry

    if name is None:
        chosen = ("out", "dataset", "include", "exclude", "revision", "dry_run", "yes")
        refuse_given(context, chosen, "needs a NAME: what is to be fetched")
        entries = catalog()
        if as_json:
            rows = [
                {"name": one.name, "kind": one.kind, "hub": list(one.repos), "what": one.what, "license": one.license}
                for one in entries
            ]
            print_json(rows)
        else:
            print_result(_list(entries))
        return
    from pipelines.download.run import download as fetch
    from pipelines.download.run import downloaded, plan_download

    kind: Kind | None = "dataset" if dataset else None
    plan = plan_download(
        find_entry(name, kind), out, revision=revision, include=_patterns(include), exclude=_patterns(exclude)
    )
    if dry_run:
        if as_json:
            print_json(plan.as_dict())
        else:
            print_result(plan.show() + "\n")
        return
    if plan.missing and not yes:
        sys.stderr.write(plan.show() + "\n")
        need_terminal("license and size have")
        typer.confirm("Download?", abort=True, err=True)
    result = fetch(plan)
    if as_json:
        print_json(result)
    else:
        print_result(downloaded(plan, result))


def _patterns(values: Sequence[str] | None) -> tuple[str, ...]:
    """What is given, as it stands and split at commas; names on the hub hold some: `chartqa(cauldron,llava_format)`."""
    parts = (part.strip() for value in values or () for part in (value, *_COMMA.split(value)))
    return tuple(dict.fromkeys(filter(None, parts)))


def _list(entries: Sequence[Entry]) -> str:
    """All names, models first, in lines for a terminal of 80 columns."""
    from sigma_data.text_format import described

    told = []
    for kind, head in (("model", "Models"), ("dataset", "Data sets")):
        rows = [
            (one.name, "; ".join(filter(None, (one.what, one.license, ", ".join(one.repos)))))
            for one in entries
            if one.kind == kind
        ]
        told += [head, described(rows), ""]
    told += [
        "`sigma download NAME --dry-run` shows license, files and size.",
        "Any other: OWNER/NAME, of a data set with --dataset.",
    ]
    return "\n".join(told) + "\n"
