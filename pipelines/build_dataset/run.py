"""A build from start to commit: what is done is found and kept, the commit comes last."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.build_dataset.commit import Inputs, commit_corpus, sums_of
from pipelines.build_dataset.config import BuildConfig
from pipelines.build_dataset.dry_run import absent
from pipelines.build_dataset.image_words import read_image_words
from pipelines.build_dataset.injection import inject_scans
from pipelines.build_dataset.placing import Shard
from pipelines.build_dataset.plan import Plan, Unstable, make_plan
from pipelines.build_dataset.publication import Publication, staging_folder
from pipelines.build_dataset.scan import ScanTask, crashed_fragment, list_fragments, scan_fragment
from pipelines.build_dataset.scan_files import exchange_scan, is_whole
from pipelines.build_dataset.tables import FragmentPlaces
from pipelines.build_dataset.workspace import Workspace, refuse_overlap
from pipelines.build_dataset.write import FinishTask, WriteTask, finish_shard, preallocate, write_fragment
from pipelines.build_dataset.write_made import write_made
from pipelines.common.engine import Engine
from pipelines.common.lazy_tasks import LazyTasks
from pipelines.common.process_pool import Crashed, ProcessPool
from pipelines.common.progress import ProgressBar
from pipelines.inject.ask import AskReport
from sigma_data.corpus.corpus import Corpus, open_corpus
from sigma_data.errors import BuildError, ConfigError, SourceError
from sigma_data.images.fingerprint_file import KnownImages, read_fingerprints
from sigma_data.sources import Fragment, Reader, has_options, open_source
from sigma_data.sources.base import field_maps
from sigma_data.storage.paths import is_uri, local_path
from sigma_data.storage.remote import LostError
from sigma_data.storage.store import StoreError
from sigma_data.text_format import counted

Located = tuple[str, Fragment]  # source string, fragment
_NO_IMAGE = frozenset(("missing_picture", "part_missing"))
"""Codes of rows whose images lie where the source does not look, if not one of them has any."""


@dataclass(frozen=True)
class BuildResult:
    """A committed corpus and how its build went. `fresh` is False where it was complete already.

    `asked` is what a language model was asked, None if none was.
    """

    corpus: Corpus
    fresh: bool
    peak_worker_bytes: int
    asked: AskReport | None = None


def build(
    config: BuildConfig,
    out: Path | str,
    *,
    workers: int = 1,
    engine: Engine | None = None,
    staging: Path | None = None,
    overwrite: bool = False,
    strict_files: bool = False,
) -> BuildResult:
    """Build a corpus, or finish the build that was interrupted there.

    In `workers` processes of this machine, or where the `engine` says. `out` may be a place behind fsspec (s3://...):
    the corpus is then built in the folder `staging`, by default one of the cache, and uploaded.

    Raises ConfigError for a wrong setting or a folder that is taken, SourceError for a source that
    cannot be read (with `strict_files` also for a single file of it), BuildError where the build cannot
    go on. Nothing is committed then.
    """
    if not config.sources:
        raise ConfigError("name at least one source, e.g. release:PATH or world:1000")
    config.conditions.check()
    readers = [open_source(spec) for spec in config.specs]
    _refuse_clash(config.specs, readers)
    if missing := [
        line for spec, reader in zip(config.specs, readers, strict=True) if (line := absent(reader, spec, config.data))
    ]:
        others = counted(len(missing) - 1, "more source")
        more = f" (and {others}: see --dry-run)" if len(missing) > 1 else ""
        other = "; or take out of `sources` what you do not want" if len(readers) > 1 else ""
        raise SourceError(missing[0] + more + other)
    for spec, reader in zip(config.specs, readers, strict=True):
        if (folder := reader.folder()) is not None and not is_uri(str(out)):
            refuse_overlap(Path(out), folder, spec)
    store = str(out) if is_uri(str(out)) else None
    read_image_words(config.made.words)  # before hours of scanning
    excluded = read_fingerprints([local_path(path) for path in config.exclude])
    with ExitStack() as stack:
        running = stack.enter_context(engine or ProcessPool(workers))
        located = _list(running, config.specs)  # before the folder is touched: a typo must not claim it
        if strict_files:  # what listing finds is said at once, not after hours of reading
            refused = [found for _, found in located if found.refused]
            _refuse_files([f"{one.location}: {counted(one.rows or 1, 'row')}, {one.refused}" for one in refused])
        publication = None
        if store is not None:
            publication = stack.enter_context(Publication(store, config.digest(), overwrite=overwrite))
            if publication.commit is not None:
                inputs = Inputs.of(located, excluded, read_image_words(config.made.words))
                return _complete(open_corpus(store), inputs, running, strict_files=strict_files)
        folder = Path(out) if store is None else staging or staging_folder(store)
        work = stack.enter_context(Workspace(folder, config, config.digest(), overwrite=overwrite))
        try:
            return _build(config, running, located, excluded, work, publication, strict_files=strict_files)
        except (LostError, StoreError) as error:
            kept = work.committed or any(work.scan.glob("*.parquet"))
            again = "; what is done is kept: run the same command again to continue"
            raise type(error)(f"{error}{again if kept else ''}") from None


def _build(
    config: BuildConfig,
    engine: Engine,
    located: Sequence[Located],
    excluded: KnownImages,
    work: Workspace,
    publication: Publication | None,
    *,
    strict_files: bool,
) -> BuildResult:
    inputs = Inputs.of(located, excluded, read_image_words(config.made.words))
    if work.committed:
        complete = _complete(open_corpus(work.out), inputs, engine, strict_files=strict_files)
        if publication is None:
            return complete
        shards = complete.corpus.shards
        publication.publish(work.out, {name: (entry["bytes"], entry["sha256"]) for name, entry in shards.items()})
        return BuildResult(open_corpus(publication.uri), True, engine.peak_bytes)
    scans, asked = inject_scans(engine, config, located, _scan(engine, config, located, work, publication), work)
    while True:
        plan = make_plan(scans, config, work.unstable(scans), excluded)
        if strict_files:
            _refuse_files([str(file) for file in plan.refused])
        if not len(plan.places):
            work.forget_scans()  # what was missing may be there the next time
            if publication is not None:
                publication.forget_scans()
            raise _nothing_left(plan, config)
        unstable = _write(engine, config, located, scans, plan, work)
        if not unstable:
            break
        # Offsets are known ahead, so a sample that does not fit its place needs a plan without it. Each turn takes
        # samples out, and so there is a last one.
        work.add_unstable(scans, unstable)
    write_made(engine, plan, work)
    digests = finish_shards(engine, plan.shards, work, publication)
    commit_corpus(work.out, config, plan, inputs, digests)
    if publication is not None:
        publication.publish(work.out, digests)
    work.done()
    return BuildResult(open_corpus(publication.uri if publication else work.out), True, engine.peak_bytes, asked)


def _complete(corpus: Corpus, inputs: Inputs, engine: Engine, *, strict_files: bool) -> BuildResult:
    """The corpus that was there already. Raises ConfigError if it was made of something else."""
    if corpus.commit["inputs"] != inputs.digest:
        raise ConfigError(
            f"{corpus.place}: this corpus is complete, but its sources have changed since: "
            "choose another --out, or add --overwrite to build it anew"
        )
    if strict_files:
        _refuse_files([str(file) for file in corpus.refused])
    return BuildResult(corpus, False, engine.peak_bytes)


def _refuse_files(files: Sequence[str]) -> None:
    """Raise SourceError where files of a source were refused whole."""
    if files:
        more = f" (and {len(files) - 1:,} more)" if len(files) > 1 else ""
        raise SourceError(
            f"--strict-files: {files[0]}{more}; repair or remove what was refused, or build without --strict-files to "
            "have it in the quarantine"
        )


def _refuse_clash(sources: Sequence[str], readers: Sequence[Reader]) -> None:
    """Two sources of one name would give different rows one id (records of shards bring their own)."""
    if len(set(sources)) < len(sources):
        raise ConfigError(f"a source is named twice: {', '.join(sources)}")
    names = [reader.name for spec, reader in zip(sources, readers, strict=True) if not spec.startswith("webdataset:")]
    for spec, reader in reversed(list(zip(sources, readers, strict=True))):
        if names.count(reader.name) > 1:
            mark = "&" if has_options(spec) else "?"
            raise ConfigError(
                f"two sources have the name {reader.name!r}: name one of them, e.g. '{spec}{mark}name=second'"
            )


def _list(engine: Engine, sources: Sequence[str]) -> list[Located]:
    found: dict[int, list[Fragment]] = {}

    def done(index: int, result: Any) -> None:
        if isinstance(result, Crashed):
            raise BuildError(f"{sources[index]}: listing it kills the reader ({result.signal})")
        found[index] = result

    engine.run(list_fragments, sources, done, what="listing the sources")
    return [(spec, fragment) for index, spec in enumerate(sources) for fragment in found[index]]


def _scan(
    engine: Engine,
    config: BuildConfig,
    located: Sequence[Located],
    work: Workspace,
    publication: Publication | None = None,
) -> list[Path]:
    """The scan file of every fragment, in source order; only those not there yet, here or in the store, are made."""
    common = config.scan_digest()
    paths = []
    for spec, fragment in located:
        key = f"{common}\x1f{spec}\x1f{fragment.location}\x1f{fragment.part}\x1f{fragment.stamp}"
        paths.append(work.scan / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.parquet")
    # A depth map that another machine computes again may have other bytes than the one that was scanned.
    store = publication if "depth" not in config.conditions.shares else None
    if store is not None:
        kept = [task for path in paths if (task := store.kept_scan(path)) is not None]
        engine.run(exchange_scan, kept, lambda index, result: None, what="fetching scan files")
    todo = [index for index, path in enumerate(paths) if not is_whole(path)]
    tasks = [
        ScanTask(
            *located[index],
            severities=dict(config.checks),
            output=str(paths[index]),
            preparation=config.preparation,
            store=None if store is None else store.uri,
        )
        for index in todo
    ]
    rows = all(fragment.rows is not None for _, fragment in located)
    total = sum(fragment.rows or 1 for _, fragment in located)
    found = total - sum(located[index][1].rows or 1 for index in todo)
    with ProgressBar(
        "scan", total, "samples" if rows else "fragments", found=found, at_work=engine.at_work
    ) as progress:

        def done(index: int, result: Any) -> None:
            if isinstance(result, Crashed):
                crashed_fragment(tasks[index], result.signal)
            else:
                progress.moved(result)
            progress.add(tasks[index].fragment.rows or 1)

        engine.run(scan_fragment, tasks, done, what="scanning")
    return paths


def _write(
    engine: Engine,
    config: BuildConfig,
    located: Sequence[Located],
    scans: Sequence[Path],
    plan: Plan,
    work: Workspace,
) -> list[Unstable]:
    """Write all shards; returns the samples that were not as scanned and have to be left out, most often none."""
    work.enter_plan(plan.digest())
    created = False
    for shard in plan.shards:
        if not (work.out / shard.path).exists():
            created |= preallocate(work.partial / shard.path, shard.size)
    if created:
        work.forget_writes()  # a shard made anew has nothing in it yet
    places = FragmentPlaces(plan)
    todo = [index for index in range(len(located)) if places.count(index) and not work.written(index).exists()]

    def task(number: int) -> WriteTask:
        index = todo[number]
        return WriteTask(
            *located[index],
            scan=str(scans[index]),
            places=places[index],
            folder=str(work.partial),
            preparation=config.preparation,
            marker=str(work.written(index)),
        )

    tasks = LazyTasks(len(todo), task)
    unstable: list[Unstable] = []
    read = len(plan.places) - plan.made_samples
    found = read - sum(places.count(index) for index in todo)
    with ProgressBar("write", read, "samples", found=found, at_work=engine.at_work) as progress:

        def done(number: int, result: Any) -> None:
            index = todo[number]
            if isinstance(result, Crashed):
                message = f"reading it a second time kills the reader ({result.signal})"
                result = [(position, message) for position, _, _ in places[index]]
            unstable.extend(Unstable(index, position, message) for position, message in result)
            progress.moved(places.size(index))
            progress.add(places.count(index))

        engine.run(write_fragment, tasks, done, what="writing")
    return unstable


def finish_shards(
    engine: Engine, shards: Sequence[Shard], work: Workspace, publication: Publication | None = None
) -> dict[str, tuple[int, str]]:
    """Check, hash and move every full shard to its name, and upload it to a store; returns size and sha256 of each."""
    tasks = [
        FinishTask(str(work.partial), str(work.out), shard.path, shard.members)
        if publication is None
        else FinishTask(
            str(work.partial), str(work.out), shard.path, shard.members, publication.uri,
            publication.digest_of(shard.path),
        )
        for shard in shards
    ]  # fmt: skip
    digests: dict[str, tuple[int, str]] = {}
    with ProgressBar("finish", len(tasks), "shards", at_work=engine.at_work) as progress:

        def done(index: int, result: Any) -> None:
            if isinstance(result, Crashed):
                raise BuildError(f"hashing {work.out / shards[index].path} kills the reader ({result.signal})")
            digests[shards[index].path] = result
            progress.moved(result[0])
            progress.add()

        engine.run(finish_shard, tasks, done, what="finishing the shards")
    return digests


def _nothing_left(plan: Plan, config: BuildConfig) -> BuildError:
    sums = sums_of(plan)
    if not plan.read:
        return BuildError(f"{', '.join(config.specs)}: no records in it")
    codes = {**sums["codes"], **sums["filters"]}
    example = plan.first[1] if plan.first else ""
    shipped = [name for name in dict.fromkeys(spec.partition(":")[0] for spec in config.specs) if name in field_maps()]
    told = ", ".join(f"{code} {count}" for code, count in codes.items())
    what = f"none of the {plan.read:,} records of {', '.join(config.specs)} can be used"
    lie = f"; `sigma sources {shipped[0]}` says how the files must lie" if shipped and _NO_IMAGE & set(codes) else ""
    return BuildError(f"{what} ({told}); the first: {example}{lie}")
