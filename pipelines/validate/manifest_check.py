"""A manifest checked as a stream: keys of eight bytes are held a row and an image, rows themselves a shard at a time.

What looks wrong by its key is looked up in the manifest again, so a key that two values share reports nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray

from pipelines.validate.shard_check import MAX_PROBLEMS, Problem
from sigma_data.corpus.corpus import MANIFEST, Corpus, refuse_odd_rows, with_value_ranges
from sigma_data.corpus.manifest import manifest_schema
from sigma_data.images.fingerprint import SIGNATURE_BYTES, joined_components, near_links

_ROWS = 2048
_IMAGE = "images.list.element."

_CHECKED = (
    "id", "family", "split", "shard", "index", "offset", "size", "json_offset", "json_size", "component",
    *(f"{_IMAGE}{name}" for name in ("number", "offset", "size", "width", "height", "sha256", "signature")),
)  # fmt: skip
"""What rows are refused for, and what must not stand there twice or lie in two splits."""

_Keys = NDArray[np.uint64]


@dataclass(frozen=True)
class ManifestFacts:
    """How many rows there are, of which shards in the order of their first rows, and which have theirs side by side."""

    rows: int
    shards: Mapping[str, int]
    """Shard -> rows."""
    scattered: frozenset[str]
    """Shards whose rows other shards' rows stand between; no build writes that."""


def check_manifest(corpus: Corpus) -> tuple[ManifestFacts, list[Problem]]:
    """Read all of a manifest; the problems are ids that stand there twice, and leaks between splits.

    Raises CorpusError as `Corpus.manifest` does.
    """
    shards: dict[str, int] = {}
    scattered: set[str] = set()
    last: str | None = None
    splits: dict[str, int] = {}
    ids: list[_Keys] = []
    components, images = _SplitKeys(), _SplitKeys()
    for name in manifest_schema().names:
        if name not in _CHECKED:  # one by one, for of each column that is read some dictionary is held
            for _ in corpus.manifest_batches([name], _ROWS):
                pass
    for batch in corpus.manifest_batches(_CHECKED, _ROWS):
        frame = pl.DataFrame(pl.from_arrow(batch))
        refuse_odd_rows(frame, corpus.path / MANIFEST)
        runs = frame["shard"].rle().struct.unnest()
        for shard, count in runs.select("value", "len").iter_rows():
            if shard != last and shard in shards:
                scattered.add(shard)
            shards[shard] = shards.get(shard, 0) + count
            last = shard
        for name in frame["split"].unique(maintain_order=True):
            splits.setdefault(name, len(splits))
        code = frame["split"].replace_strict(splits, return_dtype=pl.UInt16).to_numpy()
        ids.append(_keys(frame["id"]))
        components.add(_keys(frame["component"]), code)
        digests = frame["images"].list.eval(pl.element().struct.field("sha256"))
        images.add(_keys(digests.explode(empty_as_null=False)), np.repeat(code, digests.list.len().to_numpy()))
    return ManifestFacts(sum(shards.values()), shards, frozenset(scattered)), [
        *_twice(corpus, ids),
        *_leaks(corpus, "component", components.in_several()),
        *_leaks(corpus, f"{_IMAGE}sha256", images.in_several()),
    ]


class _SplitKeys:
    """The different (key, split) that were added."""

    def __init__(self) -> None:
        self._keys: list[_Keys] = []
        self._splits: list[NDArray[np.uint16]] = []

    def add(self, keys: _Keys, splits: NDArray[np.uint16]) -> None:
        """Add as many keys as splits."""
        order = np.lexsort((splits, keys))
        keys, splits = keys[order], splits[order]
        new = np.ones(len(keys), dtype=bool)
        new[1:] = (keys[1:] != keys[:-1]) | (splits[1:] != splits[:-1])
        self._keys.append(keys[new])
        self._splits.append(splits[new])

    def in_several(self) -> _Keys:
        """The keys that came with more than one split."""
        keys, splits = _joined(self._keys, np.uint64), _joined(self._splits, np.uint16)
        order = np.argsort(keys)
        keys, splits = keys[order], splits[order]
        found: _Keys = np.unique(keys[1:][(keys[1:] == keys[:-1]) & (splits[1:] != splits[:-1])])
        return found


def _twice(corpus: Corpus, ids: list[_Keys]) -> Iterator[Problem]:
    keys = _joined(ids, np.uint64)
    keys.sort()
    suspects = np.unique(keys[1:][keys[1:] == keys[:-1]])
    del keys
    if len(suspects):
        names = pl.concat([frame["id"].filter(here) for frame, here in _looked_up(corpus, ["id"], "id", suspects)])
        for name in names.filter(names.is_duplicated()).unique().sort().head(MAX_PROBLEMS):
            yield Problem("duplicate_id", name, "the manifest has this id more than once")


def _leaks(corpus: Corpus, column: str, suspects: _Keys) -> Iterator[Problem]:
    """The values of a column, a component or an image's digest, that lie in more than one split."""
    if not len(suspects):
        return
    of_images = column.startswith(_IMAGE)
    name = column.removeprefix(_IMAGE)
    found = pl.concat(
        frame.select("split", name).filter(here).unique()
        for frame, here in _looked_up(corpus, ["split", column], name, suspects)
    )
    leaks = found.group_by(name).agg(pl.col("split").n_unique()).filter(pl.col("split") > 1)
    for value in leaks[name].sort().head(MAX_PROBLEMS):
        if of_images:
            yield Problem("leak", value[:16], "this image lies in more than one split")
        else:
            yield Problem("leak", value, "the component of this sample lies in more than one split")


def _looked_up(
    corpus: Corpus, columns: Sequence[str], key: str, suspects: _Keys
) -> Iterator[tuple[pl.DataFrame, pl.Series]]:
    """The manifest by batches, those of images with a row an image, and which rows have a suspect key."""
    for frame in _batches(corpus, columns):
        yield frame, pl.Series(np.isin(_keys(frame[key]), suspects))


def _batches(corpus: Corpus, columns: Sequence[str]) -> Iterator[pl.DataFrame]:
    for batch in corpus.manifest_batches(list(columns), _ROWS):
        frame = pl.DataFrame(pl.from_arrow(batch))
        if "images" in frame.columns:
            frame = frame.explode("images", empty_as_null=False, keep_nulls=False).unnest("images")
        yield frame


def near_leaks(corpus: Corpus) -> Iterator[Problem]:
    """The builder's own rule: nearly identical images, also by way of others, lie in one split.

    Beside what the search takes (`near_links`) a different image is held in 96 bytes.
    """
    columns = ["split", f"{_IMAGE}sha256", f"{_IMAGE}signature"]
    keys = _joined([np.unique(_image_keys(frame)) for frame in _batches(corpus, columns[1:])], np.uint64)
    keys = np.unique(keys)
    signatures = np.empty((len(keys), SIGNATURE_BYTES), dtype=np.uint8)
    for frame in _batches(corpus, columns[1:]):
        if len(frame):
            place = np.searchsorted(keys, _image_keys(frame))
            data = np.frombuffer(b"".join(frame["signature"]), dtype=np.uint8)
            signatures[place] = data.reshape(-1, SIGNATURE_BYTES)
    label = joined_components(len(keys), near_links(signatures))
    del signatures
    # Of each set of images the split of its first; then the sets that have another one, too.
    first: dict[str, int] = {}
    split_of = np.full(len(keys), -1, dtype=np.int16)
    mixed = np.zeros(len(keys), dtype=bool)
    for frame in _batches(corpus, columns):
        for name in frame["split"].unique(maintain_order=True):
            first.setdefault(name, len(first))
        root = label[np.searchsorted(keys, _image_keys(frame))]
        code = frame["split"].replace_strict(first, return_dtype=pl.Int16).to_numpy()
        fresh = split_of[root] < 0
        split_of[root[fresh]] = code[fresh]
        mixed[root[split_of[root] != code]] = True
    if not mixed.any():
        return
    parts = []
    for frame in _batches(corpus, columns):
        root = label[np.searchsorted(keys, _image_keys(frame))]
        part = frame.select("split", "sha256").with_columns(label=pl.Series(root)).filter(pl.Series(mixed[root]))
        parts.append(part.unique())
    groups = pl.concat(parts).group_by("label").agg(pl.col("split").n_unique(), pl.col("sha256").unique().sort())
    # Equal images in two splits are reported already.
    leaks = groups.filter((pl.col("split") > 1) & (pl.col("sha256").list.len() > 1))
    for near, other, *_ in leaks.sort(pl.col("sha256").list.first())["sha256"].head(MAX_PROBLEMS):
        message = f"this image and the nearly identical {other[:16]} lie in more than one split"
        yield Problem("leak", near[:16], message)


def _image_keys(frame: pl.DataFrame) -> _Keys:
    """A key of each image: its digest, and its signature, which a forged manifest may give it more than one of."""
    mixed: _Keys = _keys(frame["sha256"]) ^ (_keys(frame["signature"]) * np.uint64(0x9E3779B97F4A7C15))
    return mixed


def _keys(values: pl.Series) -> _Keys:
    keys: _Keys = values.hash().to_numpy()
    return keys


def _joined(parts: list[NDArray[Any]], kind: Any) -> NDArray[Any]:
    """The parts as one array; they are let go."""
    whole = np.concatenate([np.empty(0, dtype=kind), *parts])
    parts.clear()
    return whole


class RowsByShard:
    """The rows of each shard as Arrow tables, in their order there; the manifest is read once from start to end.

    Shards are asked for in the order of `ManifestFacts.shards`. The rows of those that are scattered are gathered when
    the first of them is asked for, and held.
    """

    def __init__(self, corpus: Corpus, facts: ManifestFacts, columns: Sequence[str] | None) -> None:
        self._corpus, self._facts = corpus, facts
        self._columns = list(columns or manifest_schema().names)
        self._stream = self._shards()
        self._gathered: dict[str, pl.DataFrame] | None = None

    def of(self, shard: str) -> pa.Table:
        """The rows of a shard; none if the manifest does not know it."""
        if shard not in self._facts.shards:
            return self._frame(pl.DataFrame(schema=pl.DataFrame(manifest_schema().empty_table()).schema)).to_arrow()
        if shard in self._facts.scattered:
            if self._gathered is None:
                self._gathered = self._gather()
            return self._gathered[shard].sort("index").to_arrow()
        for name, frame in self._stream:
            if name == shard:
                return frame.sort("index").to_arrow()
        raise AssertionError(f"{shard} was asked for out of order")

    def _shards(self) -> Iterator[tuple[str, pl.DataFrame]]:
        """Runs of rows of one shard."""
        held: list[pl.DataFrame] = []
        for frame in self._frames():
            for part in frame.partition_by("shard", maintain_order=True) if len(frame) else []:
                name = part["shard"][0]
                if held and held[0]["shard"][0] != name:
                    yield held[0]["shard"][0], pl.concat(held)
                    held = []
                held.append(part)
        if held:
            yield held[0]["shard"][0], pl.concat(held)

    def _gather(self) -> dict[str, pl.DataFrame]:
        wanted = sorted(self._facts.scattered)
        rows = pl.concat([frame.filter(pl.col("shard").is_in(wanted)) for frame in self._frames()])
        return {str(key[0]): part for key, part in rows.partition_by("shard", as_dict=True).items()}

    def _frames(self) -> Iterator[pl.DataFrame]:
        for batch in self._corpus.manifest_batches(self._columns, _ROWS):
            yield self._frame(pl.DataFrame(pl.from_arrow(batch)))

    def _frame(self, frame: pl.DataFrame) -> pl.DataFrame:
        whole = len(self._columns) == len(manifest_schema().names)
        return with_value_ranges(frame) if whole else frame
