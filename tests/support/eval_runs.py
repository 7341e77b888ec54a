"""What evaluations are tested with: a tiny model that answers to what it is shown, a small world, work for ranks.

Heavy imports stand inside: a rank that only counts must not load a network.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cli
from sigma_data.errors import ConfigError


def save_model(folder: Path, *, seed: int = 1) -> Path:
    """A small model with random weights."""
    import torch

    from sigma_model.checkpoint_io import export_model, init_model
    from sigma_model.config import ModelConfig
    from support import small_model

    small_model.copy_preset(folder)
    model = init_model(ModelConfig.from_directory(folder), seed=seed, dtype=torch.float32, device="cpu")
    torch.manual_seed(seed + 1)
    torch.nn.init.normal_(model.latent_out.weight, std=0.3)
    export_model(model, folder)
    return folder


def save_world(folder: Path, count: int, *, families: str = "", seed: int = 0) -> Path:
    """A corpus of the world whose samples are all in the split that is asked."""
    from support import corpora

    chosen = f"&families={families}" if families else ""
    corpora.build(folder, f"world:{count}?size=64&seed={seed}{chosen}", splits={"test": 1.0})
    return folder


def generated(out: Path) -> dict[str, bytes]:
    """Every file of the first stage, hidden ones included."""
    root = out / "generated"
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def marks(out: Path) -> dict[str, tuple[int, int]]:
    """By file of the first stage its inode and time: what is written anew has others."""
    root = out / "generated"
    return {
        path.relative_to(root).as_posix(): (path.stat().st_ino, path.stat().st_mtime_ns)
        for path in root.rglob("*")
        if path.is_file()
    }


def count_up(rank: int, share: Any, progress: Callable[[int], None]) -> None:
    """A rank that does its share and leaves a file."""
    folder, numbers = share
    for number in numbers:
        (folder / f"{rank}-{number}").touch()
        progress(number)


def fail(rank: int, share: Any, progress: Callable[[int], None]) -> None:
    """Rank 1 ends as its share says; the others would go on for long and say where they are."""
    folder, how = share
    if rank != 1:
        (folder / f"{rank}.pid").write_text(str(os.getpid()))
        progress(1)
        time.sleep(60)
    while not (folder / "0.pid").exists():
        time.sleep(0.02)
    if how == "mistake":
        raise ConfigError("the sentence of rank 1")
    if how == "fault":
        raise ValueError("a fault\nin two lines")
    os.kill(os.getpid(), signal.SIGKILL)


def sigma(*arguments: str | Path) -> int:
    """Run `sigma eval` in this process; its exit code."""
    before = sys.argv
    sys.argv = ["sigma", "eval", *map(str, arguments)]
    try:
        cli.main()
    except SystemExit as end:
        return int(end.code or 0)
    finally:
        sys.argv = before
    return 0
