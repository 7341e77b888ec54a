"""A build that is really killed, again and again, ends in the same bytes as one that was not."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from support import corpora

KILLS = 8
SETTINGS = {"shard_samples": 20}


def command(source: Path, out: Path, workers: int = 2) -> list[str]:
    words = [f"{name}={value}" for name, value in SETTINGS.items()]
    return [
        sys.executable, "-m", "cli", "build-dataset", f"release:{source}", "--out", str(out),
        "--workers", str(workers), "--json", *words,
    ]  # fmt: skip


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def started(source: Path, out: Path) -> subprocess.Popen[bytes]:
    """A build in a process group of its own that has begun to write."""
    process = subprocess.Popen(
        command(source, out), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    while not (out / ".sigma").exists():
        assert process.poll() is None
        time.sleep(0.01)
    return process


def rerun(source: Path, out: Path) -> dict[str, bytes]:
    """The files of a corpus once a build in this process has finished it."""
    corpora.build(out, f"release:{source}", **SETTINGS)
    return files(out)


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Large enough for a build that can be hit."""
    return corpora.make_release(tmp_path_factory.mktemp("kill") / "release", 240, seed=2, files=4)


@pytest.fixture(scope="module")
def small_release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return corpora.make_release(tmp_path_factory.mktemp("small") / "release", 24, seed=2)


@pytest.mark.slow
def test_kills_spread_over_a_build_each_followed_by_a_rerun_give_identical_bytes(release: Path, tmp_path: Path) -> None:
    expected = rerun(release, tmp_path / "whole")
    process = started(release, tmp_path / "again")
    start = time.monotonic()
    assert process.wait(timeout=120) == 0
    duration = time.monotonic() - start
    assert files(tmp_path / "again") == expected

    dice = random.Random(20)
    unfinished = 0
    for number in range(KILLS):
        out = tmp_path / f"killed-{number}"
        process = started(release, out)
        time.sleep(duration * (number + dice.random()) / KILLS)
        if number % 2:
            os.killpg(process.pid, signal.SIGKILL)  # the whole group, as a job scheduler does it
        else:
            process.kill()  # the parent alone: its workers must notice and end
        process.wait()
        unfinished += not (out / "corpus.json").exists()
        made = rerun(release, out)
        assert sorted(made) == sorted(expected), f"kill {number}"
        assert made == expected, f"kill {number}"
    assert unfinished >= KILLS // 4, "kills must have hit an unfinished build"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["manifest.parquet", "report.html", "corpus.json"])
def test_a_kill_within_the_commit_leaves_no_litter_after_the_rerun(
    name: str, small_release: Path, tmp_path: Path
) -> None:
    out = tmp_path / "killed"
    kill_before_rename = (
        "import os, pathlib, signal, sys\n"
        "rename = pathlib.Path.replace\n"
        "def replace(self, target):\n"
        f"    if pathlib.Path(target).name == {name!r}:\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return rename(self, target)\n"
        "pathlib.Path.replace = replace\n"
        "import cli\n"
        "cli.main()\n"
    )
    words = command(small_release, out, workers=1)[3:]
    killed = subprocess.run([sys.executable, "-c", kill_before_rename, *words], capture_output=True)
    assert killed.returncode == -signal.SIGKILL
    made, whole = rerun(small_release, out), rerun(small_release, tmp_path / "whole")
    assert sorted(made) == sorted(whole)
    assert made == whole


@pytest.mark.slow
def test_workers_end_when_their_parent_is_killed(release: Path, tmp_path: Path) -> None:
    process = subprocess.Popen(command(release, tmp_path / "out"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    workers: list[psutil.Process] = []
    while len(workers) < 2 and process.poll() is None:
        workers = [
            child for child in psutil.Process(process.pid).children() if "spawn_main" in " ".join(child.cmdline())
        ]
        time.sleep(0.02)
    process.kill()
    process.wait()
    _, alive = psutil.wait_procs(workers, timeout=20)
    assert not alive


@pytest.mark.slow
def test_ctrl_c_ends_with_one_sentence_and_the_next_run_finishes(release: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    process = subprocess.Popen(
        command(release, out), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    while not (out / ".sigma" / "scan").exists() and process.poll() is None:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors == "interrupted; run the same command again to continue\n"
    assert "corpus.json" in rerun(release, out)
