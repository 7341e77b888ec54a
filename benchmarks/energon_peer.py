"""Megatron-Energon as a contestant: its classes must lie in a module to travel between processes."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron.energon import (  # type: ignore[import-not-found, unused-ignore]
    Cooker,
    DefaultTaskEncoder,
    Sample,
    SampleDecoder,
    WorkerConfig,
    basic_sample_keys,
    get_loader,
    get_train_dataset,
    stateless,
)
from torch import Tensor


@dataclass
class Views(Sample):  # type: ignore[misc, unused-ignore]
    """A sample's pixels."""

    pixels: list[Tensor]


class Encoder(DefaultTaskEncoder):  # type: ignore[misc, unused-ignore]
    """Crude samples, decoded by Pillow, through `views`."""

    decoder = SampleDecoder(image_decode="pilrgb")

    def __init__(self, views: Callable[[Mapping[str, Any]], list[Tensor]]) -> None:
        super().__init__()

        @stateless  # type: ignore[untyped-decorator, unused-ignore]
        def cook(sample: dict[str, Any]) -> Views:
            return Views(**basic_sample_keys(sample), pixels=views(sample))

        self.cookers = [Cooker(cook)]


def prepare(shards: Sequence[str], corpus: Path, out: Path) -> None:
    """Link the shards into a folder and let `energon prepare` index it. Raises RuntimeError where it fails."""
    for shard in shards:
        link = out / Path(shard).relative_to(corpus)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(Path(shard).resolve())
    command = [str(Path(sys.executable).parent / "energon"), "prepare", str(out), "--non-interactive"]
    options = ["--split-ratio", "1,0,0", "--sample-type", "CrudeWebdataset", "--num-workers", "2", "--no-progress"]
    done = subprocess.run([*command, *options], capture_output=True, text=True)
    if done.returncode:
        shutil.rmtree(out)
        raise RuntimeError(f"energon prepare: {done.stderr.strip().splitlines()[-1]}")


def samples(
    folder: Path, views: Callable[[Mapping[str, Any]], list[Tensor]], *, workers: int, ahead: int
) -> Iterable[Views]:
    """The samples of a prepared folder, without end."""
    data = get_train_dataset(
        folder,
        worker_config=WorkerConfig(rank=0, world_size=1, num_workers=workers),
        batch_size=None,
        shuffle_buffer_size=None,
        max_samples_per_sequence=None,
        task_encoder=Encoder(views),
    )
    loader: Iterable[Views] = get_loader(data, prefetch_factor=ahead)
    return loader
