"""A resharding that is killed is finished by the same command, to the byte."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.shard.run import Selection, reshard
from pipelines.validate.run import validate_corpus

KILLED = """
import os, pathlib, signal, sys
corpus, out, name, number = sys.argv[1:]
renamed = []

def killing(rename):
    def before(self, target):
        renamed.append(pathlib.Path(target).name)
        if renamed.count(name) == int(number):
            os.kill(os.getpid(), signal.SIGKILL)
        return rename(self, target)
    return before

pathlib.Path.rename, pathlib.Path.replace = killing(pathlib.Path.rename), killing(pathlib.Path.replace)
from pipelines.shard.run import Selection, reshard
reshard(pathlib.Path(corpus), pathlib.Path(out), Selection(), shard_bytes=2**30, shard_samples=5, workers=0)
"""


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.slow
def test_killed_between_shards_and_within_the_commit_the_same_command_finishes(
    small_corpus: Path, tmp_path: Path
) -> None:
    """Each run goes on where the one before was killed: before its settings were kept, with some shards at their place,
    with all of them, with the tables.
    """
    whole, out = tmp_path / "whole", tmp_path / "out"
    for name, number in (("config.json", 1), ("editing-00000.tar", 2), ("manifest.parquet", 1), ("corpus.json", 1)):
        command = [sys.executable, "-c", KILLED, str(small_corpus), str(out), name, str(number)]
        assert subprocess.run(command, capture_output=True).returncode == -signal.SIGKILL
        assert bool(list(out.glob("*/*.tar"))) == (name != "config.json") and not (out / "corpus.json").exists()
    for folder in (whole, out):
        reshard(small_corpus, folder, Selection(), shard_bytes=2**30, shard_samples=5, workers=0)
    assert files(out) == files(whole)
    assert not validate_corpus(out, deep=True, workers=0).problems
