"""Builds killed at random moments and run again: python benchmarks/random_kills.py [--engine local|store|ray].

A small corpus is built by the command, in every stage of a build (scan, plan, write, samples made from others, finish,
commit). At a random moment SIGKILL ends the driver, a worker, or the driver's whole process group; the same command
runs again in the same folder, to be killed again or to finish. Each finished corpus is compared with one that
`--workers 1` has built undisturbed: every file, byte by byte.

--engine store: the corpus goes to an S3 of this machine (moto's server); the folder of the build may be lost with its
processes, as if the next run were on another machine.

--engine ray: a cluster of two nodes in two network namespaces of this machine, where `ip netns` may be used, else in
one; killed are the driver, a worker of Ray's, the process in which a worker does its task, or the second node with all
that runs on it. Every run starts from the other node than the run before it.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import psutil  # type: ignore[import-untyped, unused-ignore]
from clusters import PATIENCE, Cluster, Local, Ray, Stored, digests, environment
from scale import write_release
from targets import check

_MOST_KILLS = 4
"""Kills of one folder before a run is let finish."""


class Builds:
    """The same build again and again, killed or not."""

    def __init__(self, cluster: Cluster, release: Path, dice: random.Random, log: Path) -> None:
        self.cluster, self.release, self.dice, self.log = cluster, release, dice, log
        self.turns = 0
        self.killed: Counter[str] = Counter()
        self.stages: Counter[str] = Counter()
        self.begun = self.seconds = 0.0

    def run(self, place: list[str], *, before: list[str], options: list[str]) -> subprocess.Popen[bytes]:
        """Start a build in a place."""
        words = [
            *before, sys.executable, "-m", "cli", "build-dataset", f"release:{self.release}", *place, *options,
            "shard_samples=8", "made.selective=true", "splits={train: 60, test: 40}",
        ]  # fmt: skip
        with self.log.open("wb") as log:
            return subprocess.Popen(words, stdout=log, stderr=log, start_new_session=True, env=environment())

    def finish(self, out: Path, *, alone: bool = False) -> None:
        """Build to the end, `alone` by one worker of this machine."""
        before, options = ([], ["--workers", "1"]) if alone else self._next()
        place = ["--out", str(out)] if alone else self.cluster.place(out)
        start, fresh = time.monotonic(), not out.exists()
        process = self.run(place, before=before, options=options)
        while fresh and not (out / ".sigma").exists() and process.poll() is None:
            time.sleep(0.01)
        begun = time.monotonic() - start
        if process.wait(timeout=PATIENCE):
            sys.exit(f"{out}: a build that nobody killed has failed:\n{self.log.read_text()}")
        if fresh and not alone:
            self.begun, self.seconds = begun, time.monotonic() - start

    def killed_once(self, out: Path) -> bool:
        """Build, and kill at a random moment; False if it was over before that."""
        before, options = self._next()
        start, fresh = time.monotonic(), not out.exists()
        process = self.run(self.cluster.place(out), before=before, options=options)
        with contextlib.suppress(subprocess.TimeoutExpired):
            # Of the time before it touches the folder, most of it imports, only the last fifth.
            process.wait(timeout=self.dice.uniform(0.8 * self.begun, self.seconds))
        if process.returncode is not None:
            self._check(process.returncode)
            if fresh:  # the machine is less busy than when the times were taken
                seconds = time.monotonic() - start
                self.begun, self.seconds = self.begun * min(1.0, seconds / self.seconds), seconds
            return False
        driver = psutil.Process(process.pid)
        with contextlib.suppress(psutil.Error):
            there = {kind: some for kind, some in self.cluster.victims(driver, out).items() if some}
            kind, stage = self.dice.choice(sorted(there)), _stage(out)
            self.dice.choice(there[kind])()
            self.killed[kind] += 1
            self.stages[stage] += 1
            # Where a worker was killed its driver says so, or does the task again, and goes on.
            self._check(process.wait(timeout=PATIENCE))
            return True
        self._check(process.wait(timeout=PATIENCE))
        return False

    def _next(self) -> tuple[list[str], list[str]]:
        self.turns += 1
        return self.cluster.command(self.turns)

    def _check(self, code: int) -> None:
        told = self.log.read_text(errors="replace")
        if code not in (0, 2, -signal.SIGKILL) or "Traceback" in told:
            sys.exit(f"a build ended with {code}:\n{told}")


def _stage(out: Path) -> str:
    """How far a build has got, by its files."""
    found = [path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()]
    if "corpus.json" in found:
        return "end"
    if any(name.endswith(".tar") and not name.startswith(".sigma/") for name in found):
        return "finish and commit"
    if any(name.endswith(".tar") for name in found):
        return "write"
    return "scan and plan" if any(name.startswith(".sigma/scan/") for name in found) else "start"


@contextlib.contextmanager
def opened(engine: str, folder: Path) -> Iterator[Cluster]:
    """A cluster, ended at the end."""
    cluster: Cluster = Local() if engine == "local" else Stored(folder) if engine == "store" else Ray(folder)
    try:
        yield cluster
    finally:
        cluster.stop()


def main() -> None:
    """Kill, run again, compare; print what was killed and where, and how many corpora differ."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--engine", choices=("local", "store", "ray"), default="local")
    parser.add_argument("--rows", type=int, default=24)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=1e9, help="no new kill after so long")
    parser.add_argument("--scratch", type=Path, help="folder for rows and corpora")
    options = parser.parse_args()
    end = time.monotonic() + 60 * options.minutes
    with tempfile.TemporaryDirectory(dir=options.scratch) as scratch, opened(options.engine, Path(scratch)) as cluster:
        folder = Path(scratch)
        write_release(folder / "release", options.rows, file_rows=max(1, options.rows // 4))
        builds = Builds(cluster, folder / "release", random.Random(options.seed), folder / "log")
        builds.finish(folder / "whole", alone=True)
        expected = digests(folder / "whole")
        builds.finish(folder / "first")
        compared, different = 1, int(cluster.made(folder / "first") != expected)
        while sum(builds.killed.values()) < options.kills and time.monotonic() < end:
            out = folder / f"killed-{compared}"
            for _ in range(_MOST_KILLS):
                if sum(builds.killed.values()) == options.kills or not builds.killed_once(out):
                    break
            builds.finish(out)
            compared += 1
            different += cluster.made(out) != expected
            shutil.rmtree(out, ignore_errors=True)
            print(f"{sum(builds.killed.values())} kills, {compared} corpora, {different} different", flush=True)
        where = getattr(cluster, "namespaces", None)
        print(
            f"engine {options.engine}" + ("" if where is None else f", {'two' if where else 'no'} network namespaces")
        )
        print("killed: " + ", ".join(f"{kind} {count}" for kind, count in sorted(builds.killed.items())))
        print("while: " + ", ".join(f"{stage} {count}" for stage, count in builds.stages.most_common()))
        check(f"corpora that differ, of {compared}", "", float(different), most=0.0)
    sys.exit(bool(different))


if __name__ == "__main__":
    main()
