"""Where the builds of a benchmark run: processes of this machine, with or without a store, or nodes of a Ray cluster.

Each node lies in a network namespace of this machine where `ip netns` may be used, with an address of its own and a
cable to the other.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil  # type: ignore[import-untyped, unused-ignore]

_ROOT = Path(__file__).resolve().parents[1]
PATIENCE = 240.0
_STARTS = 3
"""Tries to start a node."""
_PORT = 20000 + os.getpid() % 10000
"""Of the head: Ray takes another run's head of the same address for its own."""
_OBJECTS = 80 * 2**20
_TOKEN = secrets.token_hex(32)
"""Of this run's cluster: what a user has in ~/.ray/auth_token would be asked for by its head, and sent by nobody."""


Kill = Callable[[], object]
"""Ends something by SIGKILL."""


def digests(folder: Path) -> dict[str, str]:
    """Every file of a folder, hidden ones included, and the digest of its bytes."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


class Cluster(ABC):
    """Where builds run, and who can be killed there."""

    def place(self, out: Path) -> list[str]:
        """Options that name where the corpus goes whose state is in a folder."""
        return ["--out", str(out)]

    def made(self, out: Path) -> dict[str, str]:
        """Every file of a corpus, and the digest of its bytes."""
        return digests(out)

    def stop(self) -> None:  # noqa: B027 (most have started nothing)
        """End what this has started."""

    @abstractmethod
    def command(self, turn: int) -> tuple[list[str], list[str]]:
        """Words in front of a build's command, and options at its end; of Ray from the other node each turn."""

    @abstractmethod
    def victims(self, driver: psutil.Process, out: Path) -> dict[str, list[Kill]]:
        """Kind -> what ends one of those that are at work on a corpus now."""


class Local(Cluster):
    """Processes of this machine."""

    def command(self, turn: int) -> tuple[list[str], list[str]]:
        return [], ["--workers", "2"]

    def victims(self, driver: psutil.Process, out: Path) -> dict[str, list[Kill]]:
        workers = [one.kill for one in driver.children() if "spawn_main" in " ".join(one.cmdline())]
        return {"driver": [driver.kill], "worker": [*workers], "group": [lambda: os.killpg(driver.pid, signal.SIGKILL)]}


class Stored(Local):
    """Processes of this machine that build in a store: moto's S3 on loopback, which is never killed."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        os.environ |= {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}", "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1",
            "SIGMA_CACHE": str(folder / "cache"),
        }  # fmt: skip
        words = [str(Path(sys.executable).with_name("moto_server")), "-H", "127.0.0.1", "-p", str(port)]
        with (folder / "store.log").open("wb") as log:
            self._server = subprocess.Popen(words, stdout=log, stderr=log)
        try:
            import s3fs  # type: ignore[import-untyped, unused-ignore]

            end = time.monotonic() + PATIENCE
            while True:
                try:
                    self._fs = s3fs.S3FileSystem()
                    self._fs.mkdir("bucket")
                    break
                except OSError:
                    if time.monotonic() > end or self._server.poll() is not None:
                        sys.exit(f"the store does not start; see {folder}/store.log")
                    time.sleep(0.2)
        except BaseException:
            self.stop()
            raise

    def place(self, out: Path) -> list[str]:
        return ["--out", f"s3://bucket/{out.name}", "--work", str(out)]

    def made(self, out: Path) -> dict[str, str]:
        self._fs.invalidate_cache()
        root = f"bucket/{out.name}/"
        there = {name: self._fs.cat_file(name) for name in self._fs.find(root)}
        return {name.removeprefix(root): hashlib.sha256(data).hexdigest() for name, data in sorted(there.items())}

    def victims(self, driver: psutil.Process, out: Path) -> dict[str, list[Kill]]:
        def machine() -> None:
            """All processes and the local folder: the next run is that of another machine."""
            below = driver.children(recursive=True)
            os.killpg(driver.pid, signal.SIGKILL)
            psutil.wait_procs([driver, *below])
            shutil.rmtree(out, ignore_errors=True)

        return {**super().victims(driver, out), "machine": [machine]}

    def stop(self) -> None:
        self._server.terminate()
        self._server.wait()


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
        for _ in range(_STARTS):
            with (self.folder / f"node-{number}.log").open("wb") as log:
                self.nodes[number] = subprocess.Popen(
                    words, stdout=log, stderr=log, start_new_session=True, env=environment()
                )
            if self._wait(number):
                return
            self.lose(number)  # Ray gives up after half a minute, which a busy machine may take
        sys.exit(f"node {number} of the cluster does not start; see {self.folder}/node-{number}.log")

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
        node = None if self.nodes[number].poll() is not None else psutil.Process(self.nodes[number].pid)
        there = [] if node is None else [node, *node.children(recursive=True)]
        if self.namespaces:
            told = subprocess.run(["ip", "netns", "pids", _space(number)], capture_output=True, text=True, check=True)
            for pid in {int(word) for word in told.stdout.split()} - {one.pid for one in there}:
                with contextlib.suppress(psutil.NoSuchProcess):
                    there.append(psutil.Process(pid))
        return there

    def inside(self, node: int) -> list[str]:
        """Words that run a command on a node."""
        return ["ip", "netns", "exec", _space(node)] if self.namespaces else []

    def _wait(self, number: int) -> bool:
        """Wait until a node answers; False where it has ended or never does."""
        script = (
            f"import ray; ray.init(address={self.address!r}, logging_level='ERROR'); "
            f"assert sum(node['Alive'] for node in ray.nodes()) == {len(self.nodes)}"
        )
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end and self.nodes[number].poll() is None:
            words = [*self.inside(number), sys.executable, "-c", script]
            with contextlib.suppress(subprocess.TimeoutExpired):
                if subprocess.run(words, capture_output=True, env=environment(), timeout=60).returncode == 0:
                    return True
            time.sleep(1)
        return False

    def command(self, turn: int) -> tuple[list[str], list[str]]:
        if 1 not in self.nodes:
            self.start(1)
        return self.inside(turn % 2), ["--engine", "ray", "--address", self.address]

    def victims(self, driver: psutil.Process, out: Path) -> dict[str, list[Kill]]:
        below = [one for number in self.nodes for one in self._processes(number) if one.pid != driver.pid]
        workers = [one.kill for one in below if _words(one).startswith("ray::_do")]
        doing = [one.kill for one in below if "spawn_main" in _words(one)]
        # The head's node is what a cluster cannot lose.
        node: dict[str, list[Kill]] = {"node": [lambda: self.lose(1)]} if self.namespaces else {}
        return {"driver": [driver.kill], "Ray's worker": [*workers], "a task's process": [*doing], **node}

    def stop(self) -> None:
        for number in sorted(self.nodes, reverse=True):
            self.lose(number)
        for number in range(2 if self.namespaces else 0):
            subprocess.run(["ip", "netns", "del", _space(number)], check=False)


def _space(number: int) -> str:
    """The namespace of a node, this run's own: several may run at a time."""
    return f"sigma{os.getpid()}-{number}"


def _namespaces() -> bool:
    """Two namespaces with a cable between them; False where that is not allowed."""
    steps = (
        f"netns add {_space(0)}", f"netns add {_space(1)}",
        f"link add sigma0 netns {_space(0)} type veth peer name sigma1 netns {_space(1)}",
        *(f"-n {_space(n)} addr add 10.199.0.{n + 1}/24 dev sigma{n}" for n in (0, 1)),
        *(f"-n {_space(n)} link set {device} up" for n in (0, 1) for device in (f"sigma{n}", "lo")),
    )  # fmt: skip
    if shutil.which("ip") is None:
        return False
    for step in steps:
        done = subprocess.run(["ip", *step.split()], capture_output=True, text=True)
        if done.returncode:
            for number in (0, 1):
                subprocess.run(["ip", "netns", "del", _space(number)], capture_output=True)
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
    ray = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": _TOKEN}
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), **ray}
