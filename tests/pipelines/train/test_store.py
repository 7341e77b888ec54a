"""A run on a corpus in an object store is the run on a copy of it, also killed on the way, and throttled."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.s3_server import S3Server, error, s3_bucket
from support.training_runs import lines, run, same, saved, settings_of, steps_saved

from pipelines.plan.config import plan_config
from pipelines.plan.run import run_plan
from sigma_data.corpus.corpus import INDEXES

pytest.importorskip("s3fs")
pytest.importorskip("moto")
pytestmark = pytest.mark.slow

URI = "s3://bucket/corpora/corpus"
STEPS = 20


@pytest.fixture
def server(training_corpus: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[S3Server]:
    """A store that holds the corpus."""
    with s3_bucket(monkeypatch, tmp_path / "cache") as (server, system):
        for path in training_corpus.rglob("*"):
            if path.is_file() and INDEXES not in path.parts:
                system.put_file(path, f"{URI}/{path.relative_to(training_corpus).as_posix()}")
        yield server


def test_twenty_steps_from_a_store_are_those_of_a_local_corpus_to_the_bit(
    server: S3Server, training_corpus: Path, tmp_path: Path
) -> None:
    changes: dict[str, Any] = {
        "steps": STEPS, "checkpoint": {"every": 8}, "validation": {"every": 10, "packs": 1, "images": 0},
    }  # fmt: skip
    here, there = tmp_path / "here", tmp_path / "there"
    run(settings_of(here, training_corpus, **changes))
    # The same corpus by another address: everything else of a run is what it was.
    values = settings_of(there, training_corpus, **changes, loader={"workers": 1})
    values["data"]["corpora"] = [{"path": URI}]
    config = tmp_path / "run.yaml"
    config.write_text(yaml.safe_dump({**values, "out": str(there)}))
    server.fail("GET", ".tar", error("503 Slow Down", "SlowDown"), 3)
    command = [sys.executable, "-m", "cli", "train", str(config)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True)
    try:
        deadline = time.monotonic() + 240
        while not steps_saved(there):
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.02)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert steps_saved(there)[-1] == STEPS
    assert same(saved(there), saved(here))
    assert lines(there) == lines(here)
    assert any(line.startswith("GET") and ".tar" in line for line in server.requests)
    assert list((tmp_path / "cache").rglob("*.tar")) == [], "images are read by ranges"


def test_an_epoch_of_a_store_is_planned_as_that_of_a_local_corpus(server: S3Server, training_corpus: Path) -> None:
    plans = [run_plan(plan_config([place], ["budget=400"])) for place in (str(training_corpus), URI)]
    for plan in plans:
        del plan["open_seconds"]
        for epoch in plan["epochs"]:
            del epoch["plan_seconds"]
    assert plans[0] == plans[1]
    assert plans[1]["left_out"]
