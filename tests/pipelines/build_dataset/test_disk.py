"""A full disk or a forbidden place: one sentence, exit code 2, nothing half-committed."""

from __future__ import annotations

import errno
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import corpora
from support.commands import Ended, sigma

from pipelines.build_dataset import write
from sigma_data.errors import BuildError


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return corpora.make_release(tmp_path_factory.mktemp("disk") / "release", 60, seed=5)


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 400 kB."""
    place = tmp_path / "tiny"
    place.mkdir()
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=400k", "none", str(place)], capture_output=True)
    if mount.returncode:
        pytest.skip("this user may not mount a file system")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def one_sentence(result: Ended | subprocess.CompletedProcess[str], words: str) -> bool:
    last = result.stderr.splitlines()[-1]
    return result.returncode == 2 and last.startswith("sigma: ") and words in last and "Traceback" not in result.stderr


@pytest.mark.slow
def test_a_full_disk_is_one_sentence_and_the_rerun_continues(release: Path, tiny_disk: Path) -> None:
    words = ("build-dataset", f"release:{release}", "--out", str(tiny_disk / "out"), "--workers", "1")
    result = sigma(*words)
    assert one_sentence(result, "the disk is full"), result.stderr
    assert not (tiny_disk / "out" / "corpus.json").exists()
    subprocess.run(["mount", "-o", "remount,size=20m", str(tiny_disk)], check=True)
    assert sigma(*words).returncode == 0
    assert sigma("validate", str(tiny_disk / "out"), "--deep").returncode == 0


@pytest.mark.slow
def test_a_limit_on_file_sizes_is_one_sentence(release: Path, tmp_path: Path) -> None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))

    command = [sys.executable, "-m", "cli", "build-dataset", f"release:{release}", "--out", str(tmp_path / "out")]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, preexec_fn=limit)
    assert one_sentence(result, "cannot write"), result.stderr
    assert not (tmp_path / "out" / "corpus.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize("place", ["/proc/nowhere/corpus", "{file}/corpus", "{file}"])
def test_a_place_that_cannot_be_written_is_one_sentence(place: str, release: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    result = sigma("build-dataset", f"release:{release}", "--out", place.format(file=tmp_path / "file"))
    assert one_sentence(result, "--out"), result.stderr


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission_is_one_sentence(release: Path, tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)
    result = sigma("build-dataset", f"release:{release}", "--out", str(tmp_path / "locked" / "corpus"))
    assert one_sentence(result, "you may not write there"), result.stderr


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO])
def test_space_is_reserved_first_and_a_refusal_leaves_nothing(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    with pytest.raises(BuildError, match="cannot write"):
        write.preallocate(tmp_path / "train" / "a.tar", 10_000)
    assert not list((tmp_path / "train").iterdir())
