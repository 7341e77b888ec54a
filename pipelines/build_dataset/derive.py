"""Made samples as rows of the plan: which are written, their records, and where their images' bytes lie.

They come after the quotas, fill what these leave open, and are placed with all others.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa

from pipelines.build_dataset.config import BuildConfig
from pipelines.build_dataset.image_words import read_image_words
from pipelines.build_dataset.made import MadeSample, Parent, info_of, made_samples, usable
from pipelines.build_dataset.scan import good_row, read_scan, scan_schema
from sigma_data.corpus.checks import examine
from sigma_data.corpus.record import decode
from sigma_data.images.fingerprint import hash_fraction
from sigma_data.sample import Family

ORIGINS = "origins"
"""Column of the plan: of a made sample (parent's id, image number there) of each image, in the order of `images`."""


def with_made(rows: pl.DataFrame, scans: Sequence[Path], config: BuildConfig) -> pl.DataFrame:
    """The planned rows and, behind them, those of made samples; these alone have `json` and `origins`."""
    if not config.made.any:
        return rows
    parents = list(_parents(rows, scans, config))
    ids, contents = set(rows["id"]), set(rows["content"])
    made: list[dict[str, Any]] = []
    for one in made_samples(parents, config.made, seed=config.seed, words=read_image_words(config.made.words)):
        row = _row(one, config)
        # The source, or a corpus that is built again, may have the sample already.
        if row is not None and row["id"] not in ids and row["content"] not in contents:
            ids.add(row["id"])
            contents.add(row["content"])
            made.append(row)
    made = _within_quotas(made, rows, config)
    if not made:
        return rows
    table = pa.Table.from_pylist(made, schema=scan_schema())
    first = int(rows.select(pl.col("order").max()).item() or 0) + 1
    frame = pl.DataFrame(pl.from_arrow(table)).with_columns(
        pl.Series("split", [row["split"] for row in made], dtype=pl.String),
        pl.Series("component", [row["component"] for row in made], dtype=pl.String),
        pl.Series(ORIGINS, [row[ORIGINS] for row in made]),
        pl.Series("order", range(first, first + len(made))).cast(rows.schema["order"]),
        filtered=pl.lit(False),
    )
    return pl.concat([rows, frame], how="diagonal")


def _parents(rows: pl.DataFrame, scans: Sequence[Path], config: BuildConfig) -> Iterator[Parent]:
    """The samples that others can be made from, in the order of the sources; their records are read from the scan."""
    columns = rows.select("fragment", "position", "family", "references", "split", "component", "images")
    wanted = [
        row
        for row in columns.sort("fragment", "position").iter_rows(named=True)
        if config.made.feeds(Family(row["family"]), row["references"])
    ]
    fragment, records = -1, None
    for row in wanted:
        if row["fragment"] != fragment:
            fragment = row["fragment"]
            records = read_scan(scans[fragment], ["json"])["json"]
        assert records is not None
        sample = decode(records[row["position"]].as_py(), None)
        if usable(sample):
            infos = {image["number"]: info_of(image) for image in row["images"]}
            yield Parent(sample, row["split"], row["component"], infos)


def _row(made: MadeSample, config: BuildConfig) -> dict[str, Any] | None:
    """The row of a made sample, None where it breaks a rule of the checks."""
    infos = {number: made.parents[place].image(there) for number, (place, there) in made.origins.items()}
    known = {info.sha256.encode(): info for info in infos.values()}
    images = tuple(replace(image, data=infos[image.number].sha256.encode()) for image in made.sample.images)
    found = examine(
        replace(made.sample, images=images),
        config.limits,
        severities=config.checks,
        prober=lambda data: known[data or b""],
    )
    if found.errors:
        return None
    row = good_row(found, {})
    origins = [
        {"id": made.parents[place].sample.id, "number": there}
        for place, there in (made.origins[image["number"]] for image in row["images"])
    ]
    return row | {"split": made.parents[0].split, "component": made.parents[0].component, ORIGINS: origins}


def _within_quotas(made: list[dict[str, Any]], rows: pl.DataFrame, config: BuildConfig) -> list[dict[str, Any]]:
    """Of each family with a quota no more than it leaves open, those with the lowest hash of their ids."""
    have = dict(rows.group_by("family").len().iter_rows())
    kept = set()
    for family, quota in config.quotas.items():
        own = sorted(
            (row["id"] for row in made if row["family"] == family.value),
            key=lambda name: (hash_fraction("quota", config.seed, name), name),
        )
        kept |= set(own[: max(0, quota - have.get(family.value, 0))])
    limited = {family.value for family in config.quotas}
    return [row for row in made if row["family"] not in limited or row["id"] in kept]
