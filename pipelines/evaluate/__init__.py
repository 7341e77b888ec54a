"""Evaluation: `evaluate(benchmark, out, model=...)` runs what `sigma eval` runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from typing import TYPE_CHECKING, Any

from pipelines.evaluate.defaults import BATCH, MAX_TOKENS, Stage

if TYPE_CHECKING:
    from sigma_model.sampling.settings import SamplingSettings


def evaluate(
    benchmark: str,
    out: str | PathLike[str],
    *,
    model: str | PathLike[str] | None = None,
    base: str | PathLike[str] | None = None,
    name: str | None = None,
    split: str | None = None,
    limit: int | None = None,
    size: tuple[int, int] | None = None,
    images_per_prompt: int | None = None,
    metrics: Sequence[str] | None = None,
    metric_models: Mapping[str, str] | None = None,
    settings: SamplingSettings | None = None,
    seed: int = 0,
    batch: int = BATCH,
    max_tokens: int = MAX_TOKENS,
    nproc: int = 1,
    device: str = "auto",
    dtype: str = "auto",
    compare: Sequence[str | PathLike[str]] = (),
    stage: str | None = None,
) -> dict[str, Any]:
    """Generate a model's answers to a benchmark, score them, write the report; go on from what is in `out`.

    `benchmark` is e.g. "world:corpus" or "sigma:benchmark.parquet", `model` a directory or a preset. `metrics` are
    general metrics by name, by default those usual for the benchmark, with backbones `metric_models`. `stage` is
    "generate", "score" or "report" alone; the later ones take the model and the questions from `out`. The other
    arguments are the options of `sigma eval`, which docs/evaluation.md explains.

    Returns `name`, `benchmark`, `items`, `failed` (item -> reason), `families` (family -> main metric, mean and its
    95 % interval), `summary`, `skipped` (metric -> reason) and the place of the `report`, as far as the stages ran.
    Raises SigmaError for what a user can mend.
    """
    from pipelines.evaluate.generate import Generation
    from pipelines.evaluate.runner import EvalOptions
    from pipelines.evaluate.runner import evaluate as run
    from sigma_data.storage.paths import local_path, model_path
    from sigma_model.dtypes import DType
    from sigma_model.sampling.settings import SamplingSettings

    return run(
        EvalOptions(
            benchmark=benchmark, out=local_path(str(out)),
            model=None if model is None else model_path(str(model)),
            base=None if base is None else model_path(str(base)),
            name=name, split=split, limit=limit, size=size, images=images_per_prompt,
            metrics=None if metrics is None else tuple(metrics), models=metric_models or {},
            generation=Generation(
                seed=seed, batch=batch, settings=settings or SamplingSettings(), max_tokens=max_tokens
            ),
            nproc=nproc, device=device, dtype=DType(dtype),
            compare=tuple(local_path(str(folder)) for folder in compare),
            stage=None if stage is None else Stage(stage),
        )
    )  # fmt: skip
