"""`sigma shard`."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from pipelines.commands.options import (
    Address,
    CorpusPath,
    EngineOption,
    Json,
    Overwrite,
    TaskResources,
    Workers,
    listed,
    path_option,
    print_json,
    print_result,
    refuse_given,
)


class Target(StrEnum):
    """What is written."""

    CORPUS = "corpus"
    RELEASE = "release"


def shard(
    context: typer.Context,
    corpus: CorpusPath,
    out: Annotated[Path, path_option("--out", "-o", help="Folder to write to.", show_default=False)],
    family: Annotated[list[str] | None, typer.Option(help="Only this family (can be repeated).")] = None,
    split: Annotated[list[str] | None, typer.Option(help="Only this split (can be repeated).")] = None,
    where: Annotated[
        str | None, typer.Option(help='Only samples for which this SQL expression holds, e.g. "tokens < 8000".')
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first samples.")] = None,
    shard_bytes: Annotated[int, typer.Option(min=1, help="Most bytes in a shard.")] = 512 * 2**20,
    shard_samples: Annotated[int, typer.Option(min=1, help="Most samples in a shard.")] = 10_000,
    to: Annotated[
        Target, typer.Option(help="A corpus, or the release's parquet with a folder per split.")
    ] = Target.CORPUS,
    workers: Workers = None,
    engine: EngineOption = "local",
    address: Address = None,
    task_resources: TaskResources = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Reshard, filter or export a corpus.

    A part is chosen by family, split or an SQL expression; an export is the release's parquet.
    """
    from pipelines.common.engine import open_engine
    from pipelines.shard.run import Selection, export_release, reshard

    selection = Selection(listed(family), listed(split), where, limit)
    if to is Target.RELEASE:
        if overwrite:
            raise typer.BadParameter("an export replaces nothing; remove the folder first", param_hint="--overwrite")
        alone = ("engine", "address", "task_resources", "shard_bytes", "shard_samples")
        refuse_given(context, alone, "is for a corpus: leave it out with --to release, which one process writes")
        counts = export_release(corpus, out, selection)
    else:
        counts = reshard(
            corpus, out, selection, shard_bytes=shard_bytes, shard_samples=shard_samples,
            engine=open_engine(engine, workers, address=address, resources=task_resources), overwrite=overwrite,
        )  # fmt: skip
    if as_json:
        print_json({"out": str(out), **counts})
    else:
        print_result(shard_summary(out, counts))


def shard_summary(out: Path, counts: Mapping[str, Any]) -> str:
    """What was written; of an export, which folder holds which split."""
    counted = ", ".join(f"{count:,} {name.replace('_', ' ')}" for name, count in counts.items() if name != "splits")
    lines = [f"{out}: {counted}"]
    if "splits" in counts:
        folders = ", ".join(f"{split}/ {count:,}" for split, count in counts["splits"].items())
        lines.append(f"a folder a split: {folders}; built again with release:, each sample keeps its split")
    return "\n".join(lines) + "\n"
