"""The first pass: every record of a fragment decoded, checked, hashed and measured, once.

A task reads one fragment and writes one parquet file, a row a record, that holds all the later
passes need but the image bytes. The file's name is the digest of what it depends on, so finding it
means that the work is done.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.build_dataset.prepare import PrepareSettings, prepared
from pipelines.build_dataset.scan_files import KeptScan
from pipelines.common.batched import batched
from pipelines.common.pandas_unused import leave_pandas_out
from sigma_data.corpus.check_limits import Severity
from sigma_data.corpus.checks import Examination, examine
from sigma_data.corpus.manifest import examined_columns, manifest_schema, sample_columns
from sigma_data.corpus.record import encode, member_names
from sigma_data.corpus.shard import member_size
from sigma_data.errors import SourceError
from sigma_data.images.decode import ImageFault, reencode, thumbnail
from sigma_data.images.image_info import ImageInfo
from sigma_data.images.probe_cache import ProbeCache
from sigma_data.images.reader_differences import Store
from sigma_data.sample import Image, Rejection, Sample
from sigma_data.sources import Fragment, open_source
from sigma_data.storage.files import disk_error, with_temporary
from sigma_data.storage.paths import literal

_BATCH = 64
_THUMBNAIL = 160
_THUMBNAILS_A_FRAGMENT = 8
"""Rejected samples with a thumbnail, for each code in a fragment; the report shows a few of them."""

OK, FILTERED, REJECTED = "ok", "filtered", "rejected"

CACHE = "computed"
"""Folder of a build's workspace for images that are computed, so that the write pass finds those of the scan."""

PLANNED = ("split", "shard", "index", "offset", "json_offset", "component")
"""Columns of the manifest that the plan adds."""


@cache
def scan_schema() -> pa.Schema:
    """A row a prepared record, in source order; `status` says whether it is to be written."""
    known = [field for field in manifest_schema() if field.name not in PLANNED]
    return pa.schema([
        *known,
        *pa.schema({
            "position": pa.int32(), "status": pa.string(), "text": pa.string(), "json": pa.binary(),
            "code": pa.string(), "codes": pa.list_(pa.string()), "message": pa.string(), "thumbnail": pa.binary(),
            "old_split": pa.string(),
        }),
    ])  # fmt: skip


@dataclass(frozen=True)
class ScanTask:
    """A fragment to scan, with all that its result depends on."""

    spec: str
    fragment: Fragment
    severities: dict[str, Severity]
    output: str
    preparation: PrepareSettings = field(default_factory=PrepareSettings)
    store: str | None = None
    """URI of the store that keeps the scan file for other machines."""


def list_fragments(spec: str) -> list[Fragment]:
    """The fragments of a source: a task too, for it opens files that may be hostile."""
    return open_source(spec).fragments()


def scan_fragment(task: ScanTask) -> int:
    """Scan one fragment into its parquet file; returns the bytes of the images that were read."""
    cache = Path(task.output).parents[1] / CACHE
    records = prepared(_reading(open_source(task.spec).read(task.fragment), task), task.preparation, cache=cache)
    thumbnails: Counter[str] = Counter()
    size = 0

    def rows() -> Iterator[dict[str, Any]]:
        nonlocal size
        for position, record in enumerate(records):
            if isinstance(record, Sample):
                size += sum(len(image.data or b"") for image in record.images)
            yield _row(position, record, task, thumbnails)

    _write(Path(task.output), rows())
    _keep(task)
    return size


def crashed_fragment(task: ScanTask, signal: str) -> None:
    """The result of a fragment whose reading kills the process: every row of it is rejected."""
    name = open_source(task.spec).name
    message = f"reading it kills the reader ({signal}), so none of it was used"
    where = f"{task.fragment.location} {task.fragment.part}".strip()
    rejection = Rejection(name, where, None, "reader_crashed", message)
    _write(Path(task.output), (_rejection_row(position, rejection) for position in range(task.fragment.rows or 1)))
    _keep(task)


def read_scan(path: Path, columns: list[str]) -> pa.Table:
    """Some columns of a scan file; parts of a struct as images.list.element.NAME."""
    return pq.ParquetFile(literal(path)).read(columns=columns, use_threads=False)


@cache
def _prober(max_pixels: int) -> ProbeCache:
    """One memory a worker, for its whole life: samples far apart may share an image."""
    return ProbeCache(max_pixels=max_pixels)


def _row(position: int, record: Sample | Rejection, task: ScanTask, thumbnails: Counter[str]) -> dict[str, Any]:
    if isinstance(record, Rejection):
        return _rejection_row(position, record)
    settings = task.preparation
    prober = _prober(settings.limits.max_pixels)
    found = examine(record, settings.limits, severities=task.severities, prober=prober)
    reasons: dict[int, str] = {}
    if not found.errors:
        sample, reasons = stored(record, found.infos, settings.max_side, settings.store)
        if sample is not record:  # what stands in the shard must keep the rules too
            found = examine(sample, settings.limits, severities=task.severities, prober=prober)
    row = {**sample_columns(record), "position": position, "old_split": record.split}
    if found.errors:
        first = found.errors[0]
        thumbnails[first.code] += 1
        wanted = thumbnails[first.code] <= _THUMBNAILS_A_FRAGMENT
        return row | {
            "status": REJECTED,
            "code": first.code,
            "codes": list(dict.fromkeys(finding.code for finding in found.errors)),
            "message": "; ".join(finding.message for finding in found.errors)[:2000],
            "thumbnail": _first_thumbnail(record) if wanted else None,
        }
    return row | good_row(found, reasons)


def good_row(found: Examination, reasons: dict[int, str]) -> dict[str, Any]:
    """A row of a sample that keeps every rule, its images as they will stand in the shard."""
    sample, infos = found.sample, found.infos
    record = encode(sample, infos)
    members = member_names(sample, {number: info.extension for number, info in infos.items()})
    texts = [(t.instruction, t.target, t.response, t.alternatives) for t in sample.turns]
    text = hashlib.sha256(repr(texts).encode("utf-8", "surrogatepass")).hexdigest()
    content = [(number, infos[number].sha256) for number in sorted(infos)]
    columns = examined_columns(found)
    for image in columns["images"]:
        image |= {"member": members[image["number"]], "reencoded": reasons.get(image["number"])}
    return {
        **columns,
        "status": OK,
        "content": hashlib.sha256(repr((content, text)).encode()).hexdigest(),
        "text": text,
        "size": member_size(len(record)) + sum(member_size(info.size) for info in infos.values()),
        "json": record,
        "json_size": len(record),
        "json_sha256": hashlib.sha256(record).hexdigest(),
        "warnings": list(dict.fromkeys(finding.code for finding in found.warnings)),
    }


def stored(
    sample: Sample, infos: Mapping[int, ImageInfo], max_side: int | None, store: Store
) -> tuple[Sample, dict[int, str]]:
    """The sample as its shard holds it, and why images of it were re-encoded."""
    images: list[Image] = []
    reasons: dict[int, str] = {}
    for image in sample.images:
        data = image.data or b""
        mask = image.number in sample.masks
        if changed := reencode(data, infos[image.number], max_side=max_side, store=store, mask=mask):
            data, reasons[image.number] = changed
        images.append(replace(image, data=data, value_range=infos[image.number].value_range or image.value_range))
    same = tuple(images) == sample.images
    return sample if same else replace(sample, images=tuple(images)), reasons


def _keep(task: ScanTask) -> None:
    if task.store is not None:
        KeptScan(task.store, task.output).upload()


def _reading(records: Iterator[Sample | Rejection], task: ScanTask) -> Iterator[Sample | Rejection]:
    """The records; a read that the system refuses is the source's error, not the output's."""
    try:
        yield from records
    except OSError as error:
        raise SourceError(f"{task.spec}: {task.fragment.location}: {error.strerror or error}") from None


def _rejection_row(position: int, rejection: Rejection) -> dict[str, Any]:
    return {
        "position": position,
        "status": FILTERED if rejection.filtered else REJECTED,
        "family": rejection.family,
        "source": rejection.source,
        "location": rejection.location,
        "row": rejection.row,
        "code": rejection.code,
        "codes": [rejection.code],
        "message": rejection.message[:2000],
    }


def _first_thumbnail(sample: Sample) -> bytes | None:
    """A small image of the sample: of the first of its images that can be decoded."""
    for image in sample.images:
        try:
            if small := thumbnail(image.data, _THUMBNAIL):
                return small
        except ImageFault:
            continue
    return None


def _write(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    schema = scan_schema()
    leave_pandas_out()

    def write(temporary: Path) -> None:
        with pq.ParquetWriter(literal(temporary), schema, compression="zstd", compression_level=1) as writer:
            for batch in batched(rows, _BATCH):
                writer.write_table(pa.Table.from_pylist(batch, schema=schema))

    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with_temporary(path, write)
    except OSError as error:
        raise disk_error(error, path) from None
