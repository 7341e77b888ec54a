"""`sigma plan`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from pipelines.commands.options import (
    Base,
    Json,
    ModelPath,
    path_option,
    print_json,
    print_result,
    split_settings,
)

_LISTED = 20
"""Samples without a pack that are printed; --json has all."""


def plan(
    corpora: Annotated[
        list[str] | None,
        typer.Argument(
            help="Corpora, folders or fsspec URIs; and settings as name=value.", show_default=False, metavar="CORPUS"
        ),
    ] = None,
    config: Annotated[
        Path | None, path_option(help="YAML of a training run: its data, model and accumulate are used.")
    ] = None,
    model: ModelPath = None,
    base: Base = None,
    ranks: Annotated[int, typer.Option(min=1, help="Ranks that train in parallel.")] = 1,
    accumulate: Annotated[int | None, typer.Option(min=1, help="Packs of a rank in each optimizer step.")] = None,
    epochs: Annotated[int, typer.Option(min=1, help="Epochs to plan.")] = 1,
    as_json: Json = False,
) -> None:
    """Plan an epoch: packs, tokens, steps.

    Also lists the samples that are too long for a pack. Reads no images and no weights.
    """
    from pipelines.common.bundled_configs import config_file
    from pipelines.plan.config import plan_config
    from pipelines.plan.run import run_plan

    places, overrides = split_settings(corpora)
    config = None if config is None else config_file(config)
    settings = plan_config(places, overrides, config, model=model, base=base, accumulate=accumulate)
    result = run_plan(settings, ranks=ranks, epochs=epochs)
    if as_json:
        print_json(result)
    else:
        print_result(plan_summary(result))


def plan_summary(result: Mapping[str, Any]) -> str:
    """An epoch's counts by corpus, family and kind of token; samples that fit into no pack."""
    from sigma_data.sample import Family
    from sigma_data.sequence.layout import Kind
    from sigma_data.text_format import counted

    lines: list[str] = []
    for epoch in result["epochs"]:
        samples: Mapping[str, Mapping[str, int]] = epoch["samples"]
        total = sum(sum(counts.values()) for counts in samples.values())
        lines.append(
            f"epoch {epoch['epoch']}: {counted(total, 'sample')} in {counted(epoch['packs'], 'pack')} of at most "
            f"{result['budget']:,} tokens, {100 * epoch['fill']:.2f} % full"
        )
        lines.append(
            f"{counted(epoch['steps'], 'step')} of {counted(result['ranks'], 'rank')} x "
            f"{counted(result['accumulate'], 'pack')}; remaining packs carry over to the next epoch"
        )
        lines += ["", *_table("samples", samples, [family for family in Family if family in epoch["tokens"]])]
        lines += ["", *_table("tokens", epoch["tokens"], [kind.name.lower() for kind in Kind]), ""]
    left_out = result["left_out"]
    if left_out:
        lines.append(f"{counted(len(left_out), 'sample')} in no pack:")
        lines += [f"  {one['corpus']} {one['sample']}: {one['reason']}" for one in left_out[:_LISTED]]
        if len(left_out) > _LISTED:
            lines.append(f"  and {len(left_out) - _LISTED:,} more (--json lists all)")
        lines.append("")
    seconds = sum(epoch["plan_seconds"] for epoch in result["epochs"])
    lines.append(f"corpora opened in {result['open_seconds']:.1f} s, planned in {seconds:.1f} s for {result['model']}")
    return "\n".join(lines) + "\n"


def _table(title: str, rows: Mapping[str, Mapping[str, int]], columns: Sequence[str]) -> list[str]:
    """Counts by row and column, with the sums of both."""
    from sigma_data.text_format import aligned

    used = [column for column in columns if any(column in row for row in rows.values())]
    cells = [[title, *used, "all"]]
    for name, row in rows.items():
        cells.append([name, *(f"{row.get(column, 0):,}" for column in used), f"{sum(row.values()):,}"])
    if len(rows) > 1:
        sums = [sum(row.get(column, 0) for row in rows.values()) for column in used]
        cells.append(["all", *(f"{count:,}" for count in (*sums, sum(sums)))])
    return aligned(cells, right=range(1, len(cells[0]))).splitlines()
