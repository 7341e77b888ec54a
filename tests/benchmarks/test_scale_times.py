"""What docs/scale.md says of machines is what the simulation prints, and the launch scripts say what they start."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.places import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))

from scale_times import table

CLUSTER = ROOT / "examples" / "cluster"


@pytest.mark.slow
def test_the_table_in_the_docs_is_what_the_simulation_prints() -> None:
    assert "\n".join(table()) in (ROOT / "docs" / "scale.md").read_text("utf-8")


@pytest.mark.parametrize(
    ("script", "variables", "started"),
    [
        (
            "train_slurm.sh",
            {
                "SLURM_JOB_NODELIST": "node[1-2]",
                "SLURM_JOB_ID": "123",
                "SLURM_JOB_NUM_NODES": "2",
                "SLURM_GPUS_ON_NODE": "8",
            },
            "srun --kill-on-bad-exit 1 sigma train run.yaml out=run --nnodes 2 --nproc 8 --rdzv node1:20123",
        ),
        (
            "train_torchrun.sh",
            {"FIRST": "node1:29400", "NODES": "2"},
            "torchrun --nnodes 2 --nproc-per-node 8 --rdzv-backend c10d --rdzv-endpoint node1:29400 --rdzv-id sigma "
            "--max-restarts 3 --no-python sigma train run.yaml out=run",
        ),
        (
            "build_slurm.sh",
            {"SLURM_JOB_NODELIST": "node[1-2]", "SLURM_JOB_ID": "123", "SLURM_JOB_NUM_NODES": "2"},
            "sigma build-dataset --engine ray run.yaml out=run",
        ),
    ],
)
def test_a_launch_script_is_sound_and_starts_what_it_says(
    script: str, variables: dict[str, str], started: str, tmp_path: Path
) -> None:
    assert subprocess.run(["bash", "-n", CLUSTER / script]).returncode == 0
    for name in ("srun", "torchrun", "sigma", "sleep"):
        (tmp_path / name).write_text(f'#!/bin/sh\necho {name} "$@"\n')
    (tmp_path / "scontrol").write_text("#!/bin/sh\nprintf 'node1\\nnode2\\n'\n")
    for stub in tmp_path.iterdir():
        stub.chmod(0o755)
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", **variables}
    ran = subprocess.run([CLUSTER / script, "run.yaml", "out=run"], env=environment, capture_output=True, text=True)
    assert ran.returncode == 0
    assert started in ran.stdout.splitlines()
    empty = subprocess.run([CLUSTER / script], env=environment, capture_output=True, text=True)
    assert (empty.returncode, empty.stderr.startswith("usage: ")) == (2, True)
