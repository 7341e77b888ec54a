"""Starting a run: in place on one process, with torch's own elastic launcher on several.

A run that torchrun or a scheduler has started (RANK is set) is taken as it is. An interrupt or a
termination reaches every rank; they save together and leave.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from types import FrameType
from typing import Any

from pipelines.train.config import TrainConfig
from sigma_data import errors
from sigma_data.errors import ConfigError, SigmaError, TrainError

_GRACE = 10.0
"""Seconds that a rank with a fault of no known kind keeps quiet: mostly it has but lost another, which is to blame."""


@dataclass(frozen=True)
class Launch:
    """Processes: `nproc` on each of `nnodes` machines, which meet at `rdzv` (host:port)."""

    nproc: int = 1
    nnodes: int = 1
    rdzv: str | None = None
    run_id: str = "sigma"

    def check(self) -> None:
        """Raises ConfigError where several machines have no place to meet."""
        if self.nnodes > 1 and self.rdzv is None:
            raise ConfigError(f"--nnodes {self.nnodes}: name a place where all machines meet with --rdzv HOST:PORT")


def default_nproc() -> int:
    """A process a GPU, or one."""
    import torch

    return max(1, torch.cuda.device_count())


def launch(config: TrainConfig, where: Launch, *, quiet: bool = False) -> dict[str, Any] | None:
    """Train; returns the run's summary where this process has seen it (on the machine of rank 0).

    Raises SigmaError for what a user can mend, with the sentence of the rank that met it first, and KeyboardInterrupt
    where the run was told to stop before it had begun.
    """
    where.check()
    if "RANK" in os.environ or (where.nproc == 1 and where.nnodes == 1):
        from pipelines.train.trainer import train

        summary = train(config, quiet=quiet)
        return summary if os.environ.get("RANK", "0") == "0" else None
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    os.environ.setdefault("OMP_NUM_THREADS", "1")  # each rank's: together they have all cores
    # What a rank died of is said in one sentence; torch would add pages.
    for name in ("torch.distributed.elastic", "torch.multiprocessing"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    notes = tempfile.mkdtemp(prefix="sigma-train-")  # where ranks write down what they die of
    settings = LaunchConfig(
        min_nodes=where.nnodes,
        max_nodes=where.nnodes,
        nproc_per_node=where.nproc,
        run_id=where.run_id,
        rdzv_backend="c10d",
        rdzv_endpoint=where.rdzv or f"127.0.0.1:{_free_port()}",
        max_restarts=0,
        start_method="spawn",
        # Its own handlers would kill ranks that are still saving; ours hands the signal on and waits.
        signals_to_handle="SIGQUIT",
        logs_specs=DefaultLogsSpecs(log_dir=notes),
    )
    told = threading.Event()
    if not quiet:
        sys.stderr.write(f"train: starting {where.nproc} processes\n")

    def hand_on(_number: int, _frame: FrameType | None) -> None:
        """Tell the ranks to save and leave. A terminal has told them of Ctrl-C itself; twice does no harm."""
        told.set()
        children = multiprocessing.active_children()
        if not children:  # they are not there yet, and nothing has begun
            raise KeyboardInterrupt
        for child in children:
            child.terminate()

    before = {number: signal.signal(number, hand_on) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        results: dict[int, dict[str, Any] | None] = elastic_launch(settings, _rank)(config, quiet)
    except ChildFailedError as error:
        if told.is_set() and error.get_first_failure()[1].exitcode in (-signal.SIGTERM, -signal.SIGINT):
            raise KeyboardInterrupt from None  # there was nothing to save yet
        raise _told_by(error) from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        shutil.rmtree(notes, ignore_errors=True)
    return results.get(0)


def _rank(config: TrainConfig, quiet: bool) -> dict[str, Any] | None:
    """One rank's life, in a process of its own."""
    from torch.distributed.elastic.multiprocessing.errors import record

    from pipelines.train.trainer import train

    def run() -> dict[str, Any]:
        try:
            return train(config, quiet=quiet)
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


def _told_by(error: Any) -> SigmaError:
    """The error of the rank that failed first, as the sentence it was."""
    rank, failure = error.get_first_failure()
    text = str(failure.message["message"] if isinstance(failure.message, dict) else failure.message)
    name, _, sentence = text.partition(": ")
    kind = getattr(errors, name, None)
    if isinstance(kind, type) and issubclass(kind, SigmaError):
        told: SigmaError = kind(sentence)
        return told
    cause = "it was killed, most likely because memory ran out" if failure.exitcode == -signal.SIGKILL else text
    return TrainError(f"rank {rank} failed: {cause}; run the same command again to continue from the last checkpoint")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
