"""Ranks compare what they have read before the first step: different settings or files would spoil the model.

Each rank puts what it has read for itself into the store that all share, item by item; rank 0 holds them against its
own, and all end with the same error message if something differs, which names the item, the ranks and their machines.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import socket
import time
from collections import defaultdict
from collections.abc import Mapping
from datetime import timedelta
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from torch.distributed import Store  # type: ignore[attr-defined]

import pipelines
import sigma_data
import sigma_model
from pipelines.train.config import TrainConfig
from sigma_data.errors import ConfigError, TrainError
from sigma_data.planning.settings_diff import flat, shown
from sigma_data.version import sigma_version
from sigma_model.config import PRESETS
from sigma_model.omnigen2.files import PRESETS as OMNIGEN2_PRESETS

version = cache(metadata.version)
"""Of a distribution, whose metadata is a file to be parsed."""
_LIBRARIES = ("torch", "numpy", "pillow", "transformers", "tokenizers", "safetensors", "pyarrow")
_VARIABLES = (
    "NVIDIA_TF32_OVERRIDE", "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE", "CUBLAS_WORKSPACE_CONFIG", "ATEN_CPU_CAPABILITY",
    "ONEDNN_DEFAULT_FPMATH_MODE", "DNNL_DEFAULT_FPMATH_MODE", "MKL_CBWR", "NCCL_ALGO", "NCCL_PROTO",
)  # fmt: skip
"""Environment variables that change numbers."""
_OWN = ("out", "loader.", "log.", "model.base")
"""Settings that a machine may have for itself: they change no number. `out` is looked at by what lies there."""
_LISTED = 5


def facts_of(config: TrainConfig, **more: object) -> dict[str, str]:
    """What a rank trains with, as far as it is known before anything is read: settings, code, libraries, variables.

    Places of corpora and weights are left out: what lies there counts, and is compared once it is read.
    """
    settings = flat(config.model_dump(mode="json"))
    facts = {name: shown(value) for name, value in settings.items() if not _is_own(name)}
    if config.model.path in (*PRESETS, *OMNIGEN2_PRESETS):
        facts["model.path"] = config.model.path
    facts |= {f"the version of {name}": found for name in _LIBRARIES if (found := _version(name))}
    facts |= {"the version of Python": platform.python_version(), "the version of sigma": sigma_version()}
    facts["the code of sigma"] = code_digest()
    facts |= {f"the variable {name}": os.environ.get(name, "not set") for name in _VARIABLES}
    return facts | {name: str(value) for name, value in more.items()}


@cache
def code_digest() -> str:
    """The first 12 digits of SHA-256 over the source of this package."""
    digest = hashlib.sha256()
    for package in (pipelines, sigma_data, sigma_model):
        root = Path(package.__path__[0])
        for path in sorted(root.rglob("*.py")):
            digest.update(f"{path.relative_to(root.parent)} ".encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def compare(
    store: Store, *, rank: int, size: int, stage: str, facts: Mapping[str, str], timeout_s: float = 600
) -> None:
    """Hold this rank's facts against those of all others; every rank must call this, as often as the others.

    Raises ConfigError, the same on all ranks, where some differ, TrainError where a rank does not come.
    """
    place = f"sigma/{stage}/{store.add(f'sigma/{stage}/{rank}', 1)}"  # of this turn: a store may outlive a run
    store.set(f"{place}/{rank}", json.dumps([socket.gethostname(), dict(facts)]))
    if rank == 0:
        by_rank = [json.loads(_get(store, f"{place}/{other}", other, timeout_s)) for other in range(size)]
        store.set(f"{place}/verdict", " " + differences(by_rank))  # a store holds no empty values
    verdict = _get(store, f"{place}/verdict", 0, timeout_s).decode().strip()
    store.add(f"{place}/read", 1)
    if verdict:
        deadline = time.monotonic() + 10
        while rank == 0 and store.add(f"{place}/read", 0) < size and time.monotonic() < deadline:
            time.sleep(0.05)  # the store may end with this process
        raise ConfigError(verdict)


def differences(by_rank: list[Any]) -> str:
    """What ranks differ in, from [host, facts] of each; empty where they agree."""
    host, expected = by_rank[0]
    others: dict[tuple[str, str, str], list[int]] = defaultdict(list)
    for rank, (its_host, facts) in enumerate(by_rank):
        for name in dict.fromkeys([*expected, *facts]):
            if facts.get(name) != expected.get(name):
                others[name, facts.get(name, "not there"), its_host].append(rank)
    if not others:
        return ""
    lines = [
        f"{name} is {value} on {_ranks(ranks)} ({its_host}) and {expected.get(name, 'not there')} on rank 0 ({host})"
        for (name, value, its_host), ranks in others.items()
    ]
    more = [f"and {len(lines) - _LISTED} more"] if len(lines) > _LISTED else []
    return (
        f"the ranks would not train one model: {'; '.join([*lines[:_LISTED], *more])}: start the same command, with "
        "the same versions and files, on every machine"
    )


def _get(store: Store, key: str, rank: int, timeout_s: float) -> bytes:
    try:
        store.wait([key], timedelta(seconds=timeout_s))
        value: bytes = store.get(key)
    except RuntimeError as error:  # torch's own errors of stores among them
        reason = "did not come" if "timeout" in str(error).lower() else "is gone"
        raise TrainError(
            f"rank {rank} {reason} (waited for at most {timeout_s:.0f} s): see what it says; all ranks must be started"
        ) from None
    return value


def _ranks(ranks: list[int]) -> str:
    if len(ranks) == 1:
        return f"rank {ranks[0]}"
    whole = ranks == list(range(ranks[0], ranks[-1] + 1))
    return f"ranks {ranks[0]} to {ranks[-1]}" if whole else f"ranks {', '.join(map(str, ranks))}"


def _is_own(name: str) -> bool:
    places = name == "model.path" or (name.startswith("data.corpora.") and name.endswith(".path"))
    return places or any(name == own or (own.endswith(".") and name.startswith(own)) for own in _OWN)


def _version(name: str) -> str:
    try:
        return version(name)
    except metadata.PackageNotFoundError:
        return ""
