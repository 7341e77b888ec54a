"""Attribute tokens between scan and plan: from scan rows to rows with injected texts; no image is read.

The texts that the scan checked are all that is needed, so changing who injects scans nothing anew. A language model is
asked by this process, for every caption without a reply in the cache, before anything is decided; the workers only
read. What finds duplicates is still the plain wording: a frame that an id draws makes no two samples of one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.build_dataset.config import BuildConfig
from pipelines.build_dataset.scan import OK, REJECTED, scan_schema
from pipelines.build_dataset.scan_files import is_whole
from pipelines.build_dataset.workspace import Workspace
from pipelines.common.engine import Engine
from pipelines.common.process_pool import Crashed
from pipelines.common.progress import ProgressBar
from pipelines.inject.ask import AskReport, ask_all
from pipelines.inject.cache import Cache
from pipelines.inject.config import InjectionSettings, cache_file
from pipelines.inject.decide import model_note, opened_decider
from sigma_data.corpus.check_limits import Limits, Severity
from sigma_data.corpus.checks import RULES, examine
from sigma_data.corpus.manifest import examined_columns
from sigma_data.corpus.record import decode, encode
from sigma_data.corpus.shard import member_size
from sigma_data.errors import BuildError
from sigma_data.images.image_info import ImageInfo
from sigma_data.injection import VERSION, Request
from sigma_data.injection.prompt import PROMPT_VERSION
from sigma_data.injection.samples import Decision, inject_sample, requests_of, stays_plain
from sigma_data.sample import Image, Rejection, Sample
from sigma_data.sources import Fragment, open_source
from sigma_data.storage.files import disk_error, with_temporary
from sigma_data.storage.paths import literal

_BATCH = 64
_TEXT_RULES = frozenset((
    "empty_instruction", "target_as_reference", "placeholder_without_picture", "unknown_token", "control_token",
    "token_without_picture", "instruction_too_long", "over_budget", "unnamed_reference", "unread_placeholder",
))  # fmt: skip


@dataclass(frozen=True)
class InjectTask:
    """A scan file whose texts are to be injected, with all that its result depends on."""

    scan: str
    output: str
    settings: InjectionSettings
    limits: Limits
    severities: dict[str, Severity]


def inject_scans(
    engine: Engine,
    config: BuildConfig,
    located: Sequence[tuple[str, Fragment]],
    scans: Sequence[Path],
    work: Workspace,
) -> tuple[list[Path], AskReport | None]:
    """The scan files with injected texts, in their order; those of sources that ship their tokens stay as they are.

    Raises EndpointError and ConfigError where a model cannot be asked; its replies so far are kept.
    """
    settings = config.injection
    if settings.by == "none":
        return list(scans), None
    shipped = {spec: open_source(spec).injected for spec in {spec for spec, _ in located}}
    todo = [index for index, (spec, _) in enumerate(located) if not shipped[spec]]
    asked = _ask(settings, [scans[index] for index in todo]) if settings.by == "model" else None
    found = list(scans)
    for index in todo:
        found[index] = work.root / "injected" / f"{_key(config, scans[index])}.parquet"
    # What a model said may be more than last time, so its results are made anew; the rules' are found again.
    new = [index for index in todo if settings.by == "model" or not is_whole(found[index])]
    tasks = [
        InjectTask(str(scans[index]), str(found[index]), settings, config.limits, dict(config.checks)) for index in new
    ]
    with ProgressBar("inject", len(todo), "fragments", found=len(todo) - len(new)) as progress:

        def done(index: int, result: Any) -> None:
            if isinstance(result, Crashed):
                raise BuildError(f"injecting tokens into {tasks[index].scan} kills the worker ({result.signal})")
            progress.add()

        engine.run(inject_scan, tasks, done, what="injecting tokens")
    return found, asked


def inject_scan(task: InjectTask) -> None:
    """Write a scan file anew, its good rows with injected texts."""
    path, schema = Path(task.output), scan_schema()

    def write(temporary: Path) -> None:
        with opened_decider(task.settings) as decide:
            injector = _Injector(task, decide)
            with pq.ParquetWriter(literal(temporary), schema, compression="zstd", compression_level=1) as writer:
                for batch in _batches(Path(task.scan)):
                    rows = [injector.row(row) for row in batch.to_pylist()]
                    writer.write_table(pa.Table.from_pylist(rows, schema=schema))

    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with_temporary(path, write)
    except OSError as error:
        raise disk_error(error, path) from None


class _Injector:
    """Decides rows of a scan file."""

    def __init__(self, task: InjectTask, decide: Callable[[Request], Decision]) -> None:
        self._task = task
        self._decide = decide
        # The scan has looked at the images, which are not here; only what depends on texts is asked once more.
        self._severities = {
            code: task.severities.get(code, rule.severity) if code in _TEXT_RULES else Severity.OFF
            for code, rule in RULES.items()
        }

    def row(self, row: dict[str, Any]) -> dict[str, Any]:
        """The row with its text injected, or rejected."""
        if row["status"] != OK:
            return row
        settings = self._task.settings
        sample = decode(row["json"], None)
        found = inject_sample(
            sample, self._decide, plain_share=settings.plain_share, model=model_note(settings)
        )  # fmt: skip
        if isinstance(found, Rejection):
            return row | {"status": REJECTED, "code": found.code, "codes": [found.code], "message": found.message,
                          "json": None}  # fmt: skip
        if found is sample:
            return row
        return self._examined(row, found)

    def _examined(self, row: dict[str, Any], sample: Sample) -> dict[str, Any]:
        """The row's columns after the sample's text has changed."""
        infos = {image["number"]: _info(image, sample) for image in row["images"]}
        marked = tuple(Image(one.number, b"%d" % one.number, one.missing, one.value_range, one.kind, one.label)
                       for one in sample.images)  # fmt: skip

        def prober(data: bytes | None) -> ImageInfo:
            return infos[int(data or b"0")]

        examined = Sample(**{**vars(sample), "images": marked})
        found = examine(examined, self._task.limits, severities=self._severities, prober=prober)
        if found.errors:
            first = found.errors[0]
            return row | {
                "status": REJECTED,
                "code": first.code,
                "codes": list(dict.fromkeys(finding.code for finding in found.errors)),
                "message": "; ".join(finding.message for finding in found.errors)[:2000],
                "json": None,
            }
        record = encode(sample, infos)
        columns = {name: value for name, value in examined_columns(found).items() if name != "images"}
        warned = {finding.code for finding in found.warnings} | (set(row["warnings"]) - _TEXT_RULES)
        return row | columns | {
            "size": row["size"] - member_size(row["json_size"]) + member_size(len(record)),
            "json": record,
            "json_size": len(record),
            "json_sha256": hashlib.sha256(record).hexdigest(),
            "warnings": [code for code in RULES if code in warned],
            "injection": _told(sample),
        }  # fmt: skip


def _told(sample: Sample) -> str:
    """The outcome for tables: who, what became of it, and why."""
    note = json.loads(sample.provenance or "{}")["injection"]
    reason = note.get("code") or note.get("fallback")
    return f"{note['by']}: {note['outcome']}" + (f", {reason}" if reason else "")


def _info(image: dict[str, Any], sample: Sample) -> ImageInfo:
    """What the scan found out about an image, as far as texts and their rules ask for it."""
    known = next(one for one in sample.images if one.number == image["number"])
    names = ("format", "mode", "width", "height", "size", "sha256", "signature")
    return ImageInfo(**{name: image[name] for name in names}, coarse=0, orientation=1, value_range=known.value_range)


def _ask(settings: InjectionSettings, scans: Sequence[Path]) -> AskReport:
    total = sum(pq.ParquetFile(literal(path)).metadata.num_rows for path in scans)
    with Cache(cache_file(settings.endpoint)) as cache, ProgressBar("ask", total, "captions") as progress:
        return ask_all(_requests(settings, scans), settings, cache, done=progress.add)


def _requests(settings: InjectionSettings, scans: Sequence[Path]) -> Iterator[Request]:
    """Every caption of the good rows that is not drawn to stay plain."""
    for path in scans:
        for batch in _batches(path, ["status", "json"]):
            for row in batch.to_pylist():
                if row["status"] == OK:
                    sample = decode(row["json"], None)
                    if not stays_plain(sample, settings.plain_share) and '"injection"' not in (sample.provenance or ""):
                        yield from (request for _, _, request in requests_of(sample))


def _batches(path: Path, columns: list[str] | None = None) -> Iterator[pa.RecordBatch]:
    with pq.ParquetFile(literal(path), pre_buffer=False) as file:
        yield from file.iter_batches(_BATCH, columns=columns, use_threads=False)


def _key(config: BuildConfig, scan: Path) -> str:
    """Names the result by what it depends on."""
    versions = [VERSION, PROMPT_VERSION]
    parts = json.dumps([scan.name, config.injection.shaping(), versions], sort_keys=True)
    return hashlib.sha256(parts.encode()).hexdigest()[:32]
