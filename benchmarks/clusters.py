"""Where the builds of a benchmark run: processes of this machine, or two nodes of a Ray cluster.

Each node lies in a network namespace of this machine where `ip netns` may be used, with an address of its own and a
cable to the other.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path

import psutil  # type: ignore[import-untyped, unused-ignore]

_ROOT = Path(__file__).resolve().parents[1]
PATIENCE = 240.0
_PORT = 26379
_OBJECTS = 80 * 2**20


class Cluster(ABC):
    """Where builds run, and who can be killed there."""

    @abstractmethod
    def command(self, turn: int) -> tuple[list[str], list[str]]:
        """Words in front of a build's command, and options at its end; of Ray from the other node each turn."""

    @abstractmethod
    def victims(self, driver: psutil.Process) -> dict[str, list[psutil.Process]]:
        """Kind -> processes of it that are there now."""


class Local(Cluster):
    """Processes of this machine."""

    def command(self, turn: int) -> tuple[list[str], list[str]]:
        return [], ["--workers", "2"]

    def victims(self, driver: psutil.Process) -> dict[str, list[psutil.Process]]:
        workers = [one for one in driver.children() if "spawn_main" in " ".join(one.cmdline())]
        return {"driver": [driver], "worker": workers, "group": [driver]}


class Ray(Cluster):
    """Two nodes of a Ray cluster, each in a network namespace of its own if that is allowed here."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.namespaces = _namespaces()
        self.nodes: dict[int, subprocess.Popen[bytes]] = {}
        self.hosts = ("10.199.0.1", "10.199.0.2") if self.namespaces else ("127.0.0.1", "127.0.0.1")
        self.address = f"{self.hosts[0]}:{_PORT}"
        try:
            for number in range(2):
                self.start(number)
        except BaseException:
            self.stop()
            raise

    def start(self, number: int) -> None:
        """Start a node, 0 with what the cluster knows, and wait until it is there."""
        if self.nodes:
            self._wait(0)  # until a lost node is known to be lost
        where = ["--address", self.address] if number else ["--head", "--port", str(_PORT)]
        words = [
            *self.inside(number), str(Path(sys.executable).with_name("ray")), "start", *where, "--block",
            "--num-cpus", "1", "--node-ip-address", self.hosts[number], "--object-store-memory", str(_OBJECTS),
            "--disable-usage-stats", *(() if number else ("--include-dashboard", "false")),
        ]  # fmt: skip
        with (self.folder / f"node-{number}.log").open("wb") as log:
            self.nodes[number] = subprocess.Popen(
                words, stdout=log, stderr=log, start_new_session=True, env=environment()
            )
        self._wait(number)

    def lose(self, number: int) -> None:
        """End everything that runs on a node by SIGKILL."""
        for one in self._processes(number):
            with contextlib.suppress(psutil.Error):
                one.kill()
        self.nodes.pop(number).wait()

    @contextlib.contextmanager
    def held(self, number: int) -> Iterator[bool]:
        """Stop the clock of a node; whether a task is at work there."""
        there = self._processes(number)
        for one in there:
            with contextlib.suppress(psutil.Error):
                one.suspend()
        try:
            yield any(_words(one).startswith("ray::_do") for one in there)
        finally:
            for one in there:
                with contextlib.suppress(psutil.Error):
                    one.resume()

    def _processes(self, number: int) -> list[psutil.Process]:
        """Of a node: all in its namespace, a driver among them, or all that the node has started."""
        node = psutil.Process(self.nodes[number].pid)
        there = [node, *node.children(recursive=True)]
        if self.namespaces:
            told = subprocess.run(["ip", "netns", "pids", f"sigma{number}"], capture_output=True, text=True, check=True)
            for pid in {int(word) for word in told.stdout.split()} - {one.pid for one in there}:
                with contextlib.suppress(psutil.NoSuchProcess):
                    there.append(psutil.Process(pid))
        return there

    def inside(self, node: int) -> list[str]:
        """Words that run a command on a node."""
        return ["ip", "netns", "exec", f"sigma{node}"] if self.namespaces else []

    def _wait(self, number: int) -> None:
        """Wait until a node answers."""
        script = (
            f"import ray; ray.init(address={self.address!r}, logging_level='ERROR'); "
            f"assert sum(node['Alive'] for node in ray.nodes()) == {len(self.nodes)}"
        )
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            words = [*self.inside(number), sys.executable, "-c", script]
            if subprocess.run(words, capture_output=True, env=environment()).returncode == 0:
                return
            time.sleep(1)
        sys.exit(f"node {number} of the cluster does not start; see {self.folder}/node-{number}.log")

    def command(self, turn: int) -> tuple[list[str], list[str]]:
        return self.inside(turn % 2), ["--engine", "ray", "--address", self.address]

    def victims(self, driver: psutil.Process) -> dict[str, list[psutil.Process]]:
        below = [one for number in self.nodes for one in self._processes(number) if one.pid != driver.pid]
        named: dict[str, list[psutil.Process]] = {"driver": [driver], "Ray's worker": [], "a task's process": []}
        for one in below:
            words = _words(one)
            if words.startswith("ray::_do"):
                named["Ray's worker"].append(one)
            elif "spawn_main" in words:
                named["a task's process"].append(one)
        return named

    def stop(self) -> None:
        """End what this has started."""
        for number in sorted(self.nodes, reverse=True):
            self.lose(number)
        for number in range(2 if self.namespaces else 0):
            subprocess.run(["ip", "netns", "del", f"sigma{number}"], check=False)


def _namespaces() -> bool:
    """Two namespaces with a cable between them; False where that is not allowed."""
    steps = (
        "netns add sigma0", "netns add sigma1", "link add sigma0 netns sigma0 type veth peer name sigma1 netns sigma1",
        *(f"-n sigma{n} addr add 10.199.0.{n + 1}/24 dev sigma{n}" for n in (0, 1)),
        *(f"-n sigma{n} link set {device} up" for n in (0, 1) for device in (f"sigma{n}", "lo")),
    )  # fmt: skip
    if shutil.which("ip") is None:
        return False
    for step in steps:
        done = subprocess.run(["ip", *step.split()], capture_output=True, text=True)
        if done.returncode:
            for number in (0, 1):
                subprocess.run(["ip", "netns", "del", f"sigma{number}"], capture_output=True)
            print(f"no network namespaces ({done.stderr.strip()})", flush=True)
            return False
    return True


def _words(process: psutil.Process) -> str:
    """Command line of a process, empty if it has ended."""
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def environment() -> dict[str, str]:
    """Environment of nodes and builds: this checkout before others."""
    paths = [str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "RAY_USAGE_STATS_ENABLED": "0"}
