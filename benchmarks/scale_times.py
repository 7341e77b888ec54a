"""How long a build takes on 1, 8 and 64 machines: python benchmarks/scale_times.py prints the table of docs/scale.md.

A simulation, not a measurement. The rates of one core and of the parent are measured (docs/performance.md and
docs/scale.md say where), those of machines are assumptions; both stand below. Files are dealt out to workers one at a
time, as the build does it; a worker's rate is the least of its core's, its share of its machine's disk or network, and
its share of what the store gives to all machines.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass

import numpy as np

MB, GB, TB = 1e6, 1e9, 1e12

# Measured, on one core of the machine in docs/performance.md.
SCAN, WRITE, HASH = 32 * MB, 250 * MB, 1500 * MB
"""Bytes a second and core: decoding and checking, copying to the shards, hashing a finished shard."""
PLAN, COMMIT = 31e-6, 33e-6
"""Seconds a row of the parent, which is one process: the plan; manifest, card and report."""

# Assumed.
CORES, DISK, NETWORK, STORE = 32, 2 * GB, 3 * GB, 40 * GB
"""Of a machine: cores, its disk and its network in bytes a second. Of the store: bytes a second to all machines."""
START = 20.0
"""Seconds until workers of all machines have started."""
MACHINES = (1, 8, 64)


@dataclass(frozen=True)
class Corpus:
    """What is built: rows in files whose sizes vary by a third."""

    name: str
    rows: int
    files: int
    bytes: float


CORPORA = (
    Corpus("the release: 653,237 samples, 2 TB", 653_237, 2_177, 2 * TB),
    Corpus("10 million samples, 30 TB", 10_000_000, 33_333, 30 * TB),
)


def makespan(sizes: np.ndarray[tuple[int], np.dtype[np.float64]], workers: int, rate: float) -> float:
    """Seconds until all tasks are done, each taken by the worker that is free first."""
    free = [0.0] * min(workers, len(sizes))
    for size in sizes:
        heapq.heapreplace(free, free[0] + float(size) / rate)
    return max(free)


def stages(corpus: Corpus, machines: int) -> dict[str, tuple[float, str]]:
    """Stage -> seconds, and what limits it."""
    dice = np.random.default_rng(0)
    sizes = np.maximum(dice.normal(1, 1 / 3, corpus.files), 0.1)
    sizes *= corpus.bytes / sizes.sum()
    workers = machines * CORES
    store = STORE / machines if machines > 1 else np.inf

    def stage(core: float, in_and_out: float) -> tuple[float, str]:
        """`in_and_out`: bytes that pass disk or network for each byte of the sources."""
        busy = min(workers, len(sizes)) / machines
        shared = {"disk": DISK} if machines == 1 else {"network": NETWORK, "store": store}
        limits = {"cores": core, **{name: rate / in_and_out / busy for name, rate in shared.items()}}
        slowest = min(limits, key=lambda name: limits[name])
        return makespan(sizes, workers, limits[slowest]), slowest

    return {
        "scan": stage(SCAN, 1),
        "plan": (corpus.rows * PLAN, "parent"),
        "write": stage(WRITE, 2),
        "finish": stage(HASH, 2 if machines > 1 else 1),
        "commit": (corpus.rows * COMMIT, "parent"),
    }


def hours(seconds: float) -> str:
    """A duration in the unit that suits it."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 3600:.1f} h" if seconds >= 3600 else f"{seconds / 60:.0f} min"


def table() -> list[str]:
    """The lines of the table."""
    names = ["scan", "plan", "write", "finish", "commit"]
    lines = [f"| corpus | machines | {' | '.join(names)} | in all |", f"|---|---:|{'---:|' * (len(names) + 1)}"]
    for corpus in CORPORA:
        for machines in MACHINES:
            found = stages(corpus, machines)
            cells = [f"{hours(found[name][0])} ({found[name][1]})" for name in names]
            total = START + sum(seconds for seconds, _ in found.values())
            lines.append(f"| {corpus.name} | {machines} | {' | '.join(cells)} | **{hours(total)}** |")
    return lines


if __name__ == "__main__":
    print("\n".join(table()))
