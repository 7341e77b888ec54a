"""Evaluation: `evaluate(benchmark, out, model=...)` runs what `sigma eval` runs."""

from __future__ import annotations

from os import PathLike, fspath
from typing import Any


def evaluate(benchmark: str, out: str | PathLike[str], **settings: Any) -> dict[str, Any]:
    """Generate a model's answers to a benchmark, score them, write the report; go on from what is in `out`.

    `benchmark` is e.g. "world:corpus" or "sigma:benchmark.parquet"; `settings` are the fields of
    `pipelines.evaluate.config.EvalConfig`, which `sigma eval --print-config` shows: `model` (a directory, its URI, or
    a preset), `metrics` by name, `limit`, `steps`, `text_scale` and so on. `stage` is "generate", "score" or "report"
    alone; the later ones take the model and the questions from `out`. A script that lets several processes generate
    (`nproc`) must call it under `if __name__ == "__main__"`.

    Returns `name`, `benchmark`, `items`, `failed` (item -> reason), `families` (family -> main metric, mean and its
    95 % interval), `summary`, `skipped` (metric -> reason) and the place of the `report`, as far as the stages ran.
    Raises SigmaError for what a user can fix.
    """
    from pipelines.common.settings import merge_settings
    from pipelines.evaluate.config import EvalConfig
    from pipelines.evaluate.runner import evaluate as run

    given = {name: fspath(value) if isinstance(value, PathLike) else value for name, value in settings.items()}
    return run(merge_settings(EvalConfig, {"benchmark": benchmark, "out": fspath(out)}, given).located().options())
