"""Weights in several files of bounded size with an index, as transformers and diffusers read them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from sigma_data.errors import ConfigError
from sigma_data.storage.files import dump_json, write_atomic
from sigma_model.checkpoint_io import write_tensors
from sigma_model.model_files import StoredTensor

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?)B?", re.IGNORECASE)


def parse_shard_size(text: str) -> int:
    """Bytes of e.g. 5GB, 500MB; units are decimal, as in transformers. Raises ConfigError."""
    match = _SIZE.fullmatch(text.strip())
    size = int(float(match[1]) * _UNITS[match[2].upper()]) if match is not None else 0
    if size < 1:
        raise ConfigError(f"--max-shard-size {text}: give a size above 0, e.g. 5GB or 500MB")
    return size


def shards_of(tensors: Mapping[str, Tensor], dtype: torch.dtype | None, most: int) -> list[list[str]]:
    """Names in their order, cut wherever a file would grow beyond `most` bytes; a larger tensor has a file alone."""
    shards: list[list[str]] = [[]]
    size = 0
    for name, tensor in tensors.items():
        if shards[-1] and size + _size(tensor, dtype) > most:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += _size(tensor, dtype)
    return shards


def shard_names(stem: str, count: int) -> list[str]:
    """The files' names: STEM.safetensors for one, else STEM-00001-of-0000N.safetensors and so on."""
    if count == 1:
        return [f"{stem}.safetensors"]
    return [f"{stem}-{number:05d}-of-{count:05d}.safetensors" for number in range(1, count + 1)]


def write_shards(
    directory: Path,
    tensors: Mapping[str, Tensor],
    shards: list[list[str]],
    *,
    stem: str,
    dtype: torch.dtype | None = None,
    beside: Mapping[str, StoredTensor] | None = None,
) -> None:
    """Write the shards, and for more than one the index STEM.safetensors.index.json, after them.

    `beside` are tensors of a file that is there already and that the index names, too. Raises OSError.
    """
    names = shard_names(stem, len(shards))
    places: dict[str, str] = {}
    for file, shard in zip(names, shards, strict=True):
        write_tensors(directory / file, {name: tensors[name] for name in shard}, dtype=dtype)
        places |= dict.fromkeys(shard, file)
    if len(shards) > 1:
        total = sum(_size(tensor, dtype) for tensor in tensors.values())
        for name, stored in (beside or {}).items():
            places[name] = stored.path.name
            total += stored.end - stored.start
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))}
        write_atomic(directory / f"{stem}.safetensors.index.json", dump_json(index))


def _size(tensor: Tensor, dtype: torch.dtype | None) -> int:
    return tensor.numel() * (dtype or tensor.dtype).itemsize
