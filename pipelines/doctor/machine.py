"""Cores, memory, shared memory, file handles, and the disk that checkpoints go to."""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
import time
from pathlib import Path

from pipelines.common.process_pool import default_workers
from pipelines.doctor.finding import Finding, fail, ok, warn
from sigma_data.text_format import counted, format_bytes

SHARED = Path("/dev/shm")  # noqa: S108
SHARED_NEEDED = 2**30
"""NCCL, and other libraries, pass data between the processes of a machine through it; batches need none of it."""
HANDLES_NEEDED = 4096
SLOW_DISK = 100e6
"""Bytes a second below which checkpoints and shards hold up a GPU."""
FREE_NEEDED = 10 * 2**30
_GROUPS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
_WRITTEN = 128 * 2**20


def check_memory(cores: int, total: int, available: int) -> Finding:
    """Cores that this process may use, and memory in bytes."""
    found = f"{counted(cores, 'core')}, {format_bytes(available)} of {format_bytes(total)} memory free"
    if available < 2 * 2**30:
        return warn("machine", found, "less than 2 GiB are free: end other programs, or use --workers 1")
    return ok("machine", found)


def check_shared_memory(total: int | None, free: int) -> Finding:
    """Of /dev/shm, in bytes; None is a system without it."""
    if total is None:
        return ok("shared memory", "no /dev/shm on this system: not needed")
    found = f"{format_bytes(free)} of {format_bytes(total)} free in {SHARED}"
    if free < SHARED_NEEDED:
        return warn(
            "shared memory", found, "GPUs of one machine talk through it: start the container with --shm-size=16g"
        )
    return ok("shared memory", found)


def check_handles(soft: int, hard: int) -> Finding:
    """Open files that a process may have; -1 is no limit."""
    if soft == -1 or soft >= HANDLES_NEEDED:
        return ok("file handles", "no limit" if soft == -1 else f"{soft:,}")
    most = "" if hard == -1 else f" (this user may have {hard:,})"
    enough = hard == -1 or hard >= HANDLES_NEEDED
    advice = f"ulimit -n {HANDLES_NEEDED}" if enough else "raise `nofile` in /etc/security/limits.conf"
    return warn("file handles", f"{soft:,}{most}", f"many shards and workers want more: {advice}")


def check_disk(where: Path, free: int, speed: float | None, needed: int | None) -> list[Finding]:
    """Room and speed (bytes a second) of the disk that is written to; None is not known, or not measured."""
    name, found = "disk", f"{format_bytes(free)} free at {where}"
    if needed is not None and free < needed:
        advice = "set `out` to a larger disk, or checkpoint.keep lower"
        findings = [fail(name, f"{found}, and checkpoints take {format_bytes(needed)}", advice)]
    elif needed is None and free < FREE_NEEDED:
        advice = "corpora and checkpoints of released models take hundreds: choose another disk for them"
        findings = [warn(name, found, advice)]
    else:
        findings = [ok(name, found if needed is None else f"{found}; checkpoints take {format_bytes(needed)}")]
    if speed is not None:
        told = f"writes {speed / 1e6:,.0f} MB/s"
        slow = speed < SLOW_DISK
        advice = "write checkpoints and shards to a local disk, and copy them"
        findings.append(warn("disk speed", told, advice) if slow else ok("disk speed", told))
    return findings


def look_machine() -> list[Finding]:
    """Of this machine, or of the container's share of it."""
    import resource

    total, available = memory()
    shared = shutil.disk_usage(SHARED) if SHARED.is_dir() else None
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    infinite = resource.RLIM_INFINITY
    return [
        check_memory(default_workers(), total, available),
        check_shared_memory(shared.total if shared else None, shared.free if shared else 0),
        check_handles(-1 if soft == infinite else soft, -1 if hard == infinite else hard),
    ]


def look_disk(where: Path, *, measure: bool, needed: int | None) -> list[Finding]:
    """Of the disk that holds `where`, which need not be there yet; a file is written for a moment to measure it."""
    there = next(place for place in (where, *where.absolute().parents) if place.is_dir())
    if not os.access(there, os.W_OK | os.X_OK):
        return [fail("disk", f"{there} cannot be written", "choose another `out`, or change who may write there")]
    free = shutil.disk_usage(there).free
    speed = _write_speed(there) if measure and free > 4 * _WRITTEN else None
    return check_disk(there, free, speed, needed)


def _write_speed(folder: Path) -> float:
    block = secrets.token_bytes(2**20)  # no file system makes less of it
    with tempfile.TemporaryFile(dir=folder) as file:  # it has no name: nothing is left of it after a kill
        begin = time.perf_counter()
        for _ in range(_WRITTEN // len(block)):
            file.write(block)
        file.flush()
        os.fsync(file.fileno())
        return _WRITTEN / (time.perf_counter() - begin)


def memory() -> tuple[int, int]:
    """Total and available bytes, of the container where it has less."""
    page = os.sysconf("SC_PAGE_SIZE")
    total = page * os.sysconf("SC_PHYS_PAGES")
    info = Path("/proc/meminfo")
    said = info.read_text("ascii").partition("MemAvailable:")[2].split() if info.exists() else []
    available = int(said[0]) * 1024 if said else total
    for path in _GROUPS:
        text = path.read_text("ascii").strip() if path.exists() else ""
        if text.isdigit() and int(text) < total:
            used = _used(path)
            total = int(text)
            available = min(available, max(0, total - used))
    return total, available


def _used(limit: Path) -> int:
    name = "memory.current" if limit.name == "memory.max" else "memory.usage_in_bytes"
    path = limit.with_name(name)
    return int(path.read_text("ascii")) if path.exists() else 0
