"""Benchmarks by name: `open_benchmark("world:CORPUS")` gives its items and its own scores."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from typing import Any

from pipelines.evaluate.benchmarks.base import Benchmark
from sigma_data.errors import ConfigError

_CLASSES = {
    "sigma": ("sigma", "SigmaBenchmark"),
    "world": ("world", "WorldBenchmark"),
    "segmentation": ("segmentation", "SegmentationBenchmark"),
    "questions": ("questions", "QuestionsBenchmark"),
    "geneval": ("geneval", "GenEval"),
    "cv-bench": ("cv_bench", "CvBench"),
}

NAMES = tuple(_CLASSES)
"""The benchmarks that exist."""

OF_CORPORA = ("sigma", "world", "segmentation", "questions")
"""Those whose questions are a corpus, or the release's parquet, which may lie in a store."""

__all__ = ["NAMES", "OF_CORPORA", "Benchmark", "open_benchmark"]


def open_benchmark(spec: str, **options: Any) -> Benchmark:
    """Open `name:path`, e.g. `world:corpus`, with options that the benchmark's class takes.

    An option that is None is left out. Raises ConfigError for an unknown benchmark or option, or a path where
    nothing of the kind lies.
    """
    name, _, path = spec.partition(":")
    if name not in _CLASSES or not path:
        choices = ", ".join(f"{known}:" for known in NAMES)
        raise ConfigError(f"benchmark {spec!r}: write one of {choices} followed by a path, e.g. world:corpus")
    module, kind = _CLASSES[name]
    made: Callable[..., Benchmark] = getattr(importlib.import_module(f"{__name__}.{module}"), kind)
    _, *known = inspect.signature(made).parameters
    options = {option: value for option, value in options.items() if value is not None}
    if "split" in options and "split" not in known:
        raise ConfigError(f"benchmark {name}: has no splits: leave --split out")
    if unknown := sorted(set(options) - set(known)):
        takes = f"it takes {', '.join(known)}" if known else "it takes none"
        raise ConfigError(f"benchmark {spec!r}: has no option {', '.join(unknown)}; {takes}")
    return made(path, **options)
