"""`sigma validate`: a corpus checked against its corpus.json.

`fast` reads no image: commit, digests of the tables, sizes, every header of every shard against the
manifest, leaks between splits. `deep` adds every byte's hash, every image decoded, every rule.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipelines.common.engine import Engine
from pipelines.common.lazy_tasks import LazyTasks
from pipelines.common.process_pool import Crashed, ProcessPool
from pipelines.common.progress import ProgressBar
from pipelines.validate.manifest_check import ManifestFacts, RowsByShard, check_manifest, near_leaks
from pipelines.validate.shard_check import HEADER_COLUMNS, Problem, ShardTask, check_shard
from sigma_data.corpus.check_limits import Limits, Severity
from sigma_data.corpus.corpus import COMMIT, INDEXES, MANIFEST, QUARANTINE, WORK, Corpus, file_digest, open_corpus
from sigma_data.corpus.places import fetch
from sigma_data.errors import CorpusError
from sigma_data.storage.data_folder import RemoteFolder, data_folder
from sigma_data.storage.files import dump_json


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
        facts, problems = check_manifest(corpus)
        name = QUARANTINE
        rejected = corpus.rejected
    except CorpusError as error:
        result.add("bad_table", name, str(error))
        return result
    result.samples = facts.rows
    _check_sums(corpus, facts, rejected, result)
    result.problems += problems
    if deep:
        result.problems += near_leaks(corpus)
    _check_shards(corpus, facts, result, deep=deep, engine=engine or ProcessPool(workers))
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


def _check_sums(corpus: Corpus, facts: ManifestFacts, rejected: int, result: Validation) -> None:
    sums = corpus.sums
    out = sums["filtered"] + sums["quarantined"] + sums["duplicates"]
    if sums["read"] + sums["made"] != sums["written"] + out:
        result.add("bad_sums", COMMIT, "read (+ made) is not written + filtered + quarantined + duplicates")
    if facts.rows != sums["written"]:
        result.add("bad_sums", "manifest.parquet", f"{facts.rows:,} rows where {sums['written']:,} were written")
    if rejected != out:
        result.add("bad_sums", "quarantine.parquet", f"{rejected:,} rows do not match the sums")
    for shard, entry in corpus.shards.items():
        if facts.shards.get(shard, 0) != entry["samples"]:
            result.add("bad_sums", shard, f"the manifest does not have {entry['samples']:,} samples in this shard")
    for shard in sorted(set(facts.shards) - set(corpus.shards)):
        result.add("missing_shard", shard, "named in the manifest, but not in corpus.json")


def _check_shards(corpus: Corpus, facts: ManifestFacts, result: Validation, *, deep: bool, engine: Engine) -> None:
    config = corpus.commit.get("config", {})
    limits = Limits.model_validate(config.get("limits", {}))
    severities = {code: Severity(value) for code, value in config.get("checks", {}).items()}
    # In the order of the manifest, which is read along; those that it does not know come last.
    known = [shard for shard in facts.shards if shard in corpus.shards]
    order = [*known, *(shard for shard in corpus.shards if shard not in facts.shards)]
    rows = RowsByShard(corpus, facts, None if deep else HEADER_COLUMNS)
    at_work: dict[int, ShardTask] = {}

    def task(number: int) -> ShardTask:
        if number not in at_work:  # else it is tried again
            shard = order[number]
            entry = dict(corpus.shards[shard])
            at_work[number] = ShardTask(corpus.place, shard, entry, rows.of(shard), deep, limits, severities)
        return at_work[number]

    tasks = LazyTasks(len(order), task)
    found: dict[str, list[Problem]] = {}
    with ProgressBar("validate", len(tasks), "shards", at_work=engine.at_work if deep else str) as progress:

        def done(index: int, value: Any) -> None:
            at_work.pop(index, None)
            if isinstance(value, Crashed):
                value = [Problem("reader_crashed", order[index], f"reading it kills the reader ({value.signal})")]
            found[order[index]] = value
            progress.moved(corpus.shards[order[index]]["bytes"] if deep else 0)
            progress.add()

        if deep:
            with engine as running:
                running.run(check_shard, tasks, done, what="validating")
        else:  # headers only: starting processes would take longer
            for index in range(len(tasks)):
                done(index, check_shard(tasks[index]))
    for shard in corpus.shards:
        result.problems += found[shard]
