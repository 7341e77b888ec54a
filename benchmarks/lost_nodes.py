"""Nodes of a Ray cluster lost while they build: python benchmarks/lost_nodes.py [--rows N].

Two nodes in two network namespaces of this machine, where `ip netns` may be used. In mid-scan, and in mid-write, while
a task is at work on the second node: everything on that node is killed, with a driver on the other node, which goes on;
the driver is killed, and the command run again from the other node; the node is killed with the driver on it, and the
command run again from the node that is left. A lost node comes back for the next case. Each corpus is compared with
one that `--workers 1` has built undisturbed: every file, byte by byte.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from build_rivals import write_rows
from clusters import PATIENCE, Ray, digests, environment
from targets import check

SCAN, WRITE = "scan", "write"
_TRIES = 5
NODE, DRIVER, BOTH = "node", "driver", "node with the driver"


class Case:
    """A build by the cluster, of which something is lost in a stage."""

    def __init__(self, cluster: Ray, rows: Path, out: Path, fragments: int) -> None:
        self._cluster, self._rows, self._out, self._fragments = cluster, rows, out, fragments
        self._log = out.with_suffix(".log")

    def run(self, stage: str, lost: str) -> str:
        """Build to the end; returns how far it was. Ends the program where a build fails."""
        for _ in range(_TRIES):
            driver = self.start(0 if lost == NODE else 1)
            if (done := self._lose(driver, stage, lost)) is not None:
                break
            self._finish(driver)
            shutil.rmtree(self._out)  # it was over before a task was seen there: once more
        else:
            sys.exit(f"in {_TRIES} builds the {stage} was not seen half done:\n{self._log.read_text()}")
        if lost == NODE:
            self._finish(driver)
        else:
            driver.wait(PATIENCE)
            self._finish(self.start(0))
        return f"{done} of {self._fragments} fragments done"

    def start(self, node: int) -> subprocess.Popen[bytes]:
        """The build, by a driver on a node."""
        before, options = self._cluster.command(node)
        return build(self._rows, self._out, self._log, before=before, options=options)

    def _lose(self, driver: subprocess.Popen[bytes], stage: str, lost: str) -> int | None:
        """Wait until a part of a stage is done and a task at work on the second node; returns the fragments done.

        None if the stage was over before that was seen; nothing is lost then.
        """
        end = time.monotonic() + PATIENCE
        work = self._out / ".sigma" / stage
        while time.monotonic() < end and driver.poll() is None:
            done = _files(work)
            if self._fragments // 4 <= done < self._fragments - 1:
                with self._cluster.held(1) as busy:
                    if busy and (done := _files(work)) < self._fragments:
                        if lost == DRIVER:
                            driver.kill()
                        else:
                            self._cluster.lose(1)
                        return done
            time.sleep(0.005)
        return None

    def _finish(self, driver: subprocess.Popen[bytes]) -> None:
        code, told = driver.wait(PATIENCE), self._log.read_text(errors="replace")
        if code or "Traceback" in told:
            sys.exit(f"a build ended with {code}:\n{told}")


def _files(folder: Path) -> int:
    """Files of a folder, those that are being written left out."""
    return sum(1 for path in folder.iterdir() if not path.name.startswith(".")) if folder.is_dir() else 0


def build(rows: Path, out: Path, log: Path, *, before: list[str], options: list[str]) -> subprocess.Popen[bytes]:
    """Start the command, with its output in a file."""
    words = [
        *before, sys.executable, "-m", "cli", "build-dataset", f"release:{rows}", "--out", str(out), *options,
        "shard_samples=8", "splits={train: 60, test: 40}",
    ]  # fmt: skip
    with log.open("ab") as file:
        return subprocess.Popen(words, stdout=file, stderr=file, start_new_session=True, env=environment())


def main() -> None:
    """Lose each thing in each stage; print how far the build was, and how many corpora differ."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=96, help="in files of four")
    parser.add_argument("--side", type=int, default=768, help="pixels of each of three images a row")
    parser.add_argument("--scratch", type=Path, help="folder for rows and corpora")
    options = parser.parse_args()
    different = compared = 0
    with tempfile.TemporaryDirectory(dir=options.scratch) as scratch:
        folder = Path(scratch)
        rows, files = folder / "rows", options.rows // 4
        write_rows(rows, options.rows, options.side, files)
        whole = build(rows, folder / "whole", folder / "whole.log", before=[], options=["--workers", "1"])
        if whole.wait():
            sys.exit(f"the undisturbed build failed:\n{(folder / 'whole.log').read_text()}")
        expected = digests(folder / "whole")
        cluster = Ray(folder)
        try:
            for stage in (SCAN, WRITE):
                for lost in (NODE, DRIVER, BOTH):
                    out = folder / f"{stage}-{compared}"
                    how = Case(cluster, rows, out, files).run(stage, lost)
                    same = digests(out) == expected
                    compared, different = compared + 1, different + (not same)
                    print(
                        f"lost in mid-{stage}: {lost} ({how}): {'the same bytes' if same else 'DIFFERENT'}", flush=True
                    )
                    shutil.rmtree(out)
                    if 1 not in cluster.nodes:
                        cluster.start(1)
        finally:
            cluster.stop()
        print(f"{'two' if cluster.namespaces else 'no'} network namespaces")
    check(f"corpora that differ, of {compared}", "", float(different), most=0.0)
    sys.exit(bool(different))


if __name__ == "__main__":
    main()
