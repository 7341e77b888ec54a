"""`sigma validate`: a corpus checked against its corpus.json.

`fast` reads no image: commit, digests of the tables, sizes, every header of every shard against the
manifest, leaks between splits. `deep` adds every byte's hash, every image decoded, every rule.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.common.engine import Engine
from pipelines.common.process_pool import Crashed, ProcessPool
from pipelines.common.progress import ProgressBar
from sigma_data.corpus.archives import archive_fault, is_repacked, rebuild_advice
from sigma_data.corpus.check_limits import Limits, Severity
from sigma_data.corpus.checks import Examination, examine
from sigma_data.corpus.corpus import COMMIT, INDEXES, MANIFEST, QUARANTINE, WORK, Corpus, file_digest, open_corpus
from sigma_data.corpus.manifest import examined_columns
from sigma_data.corpus.places import ShardPlace, fetch
from sigma_data.corpus.record import RecordError, decode, encode, stored_order, with_current_keys
from sigma_data.corpus.shard import ShardFault, block, read_members, read_range
from sigma_data.errors import CorpusError, SourceError
from sigma_data.images.fingerprint import SIGNATURE_BYTES, components, near_pairs
from sigma_data.storage.data_folder import RemoteFolder, data_folder
from sigma_data.storage.files import dump_json

if TYPE_CHECKING:
    import polars as pl

_MAX_PROBLEMS_A_SHARD = 20


@dataclass(frozen=True)
class Problem:
    """One problem: its code, the file or sample, and a message."""

    code: str
    where: str
    message: str


@dataclass
class Validation:
    """The outcome of a validation."""

    path: str
    deep: bool
    samples: int = 0
    shards: int = 0
    problems: list[Problem] = field(default_factory=list)

    def add(self, code: str, where: str, message: str) -> None:
        """Note a problem."""
        self.problems.append(Problem(code, where, message))

    def as_dict(self) -> dict[str, Any]:
        """For --json."""
        return {
            "corpus": self.path,
            "sound": not self.problems,
            "deep": self.deep,
            "samples": self.samples,
            "shards": self.shards,
            "problems": [vars(problem) for problem in self.problems],
        }


def validate_corpus(path: str | Path, *, deep: bool, workers: int = 1, engine: Engine | None = None) -> Validation:
    """Check a corpus; the result lists what is wrong with it.

    Raises CorpusError where the folder does not exist.
    """
    result = Validation(str(path), deep)
    there = data_folder(str(path))
    if there.local is not None and not there.local.exists():
        raise CorpusError(f"{path}: no such folder")
    if there.local is not None and not there.local.is_dir():
        open_corpus(path)  # says what that file is
    try:
        corpus = open_corpus(path)
    except CorpusError as error:
        result.add("bad_commit" if there.exists(COMMIT) else "not_committed", COMMIT, str(error))
        return result
    result.shards = len(corpus.shards)
    _check_commit(corpus, result)
    _check_files(corpus, result)
    name = MANIFEST
    try:
        manifest, name = corpus.manifest, QUARANTINE
        rejected = len(corpus.quarantine)
    except CorpusError as error:
        result.add("bad_table", name, str(error))
        return result
    result.samples = len(manifest)
    _check_manifest(corpus, manifest, rejected, result)
    if deep:
        _check_near_leaks(manifest, result)
    _check_shards(corpus, manifest, result, deep=deep, engine=engine or ProcessPool(workers))
    return result


def _check_commit(corpus: Corpus, result: Validation) -> None:
    body = {name: value for name, value in corpus.commit.items() if name != "digest"}
    # The bytes, too: a line that stands there twice is read once.
    as_written = dump_json(corpus.commit).encode("utf-8", "surrogatepass") == (corpus.path / COMMIT).read_bytes()
    if not as_written or hashlib.sha256(dump_json(body).encode()).hexdigest() != corpus.commit["digest"]:
        result.add("bad_commit", COMMIT, "the digest of corpus.json does not match: it was changed by hand")


def _check_files(corpus: Corpus, result: Validation) -> None:
    for name, entry in corpus.commit["files"].items():
        found = _digest_of(corpus, name)
        if found is None:
            result.add("missing_file", name, "named in corpus.json, but missing")
        elif found != (entry["bytes"], entry["sha256"]):
            size = f"{found[0]:,} bytes where {entry['bytes']:,} were written" if found[0] != entry["bytes"] else ""
            result.add("changed_file", name, size or "the digest does not match")
    known = {*corpus.shards, *corpus.commit["files"], COMMIT}
    for name in _names(corpus):
        ours = name.startswith((f"{WORK}/", f"{INDEXES}/"))
        if not ours and name not in known and (name.endswith(".tar") or "/" in name):
            name = name.encode("utf-8", "backslashreplace").decode()  # a name need not be text
            result.add("extra_file", name, "not part of the corpus, but readers that take whole folders would read it")


def _digest_of(corpus: Corpus, name: str) -> tuple[int, str] | None:
    """Size and digest of a file of the commit, None if it is not there; that of a remote corpus is copied first."""
    if corpus.uri is not None:
        folder = RemoteFolder(corpus.uri)
        return file_digest(fetch(folder, name, corpus.path)) if folder.size(name) is not None else None
    return file_digest(corpus.path / name) if (corpus.path / name).is_file() else None


def _names(corpus: Corpus) -> list[str]:
    """The files in the corpus' folder."""
    if corpus.uri is not None:
        return [name for name, _ in RemoteFolder(corpus.uri).files("")]
    return [file.relative_to(corpus.path).as_posix() for file in sorted(corpus.path.rglob("*")) if file.is_file()]


def _check_manifest(corpus: Corpus, manifest: pl.DataFrame, rejected: int, result: Validation) -> None:
    import polars as pl

    sums = corpus.sums
    out = sums["filtered"] + sums["quarantined"] + sums["duplicates"]
    if sums["read"] + sums["made"] != sums["written"] + out:
        result.add("bad_sums", COMMIT, "read (+ made) is not written + filtered + quarantined + duplicates")
    if len(manifest) != sums["written"]:
        result.add("bad_sums", "manifest.parquet", f"{len(manifest):,} rows where {sums['written']:,} were written")
    if rejected != out:
        result.add("bad_sums", "quarantine.parquet", f"{rejected:,} rows do not match the sums")
    for name in manifest.filter(pl.col("id").is_duplicated())["id"].unique().sort().head(_MAX_PROBLEMS_A_SHARD):
        result.add("duplicate_id", name, "the manifest has this id more than once")
    counts = dict(manifest.group_by("shard").len().iter_rows())
    for shard, entry in corpus.shards.items():
        if counts.pop(shard, 0) != entry["samples"]:
            result.add("bad_sums", shard, f"the manifest does not have {entry['samples']:,} samples in this shard")
    for shard in sorted(counts):
        result.add("missing_shard", shard, "named in the manifest, but not in corpus.json")
    leaks = manifest.group_by("component").agg(pl.col("split").unique()).filter(pl.col("split").list.len() > 1)
    for component in leaks["component"].sort().head(_MAX_PROBLEMS_A_SHARD):
        result.add("leak", component, "the component of this sample lies in more than one split")
    images = manifest.select("split", pl.col("images").list.eval(pl.element().struct.field("sha256")).alias("sha"))
    shared = images.explode("sha").drop_nulls().group_by("sha").agg(pl.col("split").unique())
    for digest in shared.filter(pl.col("split").list.len() > 1)["sha"].sort().head(_MAX_PROBLEMS_A_SHARD):
        result.add("leak", digest[:16], "this image lies in more than one split")


def _check_near_leaks(manifest: pl.DataFrame, result: Validation) -> None:
    """The builder's own rule: nearly identical images, also by way of others, lie in one split."""
    import numpy as np
    import polars as pl

    element = pl.element().struct
    images = (
        manifest.select("split", sha=pl.col("images").list.eval(element.field("sha256")),
                        signature=pl.col("images").list.eval(element.field("signature")))
        .explode("sha", "signature").drop_nulls().unique(maintain_order=True)
    )  # fmt: skip
    signatures = np.frombuffer(b"".join(images["signature"]), dtype=np.uint8).reshape(-1, SIGNATURE_BYTES)
    label = pl.Series(components(len(signatures), near_pairs(signatures)))
    groups = images.group_by(label.alias("label")).agg(pl.col("split").n_unique(), pl.col("sha").unique().sort())
    # Equal images in two splits are reported already.
    leaks = groups.filter((pl.col("split") > 1) & (pl.col("sha").list.len() > 1)).sort(pl.col("sha").list.first())
    for first, second, *_ in leaks["sha"].head(_MAX_PROBLEMS_A_SHARD):
        result.add("leak", first[:16], f"this image and the nearly identical {second[:16]} lie in more than one split")


@dataclass(frozen=True)
class ShardTask:
    """A shard to check, with its rows of the manifest (an Arrow table) and its line of the commit."""

    folder: str
    shard: str
    entry: dict[str, Any]
    rows: Any
    deep: bool
    limits: Limits
    severities: dict[str, Severity]


def _check_shards(corpus: Corpus, manifest: pl.DataFrame, result: Validation, *, deep: bool, engine: Engine) -> None:
    config = corpus.commit.get("config", {})
    limits = Limits.model_validate(config.get("limits", {}))
    severities = {code: Severity(value) for code, value in config.get("checks", {}).items()}
    parts = {key[0]: part for key, part in manifest.partition_by("shard", as_dict=True, maintain_order=True).items()}
    tasks = [
        ShardTask(
            corpus.place,
            shard,
            dict(entry),
            parts[shard].sort("index").to_arrow() if shard in parts else manifest.clear().to_arrow(),
            deep,
            limits,
            severities,
        )
        for shard, entry in corpus.shards.items()
    ]
    found: dict[int, list[Problem]] = {}
    with ProgressBar("validate", len(tasks), "shards") as progress:

        def done(index: int, value: Any) -> None:
            if isinstance(value, Crashed):
                value = [Problem("reader_crashed", tasks[index].shard, f"reading it kills the reader ({value.signal})")]
            found[index] = value
            progress.add()

        if deep:
            with engine as running:
                running.run(check_shard, tasks, done, what="validating")
        else:  # headers only: starting processes would take longer
            for index, task in enumerate(tasks):
                done(index, check_shard(task))
    for index in range(len(tasks)):
        result.problems += found[index]


def check_shard(task: ShardTask) -> list[Problem]:
    """All that is wrong with one shard, the first problems of it."""
    problems: list[Problem] = []
    try:
        for problem in _shard_problems(task):
            problems.append(problem)
            if len(problems) == _MAX_PROBLEMS_A_SHARD:
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
    rows = task.rows.to_pylist()
    if fault := _other_archive(task, path, rows):
        yield fault
        return
    yield from _structure(task, path, rows)
    if task.deep:
        if path.digest() != task.entry["sha256"]:
            yield Problem("wrong_digest", task.shard, "the bytes are not those that were written")
        for row in rows:
            yield from _sample_problems(task, path, row)


def _other_archive(task: ShardTask, path: ShardPlace, rows: list[dict[str, Any]]) -> Problem | None:
    """The one problem of a file that is not a shard, or that another tool has repacked; None for a shard."""
    with path.open() as file:
        if message := archive_fault(file.read(512), str(path)):
            return Problem("not_a_shard", task.shard, message)
        if is_repacked(file, {name: (offset, size) for name, offset, size in _expected(rows)}):
            return Problem("packed_anew", task.shard, rebuild_advice(task.folder))
    return None


def _expected(rows: list[dict[str, Any]]) -> list[tuple[str, int, int]]:
    """(name, offset, size) of every member that the manifest has."""
    return [
        (f"{row['id']}.{suffix}", offset, size)
        for row in rows
        for suffix, offset, size in [
            ("json", row["json_offset"], row["json_size"]),
            *((image["member"], image["offset"], image["size"]) for image in row["images"]),
        ]
    ]


def _structure(task: ShardTask, path: ShardPlace, rows: list[dict[str, Any]]) -> Iterator[Problem]:
    """Walk the headers and compare them with the manifest, member by member."""
    expected = _expected(rows)
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
