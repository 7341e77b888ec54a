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

ARGUMENTS = ("--workers", "2", "--json", "shard_samples=20")


def command(source: Path, out: Path) -> list[str]:
    return [sys.executable, "-m", "cli", "build-dataset", f"release:{source}", "--out", str(out), *ARGUMENTS]


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def run(source: Path, out: Path) -> float:
    start = time.monotonic()
    subprocess.run(command(source, out), check=True, capture_output=True, timeout=120)
    return time.monotonic() - start


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return corpora.make_release(tmp_path_factory.mktemp("kill") / "release", 240, seed=2, files=4)


@pytest.mark.slow
def test_twenty_kills_at_random_moments_each_followed_by_a_rerun_give_identical_bytes(
    release: Path, tmp_path: Path
) -> None:
    whole = tmp_path / "whole"
    run(release, whole)
    expected = files(whole)
    duration = run(release, tmp_path / "again")
    assert files(tmp_path / "again") == expected

    dice = random.Random(20)
    unfinished = 0
    for number in range(20):
        out = tmp_path / f"killed-{number}"
        process = subprocess.Popen(
            command(release, out), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        time.sleep(duration * (0.2 + 0.8 * dice.random()))
        if number % 2:
            os.killpg(process.pid, signal.SIGKILL)  # the whole group, as a job scheduler does it
        else:
            process.kill()  # the parent alone: its workers must notice and end
        process.wait()
        unfinished += not (out / "corpus.json").exists()
        run(release, out)
        assert sorted(files(out)) == sorted(expected), f"kill {number}"
        assert files(out) == expected, f"kill {number}"
    assert unfinished >= 10, "most kills must have hit an unfinished build"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["manifest.parquet", "report.html", "corpus.json"])
def test_a_kill_within_the_commit_leaves_no_litter_after_the_rerun(name: str, release: Path, tmp_path: Path) -> None:
    whole, out = tmp_path / "whole", tmp_path / "killed"
    run(release, whole)
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
    killed = subprocess.run([sys.executable, "-c", kill_before_rename, *command(release, out)[3:]], capture_output=True)
    assert killed.returncode == -signal.SIGKILL
    run(release, out)
    assert sorted(files(out)) == sorted(files(whole))
    assert files(out) == files(whole)


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
    run(release, out)
