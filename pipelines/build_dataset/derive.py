"""Made samples as rows of the plan: which are written, their records, and where their images' bytes lie.

They come after the quotas, fill what these leave open, and are placed with all others.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray

from pipelines.build_dataset.config import BuildConfig
from pipelines.build_dataset.image_words import read_image_words
from pipelines.build_dataset.made import MadeSample, Parent, info_of, made_samples, usable
from pipelines.build_dataset.scan import good_row, read_scan, scan_schema
from pipelines.build_dataset.scan_columns import Digests, ScanColumns, digests
from sigma_data.corpus.checks import examine
from sigma_data.corpus.record import decode
from sigma_data.images.fingerprint import hash_fraction
from sigma_data.sample import Family

ORIGINS = "origins"


@dataclass(frozen=True)
class Made:
    """Made samples [m]: their rows as a scan file has them, and as the plan has them.

    `rows` has the columns of the plan's rows, `fragment` the number behind the last scan file. `origins` has, of each
    sample, (parent's id, image number there) of each image, in the order of `images`.
    """

    table: pa.Table
    rows: pl.DataFrame
    content: Digests
    json: NDArray[np.uint64]
    origins: tuple[tuple[tuple[str, int], ...], ...]


def made_rows(
    rows: pl.DataFrame, ids: pl.Series, found: ScanColumns, scans: Sequence[Path], config: BuildConfig
) -> Made | None:
    """The samples to be made from the planned rows, None if there are none."""
    parents = list(_parents(rows, scans, config))
    made: list[dict[str, Any]] = []
    for one in made_samples(parents, config.made, seed=config.seed, words=read_image_words(config.made.words)):
        if (row := _row(one, config)) is not None:
            made.append(row)
    del parents
    made = _new(made, rows, found)
    made = _within_quotas(made, rows, config)
    if not made:
        return None
    table = pa.Table.from_pylist(made, schema=scan_schema())
    count = len(made)
    frame = pl.DataFrame(
        {
            "sample": np.arange(len(ids), len(ids) + count, dtype=np.uint32),
            "order": np.arange(found.read, found.read + count, dtype=np.uint32),
            "fragment": np.full(count, len(scans), dtype=np.int32),
            "position": np.arange(count, dtype=np.int32),
            "id": [row["id"] for row in made],
            "family": [row["family"] for row in made],
            "source": [row["source"] for row in made],
            "old_split": [None] * count,
            "size": [row["size"] for row in made],
            "json_size": [row["json_size"] for row in made],
            "images": [len(row["images"]) for row in made],
            "component": [row["component"] for row in made],
            "split": [row["split"] for row in made],
        },
        schema_overrides={name: rows.schema[name] for name in rows.columns},
    )
    json = digests(pa.array([row["json_sha256"] for row in made], pa.string())).high
    content = digests(pa.array([row["content"] for row in made], pa.string()))
    return Made(table, frame, content, json, tuple(tuple(row[ORIGINS]) for row in made))


def _new(made: list[dict[str, Any]], rows: pl.DataFrame, found: ScanColumns) -> list[dict[str, Any]]:
    """Those that neither the sources, e.g. a corpus that is built again, nor earlier ones have already."""
    ids = set(rows["id"].filter(rows["id"].is_in([row["id"] for row in made])))
    content = digests(pa.array([row["content"] for row in made], pa.string()))
    sample = rows["sample"].to_numpy()
    alike = np.flatnonzero(np.isin(found.content.high[sample], content.high))
    there = found.content[sample[alike]]
    contents = set(zip(there.high.tolist(), there.low.tolist(), strict=True))
    kept = []
    for row, *key in zip(made, content.high.tolist(), content.low.tolist(), strict=True):
        if row["id"] not in ids and tuple(key) not in contents:
            ids.add(row["id"])
            contents.add((key[0], key[1]))
            kept.append(row)
    return kept


def _parents(rows: pl.DataFrame, scans: Sequence[Path], config: BuildConfig) -> Iterator[Parent]:
    """The samples that others can be made from, in the order of the sources; their records are read from the scan."""
    columns = rows.select("fragment", "position", "family", "split", "component").sort("fragment", "position")
    for (fragment,), part in columns.group_by("fragment", maintain_order=True):
        table = read_scan(scans[int(fragment)], ["json", "references", "images"]).take(part["position"].to_numpy())
        for place, row in enumerate(part.iter_rows(named=True)):
            if not config.made.feeds(Family(row["family"]), table["references"][place].as_py()):
                continue
            sample = decode(table["json"][place].as_py(), None)
            if usable(sample):
                infos = {image["number"]: info_of(image) for image in table["images"][place].as_py()}
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
        (made.parents[place].sample.id, there)
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
