"""Corpora as training reads them: built, indexed and planned for the tiny preset."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from sigma_data.loading.batch import PackedBatch, Widths
from sigma_data.loading.loader import Loaded, PackDataset
from sigma_data.loading.shard_cache import ShardCache
from sigma_data.planning.index import CorpusIndex, open_index
from sigma_data.planning.plan import Planner, PlanSettings
from sigma_data.sequence.layout import Geometry
from sigma_data.sequence.tokenizer import Tokenizer
from sigma_model.config import ModelConfig, preset_directory
from sigma_model.model import geometry, widths


@functools.cache
def tiny() -> tuple[Tokenizer, Geometry, Widths]:
    """Tokenizer, geometry and widths of the tiny preset."""
    where = preset_directory("tiny")
    config = ModelConfig.from_directory(where, base=where)
    return Tokenizer.load(where), geometry(config), widths(config)


def index_of(corpus: Path | str, *, cache: Path | None = None) -> CorpusIndex:
    """The index of a corpus, as nobody else has it: tests may change its arrays."""
    return open_index(str(corpus), tiny()[0], cache=cache)


def changed(index: CorpusIndex, **arrays: np.ndarray[Any, Any]) -> CorpusIndex:
    """The index with other arrays; only in this process."""
    vars(index).update(arrays)
    return index


def planned(*indexes: CorpusIndex, budget: int = 700, **settings: Any) -> Planner:
    """A planner of corpora that are called c0, c1, ..."""
    encoder, shape, _ = tiny()
    corpora = [{"path": index.uri, "name": f"c{number}"} for number, index in enumerate(indexes)]
    chosen = PlanSettings.model_validate({"corpora": corpora, "budget": budget, **settings})
    return Planner(chosen, indexes, shape, tokenizer=encoder.digest)


def dataset_of(planner: Planner, *, cache: ShardCache | None = None) -> PackDataset:
    """The data set that works off a planner's tickets."""
    return PackDataset(planner.indexes, planner.recipe, *tiny(), cache=cache)


def print_of(loaded: Loaded) -> str:
    """All that a training step sees of a pack, to the bit."""
    digest = hashlib.sha256(repr((loaded.epoch, loaded.pack, loaded.skips)).encode())
    for name, value in sorted(vars(loaded.batch).items()):
        tensors = list(_tensors(value))
        digest.update(f"{name} {[(tensor.dtype, tensor.shape) for tensor in tensors] or value}".encode())
        for tensor in tensors:
            digest.update(tensor.contiguous().numpy().tobytes())
    return f"{loaded.epoch}/{loaded.pack} {digest.hexdigest()}"


def interleaved(streams: Sequence[Sequence[str]]) -> list[str]:
    """What several ranks got, in the global order."""
    merged = []
    for place in range(max(map(len, streams))):
        merged += [stream[place] for stream in streams if place < len(stream)]
    return merged


def _tensors(value: Any) -> Iterator[Tensor]:
    assert not isinstance(value, PackedBatch)
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple):
        for part in value:
            yield from _tensors(part)
