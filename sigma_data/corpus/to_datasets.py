"""A corpus as an HF data set: `Corpus.to_datasets`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from sigma_data.corpus.record import decode
from sigma_data.corpus.shard import group_members, read_members, read_range
from sigma_data.errors import ConfigError
from sigma_data.sample import Sample

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict, Features, IterableDataset, IterableDatasetDict

    AnyDataset: TypeAlias = Dataset | DatasetDict | IterableDataset | IterableDatasetDict


def features() -> Features:
    """The columns; `<image_N>` of an instruction is `images[n]` where `numbers[n] == N`."""
    from datasets import Features, Image, List, Value

    turn = {
        "instruction": Value("string"),
        "target": Value("int32"),
        "response": Value("string"),
        "alternatives": List(Value("string")),
    }
    return Features({
        "id": Value("string"), "family": Value("string"), "split": Value("string"), "source": Value("string"),
        "license": Value("string"), "turns": List(turn), "images": List(Image()), "numbers": List(Value("int32")),
        "roles": List(Value("string")), "truth": Value("string"),
    })  # fmt: skip


def to_datasets(path: Path, commit: Mapping[str, Any], *, split: str | None, streaming: bool) -> AnyDataset:
    """What `Corpus.to_datasets` documents, of the corpus in a folder with this `corpus.json`."""
    from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict

    made = IterableDataset if streaming else Dataset
    splits: dict[str, Dataset | IterableDataset] = {}
    known = commit["sums"]["splits"]
    for name in known:
        # The digest is there for the cache of `datasets`: a corpus that was built anew is another data set.
        arguments = {"path": str(path), "digest": commit["digest"]}
        shards = [shard for shard in commit["shards"] if shard.partition("/")[0] == name]
        if shards and split in (None, name):
            splits[name] = made.from_generator(_rows, features(), gen_kwargs=arguments | {"shards": shards}, split=name)
    if not splits:
        raise ConfigError(f"{path}: has no split {split!r}: it has {', '.join(known)}")
    if split is not None:
        return splits[split]
    found: AnyDataset = IterableDatasetDict(splits) if streaming else DatasetDict(splits)
    return found


def _rows(path: str, digest: str, shards: list[str]) -> Iterator[dict[str, Any]]:
    """The rows of some shards; a list among the arguments is what `datasets` splits over workers and nodes.

    The shards alone are read: a worker of torch's DataLoader is a fork, in which polars, and so the manifest, may hang.
    """
    committed = json.loads((Path(path) / "corpus.json").read_text("utf-8"))["digest"]
    if committed != digest:
        raise ConfigError(f"{path}: the corpus was built anew; call to_datasets again")
    for shard in shards:
        with (Path(path) / shard).open("rb") as file:
            for members in group_members(read_members(file)):
                data = {member.suffix: read_range(file, member.offset, member.size) for member in members}
                yield _row(decode(data.pop("json"), data), shard.partition("/")[0])


def _row(sample: Sample, split: str) -> dict[str, Any]:
    targets = set(sample.targets)
    return {
        "id": sample.id, "family": sample.family.value, "split": split, "source": sample.source.name,
        "license": sample.source.license,
        "turns": [
            {
                "instruction": turn.instruction, "target": turn.target, "response": turn.response,
                "alternatives": list(turn.alternatives),
            }
            for turn in sample.turns
        ],
        "images": [{"bytes": image.data, "path": None} for image in sample.images],
        "numbers": [image.number for image in sample.images],
        "roles": ["target" if image.number in targets else "reference" for image in sample.images],
        "truth": sample.truth,
    }  # fmt: skip
