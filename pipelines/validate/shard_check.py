"""One shard held against its rows of the manifest: headers, and where asked every byte, image and rule."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from sigma_data.corpus.archives import archive_fault, is_repacked, rebuild_advice
from sigma_data.corpus.check_limits import Limits, Severity
from sigma_data.corpus.checks import Examination, examine
from sigma_data.corpus.manifest import examined_columns
from sigma_data.corpus.places import ShardPlace
from sigma_data.corpus.record import RecordError, decode, encode, stored_order, with_current_keys
from sigma_data.corpus.shard import ShardFault, block, read_members, read_range
from sigma_data.errors import SourceError

MAX_PROBLEMS = 20
"""Problems of a kind, or of a shard, that are listed."""

HEADER_COLUMNS = (
    "id", "shard", "index", "json_offset", "json_size",
    "images.list.element.member", "images.list.element.offset", "images.list.element.size",
)  # fmt: skip
"""What a shard's headers are held against."""

_ROWS = 256

_Place = tuple[str, int, int]
"""Name, offset and size of a member."""


@dataclass(frozen=True)
class Problem:
    """One problem: its code, the file or sample, and a message."""

    code: str
    where: str
    message: str


@dataclass(frozen=True)
class ShardTask:
    """A shard to check, with its line of the commit and its rows of the manifest.

    They are an Arrow table, of all columns if `deep`, else of HEADER_COLUMNS.
    """

    folder: str
    shard: str
    entry: dict[str, Any]
    rows: Any
    deep: bool
    limits: Limits
    severities: dict[str, Severity]


def check_shard(task: ShardTask) -> list[Problem]:
    """All that is wrong with one shard, the first problems of it."""
    problems: list[Problem] = []
    try:
        for problem in _shard_problems(task):
            problems.append(problem)
            if len(problems) == MAX_PROBLEMS:
                problems.append(Problem("more", task.shard, "and more; only the first problems are listed"))
                break
    except (OSError, SourceError) as error:
        problems.append(Problem("unreadable", task.shard, getattr(error, "strerror", None) or str(error)))
    return problems


def _shard_problems(task: ShardTask) -> Iterator[Problem]:
    path = ShardPlace(task.folder, task.shard)
    size = path.size()
    if size is None:
        yield Problem("missing_shard", task.shard, "named in corpus.json, but missing")
        return
    if size != task.entry["bytes"]:
        yield Problem("wrong_size", task.shard, f"{size:,} bytes where {task.entry['bytes']:,} were written")
    expected = [member for row in _rows(task) for member in _members(row)]
    if fault := _other_archive(task, path, expected):
        yield fault
        return
    yield from _structure(task, path, expected)
    if task.deep:
        if path.digest() != task.entry["sha256"]:
            yield Problem("wrong_digest", task.shard, "the bytes are not those that were written")
        for row in _rows(task):
            yield from _sample_problems(task, path, row)


def _other_archive(task: ShardTask, path: ShardPlace, expected: list[_Place]) -> Problem | None:
    """The one problem of a file that is not a shard, or that another tool has repacked; None for a shard."""
    with path.open() as file:
        if message := archive_fault(file.read(512), str(path)):
            return Problem("not_a_shard", task.shard, message)
        if is_repacked(file, {name: (offset, size) for name, offset, size in expected}):
            return Problem("packed_anew", task.shard, rebuild_advice(task.folder))
    return None


def _rows(task: ShardTask) -> Iterator[dict[str, Any]]:
    """The rows, some at a time as Python objects, which take ten times as much memory."""
    for batch in task.rows.to_batches(max_chunksize=_ROWS):
        yield from batch.to_pylist()


def _members(row: dict[str, Any]) -> list[_Place]:
    """(name, offset, size) of every member of a sample."""
    return [
        (f"{row['id']}.json", row["json_offset"], row["json_size"]),
        *((f"{row['id']}.{image['member']}", image["offset"], image["size"]) for image in row["images"]),
    ]


def _structure(task: ShardTask, path: ShardPlace, expected: list[_Place]) -> Iterator[Problem]:
    """Walk the headers and compare them with the manifest, member by member."""
    names = {name for name, _, _ in expected}
    seen: dict[str, int] = {}
    misplaced: list[str] = []
    with path.open() as file:
        try:
            for index, member in enumerate(read_members(file)):
                if member.name in seen:
                    yield Problem("duplicate_member", task.shard, f"{member.name} stands in the shard twice")
                elif member.name not in names:
                    yield Problem("extra_member", task.shard, f"{member.name} is not in the manifest")
                elif index >= len(expected) or expected[index] != (member.name, member.offset, member.size):
                    misplaced.append(member.name)
                seen[member.name] = index
        except ShardFault as fault:
            yield Problem(fault.code, task.shard, str(fault))
            if fault.code != "cut":
                return  # what comes after is unknown, not missing
    for name in misplaced[:1]:
        more = f" (and {len(misplaced) - 1} more)" if len(misplaced) > 1 else ""
        yield Problem("misplaced_member", task.shard, f"{name}{more} is not where the manifest has it")
    lost = [name for name, _, _ in expected if name not in seen]
    for name in lost[:1]:
        more = f" (and {len(lost) - 1} more)" if len(lost) > 1 else ""
        yield Problem("missing_member", task.shard, f"{name}{more} is not in the shard")


def _sample_problems(task: ShardTask, path: ShardPlace, row: dict[str, Any]) -> Iterator[Problem]:
    """Read a sample by the manifest's byte ranges and check it against manifest and rules."""
    where = f"{task.shard} {row['id']}"
    try:
        with path.open() as file:
            record = read_range(file, row["json_offset"], row["json_size"])
            images = {image["member"]: read_range(file, image["offset"], image["size"]) for image in row["images"]}
    except ShardFault as fault:
        yield Problem("cut", where, str(fault))
        return
    if hashlib.sha256(record).hexdigest() != row["json_sha256"]:
        yield Problem("wrong_digest", where, "the JSON is not the one that was written")
    damaged = False
    for image in row["images"]:
        if hashlib.sha256(images[image["member"]]).hexdigest() != image["sha256"]:
            damaged = True
            yield Problem("wrong_digest", where, f"{image['member']} is not the image that was written")
    try:
        sample = decode(record, images)
    except RecordError as error:
        yield Problem("bad_record", where, str(error))
        return
    members = [("json", record), *((image["member"], images[image["member"]]) for image in row["images"])]
    if not _is_block(path, row, sample.id, members):
        yield Problem("wrong_padding", where, "a header, or what stands between the members, is not as it was written")
    examination = examine(sample, task.limits, severities=task.severities)
    for finding in examination.errors:
        yield Problem(finding.code, where, finding.message)
    if len(row["images"]) != len(sample.images):
        yield Problem("manifest_differs", where, "the manifest has an image twice")
        return
    for image, number in zip(row["images"], stored_order(sample), strict=True):
        info = examination.infos.get(number)
        if info and image["member"].rsplit(".", 1)[-1] != info.extension:
            damaged = True
            yield Problem("wrong_extension", where, f"{image['member']} holds a {info.format}")
    if damaged or len(examination.infos) < len(sample.images):
        return
    if encode(sample, examination.infos) != with_current_keys(record):
        yield Problem("bad_record", where, "the JSON is not what a build writes about these images")
    if differing := _differing(row, examination):
        yield Problem("manifest_differs", where, f"{', '.join(differing)} are not those of the manifest")


def _is_block(path: ShardPlace, row: dict[str, Any], key: str, members: list[tuple[str, bytes]]) -> bool:
    """Whether the sample's bytes in the shard are exactly what the writer makes of these members."""
    expected = block(key, members)
    with path.open() as file:
        file.seek(row["offset"])
        return len(expected) == row["size"] and file.read(len(expected)) == expected


def _differing(row: dict[str, Any], found: Examination) -> list[str]:
    """The columns of the manifest that do not say what the sample is."""
    true = examined_columns(found)
    images = true.pop("images")
    differing = [name for name, value in true.items() if row[name] != value]
    for there, image in zip(row["images"], images, strict=True):
        # Where the image itself is deep its record must agree; corpora from before there were ranges have none.
        deep = found.infos[image["number"]].value_range
        if image["value_range"] and deep:
            image["value_range"] = asdict(deep)
        differing += [f"{there['member']} ({name})" for name, value in image.items() if there[name] != value]
    return differing
