"""Benchmarks are opened by name, and what does not exist is said in one sentence."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.evaluate.benchmarks import NAMES, open_benchmark
from sigma_data.errors import ConfigError


def test_the_benchmarks_exist() -> None:
    assert NAMES == ("sigma", "world", "segmentation", "questions", "geneval", "cv-bench")


@pytest.mark.parametrize("spec", ["mmlu:x", "world", "world:", ":x", ""])
def test_an_unknown_benchmark_names_those_that_exist(spec: str) -> None:
    with pytest.raises(ConfigError, match="sigma:, world:, segmentation:, questions:, geneval:, cv-bench:"):
        open_benchmark(spec)


@pytest.mark.parametrize("name", NAMES)
def test_a_path_that_is_not_there_is_named(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nowhere"):
        open_benchmark(f"{name}:{tmp_path / 'nowhere'}")


def test_an_unknown_option_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="has no option colour; it takes split"):
        open_benchmark(f"sigma:{tmp_path}", colour="red")
    with pytest.raises(ConfigError, match="it takes none"):
        open_benchmark(f"cv-bench:{tmp_path}", colour="red")


def test_a_split_is_asked_only_of_what_has_splits(tmp_path: Path) -> None:
    for name in ("cv-bench", "geneval"):
        with pytest.raises(ConfigError, match=f"benchmark {name}: has no splits: leave --split out"):
            open_benchmark(f"{name}:{tmp_path}", split="test")
    with pytest.raises(ConfigError, match="is not a corpus and has no splits: leave --split out"):
        open_benchmark(f"sigma:{tmp_path}", split="test")
    assert open_benchmark(f"sigma:{tmp_path}", split=None).split is None
