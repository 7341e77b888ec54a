"""Made samples as rows of the plan: which are written, their records, and where their images' bytes lie.

They come after the quotas, fill what these leave open, and are placed with all others.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
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
from sigma_data.storage.files import disk_error, with_temporary
from sigma_data.storage.paths import literal

ORIGINS = "origins"
_FILE = "made.rows"
"""Beside the scan files, and not named like one."""
_BATCH = 2048


@dataclass(frozen=True)
class Made:
    """Made samples [m]: their rows as the plan has them, and a file of all that could be made, as a scan file has them.

    `rows` has the columns of the plan's rows, `fragment` the number behind the last scan file, `position` the place in
    the file. There `origins` has, of each sample, (parent's number in the plan's `ids`, image number there) of each
    image, in the order of `images`.
    """

    path: Path
    rows: pl.DataFrame
    content: Digests
    json: NDArray[np.uint64]


def made_rows(
    rows: pl.DataFrame, ids: pl.Series, found: ScanColumns, scans: Sequence[Path], config: BuildConfig
) -> Made | None:
    """The samples to be made from the planned rows, None if there are none. Writes a file beside the scan files."""
    parents = _Parents(rows, scans, config)
    words = read_image_words(config.made.words)
    made = made_samples(parents, config.made, seed=config.seed, words=words)
    path = scans[0].with_name(_FILE) if scans else Path(_FILE)
    frame, content, json = _written(path, made, config)
    kept = _new(frame["id"], content, rows, found)
    kept &= _within_quotas(frame, kept, rows, config)
    if not kept.any():
        return None
    places = np.flatnonzero(kept)
    frame, content, json = frame[places], content[places], json[places]
    count = len(frame)
    frame = frame.with_columns(
        sample=pl.Series(np.arange(len(ids), len(ids) + count, dtype=np.uint32)),
        order=pl.Series(np.arange(found.read, found.read + count, dtype=np.uint32)),
        fragment=pl.lit(len(scans), dtype=pl.Int32),
        old_split=pl.lit(None, dtype=rows.schema["old_split"]),
    )
    frame = frame.select(pl.col(name).cast(rows.schema[name]) for name in rows.columns)
    return Made(path, frame, content, json)


def file_schema() -> pa.Schema:
    """Of the file of made samples: a scan file's columns, and `origins`."""
    origin = pa.struct({"sample": pa.uint32(), "number": pa.int16()})
    return scan_schema().append(pa.field(ORIGINS, pa.list_(origin)))


def _written(
    path: Path, made: Iterator[MadeSample], config: BuildConfig
) -> tuple[pl.DataFrame, Digests, NDArray[np.uint64]]:
    """Write all made samples that keep the rules; what the plan needs of each, its content and its JSON's digest."""
    frames: list[pl.DataFrame] = [pl.DataFrame(schema=_NARROW)]
    contents: list[Digests] = [Digests(np.empty(0, dtype=np.uint64), np.empty(0, dtype=np.uint64))]
    jsons: list[NDArray[np.uint64]] = [np.empty(0, dtype=np.uint64)]

    def write(temporary: Path) -> None:
        good = (row for one in made if (row := _row(one, config)) is not None)
        position = 0
        with pq.ParquetWriter(literal(temporary), file_schema(), compression="zstd") as writer:
            while some := list(islice(good, _BATCH)):
                writer.write_table(pa.Table.from_pylist(some, schema=file_schema()))
                told = [
                    (position + place, *(row[name] for name in _NARROW if name not in ("position", "images")),
                     len(row["images"]))
                    for place, row in enumerate(some)
                ]  # fmt: skip
                frames.append(pl.DataFrame(told, schema=_NARROW, orient="row"))
                contents.append(digests(pa.array([row["content"] for row in some], pa.string())))
                jsons.append(digests(pa.array([row["json_sha256"] for row in some], pa.string())).high)
                position += len(some)

    try:
        with_temporary(path, write)
    except OSError as error:
        raise disk_error(error, path) from None
    return pl.concat(frames), contents[0].joined(*contents[1:]), np.concatenate(jsons)


_NARROW = {
    "position": pl.Int32, "id": pl.String, "family": pl.String, "source": pl.String, "size": pl.Int64,
    "json_size": pl.UInt32, "component": pl.UInt32, "split": pl.String, "images": pl.UInt16,
}  # fmt: skip


def _new(ids: pl.Series, content: Digests, rows: pl.DataFrame, found: ScanColumns) -> NDArray[np.bool_]:
    """Those that neither the sources, e.g. a corpus that is built again, nor earlier ones have already."""
    there_id = ids.is_in(rows["id"].implode()).to_numpy()
    sample = rows["sample"].to_numpy()
    alike = np.flatnonzero(np.isin(found.content.high[sample], content.high))
    old = found.content[sample[alike]]
    # The first of the same content, among those of the sources and these; and the first of the same id.
    first_content = old.joined(content).first_equal()[len(old) :]
    same_id = ids.rank("dense").cast(pl.Int64).to_numpy() if len(ids) else np.empty(0, dtype=np.int64)
    kept = np.zeros(len(ids), dtype=bool)
    seen_id = np.zeros(len(ids) + 1, dtype=bool)
    seen_content = np.zeros(len(old) + len(ids), dtype=bool)
    seen_content[: len(old)] = True
    for place in range(len(ids)):
        if not there_id[place] and not seen_id[same_id[place]] and not seen_content[first_content[place]]:
            kept[place] = seen_id[same_id[place]] = seen_content[first_content[place]] = True
    return kept


class _Parents:
    """The samples that others can be made from, in the order of the sources; their records are read from the scan."""

    def __init__(self, rows: pl.DataFrame, scans: Sequence[Path], config: BuildConfig) -> None:
        columns = rows.select("fragment", "position", "family", "split", "component", "sample")
        self._columns = columns.sort("fragment", "position")
        self._scans, self._config = scans, config
        self._usable: array[int] | None = None

    def __iter__(self) -> Iterator[Parent]:
        """All of them, and their places are noted the first time."""
        usable_rows = array("L")
        for row, parent in self._read(range(len(self._columns)) if self._usable is None else self._usable):
            usable_rows.append(row)
            yield parent
        self._usable = usable_rows

    def take(self, places: Sequence[int]) -> dict[int, Parent]:
        """The parents at these places, which ascend."""
        assert self._usable is not None, "they have been gone through"
        found = (parent for _, parent in self._read([self._usable[place] for place in places]))
        return dict(zip(places, found, strict=True))

    def _read(self, rows: Sequence[int]) -> Iterator[tuple[int, Parent]]:
        """Those of the rows of `_columns` that can be parents."""
        fragments = self._columns["fragment"].to_numpy()
        wanted = np.fromiter(rows, dtype=np.int64, count=len(rows))
        for fragment in np.unique(fragments[wanted]).tolist():
            begin, end = np.searchsorted(fragments[wanted], [fragment, fragment + 1]).tolist()
            some = wanted[begin:end]
            part = self._columns[some]
            table = read_scan(self._scans[fragment], ["json", "references", "images"])
            table = table.take(part["position"].to_numpy())
            for place, row in enumerate(part.iter_rows(named=True)):
                if not self._config.made.feeds(Family(row["family"]), table["references"][place].as_py()):
                    continue
                sample = decode(table["json"][place].as_py(), None)
                if usable(sample):
                    infos = {image["number"]: info_of(image) for image in table["images"][place].as_py()}
                    yield int(some[place]), Parent(sample, row["split"], row["component"], infos, row["sample"])


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
        {"sample": made.parents[place].number, "number": there}
        for place, there in (made.origins[image["number"]] for image in row["images"])
    ]
    return row | {"split": made.parents[0].split, "component": made.parents[0].component, ORIGINS: origins}


def _within_quotas(
    made: pl.DataFrame, kept: NDArray[np.bool_], rows: pl.DataFrame, config: BuildConfig
) -> NDArray[np.bool_]:
    """Of each family with a quota no more than it leaves open, those with the lowest hash of their ids."""
    have = dict(rows.group_by("family").len().iter_rows())
    within = np.ones(len(made), dtype=bool)
    for family, quota in config.quotas.items():
        own = np.flatnonzero(kept & (made["family"] == family.value).to_numpy())
        names = made["id"].gather(own).to_list()
        order = sorted(range(len(own)), key=lambda at: (hash_fraction("quota", config.seed, names[at]), names[at]))
        within[own[order[max(0, quota - have.get(family.value, 0)) :]]] = False
    return within
