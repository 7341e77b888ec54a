"""The six families of SIGMA's corpus as lengths alone: what a plan sees of 700,600 samples, drawn from a seed.

Shares are the paper's. How many references a sample has, how large its pictures and how long its texts
are is not published: the tables here are of the kind that its source corpora have (1024-pixel squares of
image models, photographs of 640 to 2,048 pixels, 512-pixel squares of older editing sets).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sigma_data.images.resize_rule import VAE_RULE, VIT_RULE, VQA_RULE
from sigma_data.planning.index import CorpusIndex
from sigma_data.planning.index_writer import _DTYPES
from sigma_data.sample import FAMILY_RULES, Family
from sigma_data.sequence.layout import Geometry, Kind

GEOMETRY = Geometry(VAE_RULE, VIT_RULE, VQA_RULE, latent_grid=64, patch_grid=70, max_tokens=32_768)
"""BAGEL's."""

Size = tuple[int, int]

_SQUARE: Mapping[Size, float] = {(1024, 1024): 6, (1024, 1536): 1, (1536, 1024): 1, (768, 768): 1}
_PHOTO: Mapping[Size, float] = {
    (640, 480): 3, (480, 640): 2, (640, 427): 3, (1024, 683): 2, (683, 1024): 2, (2048, 1365): 2, (1365, 2048): 1,
    (1200, 1200): 1, (1920, 1080): 1, (800, 1200): 1,
}  # fmt: skip
_SMALL: Mapping[Size, float] = {(512, 512): 6, (1024, 1024): 2, (512, 768): 1, (768, 512): 1, (400, 300): 1}
_SAME = 0.5
"""How often a reference has its target's size."""
_SHARD = 2_000
"""Samples of a shard."""


@dataclass(frozen=True)
class Look:
    """Of a family: references a sample -> weight; sizes of pictures -> weight; median tokens of a text."""

    references: Mapping[int, float]
    sizes: Mapping[Size, float]
    text: int


LOOKS: Mapping[Family, Look] = {
    Family.COMPOSITIONAL: Look({2: 5, 3: 3, 4: 1.5, 5: 0.5}, {**_PHOTO, **_SQUARE}, 14),
    Family.SELECTIVE: Look({1: 1}, _SQUARE, 12),
    Family.STYLIZATION: Look({1: 4, 2: 6}, {**_SMALL, (1024, 768): 3, (768, 1024): 3}, 12),
    Family.RELATION: Look({3: 1}, _SMALL, 10),
    Family.EDITING: Look({1: 8, 2: 1.5, 3: 0.5}, {**_PHOTO, (1024, 1024): 8}, 22),
    Family.LAYOUT: Look({1: 7, 2: 2, 3: 1}, {**_SMALL, **_PHOTO}, 40),
}

Arrays = dict[str, npt.NDArray[Any]]


def write_index(folder: Path, samples: int, *, seed: int = 0) -> CorpusIndex:
    """Write the index of a corpus of `samples` samples without pictures or texts, for planning alone."""
    folder.mkdir(parents=True)
    random = np.random.default_rng(seed)
    goals = np.cumsum([0, *(FAMILY_RULES[family].goal or 0 for family in LOOKS)])
    counts = np.diff(np.rint(goals / goals[-1] * samples).astype(int)).tolist()
    parts = [_family(random, family, count) for family, count in zip(LOOKS, counts, strict=True)]
    shards = [f"train/{family}-{shard:05d}.tar" for family, n in zip(LOOKS, counts, strict=True)
              for shard in range(-(-n // _SHARD))]  # fmt: skip
    firsts = np.cumsum([0, *(-(-count // _SHARD) for count in counts)])
    joined = {name: np.concatenate([part.pop(name) for part in parts]) for name in list(parts[0])}
    joined["shard"] = np.concatenate([f + np.arange(n) // _SHARD for f, n in zip(firsts, counts, strict=False)])
    for name in ("image", "piece"):
        joined[f"{name}_first"] = np.concatenate([[0], np.cumsum(joined.pop(f"{name}s"))])
    joined["ids"] = np.frombuffer(b"0123456789abcdef", "S1")[random.integers(0, 16, (samples, 20))].view("S20")[:, 0]
    for name in ("json_offset", "json_size", "splits", "words_only"):
        joined[name] = np.zeros(samples, _DTYPES[name])
    for name in ("image_offset", "image_size"):
        joined[name] = np.zeros(len(joined["image_width"]), _DTYPES[name])
    for name in list(joined):
        np.save(folder / f"{name}.npy", joined.pop(name).astype(_DTYPES.get(name, "S20"), copy=False))
    meta = {"shards": shards, "shard_bytes": [0] * len(shards), "splits": ["train"], "faults": {}, "manifest": ""}
    (folder / "index.json").write_text(json.dumps(meta))
    return CorpusIndex(folder, str(folder))


def _family(random: np.random.Generator, family: Family, samples: int) -> Arrays:
    """The arrays of one family; `images` and `pieces` are counts a sample.

    A sample is a text before each reference, the reference, a last text, the target.
    """
    look = LOOKS[family]
    references = _drawn(random, look.references, samples)
    images = references + 1
    last = np.cumsum(images) - 1
    number = np.arange(images.sum()) - np.repeat(last - references, images) + 1
    sizes = np.array(list(look.sizes))[_places(random, look.sizes, len(number))]
    like_target = random.random(len(number)) < _SAME
    sizes[like_target] = sizes[np.repeat(last, images)][like_target]
    pieces = 2 * images
    place = np.arange(pieces.sum()) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    text = place % 2 == 0
    lengths = np.zeros(len(place), np.int64)
    lengths[text] = np.exp(random.normal(np.log(look.text), 0.5, text.sum())).astype(np.int64) + 3
    kinds = np.where(text, Kind.TEXT, Kind.LATENT)
    kinds[np.cumsum(pieces) - 1] = Kind.TARGET
    return {
        "families": np.full(samples, list(Family).index(family)),
        "images": images, "image_number": number, "image_width": sizes[:, 0], "image_height": sizes[:, 1],
        "pieces": pieces, "piece_kind": kinds, "piece_image": np.where(text, 0, place // 2 + 1),
        "piece_length": lengths,
    }  # fmt: skip


def _places(random: np.random.Generator, weights: Mapping[Any, float], count: int) -> npt.NDArray[np.int64]:
    chances = np.array(list(weights.values())) / sum(weights.values())
    return random.choice(len(weights), count, p=chances)


def _drawn(random: np.random.Generator, weights: Mapping[int, float], count: int) -> npt.NDArray[np.int64]:
    return np.array(list(weights))[_places(random, weights, count)]
