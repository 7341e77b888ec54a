"""Other loaders at the work of ours: the same shards, the same sizes, the same two worker processes.

Each decodes every picture fully with Pillow, once, and resizes it with bicubic filtering for each of its
uses: for the VAE, and a reference for the ViT too. (One can resize with torch instead, as ours does: `by_torch`.)
A contestant is an endless stream of deliveries; what comes in bytes becomes floats where it arrives
(`floats="consumer"`), or before it is sent ("worker").
"""

from __future__ import annotations

import io
import itertools
import sys
from collections.abc import Callable, Generator, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset

from sigma_data.corpus.corpus import open_corpus
from sigma_data.images.resize_rule import VAE_RULE, VIT_RULE
from sigma_data.loading.batch import unit_range

WORKERS = 2
AHEAD = 2
"""Deliveries that a worker is ahead; torch's default."""


@dataclass(frozen=True)
class Delivery:
    """Pixels of whole samples, by sample key; bytes or floats, in any layout."""

    keys: tuple[str, ...]
    pixels: tuple[Tensor, ...]


Stream = Generator[Delivery]
Place = tuple[Path, Path]
"""The corpus, and a folder for what a contestant must prepare once."""


Resize = Callable[[Image.Image, tuple[int, int]], Tensor]
"""RGB to uint8 [3, h, w] of a size (width, height)."""


def by_pillow(picture: Image.Image, size: tuple[int, int]) -> Tensor:
    """As everybody does it."""
    return torch.from_numpy(np.array(picture.resize(size, Image.Resampling.BICUBIC))).permute(2, 0, 1)


def by_torch(picture: Image.Image, size: tuple[int, int]) -> Tensor:
    """By torch's kernels for bytes."""
    pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None]
    return functional.interpolate(pixels, size=size[::-1], mode="bicubic", antialias=True)[0]


def views(members: Mapping[str, Any], floats: str, resize: Resize = by_pillow) -> list[Tensor]:
    """Decode (where Pillow has not yet) and resize the pictures of a sample, given by member name."""
    found = []
    for name, picture in members.items():
        role = name.split(".")[0]
        if picture is None or not role.startswith(("ref_", "target")):
            continue
        if isinstance(picture, bytes):
            picture = Image.open(io.BytesIO(picture))
        picture = picture.convert("RGB")
        for rule in (VAE_RULE, VIT_RULE) if role.startswith("ref_") else (VAE_RULE,):
            pixels = resize(picture, rule.size(*picture.size))
            found.append(unit_range(pixels) if floats == "worker" else pixels)
    return found


def _sample(floats: str, sample: Mapping[str, Any], resize: Resize = by_pillow) -> tuple[str, list[Tensor]]:
    return sample["__key__"], views(sample, floats, resize)


def _deliveries(loader: Iterable[tuple[str, list[Tensor]]]) -> Stream:
    for key, pixels in loader:
        yield Delivery((key,), tuple(pixels))


def _shards(corpus: Path) -> list[str]:
    return [str(corpus / name) for name in sorted(open_corpus(corpus).shards)]


def webdataset(place: Place, floats: str, resize: Resize = by_pillow) -> Stream:
    """Its own reader and `decode("pilrgb")`, shards split between workers."""
    import webdataset as wds

    shards = _shards(place[0])
    source = wds.WebDataset(shards, shardshuffle=len(shards), empty_check=False, seed=0)
    data = source.repeat().decode("pilrgb").map(partial(_sample, floats, resize=resize))
    yield from _deliveries(DataLoader(data, batch_size=None, num_workers=WORKERS, prefetch_factor=AHEAD))


def hf_datasets(place: Place, floats: str) -> Stream:
    """Streaming, with the features of the corpus's own card; its `Image` feature decodes."""
    from datasets import load_dataset

    data = load_dataset(str(place[0]), split="train", streaming=True).repeat(None)
    collate = partial(_sample, floats)
    loader = DataLoader(data, batch_size=None, num_workers=WORKERS, prefetch_factor=AHEAD, collate_fn=collate)
    yield from _deliveries(loader)


def energon(place: Place, floats: str) -> Stream:
    """`energon prepare` over links to the shards, crude samples, decoded as "pilrgb", its own loader."""
    from energon_peer import prepare, samples

    prepared = place[1] / "energon"
    if not prepared.is_dir():
        prepare(_shards(place[0]), place[0], prepared)
    for sample in samples(prepared, partial(views, floats=floats), workers=WORKERS, ahead=AHEAD):
        yield Delivery((sample.__key__.rsplit("/", 1)[-1],), tuple(sample.pixels))


def mosaicml(place: Place, floats: str) -> Stream:
    """MDS shards with a column a picture; one long epoch that shows every sample many times."""
    # Its packages for vision import torchvision, which is not needed here and not everywhere at hand.
    sys.modules.setdefault("streaming.vision", ModuleType("streaming.vision"))
    from streaming import MDSWriter, StreamingDataset  # type: ignore[import-not-found, unused-ignore]
    from streaming.base.util import clean_stale_shared_memory  # type: ignore[import-not-found, unused-ignore]

    converted = place[1] / "mds"
    rows = open_corpus(place[0]).manifest
    if not converted.is_dir():
        corpus = open_corpus(place[0])
        roles = sorted({image["member"].split(".")[0] for row in rows["images"] for image in row})
        with MDSWriter(out=str(converted), columns={"__key__": "str", **dict.fromkeys(roles, "bytes")}) as writer:
            for row in rows.iter_rows(named=True):
                found = dict.fromkeys(roles, b"")
                for image in row["images"]:
                    found[image["member"].split(".")[0]] = corpus.read(row["shard"], image["offset"], image["size"])
                writer.write({"__key__": row["id"], **found})
    clean_stale_shared_memory()
    data = StreamingDataset(local=str(converted), batch_size=1, shuffle=True, epoch_size=500 * len(rows))
    collate = partial(_mosaicml_sample, floats)
    loader = DataLoader(data, batch_size=None, num_workers=WORKERS, prefetch_factor=AHEAD, collate_fn=collate)
    yield from _deliveries(loader)


def _mosaicml_sample(floats: str, sample: Mapping[str, Any]) -> tuple[str, list[Tensor]]:
    return sample["__key__"], views({name: data or None for name, data in sample.items()}, floats)


class _Files(Dataset[tuple[str, list[Tensor]]]):
    """The pictures as files, opened one by one: what one writes first."""

    def __init__(self, folder: Path, rows: list[dict[str, Any]], floats: str) -> None:
        self._folder, self._rows, self._floats = folder, rows, floats

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> tuple[str, list[Tensor]]:
        row = self._rows[index]
        members = {name: Image.open(self._folder / f"{row['id']}.{name}") for name in row["members"]}
        return row["id"], views(members, self._floats)


def plain_loop(place: Place, floats: str) -> Stream:
    """A folder of picture files, `Image.open`, and torch's DataLoader."""
    corpus, folder = open_corpus(place[0]), place[1] / "files"
    rows = []
    for row in corpus.manifest.iter_rows(named=True):
        rows.append({"id": row["id"], "members": [image["member"] for image in row["images"]]})
        if not (folder / "complete").is_file():
            folder.mkdir(parents=True, exist_ok=True)
            for image in row["images"]:
                data = corpus.read(row["shard"], image["offset"], image["size"])
                (folder / f"{row['id']}.{image['member']}").write_bytes(data)
    (folder / "complete").touch()
    order = np.random.default_rng(0).permutation(len(rows)).tolist()
    files = _Files(folder, rows, floats)
    endless: Any = itertools.cycle(order)
    loader: Any = DataLoader(files, batch_size=None, sampler=endless, num_workers=WORKERS, prefetch_factor=AHEAD)
    yield from _deliveries(loader)


PEERS: Mapping[str, Callable[[Place, str], Stream]] = {
    "webdataset": webdataset,
    "HF datasets": hf_datasets,
    "Megatron-Energon": energon,
    "mosaicml-streaming": mosaicml,
    "plain Pillow loop": plain_loop,
}
