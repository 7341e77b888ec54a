"""The examples run as they stand, each in a process of its own, and print what they promise."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from support.places import ROOT

EXAMPLES = {
    "open_corpus": ((), "60 samples"),
    "add_source": ((), "'read': 3, 'written': 2, 'quarantined': 1"),
    "generate": ((), "composed.png: 64 x 64"),
    "add_metric": ((), "4 items, 0 failed"),
    "train": (("3",), "3 of 3 steps; checkpoint 3"),
}


def test_every_example_is_run() -> None:
    assert sorted(path.stem for path in (ROOT / "examples").glob("*.py")) == sorted(EXAMPLES)


@pytest.mark.slow
@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_runs_as_it_stands(name: str, tmp_path: Path) -> None:
    more, expected = EXAMPLES[name]
    command = [sys.executable, str(ROOT / "examples" / f"{name}.py"), str(tmp_path / "out"), *more]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path, timeout=300,
                          env={"PYTHONPATH": str(ROOT), "HOME": str(tmp_path), "PATH": "/usr/bin:/bin",
                               "OMP_NUM_THREADS": "1"})  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert expected in done.stdout
