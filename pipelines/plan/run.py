"""What an epoch of training would show, before an image is read or a GPU rented."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from pipelines.common.planner import open_planner
from pipelines.plan.config import PlanConfig
from pipelines.train.start_description import describe
from sigma_data.planning.plan import Planner
from sigma_data.sample import Family


def run_plan(config: PlanConfig, *, ranks: int = 1, epochs: int = 1) -> dict[str, Any]:
    """Plan epochs and count what is in them; returns what `--json` prints.

    Of the model only configuration and tokenizer are read. Raises ConfigError, CorpusError.
    """
    model = config.model
    description = describe(model.path, model, config.omnigen2)
    start = time.perf_counter()
    planner = open_planner(config.data, description, cache=config.loader.cache)
    opened = time.perf_counter() - start
    packs_a_step = ranks * config.accumulate
    return {
        "digest": planner.digest,
        "model": description.directory.resolve().name,
        "budget": config.data.budget,
        "ranks": ranks,
        "accumulate": config.accumulate,
        "open_seconds": round(opened, 3),
        "epochs": [_epoch(planner, epoch, packs_a_step) for epoch in range(epochs)],
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
