"""The second pass: from the scan's rows to the place of every sample, without an image being read.

Duplicates, components, quotas, splits, order and byte offsets are all decided here, by pure functions of the rows and
the configuration. Only narrow columns are in memory (`scan_columns`); the tables of the corpus are made of the plan
and the scan files where they are written (`tables`).
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pipelines.build_dataset.config import BuildConfig
from pipelines.build_dataset.derive import Made, made_rows
from pipelines.build_dataset.placing import Shard, place
from pipelines.build_dataset.scan_columns import Digests, ScanImages, read_columns
from pipelines.build_dataset.selection import apply_quotas, drop_excluded, fractions, left_out
from sigma_data.corpus.refused_files import RefusedFile
from sigma_data.errors import ConfigError
from sigma_data.images.fingerprint import choose_split, joined_components, near_links
from sigma_data.images.fingerprint_file import KnownImages

_SLICE = 65_536


@dataclass(frozen=True)
class Unstable:
    """A sample that did not come out as scanned when it was read again: it cannot be written where it was planned."""

    fragment: int
    position: int
    message: str


@dataclass(frozen=True)
class Plan:
    """Where every sample goes.

    `places` has a row a sample in shard order: sample (its place in `ids`), fragment, position, family, source, split,
    component (a place in `ids`), shard (a place in `shards`), index, offset, size, json_size, images (their number).
    `out` has the good records that are not written: order, code, message, filtered. `read` records came from the
    sources, `made` samples were made from others: together they are places, out and what the scan rejected (`codes`).
    """

    scans: tuple[Path, ...]
    ids: pl.Series
    places: pl.DataFrame
    out: pl.DataFrame
    shards: tuple[Shard, ...]
    read: int
    codes: Counter[tuple[str, bool]]
    """(code, whether it is filtered) -> records not written, those in `out` included."""
    content: str
    """SHA-256 over what every sample holds, in shard order."""
    made: Made | None = None
    unstable: dict[int, dict[int, str]] = field(default_factory=dict)
    refused: tuple[RefusedFile, ...] = ()
    first: tuple[int, str] | None = None
    """Order and message of the first record that is not written."""

    @property
    def made_samples(self) -> int:
        """How many samples were made from others."""
        return 0 if self.made is None else len(self.made.rows)

    def digest(self) -> str:
        """SHA-256 over the place and the content of every sample."""
        digest = hashlib.sha256(self.content.encode())
        for name in ("shard", "offset", "size"):
            digest.update(self.places[name].to_numpy().tobytes())
        digest.update("\n".join(shard.path for shard in self.shards).encode())
        return digest.hexdigest()


def make_plan(
    scans: Sequence[Path],
    config: BuildConfig,
    unstable: Sequence[Unstable] = (),
    excluded: KnownImages = KnownImages(),  # noqa: B008 (it does not change)
) -> Plan:
    """Plan a corpus from the scan files in source order.

    Without the samples that are known to be `unstable`, and without those that have an `excluded` image.

    Raises ConfigError where two sources give different samples the same id.
    """
    known: dict[int, dict[int, str]] = {}
    for one in unstable:
        known.setdefault(one.fragment, {}).setdefault(one.position, one.message)
    found = read_columns(scans, known)
    content, text, images = found.content, found.text, found.images
    found.images = found.images.of(np.zeros(len(found.rows), dtype=bool))  # held once, below
    rows = found.rows.with_row_index("sample")
    out: list[pl.DataFrame] = []

    def without(kept: NDArray[np.bool_], left: pl.DataFrame) -> None:
        nonlocal rows, content, text, images
        out.append(left)
        if not kept.all():
            rows, content, text, images = rows.filter(pl.Series(kept)), content[kept], text[kept], images.of(kept)

    if excluded.prints:
        without(*drop_excluded(rows, images, excluded))
    without(*_duplicates(rows, content))
    _refuse_id_clash(rows, scans)
    if config.near_duplicates == "drop":
        without(*_near_duplicates(rows, text, images))
    rows = _with_components(rows, images, config)
    del images, text, content
    kept, left = apply_quotas(rows, config)
    out.append(left)
    rows = rows.filter(pl.Series(kept)) if not kept.all() else rows
    ids, contents, jsons = found.rows["id"], found.content, found.json
    made = made_rows(rows, ids, found, scans, config) if config.made.any else None
    if made is not None:
        rows = pl.concat([rows, made.rows.select(rows.columns)])
        ids = ids.append(made.rows["id"])
        contents, jsons = _with_made(contents, jsons, made)
    del found.rows
    rows = _ordered(rows, config)
    shards, placed = place(
        rows["split"], rows["family"], rows["size"].to_numpy(), rows["images"].to_numpy(),
        shard_bytes=config.shard_bytes, shard_samples=config.shard_samples,
    )  # fmt: skip
    rows = rows.with_columns(**placed).drop("order", "id", "old_split")
    left = pl.concat(out).sort("order")
    codes = found.codes + Counter({
        (code, filtered): count for code, filtered, count in left.group_by("code", "filtered").len().iter_rows()
    })  # fmt: skip
    first = min(
        [*([found.first] if found.first else []), *left.select("order", "message").head(1).rows()], default=None
    )
    return Plan(
        tuple(scans), ids, rows, left, shards, found.read, codes, _content(rows, ids, contents, jsons), made, known,
        tuple(found.refused), first,
    )  # fmt: skip


def _with_made(contents: Digests, jsons: NDArray[np.uint64], made: Made) -> tuple[Digests, NDArray[np.uint64]]:
    high, low = (
        np.concatenate(pair) for pair in ((contents.high, made.content.high), (contents.low, made.content.low))
    )
    return Digests(high, low), np.concatenate([jsons, made.json])


def _content(rows: pl.DataFrame, ids: pl.Series, contents: Digests, jsons: NDArray[np.uint64]) -> str:
    digest = hashlib.sha256()
    sample = rows["sample"].to_numpy()
    for start in range(0, len(sample), _SLICE):
        some = sample[start : start + _SLICE]
        digest.update("\n".join(ids.gather(some).to_list()).encode())
        for values in (contents.high, contents.low, jsons):
            digest.update(values[some].tobytes())
    return digest.hexdigest()


def _duplicates(rows: pl.DataFrame, content: Digests) -> tuple[NDArray[np.bool_], pl.DataFrame]:
    """Keep the first of the samples that are identical in all images and text."""
    return _firsts(rows, content.first_equal(), "duplicate", "same images and text as {}")


def _firsts(
    rows: pl.DataFrame, first: NDArray[np.int64], code: str, message: str
) -> tuple[NDArray[np.bool_], pl.DataFrame]:
    """Which samples are the first of their like, and the others, which name it."""
    kept: NDArray[np.bool_] = first == np.arange(len(first))
    others = np.flatnonzero(~kept)
    same = rows["id"].gather(first[others])
    return kept, left_out(rows, others, code, pl.select(pl.format(message, same)).to_series())


def _near_duplicates(rows: pl.DataFrame, text: Digests, images: ScanImages) -> tuple[NDArray[np.bool_], pl.DataFrame]:
    """Keep the first of the samples alike in text whose images are all nearly identical."""
    classes = joined_components(len(images.signatures), near_links(images.signatures))[images.image]
    seen = pl.DataFrame({"sample": images.sample, "looks": classes})
    seen = seen.group_by("sample", maintain_order=True).agg("looks")
    # A sample without images has no looks.
    every = pl.DataFrame({"sample": np.arange(len(rows), dtype=np.uint32)})
    looks = every.join(seen, on="sample", how="left", maintain_order="left")["looks"].fill_null([])
    alike = pl.DataFrame({"at": np.arange(len(rows)), "high": text.high, "low": text.low, "looks": looks})
    first = alike.select(pl.col("at").min().over(pl.struct("high", "low", "looks"))).to_series().to_numpy()
    return _firsts(rows, first, "near_duplicate", "same text and nearly identical images as {}")


def _refuse_id_clash(rows: pl.DataFrame, scans: Sequence[Path]) -> None:
    clash = rows.filter(pl.col("id").is_duplicated())
    if len(clash):
        from pipelines.build_dataset.scan import read_scan

        one = clash.filter(pl.col("id") == clash["id"][0]).head(2)
        places = []
        for fragment, position in one.select("fragment", "position").iter_rows():
            row = read_scan(scans[fragment], ["source", "location", "row"]).slice(position, 1).to_pylist()[0]
            places.append(f"{row['source']} {row['location']} row {row['row']}")
        raise ConfigError(
            f"different samples have the id {clash['id'][0]} ({' and '.join(places)}): "
            "give one of the sources a name of its own, e.g. release:PATH?name=second"
        )


def _with_components(rows: pl.DataFrame, images: ScanImages, config: BuildConfig) -> pl.DataFrame:
    """Join samples that share an image, exactly or nearly, and give each component its split.

    A component is represented by its first sample in source order: data added behind what was
    there changes no split, unless it joins two components that had different ones. Samples that
    come with a split keep it; where a component comes with several, the largest of them takes it.
    """
    # A sample for each different image stands for all that have it.
    owner = np.zeros(len(images.signatures), dtype=np.uint32)
    owner[images.image[::-1]] = images.sample[::-1]

    def links() -> Iterator[NDArray[np.int64]]:
        for start in range(0, len(images.sample), _SLICE):
            part = slice(start, start + _SLICE)
            yield np.stack([images.sample[part], owner[images.image[part]]], axis=1).astype(np.int64)
        for pairs in near_links(images.signatures):
            yield owner[pairs].astype(np.int64)

    label = joined_components(len(rows), links())
    del links
    by_size = sorted(config.splits, key=lambda name: -config.splits[name])
    given = _given_splits(rows["old_split"], label, by_size)
    roots = np.unique(label)
    sizes = np.bincount(label, minlength=len(rows))
    chosen = np.empty(len(roots), dtype=np.uint8)
    names = list(config.splits)
    for start in range(0, len(roots), _SLICE):
        some = roots[start : start + _SLICE]
        for at, (root, name) in enumerate(zip(some.tolist(), rows["id"].gather(some).to_list(), strict=True), start):
            if given[root] < len(by_size):
                split = by_size[given[root]]
            elif config.max_component is not None and sizes[root] > config.max_component:
                split = by_size[0]
            else:
                split = choose_split(name, config.splits, seed=config.seed)
            chosen[at] = names.index(split)
    split_of = chosen[np.searchsorted(roots, label)]
    return rows.with_columns(
        component=rows["sample"].gather(label),
        split=pl.Series(split_of).cast(pl.UInt32).replace_strict(dict(enumerate(names)), return_dtype=pl.Enum(names)),
    )


def _given_splits(old: pl.Series, label: NDArray[np.int64], by_size: Sequence[str]) -> NDArray[np.int64]:
    """[n] at each component's root the place in `by_size` of the largest split its samples come with, or its length."""
    given = np.full(len(label), len(by_size), dtype=np.int64)
    there = sorted(old.drop_nulls().unique().cast(pl.String).to_list())
    if unknown := [name for name in there if name not in by_size]:
        raise ConfigError(
            f"samples come with the split {unknown[0]!r}, which this build does not have: add it to splits, e.g. "
            f"splits.{unknown[0]}=5, or draw splits anew with ?splits=new after the source"
        )
    for name in there:
        members = np.flatnonzero((old.cast(pl.String) == name).fill_null(False).to_numpy())
        np.minimum.at(given, label[members], by_size.index(name))
    return given


def _ordered(rows: pl.DataFrame, config: BuildConfig) -> pl.DataFrame:
    """Rows by split and family, inside them in source order or by a hash of their id."""
    keys = [rows["order"].to_numpy()]
    if config.order == "shuffled":
        keys.append(fractions(rows["id"], "order", config.seed))
    keys += [rows["family"].to_physical().to_numpy(), rows["split"].to_physical().to_numpy()]
    return rows[np.lexsort(keys)]
