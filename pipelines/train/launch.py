"""Starting a run: in place on one process, with torch's own elastic launcher on several.

A run that torchrun or another launcher has started is taken as it is; `started` says what counts as one. An
interrupt or a termination reaches every rank; they save together and leave.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from types import FrameType
from typing import Any

from pipelines.common.console import message_level, show_messages
from pipelines.train.config import TrainConfig
from pipelines.train.distributed.launcher_env import resolve_launcher, without_launcher_env
from sigma_data import errors
from sigma_data.errors import ConfigError, SigmaError, TrainError

logger = logging.getLogger(__name__)

_OF_NETWORK = frozenset({"DistNetworkError", "DistStoreError", "ConnectionError", "TimeoutError", "gaierror"})
_ANSWER = 60.0
"""Seconds within which a store answers, and torch is loaded to ask it."""
_ASK = "import sys; from torch.distributed import TCPStore; TCPStore(sys.argv[1], int(sys.argv[2]), is_master=False)"
_GRACE = 10.0
"""Seconds that a rank with a fault of no known kind keeps quiet: mostly it has but lost another, which is to blame."""


@dataclass(frozen=True)
class Launch:
    """Processes: `nproc` on each of `nnodes` machines, which meet at `rdzv` (host:port)."""

    nproc: int = 1
    nnodes: int = 1
    rdzv: str | None = None
    run_id: str = "sigma"
    chosen: bool = True
    """The user said so; otherwise a launcher that has started this process counts more."""
    wait_s: float = 600.0
    """Seconds to wait for the other machines."""

    def check(self) -> None:
        """Raises ConfigError where several machines have no place to meet, or none that there can be."""
        if self.nnodes > 1 and self.rdzv is None:
            raise ConfigError(f"--nnodes {self.nnodes}: name a place where all machines meet with --rdzv HOST:PORT")
        if self.rdzv is not None:
            self.place()

    def place(self) -> tuple[str, int]:
        """Host and port of `rdzv`. Raises ConfigError where it is not both."""
        host, _, port = (self.rdzv or "").strip().rpartition(":")
        host = host.removeprefix("[").removesuffix("]")
        if not host or not port.isascii() or not port.isdigit() or not 0 < int(port) < 2**16:
            raise ConfigError(f"--rdzv {self.rdzv}: write HOST:PORT, e.g. node1:29400, with a port of 1 to 65535")
        return host, int(port)


def default_nproc() -> int:
    """A process a GPU, or one."""
    import torch

    return max(1, torch.cuda.device_count())


def launch(config: TrainConfig, where: Launch) -> dict[str, Any] | None:
    """Train; returns the run's summary where this process has seen it (on the machine of rank 0).

    Raises SigmaError for what a user can mend, with the message of the rank that met it first, and KeyboardInterrupt
    if the run was told to stop before it had begun.
    """
    where.check()
    started = resolve_launcher(chosen=where.chosen, nproc=where.nproc)
    if started is not None:
        from pipelines.train.trainer import train

        summary = train(config)
        return summary if started.rank == 0 else None
    with without_launcher_env():
        if where.nproc == 1 and where.nnodes == 1:
            from pipelines.train.trainer import train

            return train(config)
        return _launch(config, where)


def _launch(config: TrainConfig, where: Launch) -> dict[str, Any] | None:
    """Start this machine's ranks with torch's launcher and wait for them."""
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous import RendezvousError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    if where.rdzv is not None:
        _wait_for_host(where)
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # each rank's: together they have all cores
    # What a rank died of is said in one error message; torch would add pages.
    for name in ("torch.distributed.elastic", "torch.multiprocessing"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    notes = tempfile.mkdtemp(prefix="sigma-train-")  # where ranks write down what they die of
    settings = LaunchConfig(
        min_nodes=where.nnodes,
        max_nodes=where.nnodes,
        nproc_per_node=where.nproc,
        run_id=where.run_id,
        rdzv_backend="c10d",
        rdzv_configs={"join_timeout": int(where.wait_s), "read_timeout": min(60, int(where.wait_s))},
        rdzv_endpoint=where.rdzv or f"127.0.0.1:{_free_port()}",
        max_restarts=0,
        start_method="spawn",
        # Its own handlers would kill ranks that are still saving; ours hands the signal on and waits.
        signals_to_handle="SIGQUIT",
        logs_specs=DefaultLogsSpecs(log_dir=notes),
    )
    signalled = threading.Event()
    logger.info("train: starting %d processes", where.nproc)

    def hand_on(_number: int, _frame: FrameType | None) -> None:
        """Tell the ranks to save and leave. A terminal has told them of Ctrl-C itself; twice does no harm."""
        signalled.set()
        children = multiprocessing.active_children()
        if not children:  # they are not there yet, and nothing has begun
            raise KeyboardInterrupt
        for child in children:
            child.terminate()

    before = {number: signal.signal(number, hand_on) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        results: dict[int, dict[str, Any] | None] = elastic_launch(settings, _rank)(
            config, message_level(), where.nnodes
        )
    except ChildFailedError as error:
        if signalled.is_set() and error.get_first_failure()[1].exitcode in (-signal.SIGTERM, -signal.SIGINT):
            raise KeyboardInterrupt from None  # there was nothing to save yet
        raise _rank_error(error) from None
    except (RendezvousError, RuntimeError, OSError, ValueError) as error:
        raise _rendezvous_error(error, where) from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        shutil.rmtree(notes, ignore_errors=True)
    return results.get(0)


def _wait_for_host(where: Launch) -> None:
    """Wait until the machine where all meet answers, if it is another one: it may start later.

    Raises ConfigError where it has no address, or does not answer in time. torch would say so in pages.
    """
    host, port = where.place()
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise ConfigError(
            f"--rdzv {where.rdzv}: there is no machine {host} ({getattr(error, 'strerror', None) or error}): give the "
            "name or address of the first machine, the same on all"
        ) from None
    if any(_is_here(family, address[0]) for family, _, _, _, address in found):
        if not all(_is_here(family, address[0], port) for family, _, _, _, address in found):
            _check_store(where)
        return
    deadline = time.monotonic() + where.wait_s
    while True:
        try:
            socket.create_connection((host, port), timeout=min(5.0, where.wait_s)).close()
        except OSError as error:
            if time.monotonic() > deadline:
                raise ConfigError(
                    f"--rdzv {where.rdzv}: cannot be reached ({error.strerror or error}), for {where.wait_s:.0f} s: is "
                    "the command running there, with the same --rdzv, and the port open?"
                ) from None
            time.sleep(min(1.0, where.wait_s))
        else:
            _check_store(where)
            return


def _check_store(where: Launch) -> None:
    """Raise ConfigError where what answers is not a torch store: its client would wait for an answer for ever."""
    host, port = where.place()
    # In a process of its own, which can be ended: a thread that waits in torch's client cannot.
    command = [sys.executable, "-c", _ASK, host, str(port)]
    with contextlib.suppress(subprocess.TimeoutExpired):
        if subprocess.run(command, timeout=_ANSWER, check=False, capture_output=True).returncode == 0:  # noqa: S603
            return
    raise ConfigError(
        f"--rdzv {where.rdzv}: cannot meet there, for another program has that port: choose another, the same on all "
        "machines"
    )


def _is_here(family: int, address: Any, port: int = 0) -> bool:
    """Whether an address is one of this machine's, and the port free."""
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
        except OSError:
            return False
    return True


def _rendezvous_error(error: BaseException, where: Launch) -> SigmaError:
    """What kept the machines from meeting, as an error message."""
    from torch.distributed.elastic import rendezvous

    from pipelines.train.distributed.process_group import first_line

    place = f"--rdzv {where.rdzv}" if where.rdzv is not None else "the processes of this machine"
    if isinstance(error, rendezvous.RendezvousTimeoutError):
        return ConfigError(
            f"{place}: not all {where.nnodes} machines came within {where.wait_s:.0f} s: run the same command, with "
            "the same --nnodes and --rdzv, on each"
        )
    if isinstance(error, rendezvous.RendezvousClosedError):
        return ConfigError(f"{place}: the run there has ended, or has all its machines: give a new one another port")
    if not isinstance(error, rendezvous.RendezvousError) and type(error).__name__ not in _OF_NETWORK:
        raise error
    cause = first_line(error.__cause__ or error)
    return ConfigError(
        f"{place}: cannot meet there ({cause}): is the port free on that machine, or taken by another program?"
    )


def _rank(config: TrainConfig, level: int, machines: int) -> dict[str, Any] | None:
    """One rank's life, in a process of its own."""
    from torch.distributed.elastic.multiprocessing.errors import record

    from pipelines.train.trainer import train

    show_messages(level)

    def run() -> dict[str, Any]:
        try:
            return train(config, machines=machines)
        except SigmaError:
            raise
        except Exception:
            time.sleep(_GRACE)
            raise

    parent = os.getppid()
    summary: dict[str, Any] | None = record(run)()
    if os.getppid() != parent:  # the launcher is gone, and torch would wait for it to take the answer
        os._exit(1)
    return summary


def _rank_error(error: Any) -> SigmaError:
    """The error of the rank that failed first, with its message."""
    rank, failure = error.get_first_failure()
    text = str(failure.message["message"] if isinstance(failure.message, dict) else failure.message)
    name, _, message = text.partition(": ")
    kind = getattr(errors, name, None)
    if isinstance(kind, type) and issubclass(kind, SigmaError):
        error_of_rank: SigmaError = kind(message)
        return error_of_rank
    return TrainError(
        f"rank {rank} failed: {_cause(failure, text)}; run the same command again to continue from the last checkpoint"
    )


def _cause(failure: Any, text: str) -> str:
    """What a rank died of, in a line."""
    if failure.exitcode == -signal.SIGKILL:
        return "it was killed, most likely because memory ran out"
    if failure.exitcode < 0:
        return f"it was ended by {signal.Signals(-failure.exitcode).name}"
    if isinstance(failure.message, dict):
        return text.strip().partition("\n")[0]
    return f"it ended without a word, with exit code {failure.exitcode}"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
