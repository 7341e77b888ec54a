"""What every test shares: no network, one small corpus."""

from __future__ import annotations

import gc
import logging
import os
import sys
from collections import Counter
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1")
# Hundreds of processes are started: what one has compiled, the next need not.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False
os.environ["OMP_NUM_THREADS"] = "1"  # on tiny tensors, threads cost far more than they save


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """What is imported and collected stays: looking through half a million objects for garbage takes seconds."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with the most slow tests first: with one of them last, a single core would be busy at the end."""
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: -slow[item.path])


@pytest.fixture(autouse=True)
def _quiet_loggers() -> Iterator[None]:
    """Our loggers as they were: a command run in this process takes them for itself."""
    loggers = [logging.getLogger(name) for name in ("sigma_data", "sigma_model", "pipelines")]
    before = [(list(logger.handlers), logger.level, logger.propagate) for logger in loggers]
    yield
    for logger, (handlers, level, propagate) in zip(loggers, before, strict=True):
        logger.handlers[:] = handlers
        logger.setLevel(level)
        logger.propagate = propagate


@pytest.fixture(scope="session")
def small_corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sound corpus: 37 samples of six families in three splits, two rejects, one duplicate. Never change it."""
    from support import corpora, image_files

    folder = tmp_path_factory.mktemp("small")
    release = corpora.make_release(folder / "release", 36, seed=7, files=2)
    twice = corpora.release_row(1, family="editing")
    broken = [
        corpora.release_row(2) | {"instruction_list": [["Paint the <subjct>thing in <image_1>"]]},
        corpora.release_row(3) | {"image_list": [image_files.image_bytes("jpeg", 3), b"no picture"]},
    ]
    corpora.write_parquet(release / "seedxedit_multi" / "chunk_2.parquet", [twice, *broken, twice])
    corpora.build(folder / "corpus", f"release:{release}", splits={"train": 60, "val": 20, "test": 20})
    return folder / "corpus"


@pytest.fixture(scope="session")
def training_corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus to train on in seconds, with its index: pictures of six families, and answers. Never change it."""
    from support import training_data, training_runs

    corpus = training_runs.build_corpus(tmp_path_factory.mktemp("training"))
    training_data.index_of(corpus)
    return corpus
