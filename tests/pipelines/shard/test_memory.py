"""Sharding anew takes memory that the length of the manifest hardly adds to."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from support import corpora
from support.grown_corpus import ROW_GROUP, grown
from support.places import ROOT

BYTES_A_ROW = 2_000


@pytest.mark.slow
def test_memory_grows_by_less_than_two_kilobytes_a_row(tmp_path: Path) -> None:
    release = corpora.make_release(tmp_path / "release", 12)
    corpora.build(tmp_path / "twelve", f"release:{release}", splits={"train": 60, "test": 40})
    measure = (
        "import json, sys; from pathlib import Path\n"
        "import pipelines.build_dataset.commit, pipelines.shard.run as shard\n"
        "from pipelines.common.process_pool import peak_memory\n"
        f"pipelines.build_dataset.commit.ROW_GROUP = shard.ROW_GROUP = {ROW_GROUP}\n"  # 65,536 hide the slope
        'found = shard.reshard(sys.argv[1], Path(sys.argv[2]), shard.Selection(where="tokens > 0"), '
        "shard_bytes=2**30, shard_samples=500, workers=0)\n"
        "print(json.dumps([found['samples'], peak_memory()]))\n"
    )
    peaks = []
    for rows in (9_000, 27_000):
        grown(tmp_path / "twelve", tmp_path / str(rows), rows)
        command = [sys.executable, "-c", measure, str(tmp_path / str(rows)), str(tmp_path / f"{rows} anew")]
        done = subprocess.run(command, stdout=subprocess.PIPE, check=True, cwd=ROOT)
        samples, peak = json.loads(done.stdout)
        assert samples == rows
        peaks.append(peak)
    assert peaks[1] - peaks[0] < BYTES_A_ROW * 18_000
