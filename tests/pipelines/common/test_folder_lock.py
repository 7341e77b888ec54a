"""A folder that is worked in is closed to others, and open again however its holder ended."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from pipelines.common import folder_lock
from pipelines.common.folder_lock import LOCK, FolderLock, locked
from sigma_data.errors import ConfigError

HOLD = """
import os, sys, time
from pathlib import Path
from pipelines.common.folder_lock import FolderLock
lock = FolderLock(Path(sys.argv[1]), "training")
if sys.argv[2] == "worker" and os.fork() == 0:
    time.sleep(2)  # a loader's worker has the lock with it, and takes a moment to see that its parent is gone
    os._exit(0)
print("held", flush=True)
time.sleep(60)
"""


def holder(path: Path, kind: str = "alone") -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(path), kind], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    return process


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["alone", "worker"])
def test_the_second_is_refused_by_name_and_a_killed_holder_leaves_the_folder_open(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "run" / LOCK
    process = holder(path, kind)
    with pytest.raises(ConfigError) as refused:
        FolderLock(path, "training", otherwise="choose another place with out=")
    assert str(refused.value) == (
        f"{tmp_path / 'run'}: another training is running there (process {process.pid} on {socket.gethostname()}); "
        "wait for it, or choose another place with out="
    )
    process.send_signal(signal.SIGKILL)
    process.wait()
    FolderLock(path, "training").release()


def test_what_was_made_for_the_lock_is_removed_and_what_lies_there_stays(tmp_path: Path) -> None:
    with locked(tmp_path / "a" / "b", "training"):
        assert (tmp_path / "a" / "b" / LOCK).exists()
    assert not (tmp_path / "a").exists()
    with locked(tmp_path / "c", "training"):
        (tmp_path / "c" / "mine").write_text("")
    assert [path.name for path in (tmp_path / "c").iterdir()] == ["mine"]


def without_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))  # as Lustre mounted without flock

    monkeypatch.setattr(fcntl, "flock", refuse)


def test_where_the_file_system_knows_no_locks_the_record_serves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_locks(monkeypatch)
    path = tmp_path / LOCK
    first = FolderLock(path, "training")
    with pytest.raises(ConfigError, match=r"another training is running there .* try again in 60 seconds"):
        FolderLock(path, "training")
    first.release()
    path.write_text(json.dumps({"host": "elsewhere", "pid": 1}))
    with pytest.raises(ConfigError, match="process 1 on elsewhere"):
        FolderLock(path, "training")
    long_ago = time.time() - folder_lock._FRESH - 1
    os.utime(path, (long_ago, long_ago))  # a holder gives signs of life
    FolderLock(path, "training").release()


def test_a_record_of_a_killed_process_of_this_machine_is_no_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    path = tmp_path / LOCK
    path.write_text(json.dumps({"host": socket.gethostname(), "pid": gone.pid}))
    FolderLock(path, "training").release()
    path.write_text(json.dumps({"host": socket.gethostname(), "pid": gone.pid}))
    without_locks(monkeypatch)
    FolderLock(path, "training").release()


@pytest.mark.parametrize("lost", [1, 3])
def test_a_folder_that_its_last_holder_removes_meanwhile_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lost: int
) -> None:
    make, made = FolderLock._make_folders, []

    def make_and_lose(lock: FolderLock) -> None:
        make(lock)
        made.append(lock)
        if len(made) <= lost:
            (tmp_path / "run").rmdir()

    monkeypatch.setattr(FolderLock, "_make_folders", make_and_lose)
    FolderLock(tmp_path / "run" / LOCK, "training").release()
    assert len(made) == lost + 1 and not (tmp_path / "run").exists()


def test_where_no_folder_can_be_made_a_few_short_tries_end_it(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(folder_lock.time, "sleep", pauses.append)
    with pytest.raises(FileNotFoundError):
        FolderLock(Path("/proc/nowhere/corpus") / LOCK, "build")
    assert 0 < len(pauses) < 50 and sum(pauses) < 1
