"""Tasks on a Ray cluster: each done in a process that its Ray task starts, so that a crash is seen as on one machine.

A hostile file kills that process, not Ray's worker: it is tried once more and reported by its signal, as `ProcessPool`
does. What Ray retries is what happens to machines: a node that is lost, a worker that is killed for memory. Every task
writes the same bytes when it is done twice, so a retry changes nothing.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import re
import secrets
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any, Self

from pipelines.common.process_pool import ProcessPool
from sigma_data.errors import BuildError, ConfigError, SigmaError, reason_of
from sigma_data.text_format import counted

logger = logging.getLogger(__name__)

_RETRIES = 4
"""How often Ray does a task again whose node was lost."""
_RECOUNT = 5.0
"""Seconds for which a count of nodes is good enough to be shown."""
_UNITS = {"": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}
_PATIENCE = 10.0
"""Seconds for a connection."""
_TOKEN_FILE = Path("~/.ray/auth_token")
"""Where Ray keeps the token of clusters."""
_TOKEN_LOGGER = "ray._private.authentication.authentication_token_setup"
"""The logger on which Ray says that a cluster has a token."""


class RayEngine:
    """Runs tasks on a Ray cluster, at most `workers` at a time; by default as many as it has CPUs.

    The cluster at `address` ("auto" or HOST:PORT; by default RAY_ADDRESS, then what `ray start` began on this machine),
    or one that is started here, with a token of its own: where none is found, and for "local".
    Every node needs this package, and the same paths: a shared file system, or object stores.
    """

    def __init__(self, workers: int | None = None, *, address: str | None = None, resources: str | None = None) -> None:
        self._resources = parse_resources(resources)
        self._ray = _ray()
        self._limit, self._address = workers, address
        self._running = self._nodes = 0
        self._counted = -math.inf
        self._ours = False
        self.workers = workers or 1
        self.peak_bytes = 0
        self._task: Any = None

    def __enter__(self) -> Self:
        ray = self._ray
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        if not ray.is_initialized():
            self._ours = True
            named = self._address
            if named in (None, "auto"):  # then Ray takes RAY_ADDRESS, too
                named = os.environ.get("RAY_ADDRESS") or named
            found = _found(named)
            _reach(found or named or "", found=found is not None)
            if named in (None, "local") and found is None:
                _keep_token_here()
            try:
                ray.init(
                    address=self._address, log_to_driver=False, logging_level=logging.ERROR, configure_logging=False
                )
            except Exception as error:  # a wrong address raises many kinds
                where = found or named or "of this machine"
                raise ConfigError(f"--engine ray: the cluster {where} {_refusal(error)}") from None
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        cpus = int(sum(node.get("CPU", 0) for node in nodes))
        room = sum(fitting(self._resources, node) for node in nodes)
        if not room:
            self.__exit__(None, None, None)
            raise ConfigError(f"--task-resources: no node of the cluster has {_listed(self._resources)} for a task")
        self.workers = min(self._limit or room, room)
        size, most = f"{counted(len(nodes), 'node')} with {counted(cpus, 'CPU')}", counted(self.workers, "task")
        logger.info("ray: %s, %s at a time", size, most)
        others = dict(self._resources)
        cpu, gpu, memory = others.pop("CPU"), others.pop("GPU", None), others.pop("memory", None)
        options = {"num_cpus": cpu, "num_gpus": gpu, "memory": memory and int(memory), "resources": others}
        self._task = ray.remote(**options, max_retries=_RETRIES)(_do)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self._ours:
            self._ray.shutdown()

    def at_work(self) -> str:
        """Nodes that are there now, and tasks that were given to them."""
        if time.monotonic() - self._counted > _RECOUNT:
            self._nodes = sum(1 for node in self._ray.nodes() if node["Alive"])
            self._counted = time.monotonic()
        return f"{counted(self._nodes, 'node')}, {counted(self._running, 'task')}"

    def run(
        self, function: Callable[[Any], Any], tasks: Sequence[Any], done: Callable[[int, Any], None], *, what: str
    ) -> None:
        """See `Engine.run`. Raises BuildError where the cluster loses a task again and again."""
        ray = self._ray
        queue = iter(range(len(tasks)))
        running: dict[Any, int] = {}
        try:
            while True:
                while len(running) < self.workers and (index := next(queue, None)) is not None:
                    running[self._task.remote(function, tasks[index], what, str(Path.cwd()))] = index
                self._running = len(running)
                if not running:
                    return
                # With a limit in time, so that Ctrl-C is seen.
                ready, _ = ray.wait(list(running), num_returns=1, timeout=1.0)
                for reference in ready:
                    index = running.pop(reference)
                    try:
                        status, value, peak = ray.get(reference)
                    except ray.exceptions.RayError as error:
                        raise BuildError(
                            f"the cluster lost a task while {what} ({_short(error)}); run the same command again to "
                            "continue"
                        ) from None
                    self.peak_bytes = max(self.peak_bytes, peak)
                    if status == "error":
                        raise value
                    done(index, value)
        finally:  # also after Ctrl-C: nothing may write where a rerun is at work
            for reference in running:
                ray.cancel(reference, force=True)


def parse_resources(text: str | None) -> dict[str, float]:
    """What is set aside for a task, from "CPU=2,memory=4GB,NAME=1"; by default one CPU. Raises ConfigError."""
    found = {"CPU": 1.0}
    for part in filter(None, (part.strip() for part in (text or "").split(","))):
        name, _, amount = (word.strip() for word in part.partition("="))
        name = {"cpu": "CPU", "gpu": "GPU", "memory": "memory"}.get(name.lower(), name)
        size = re.fullmatch(r"(\d+(?:\.\d+)?|\.\d+)\s*([a-z]*)", amount.lower())
        unit = _UNITS.get(size[2]) if size is not None and (name == "memory" or not size[2]) else None
        value = float(size[1]) * unit if size is not None and unit is not None else 0.0
        if not name or not value or (value > 1 and name != "memory" and not value.is_integer()):
            raise ConfigError(
                f"--task-resources {part!r}: write NAME=AMOUNT, e.g. CPU=2,memory=4GB, amounts above 1 as whole numbers"
            )
        found[name] = value
    return found


def fitting(resources: Mapping[str, float], node: Mapping[str, float]) -> int:
    """How many tasks a node has room for at a time."""
    return int(min(node.get(name, 0.0) / amount for name, amount in resources.items()) + 1e-6)


def _listed(resources: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {amount:,g}" for name, amount in resources.items())


def _found(named: str | None) -> str | None:
    """The HOST:PORT that Ray finds by itself where none is named: of the last `ray start`, or of what runs here."""
    if named not in (None, "auto"):
        return None
    try:  # private, as Ray has no public way to ask; where it is renamed, only the check of the address is lost
        services = _ray()._private.services
        running = services.find_gcs_addresses() if named == "auto" else ()
        return next(iter(running)) if len(running) == 1 else services.find_bootstrap_address(None) or None
    except Exception:
        return None


def _reach(address: str, *, found: bool) -> None:
    """Raises ConfigError where nothing listens at HOST:PORT: Ray itself would try again for many minutes.

    `found`: the address is one that Ray has found by itself.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdecimal():
        return  # "auto", or what Ray says something of at once
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_PATIENCE).close()
    except (OSError, OverflowError) as error:
        todo = "look at the address, and whether `ray start` has begun there"
        if found:
            todo = (
                "Ray has this address from a `ray start` on this machine; run `ray stop` to forget it or `ray start "
                "--head` to begin anew, or give --address local for a Ray of this command's own"
            )
        raise ConfigError(f"--engine ray: nothing answers at {address} ({reason_of(error)}): {todo}") from None


_pool: ProcessPool | None = None
"""The one process of this Ray worker in which its tasks are done."""


def _do(function: Callable[[Any], Any], task: Any, what: str, folder: str) -> tuple[str, Any, int]:
    """Do a task on a node, in the driver's folder: ("ok", result or Crashed, peak) or ("error", exception, peak)."""
    global _pool
    if _pool is None:
        with contextlib.suppress(OSError):  # relative paths only mean the same where the folder is there
            os.chdir(folder)
        _pool = ProcessPool(1).__enter__()
    found: list[Any] = []
    try:
        _pool.run(function, [task], lambda _, value: found.append(value), what=what)
    except SigmaError as error:
        return "error", error, _pool.peak_bytes
    except Exception as error:
        return "error", BuildError(f"a task failed while {what} ({_short(error)})"), _pool.peak_bytes
    return "ok", found[0], _pool.peak_bytes


def _ray() -> ModuleType:
    try:
        import ray
    except ImportError:
        raise ConfigError("--engine ray needs the package ray: pip install 'sigma-multimodal[ray]'") from None
    module: ModuleType = ray
    return module


def _keep_token_here() -> None:
    """Give a cluster that Ray starts for this process a token in the environment.

    Ray would write one to `_TOKEN_FILE` instead, and every later `ray start` of the user would then ask for it, which
    neither `ray start --address` nor `ray.init(address=HOST:PORT)` sends by itself.
    """
    told = any(os.environ.get(name) for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"))
    if not told and not _TOKEN_FILE.expanduser().exists():
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
        logging.getLogger(_TOKEN_LOGGER).addFilter(_is_other)


def _is_other(record: logging.LogRecord) -> bool:
    """Whether a line of Ray is not the one on how to opt out of a token, which is no choice of the user here."""
    return not record.getMessage().startswith("Token authentication is enabled for this Ray cluster")


def _refusal(error: BaseException) -> str:
    """Why a cluster could not be joined, and what to do."""
    cause: BaseException | None = error
    while cause is not None:
        # Ray raises a ConnectionError, in whose cause the authentication's error is text.
        if "AuthenticationError" in f"{type(cause).__name__}: {cause}":
            return (
                "asks for a token that was not sent: set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN to the cluster's, by "
                f"default what {_TOKEN_FILE} held where `ray start --head` ran"
            )
        cause = cause.__cause__ or cause.__context__
    return f"cannot be reached ({_short(error)}): is `ray start` running there?"


def _short(error: BaseException) -> str:
    return (" ".join(str(error).split()) or type(error).__name__)[:200]
