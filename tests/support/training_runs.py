"""Whole training runs on a corpus of pictures and answers, as small as can be, and what they leave behind."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint.state_dict_loader import load

from pipelines.train.checkpoint import CHECKPOINTS, MARKER
from pipelines.train.config import TrainConfig
from pipelines.train.trainer import train
from sigma_data.corpus.record import encode, member_names
from sigma_data.corpus.shard import END, block
from sigma_data.images.decode import probe
from sigma_data.sample import Family, Image, Sample, Source, Turn, sample_id
from support import corpora, image_files, small_model

CLOCK = ("tokens_per_second", "samples_per_second", "data_wait", "checkpoint_stall", "tflops", "memory")
"""Figures that no two runs share."""


def build_corpus(folder: Path) -> Path:
    """42 samples that are answered by pictures and 14 that are answered in words; a fifth is held out.

    Beside it lies a small model, which `settings_of` trains.
    """
    small_model.save_random(folder / "model")
    told = folder / "told" / "train"
    told.mkdir(parents=True)
    data = b"".join(_summary(number) for number in range(14))
    (told / "understanding-00000.tar").write_bytes(data + END)
    sources = ("world:42?size=64", f"webdataset:{told.parent}?splits=new")
    corpora.build(folder / "corpus", *sources, splits={"train": 80, "val": 20})
    return folder / "corpus"


def _summary(number: int) -> bytes:
    """A question about a picture, as a shard holds it; every other one has no picture."""
    pictures = [image_files.image_bytes("png", 500 + number)] if number % 2 else []
    sample = Sample(
        sample_id("told", "here", number),
        Family.UNDERSTANDING,
        tuple(Image(index, data) for index, data in enumerate(pictures, 1)),
        (Turn(f"What is number {number}?", response="it is " + "red " * (1 + number % 5)),),
        Source("told", "here", number, "cc0-1.0"),
    )
    facts = {index: probe(data) for index, data in enumerate(pictures, 1)}
    names = member_names(sample, {index: fact.extension for index, fact in facts.items()})
    members = [(names[index], data) for index, data in enumerate(pictures, 1)]
    return block(sample.id, [("json", encode(sample, facts)), *members])


def settings_of(out: Path, corpus: Path, **changes: Any) -> dict[str, Any]:
    """Settings of a run of 6 steps, on the small model beside a corpus of `build_corpus`, else on the tiny preset.

    `changes` go into them, section by section.
    """
    small = Path(corpus).parent / "model"
    starts_small = small.is_dir() and "from_run" not in changes.get("model", {})
    values: dict[str, Any] = {
        "out": out,
        "steps": 6,
        "data": {"corpora": [{"path": str(corpus)}], "budget": 400},
        "loader": {"workers": 0},
        "optimizer": {"lr": 1e-3, "eps": 1e-8},
        "ema": {"decay": 0.9},
        "checkpoint": {"every": 0},
        "validation": {"every": 0},
        "log": {"tensorboard": False},
        "model": {"path": str(small)} if starts_small else {},
    }
    for name, change in changes.items():
        old = values.get(name)
        values[name] = {**old, **change} if isinstance(old, dict) and isinstance(change, dict) else change
    return values


def run(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Train in this process, which may be one of several ranks."""
    torch.set_num_threads(1)
    return train(TrainConfig.model_validate(settings))


def steps_saved(out: Path) -> list[int]:
    """Steps of the complete checkpoints."""
    return sorted(int(path.parent.name.removeprefix("step-")) for path in (out / CHECKPOINTS).glob(f"*/{MARKER}"))


def saved(out: Path, step: int | None = None) -> dict[str, Tensor]:
    """All tensors of a checkpoint, by default the newest, whole."""
    folder = out / CHECKPOINTS / f"step-{steps_saved(out)[-1] if step is None else step:08d}"
    metadata: Any = FileSystemReader(folder).read_metadata().state_dict_metadata
    state = {name: torch.empty(of.size, dtype=of.properties.dtype) for name, of in metadata.items()}
    with warnings.catch_warnings(action="ignore"):  # that this is one process
        load(state, storage_reader=FileSystemReader(folder), no_dist=True)
    return state


def lines(out: Path) -> list[dict[str, Any]]:
    """The figures of a run, without those of the clock, and without those that a line has none of."""
    found = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [
        {name: value for name, value in line.items() if value not in (None, "") and not name.startswith(CLOCK)}
        for line in found
    ]


def same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    """Whether all tensors are equal to the bit."""
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def apart(one: Mapping[str, Tensor], other: Mapping[str, Tensor], section: str) -> float:
    """The largest difference between two numbers of a section (model, optimizer, ema)."""
    assert one.keys() == other.keys()
    return max(float((one[n] - other[n]).abs().max()) for n in one if n.startswith(section) and one[n].numel())
