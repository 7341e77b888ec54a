"""Who has started this process: `sigma` itself, or a launcher such as torchrun that has numbered it among others.

A launcher is one whose variables are all there and fit one another. Variables that are left over, from a scheduler's
script, an interactive session, an image, are no launcher: they are set aside, and that is said.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from sigma_data.errors import ConfigError

logger = logging.getLogger(__name__)

_RANK, _SIZE, _LOCAL, _ADDRESS, _PORT = "RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"
_NEEDED = (_RANK, _SIZE, _ADDRESS, _PORT)
_TORCHRUN = "TORCHELASTIC_RUN_ID"


@dataclass(frozen=True)
class LauncherRank:
    """This process's place among those that a launcher started; `has_address`: where they meet is set."""

    rank: int
    size: int
    local_rank: int
    has_address: bool = True


def launcher_rank(variables: Mapping[str, str] = os.environ, *, need_address: bool = True) -> LauncherRank | None:
    """The place that a launcher gave this process; None where there is no launcher.

    Without `need_address`, where the ranks meet may be missing: what does not fit the ranks is said before that.

    Raises ConfigError where its variables contradict one another, or say that there are others and not where.
    """
    there = {name: variables[name] for name in _NEEDED if variables.get(name, "").strip()}
    if len(there) < len(_NEEDED):
        missing = [name for name in _NEEDED if name not in there]
        if _RANK in there and _SIZE in there and (_whole(there[_SIZE]) or 0) > 1:
            rank, size = _whole(there[_RANK]), _whole(there[_SIZE])
            if not need_address and rank is not None and size is not None and rank < size:
                return LauncherRank(rank, size, _whole(variables.get(_LOCAL, "0")) or 0, has_address=False)
            raise ConfigError(
                f"{_assignments(there)} say that a launcher started this process as one of {there[_SIZE]}, but not "
                f"where they meet ({' and '.join(missing)} missing): set what is missing, or unset {_RANK} and "
                f"{_SIZE}, or give --nproc"
            )
        return None
    local = variables.get(_LOCAL, "0")
    rank, size, local_rank, port = map(_whole, (there[_RANK], there[_SIZE], local, there[_PORT]))
    if rank is None or size is None or local_rank is None or port is None or rank >= size or not 0 < port < 2**16:
        found = {**there, **({_LOCAL: local} if _LOCAL in variables else {})}
        raise ConfigError(
            f"{_assignments(found)} do not fit together as a launcher sets them: unset {' '.join(found)}, or "
            "give --nproc"
        )
    return LauncherRank(rank, size, local_rank)


def resolve_launcher(*, chosen: bool, nproc: int) -> LauncherRank | None:
    """Who starts the ranks: a launcher that has done so already, or, for None, this process.

    `chosen`: the user said how many (--nproc, --nnodes or --rdzv), which counts more than variables do. What is set
    aside is logged as a warning. Raises ConfigError as `launcher_rank` does, and where torchrun has started several
    of us and each was told to start more.
    """
    left = [name for name in (_RANK, _SIZE, _LOCAL) if name in os.environ]
    if not chosen:
        started = launcher_rank()
        if started is None and left:
            found = _assignments({name: os.environ[name] for name in left})
            logger.warning(f"train: {found} {_are(left)} not a launcher's, and set aside")
        return started
    if _TORCHRUN in os.environ and (_whole(os.environ.get(_SIZE, "")) or 0) > 1:
        raise ConfigError(
            f"torchrun has started this process as one of {os.environ[_SIZE]}, and --nproc would start more in each: "
            "leave out --nproc, --nnodes and --rdzv, or start sigma without torchrun"
        )
    if left:
        found = _assignments({name: os.environ[name] for name in left})
        logger.warning(f"train: --nproc {nproc} counts: {found} {_are(left)} set by something else, and set aside")
    return None


@contextmanager
def without_launcher_env() -> Iterator[None]:
    """Without the variables of any launcher, so that nothing reads them."""
    names = [name for name in os.environ if name in (*_NEEDED, _LOCAL) or name.startswith("TORCHELASTIC_")]
    before = {name: os.environ.pop(name) for name in names}
    try:
        yield
    finally:
        os.environ.update(before)


def _whole(text: str) -> int | None:
    """A number as launchers write it; None for anything else."""
    return int(text) if text.strip().isascii() and text.strip().isdigit() else None


def _assignments(values: Mapping[str, str]) -> str:
    return " ".join(f"{name}={value}" for name, value in values.items())


def _are(names: list[str]) -> str:
    return "are" if len(names) > 1 else "is"
