"""The second pass: from the scan's rows to the place of every sample, without an image being read.

Duplicates, components, quotas, splits, order and byte offsets are all decided here, by pure
functions of the rows and the configuration.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipelines.build_dataset.config import BuildConfig
from pipelines.build_dataset.derive import with_made
from pipelines.build_dataset.scan import FILTERED, OK, REJECTED, scan_schema
from pipelines.build_dataset.selection import apply_quotas, drop_excluded, rejected
from sigma_data.corpus.shard import BLOCK, END, member_size
from sigma_data.errors import ConfigError
from sigma_data.images.fingerprint import SIGNATURE_BYTES, choose_split, components, hash_fraction, near_pairs
from sigma_data.images.fingerprint_file import KnownImages
from sigma_data.sample import Family

_COLUMNS = [name for name in scan_schema().names if name != "json"]


@dataclass(frozen=True)
class Shard:
    """A shard to be written: path inside the corpus, samples, members, bytes."""

    path: str
    samples: int
    members: int
    size: int


@dataclass(frozen=True)
class Unstable:
    """A sample that did not come out as scanned when it was read again: it cannot be written where it was planned."""

    fragment: int
    position: int
    message: str


@dataclass(frozen=True)
class Plan:
    """Where every sample goes. `rows` are in shard order, `out` are the records not written.

    `read` records came from the sources, `made` samples were made from others: together they are rows and out.
    """

    rows: pl.DataFrame
    out: pl.DataFrame
    shards: tuple[Shard, ...]
    read: int
    made: int = 0

    def digest(self) -> str:
        """SHA-256 over the place of every sample."""
        places = self.rows.select("id", "content", "json_sha256", "shard", "offset", "size")
        return hashlib.sha256(places.write_csv().encode()).hexdigest()


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
    rows = _without(_load(scans), unstable)
    read = len(rows)
    out = [rows.filter(pl.col("status") != OK)]
    rows = rows.filter(pl.col("status") == OK)

    if excluded.prints:
        rows, known = drop_excluded(rows, excluded)
        out.append(known)
    rows, duplicates = _drop_duplicates(rows)
    out.append(duplicates)
    _refuse_id_clash(rows)
    images = _images(rows)
    if config.near_duplicates == "drop":
        rows, dropped = _drop_near_duplicates(rows, images)
        out.append(dropped)
        images = _images(rows)
    rows = _add_components(rows, images, config)
    rows, over = apply_quotas(rows, config)
    out.append(over)
    kept = len(rows)
    rows = with_made(rows, scans, config)
    made = len(rows) - kept
    rows = _ordered(rows, config)
    rows, shards = place(rows, config.shard_bytes, config.shard_samples)
    left_out = pl.concat([frame.select(out[0].columns) for frame in out]).sort("order")
    return Plan(rows, left_out, shards, read, made)


def _load(scans: Sequence[Path]) -> pl.DataFrame:
    # All files in one call: a frame a file costs 140 KB a file, more than the rows of a small one.
    rows = pl.scan_parquet(list(scans), glob=False).select(_COLUMNS).collect()
    counts = [pq.ParquetFile(path).metadata.num_rows for path in scans]
    fragment = pl.Series("fragment", np.repeat(np.arange(len(counts), dtype=np.int32), counts))
    return rows.with_columns(fragment, filtered=pl.col("status") == FILTERED).with_row_index("order")


def _without(rows: pl.DataFrame, unstable: Sequence[Unstable]) -> pl.DataFrame:
    """The rows, those that a write pass found to be unstable rejected with its reason."""
    if not unstable:
        return rows
    schema = {"fragment": pl.Int32, "position": pl.Int32, "why": pl.String}
    found = pl.DataFrame([(one.fragment, one.position, one.message) for one in unstable], schema=schema, orient="row")
    marked = rows.join(
        found.unique(["fragment", "position"], keep="first"),
        on=["fragment", "position"], how="left", maintain_order="left",
    )  # fmt: skip
    bad = pl.col("why").is_not_null()
    return marked.with_columns(
        status=pl.when(bad).then(pl.lit(REJECTED)).otherwise("status"),
        code=pl.when(bad).then(pl.lit("unstable")).otherwise("code"),
        codes=pl.when(bad).then(pl.lit(["unstable"])).otherwise("codes"),
        message=pl.when(bad).then("why").otherwise("message"),
    ).drop("why")


def _drop_duplicates(rows: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Keep the first of the samples that are identical in all images and text."""
    rows = rows.with_columns(pl.col("id").first().over("content").alias("same_as"))
    first = pl.col("order") == pl.col("order").min().over("content")
    message = pl.format("same images and text as {}", pl.col("same_as"))
    return rows.filter(first), rejected(rows.filter(~first), "duplicate", message)


def _drop_near_duplicates(rows: pl.DataFrame, images: _Images) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Keep the first of the samples alike in text whose images are all nearly identical."""
    classes = components(len(images.signatures), near_pairs(images.signatures))[images.image]
    seen = pl.DataFrame({"sample": images.sample, "looks": classes})
    seen = seen.group_by("sample", maintain_order=True).agg("looks")
    # A sample without images has no looks.
    every = pl.DataFrame({"sample": np.arange(len(rows))})
    looks = every.join(seen, on="sample", how="left", maintain_order="left")["looks"].fill_null([])
    rows = rows.with_columns(looks)
    key = pl.struct("text", "looks")
    rows = rows.with_columns(pl.col("id").first().over(key).alias("same_as"))
    first = pl.col("order") == pl.col("order").min().over(key)
    message = pl.format("same text and nearly identical images as {}", pl.col("same_as"))
    dropped = rejected(rows.filter(~first), "near_duplicate", message)
    return rows.filter(first).drop("looks"), dropped.drop("looks")


def _refuse_id_clash(rows: pl.DataFrame) -> None:
    clash = rows.filter(pl.col("id").is_duplicated())
    if len(clash):
        one = clash.filter(pl.col("id") == clash["id"][0])
        places = " and ".join(f"{source} {location} row {row}" for source, location, row in one.select(
            "source", "location", "row").rows()[:2])  # fmt: skip
        raise ConfigError(
            f"different samples have the id {clash['id'][0]} ({places}): "
            "give one of the sources a name of its own, e.g. release:PATH?name=second"
        )


@dataclass(frozen=True)
class _Images:
    """All images of all samples: (sample, image) for each, and each different image's signature."""

    sample: NDArray[np.int64]
    image: NDArray[np.int64]
    signatures: NDArray[np.uint8]


def _images(rows: pl.DataFrame) -> _Images:
    images = (
        rows.select(pl.int_range(pl.len()).alias("sample"), pl.col("images"))
        .explode("images", empty_as_null=False)
        .unnest("images")
        .select("sample", "sha256", "signature")
    )
    first = images.unique("sha256", keep="first", maintain_order=True)
    code = first.select("sha256").with_row_index("image")
    joined = images.join(code, on="sha256", maintain_order="left")
    signatures = np.frombuffer(b"".join(first["signature"]), dtype=np.uint8).reshape(-1, SIGNATURE_BYTES)
    return _Images(
        joined["sample"].to_numpy().astype(np.int64), joined["image"].to_numpy().astype(np.int64), signatures
    )


def _add_components(rows: pl.DataFrame, images: _Images, config: BuildConfig) -> pl.DataFrame:
    """Join samples that share an image, exactly or nearly, and give each component its split.

    A component is represented by its first sample in source order: data added behind what was
    there changes no split, unless it joins two components that had different ones. Samples that
    come with a split keep it; where a component comes with several, the largest of them takes it.
    """
    # A sample for each different image stands for all that have it.
    owner = np.zeros(len(images.signatures), dtype=np.int64)
    owner[images.image[::-1]] = images.sample[::-1]
    exact = np.stack([images.sample, owner[images.image]], axis=1)
    near = owner[near_pairs(images.signatures)]
    label = components(len(rows), np.concatenate([exact, near.reshape(-1, 2)]))
    ids = rows["id"].to_list()
    sizes = np.bincount(label, minlength=len(rows))
    by_size = sorted(config.splits, key=lambda name: -config.splits[name])
    old = set(rows["old_split"].drop_nulls()) - set(config.splits)
    if old:
        raise ConfigError(
            f"samples come with the split {sorted(old)[0]!r}, which this build does not have: add it to splits, e.g. "
            f"splits.{sorted(old)[0]}=5, or draw splits anew with ?splits=new after the source"
        )
    given: dict[int, int] = {}  # component -> place in by_size of the largest split its samples come with
    for root, split in zip(label.tolist(), rows["old_split"], strict=True):
        if split in config.splits:
            given[root] = min(by_size.index(split), given.get(root, len(by_size)))

    def split_of(root: int) -> str:
        if root in given:
            return by_size[given[root]]
        if config.max_component is not None and sizes[root] > config.max_component:
            return by_size[0]
        return choose_split(ids[root], config.splits, seed=config.seed)

    splits = {root: split_of(root) for root in np.unique(label).tolist()}
    return rows.with_columns(
        pl.Series("component", [ids[root] for root in label], dtype=pl.String),
        pl.Series("split", [splits[root] for root in label.tolist()], dtype=pl.String),
    )


def _ordered(rows: pl.DataFrame, config: BuildConfig) -> pl.DataFrame:
    """Rows by split and family, inside them in source order or by a hash of their id."""
    families = {family.value: index for index, family in enumerate(Family)}
    splits = {name: index for index, name in enumerate(config.splits)}
    shuffled = config.order == "shuffled"
    random_key = [hash_fraction("order", config.seed, name) for name in rows["id"]] if shuffled else [0.0] * len(rows)
    return (
        rows.with_columns(pl.Series("random_key", random_key, dtype=pl.Float64))
        .sort(
            pl.col("split").replace_strict(splits, return_dtype=pl.Int64),
            pl.col("family").replace_strict(families, return_dtype=pl.Int64),
            "random_key",
            "order",
        )
        .drop("random_key")
    )


def place(rows: pl.DataFrame, shard_bytes: int, shard_samples: int) -> tuple[pl.DataFrame, tuple[Shard, ...]]:
    """Cut ordered rows into shards by split and family, and give each sample and member its offset."""
    shards: list[Shard] = []
    names: list[str] = []
    indices: list[int] = []
    offsets: list[int] = []
    kind: tuple[str, str] | None = None
    number = samples = members = used = 0

    def close() -> None:
        if samples and kind is not None:
            shards.append(Shard(_shard_path(*kind, number), samples, members, used + len(END)))

    columns = rows.select("split", "family", "size", pl.col("images").list.len().alias("images"))
    for split, family, size, images in columns.iter_rows():
        full = used + size + len(END) > shard_bytes or samples >= shard_samples
        if (split, family) != kind:
            close()
            kind, number, samples, members, used = (split, family), 0, 0, 0, 0
        elif full:
            close()
            number, samples, members, used = number + 1, 0, 0, 0
        names.append(_shard_path(split, family, number))
        indices.append(samples)
        offsets.append(used)
        samples, members, used = samples + 1, members + images + 1, used + size
    close()
    rows = rows.with_columns(
        pl.Series("shard", names, dtype=pl.String),
        pl.Series("index", indices, dtype=pl.Int32),
        pl.Series("offset", offsets, dtype=pl.Int64),
    )
    return _member_offsets(rows), tuple(shards)


def _member_offsets(rows: pl.DataFrame) -> pl.DataFrame:
    """Where the JSON and every image of a sample start in its shard."""
    rows = rows.with_columns((pl.col("offset") + BLOCK).alias("json_offset"))
    starts: list[list[int]] = []
    for offset, json_size, sizes in rows.select(
        "offset", "json_size", pl.col("images").list.eval(pl.element().struct.field("size"))
    ).iter_rows():
        position = offset + member_size(json_size)
        places = []
        for size in sizes:
            places.append(position + BLOCK)
            position += member_size(size)
        starts.append(places)
    flat = pl.Series("offset", [place for places in starts for place in places], dtype=pl.Int64)
    images = (
        rows.select(pl.int_range(pl.len()).alias("sample"), "images")
        .explode("images", empty_as_null=False)
        .with_columns(pl.col("images").struct.with_fields(flat.alias("offset")))
        .group_by("sample", maintain_order=True)
        .agg("images")
    )
    have = rows.select(pl.int_range(pl.len()).alias("sample"))
    images = have.join(images, on="sample", how="left", maintain_order="left")
    return rows.with_columns(images["images"].fill_null([]))


def _shard_path(split: str, family: str, number: int) -> str:
    return f"{split}/{family}-{number:05d}.tar"
