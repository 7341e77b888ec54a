"""Memory, shared memory, file handles, the disk."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.doctor.finding import Status
from pipelines.doctor.machine import (
    check_disk,
    check_handles,
    check_memory,
    check_shared_memory,
    look_disk,
    memory,
)

GIB = 2**30


def test_memory_and_shared_memory() -> None:
    assert check_memory(8, 64 * GIB, 60 * GIB).status is Status.OK
    assert check_memory(8, 64 * GIB, GIB).status is Status.WARN
    assert check_shared_memory(None, 0).status is Status.OK
    assert check_shared_memory(64 * 2**20, 64 * 2**20).status is Status.WARN, "what a container has by default"
    assert check_shared_memory(16 * GIB, 15 * GIB).status is Status.OK


def test_memory_of_this_machine() -> None:
    total, available = memory()
    assert 0 < available <= total


@pytest.mark.parametrize(
    ("soft", "hard", "status", "advice"),
    [
        (-1, -1, Status.OK, ""),
        (65536, 65536, Status.OK, ""),
        (1024, 65536, Status.WARN, "ulimit -n 4096"),
        (1024, -1, Status.WARN, "ulimit -n 4096"),
        (1024, 1024, Status.WARN, "limits.conf"),
    ],
)
def test_file_handles(soft: int, hard: int, status: Status, advice: str) -> None:
    found = check_handles(soft, hard)
    assert found.status is status
    assert advice in found.advice


@pytest.mark.parametrize(
    ("free", "speed", "needed", "statuses"),
    [
        (100 * GIB, None, None, [Status.OK]),
        (1 * GIB, None, None, [Status.WARN]),
        (1 * GIB, None, 2**20, [Status.OK]),
        (100 * GIB, None, 101 * GIB, [Status.FAIL]),
        (100 * GIB, 2e9, 1, [Status.OK, Status.OK]),
        (100 * GIB, 2e7, 1, [Status.OK, Status.WARN]),
    ],
)
def test_disk(tmp_path: Path, free: int, speed: float | None, needed: int | None, statuses: list[Status]) -> None:
    assert [one.status for one in check_disk(tmp_path, free, speed, needed)] == statuses


def test_measuring_the_disk_leaves_nothing_behind(tmp_path: Path) -> None:
    findings = look_disk(tmp_path / "not" / "there", measure=True, needed=0)
    assert [one.check for one in findings] == ["disk", "disk speed"]
    assert str(tmp_path) in findings[0].found
    assert list(tmp_path.iterdir()) == []
