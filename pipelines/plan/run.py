"""The command `sigma plan`: what an epoch of training would show, before a picture is read or a GPU rented."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from pipelines.common.settings import load_settings
from pipelines.plan.planner import open_planner
from sigma_data.errors import ConfigError
from sigma_data.planning.plan import Planner, PlanSettings
from sigma_data.sample import Family
from sigma_data.sequence.layout import Kind
from sigma_data.settings_base import StrictModel
from sigma_data.storage.path_settings import LocalPath, ModelPath
from sigma_data.text_format import aligned, counted
from sigma_model.loading import read_blueprint

_LISTED = 20
"""Samples without a pack that are printed; --json has all."""


@dataclass(frozen=True)
class PlanOptions:
    """The options of `sigma plan`, as they were typed; None is what the configuration says."""

    corpora: tuple[str, ...]
    overrides: tuple[str, ...]
    config: Path | None
    model: str | None
    base: str | None
    ranks: int
    accumulate: int | None
    epochs: int
    quiet: bool


class _Part(StrictModel, extra="ignore"):
    """A part of the configuration of a training run: what else stands there is for others."""


class _Model(_Part):
    path: ModelPath = "tiny"
    base: ModelPath | None = None
    vision: bool = True
    max_latent_size: int | None = None


class _Loader(_Part):
    cache: LocalPath | None = None


class _Config(_Part):
    accumulate: int = Field(1, ge=1)
    model: _Model = _Model()
    loader: _Loader = _Loader()
    data: PlanSettings


def run_plan(options: PlanOptions) -> dict[str, Any]:
    """Plan epochs and count what is in them; returns what `--json` prints.

    Of the model only configuration and tokenizer are read. Raises ConfigError, CorpusError.
    """
    if not options.corpora and options.config is None:
        raise ConfigError("name a corpus, as in `sigma plan corpus`, or a training run's YAML with --config")
    # As `sigma train` takes them, or without the name of the section.
    overrides = [f"data.{override.removeprefix('data.')}" for override in options.overrides]
    typed = dict(zip(overrides, options.overrides, strict=True))
    if options.corpora and any(override.startswith("data.corpora") for override in overrides):
        raise ConfigError("corpora are named twice: give them by their paths, or by settings data.corpora=...")
    for name, value in (("path", options.model), ("base", options.base)):
        if value is not None:
            overrides.append(f"model.{name}={json.dumps(value)}")
            typed[overrides[-1]] = f"--{'model' if name == 'path' else name} {value}"
    config = load_settings(
        _Config,
        options.config,
        overrides,
        accumulate=options.accumulate,
        typed=typed,
        data={"corpora": [{"path": corpus} for corpus in options.corpora]} if options.corpora else None,
    )
    model = config.model
    blueprint = read_blueprint(model.path, base=model.base, vision=model.vision, max_latent_size=model.max_latent_size)
    start = time.perf_counter()
    planner = open_planner(config.data, blueprint, cache=config.loader.cache, quiet=options.quiet)
    opened = time.perf_counter() - start
    packs_a_step = options.ranks * config.accumulate
    return {
        "digest": planner.digest,
        "model": blueprint.directory.resolve().name,
        "budget": config.data.budget,
        "ranks": options.ranks,
        "accumulate": config.accumulate,
        "open_seconds": round(opened, 3),
        "epochs": [_epoch(planner, epoch, packs_a_step) for epoch in range(options.epochs)],
        "left_out": [vars(unfit) for unfit in planner.unfit],
    }


def _epoch(planner: Planner, epoch: int, packs_a_step: int) -> dict[str, Any]:
    start = time.perf_counter()
    plan = planner.plan(epoch)
    seconds = time.perf_counter() - start
    draws = plan.draws
    samples: dict[str, dict[str, int]] = {}
    for number, (corpus, index) in enumerate(zip(planner.settings.corpora, planner.indexes, strict=True)):
        counts = np.bincount(index.families[draws.row[draws.corpus == number]], minlength=len(Family)).tolist()
        samples[corpus.title] = {family: count for family, count in zip(Family, counts, strict=True) if count}
    tokens = planner.tokens(draws)
    return {
        "epoch": epoch,
        "samples": samples,
        "tokens": {family: {kind.name.lower(): n for kind, n in kinds.items()} for family, kinds in tokens.items()},
        "packs": len(plan),
        "fill": round(float(plan.lengths.sum() / (len(plan) * planner.settings.budget)), 5),
        "steps": len(plan) // packs_a_step,
        "plan_seconds": round(seconds, 3),
    }


def plan_summary(result: Mapping[str, Any]) -> str:
    """The result of `run_plan` as text for a terminal."""
    lines: list[str] = []
    for epoch in result["epochs"]:
        samples: Mapping[str, Mapping[str, int]] = epoch["samples"]
        total = sum(sum(counts.values()) for counts in samples.values())
        lines.append(
            f"epoch {epoch['epoch']}: {total:,} samples in {epoch['packs']:,} packs of at most {result['budget']:,} "
            f"tokens, {100 * epoch['fill']:.2f} % full"
        )
        lines.append(
            f"{counted(epoch['steps'], 'step')} of {counted(result['ranks'], 'rank')} x "
            f"{counted(result['accumulate'], 'pack')}; what is over goes into the first step of the next epoch"
        )
        lines += ["", *_table("samples", samples, [family for family in Family if family in epoch["tokens"]])]
        lines += ["", *_table("tokens", epoch["tokens"], [kind.name.lower() for kind in Kind]), ""]
    left_out = result["left_out"]
    if left_out:
        lines.append(f"{len(left_out):,} samples are in no pack:")
        lines += [f"  {one['corpus']} {one['sample']}: {one['reason']}" for one in left_out[:_LISTED]]
        if len(left_out) > _LISTED:
            lines.append(f"  and {len(left_out) - _LISTED:,} more (--json lists all)")
        lines.append("")
    seconds = sum(epoch["plan_seconds"] for epoch in result["epochs"])
    lines.append(f"corpora opened in {result['open_seconds']:.1f} s, planned in {seconds:.1f} s for {result['model']}")
    return "\n".join(lines) + "\n"


def _table(title: str, rows: Mapping[str, Mapping[str, int]], columns: Sequence[str]) -> list[str]:
    """Counts by row and column, with the sums of both."""
    used = [column for column in columns if any(column in row for row in rows.values())]
    cells = [[title, *used, "all"]]
    for name, row in rows.items():
        cells.append([name, *(f"{row.get(column, 0):,}" for column in used), f"{sum(row.values()):,}"])
    if len(rows) > 1:
        sums = [sum(row.get(column, 0) for row in rows.values()) for column in used]
        cells.append(["all", *(f"{count:,}" for count in (*sums, sum(sums)))])
    return aligned(cells, right=range(1, len(cells[0]))).splitlines()
