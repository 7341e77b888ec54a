"""`sigma validate`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from pipelines.commands.options import (
    Address,
    CorpusPath,
    EngineOption,
    Json,
    TaskResources,
    Workers,
    print_json,
    print_result,
    refuse_given,
)

if TYPE_CHECKING:
    from pipelines.validate.run import Validation


def validate(
    context: typer.Context,
    corpus: CorpusPath,
    deep: Annotated[
        bool, typer.Option("--deep/--fast", help="Hash every byte, decode every image, check every rule.")
    ] = False,
    workers: Workers = None,
    engine: EngineOption = "local",
    address: Address = None,
    task_resources: TaskResources = None,
    as_json: Json = False,
) -> None:
    """Check a corpus for damage.

    Its shards and index are held against its corpus.json; exit code 1 and a table where something is wrong.
    """
    from pipelines.common.engine import open_engine
    from pipelines.validate.run import validate_corpus

    if not deep:  # --workers is a bound, and this process keeps it
        refuse_given(context, ("engine", "address", "task_resources"), "belongs to --deep: add that, or leave this out")
    result = validate_corpus(
        corpus, deep=deep, engine=open_engine(engine, workers, address=address, resources=task_resources)
    )
    if as_json:
        print_json(result.as_dict())
    else:
        print_result(validation_summary(result))
    if result.problems:
        raise typer.Exit(1)


def validation_summary(result: Validation) -> str:
    """One line if all is well, else a table of what is not."""
    from sigma_data.text_format import aligned, counted

    depth = "every byte, image and rule" if result.deep else "index, sizes and commit; --deep checks the contents"
    if not result.problems:
        held = f"{counted(result.samples, 'sample')} in {counted(result.shards, 'shard')}"
        return f"{result.path}: sound ({held}; {depth})\n"
    problems = aligned([(problem.code, f"{problem.where}: {problem.message}") for problem in result.problems])
    return f"{problems}\n\n{result.path}: {counted(len(result.problems), 'problem')} ({depth})\n"
