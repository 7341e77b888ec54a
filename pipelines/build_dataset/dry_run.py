"""`sigma build-dataset --dry-run`: what each source would yield, from metadata alone.

Rows are counted by family, license and filter as the sources' surveys tell them; no image is read. Sizes of images,
broken images, duplicates and benchmark images are known only to a build, so the figures are upper bounds.
"""

from __future__ import annotations

import re
import shlex
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from pipelines.build_dataset.config import BuildConfig
from pipelines.build_dataset.selection import share_quota
from pipelines.common.process_pool import Crashed, ProcessPool
from pipelines.common.progress import ProgressBar
from pipelines.inject.budget import CHARACTERS_A_TOKEN, estimated_tokens
from sigma_data.errors import ConfigError, SourceError
from sigma_data.injection import Reference, Request
from sigma_data.injection.prompt import messages
from sigma_data.injection.rules import UNTOUCHED
from sigma_data.sample import FAMILY_RULES, Family
from sigma_data.sources import Fragment, Reader, open_source
from sigma_data.storage.data_folder import data_folder
from sigma_data.text_format import aligned, counted

MEGABYTES_PER_SECOND = 27.0
"""MB of images that one worker decodes, checks and writes a second: 55 with two, measured on two cores where no two
samples share an image (docs/performance.md)."""

_UNKNOWN = ""
"""The family of rows that only reading tells."""

_FETCH = re.compile(r"sigma download \w+ --out DIR")
"""A line of a map's `files`."""

Counts = Counter[tuple[str, str, str, bool]]
"""(family, license, code, filtered) -> rows; a code of "" is a sample."""
_FRAMED = frozenset((Family.LAYOUT, Family.RELATION, *UNTOUCHED))
"""Families whose captions no model is asked for."""


@dataclass
class Captions:
    """Texts that a language model would be asked for: how many, and their characters."""

    count: int = 0
    characters: int = 0

    def add(self, other: Captions) -> None:
        """Count others, too."""
        self.count += other.count
        self.characters += other.characters


@dataclass(frozen=True)
class SourceSurvey:
    """What one source would yield. `problem` says why it could not be surveyed; `bytes` is what lies there."""

    name: str
    spec: str
    counts: Counts = field(default_factory=Counter)
    bytes: int | None = None
    problem: str | None = None
    captions: Captions = field(default_factory=Captions)

    def total(self, *, filtered: bool | None = None, samples: bool | None = None) -> int:
        """Rows, of them those that are filtered (or not), that give samples (or not)."""
        return sum(
            count
            for (_, _, code, left_out), count in self.counts.items()
            if (filtered is None or left_out is filtered) and (samples is None or (code == "") is samples)
        )


@dataclass(frozen=True)
class DryRun:
    """The surveys of all sources and what a build would make of them."""

    sources: tuple[SourceSurvey, ...]
    config: BuildConfig
    workers: int
    rate: float

    def families(self) -> dict[str, tuple[int, int]]:
        """Family -> (samples of all sources, of them within the quota); "" are rows of unknown family."""
        found: dict[str, tuple[int, int]] = {}
        for name in (*Family, _UNKNOWN):
            by_source: Counter[str] = Counter()
            for source in self.sources:
                for (family, _, code, _), count in source.counts.items():
                    if family == name and not code:
                        by_source[source.name] += count
            if by_source or (name and Family(name) in self.config.quotas):
                quota = self._quota(name)
                samples = by_source.total()
                found[name] = (samples, samples if quota is None else min(samples, quota))
        return found

    def bytes(self) -> tuple[int, int]:
        """(bytes that the known sources hold, bytes of the corpus): a source's bytes by the share that is kept."""
        lies, kept = 0, 0.0
        parts = self._kept()
        for source in self.sources:
            if source.bytes is not None and (rows := source.total()):
                lies += source.bytes
                kept += source.bytes * min(1.0, parts[source.name] / rows)
        return lies, round(kept)

    def hours(self) -> float:
        """What the scan reads and the build writes, at the rate of a worker times the workers."""
        return self.bytes()[0] / 1e6 / self.rate / max(1, self.workers) / 3600

    def asked(self) -> dict[str, float] | None:
        """What a model would be asked at most: captions, tokens, cost; None where none is asked.

        Replies that the cache has are not taken off, for the captions themselves are known to a build alone.
        """
        settings = self.config.injection
        if settings.by != "model":
            return None
        share = 1 - settings.plain_share
        captions = round(share * sum(source.captions.count for source in self.sources))
        words = share * sum(source.captions.characters for source in self.sources) / CHARACTERS_A_TOKEN
        fixed = sum(estimated_tokens(one["content"]) for one in messages(Request(Family.EDITING, "", (Reference(1),))))
        prompt, reply = round(captions * fixed + words), round(2 * words + 60 * captions)
        reply = min(reply, captions * settings.model.max_tokens)
        prices = settings.endpoint
        cost = (prompt * prices.price_prompt + reply * prices.price_reply) / 1e6
        return {"captions": captions, "prompt_tokens": prompt, "reply_tokens": reply, "cost": cost}

    def as_dict(self) -> dict[str, Any]:
        """For --json."""
        lies, kept = self.bytes()
        return {
            "sources": [
                {
                    "source": source.spec, "name": source.name, "problem": source.problem, "bytes": source.bytes,
                    "rows": [
                        {"family": family or None, "license": terms, "code": code or None, "filtered": left, "rows": n}
                        for (family, terms, code, left), n in sorted(source.counts.items())
                    ],
                }
                for source in self.sources
            ],
            "families": {
                name or "unknown": {"samples": samples, "written": within, "quota": self._quota(name)}
                for name, (samples, within) in self.families().items()
            },
            "bytes": lies, "corpus_bytes": kept, "hours": self.hours(), "workers": self.workers,
            "megabytes_per_second": self.rate, "model": self.asked(),
        }  # fmt: skip

    def text(self) -> str:
        """The tables for a person."""
        known = [source for source in self.sources if source.problem is None]
        lines = [f"absent: {source.problem}" for source in self.sources if source.problem is not None]
        rows = [("source", "license", "rows", "samples", "filtered", "broken", "")]
        for source in known:
            rows.append((
                source.name, ", ".join(sorted({terms for _, terms, _, _ in source.counts})) or "-",
                f"{source.total():,}", f"{source.total(samples=True):,}", f"{source.total(filtered=True):,}",
                f"{source.total(filtered=False, samples=False):,}", _details(source.counts),
            ))  # fmt: skip
        if known:
            lines += ([""] if lines else []) + [aligned(rows, right=(2, 3, 4, 5))]
        table = [("family", "samples", "written", "quota")]
        for name, (samples, within) in self.families().items():
            quota = self._quota(name)
            share = f"{quota:,} ({100 * within / quota:.1f} %)" if quota else "-" if quota is None else "0"
            table.append((name or "not known before reading", f"{samples:,}", f"{within:,}", share))
        if len(table) > 1:
            lines += ["", aligned(table, right=(1, 2))]
        lies, kept = self.bytes()
        if lies:
            pace = f"{counted(self.workers, 'worker')} at {self.rate:g} MB/s each (--rate; 27 measured on two cores)"
            lines += ["", f"disk: about {_size(kept)} of the {_size(lies)} that lie there"]
            lines += [f"time: about {_duration(self.hours())} with {pace}"]
        if (asked := self.asked()) is not None:
            cost = f", cost {asked['cost']:,.2f}" if asked["cost"] else ""
            tokens = f"{asked['prompt_tokens']:,.0f} tokens of prompts and {asked['reply_tokens']:,.0f} of replies"
            lines.append(
                f"model: at most {asked['captions']:,.0f} captions, about {tokens}{cost}; cached replies are free"
            )
        lines += ["", "Upper bounds: broken images, their sizes, duplicates and excluded images show in a build only."]
        return "\n".join(lines) + "\n"

    def _quota(self, name: str) -> int | None:
        return self.config.quotas.get(Family(name)) if name else None

    def _within(self, name: str, by_source: Counter[str]) -> dict[str, int]:
        """Samples of each source within the quota of a family, those of sources without a share in proportion."""
        quota = self._quota(name)
        if quota is None or by_source.total() <= quota:
            return dict(by_source)
        shares = self.config.shares.get(Family(name), {})
        taken = {**share_quota(quota, {source: by_source[source] for source in shares}, shares)}
        others = {source: count for source, count in by_source.items() if source not in shares}
        left = quota - sum(taken.values())
        if (whole := sum(others.values())) and left > 0:
            taken |= {source: min(count, left * count // whole) for source, count in others.items()}
        return taken

    def _kept(self) -> Counter[str]:
        """Samples of each source that a build would write."""
        kept: Counter[str] = Counter()
        for name in (*Family, _UNKNOWN):
            by_source: Counter[str] = Counter()
            for source in self.sources:
                for (family, _, code, _), count in source.counts.items():
                    if family == name and not code:
                        by_source[source.name] += count
            kept.update(self._within(name, by_source))
        return kept


def dry_run(config: BuildConfig, *, workers: int, rate: float = MEGABYTES_PER_SECOND) -> DryRun:
    """Survey all sources. Raises ConfigError for a wrong setting; an absent source is part of the result."""
    if not config.sources:
        raise ConfigError("name at least one source, e.g. release:PATH or world:1000")
    found: list[SourceSurvey] = []
    tasks: list[tuple[int, BuildConfig, str, Fragment]] = []
    with ProcessPool(workers) as engine:
        for spec in config.specs:
            reader = open_source(spec)
            try:
                if problem := absent(reader, spec, config.data):
                    raise SourceError(problem)
                fragments = reader.fragments()
            except SourceError as error:
                found.append(SourceSurvey(reader.name, spec, problem=str(error)))
                continue
            tasks += [(len(found), config, spec, fragment) for fragment in fragments]
            found.append(SourceSurvey(reader.name, spec, bytes=_bytes_of(reader)))
        _survey(engine, found, tasks)
    return DryRun(tuple(found), config, max(1, workers), rate)


def absent(reader: Reader, spec: str, data: str | None = None) -> str | None:
    """One line if the folder of a source is not there, or not all of it: how to fetch it, and how large it is.

    `data` is where relative paths began.
    """
    from pipelines.download.fetch import unfinished

    folder = reader.folder()
    if folder is None:
        return None
    if folder.exists():
        if (mark := unfinished(folder)) is None:
            return None
        return (
            f"{spec}: not all of it is there, for its download was stopped or is at work: run `sigma download` again "
            f"as before, or remove {shlex.quote(str(mark))} to take what is there"
        )
    name, out = spec.partition(":")[0], shlex.quote(str(folder))
    if data and folder != Path(data) and folder.is_relative_to(data) and (written := folder.relative_to(data)).exists():
        return (
            f"{spec} is not there, and {written} is: paths begin at the setting `data` ({data}); data=. takes {written}"
        )
    if name == "release":
        return f"{spec} is not there; `sigma download sigma-dataset --out {out}` fetches SIGMA's release"
    layout = getattr(reader, "map", None)
    if layout is None:  # listing its fragments says so
        return None
    size = "" if layout.size == "unknown" else f": {layout.size}"
    lines = [line.strip() for line in layout.files.splitlines()]
    commands = [line.removesuffix("DIR") + out for line in lines if _FETCH.fullmatch(line)]
    if commands:
        fetched = " and ".join(f"`{command}`" for command in commands)
        how = f"{fetched} {'fetch' if commands[1:] else 'fetches'} it{size}"
    else:
        what = " or ".join(layout.hub) or layout.corpus
        how = f"`sigma sources {name}` says how to lay it out, and it can be had at {what}{size}"
    return f"{spec} is not there; {how}"


def survey_fragment(task: tuple[int, BuildConfig, str, Fragment]) -> tuple[Counts, Captions]:
    """What the rows of a fragment would become, under the build's licenses too, and the captions of samples."""
    _, config, spec, fragment = task
    reader = _opened(spec)
    if type(reader).survey is Reader.survey:  # it would read every image
        terms = getattr(getattr(reader, "options", None), "license", "unknown")
        reason = config.licenses.reason(terms)
        unknown = (_UNKNOWN, terms, reason[0] if reason else "", reason is not None)
        return Counter({unknown: fragment.rows or 1}), Captions()
    counts: Counts = Counter()
    captions = Captions()
    asks = config.injection.by == "model" and not reader.injected
    computed = bool(config.conditions.shares)
    refused = cache(config.licenses.reason)
    for row in reader.survey(fragment):
        code, filtered = row.code or "", row.filtered
        family = row.family
        if computed and reader.name in config.conditions.sources:
            family = Family.LAYOUT
        elif not code and not computed and family is Family.LAYOUT and row.references == 0:
            code, filtered = "no_reference", True
        if not code and (reason := refused(row.license)):
            code, filtered = reason[0], True
        counts[family.value if family else _UNKNOWN, row.license, code, filtered] += 1
        framed = family in _FRAMED or (row.labelled and row.references == 1 and family is Family.COMPOSITIONAL)
        if asks and not code and not framed and row.references:
            captions.add(Captions(len(row.texts), sum(map(len, row.texts))))
    return counts, captions


@lru_cache(maxsize=64)
def _opened(spec: str) -> Reader:
    """A worker surveys many fragments of a source: its map is read once."""
    return open_source(spec)


def _survey(
    engine: ProcessPool, found: Sequence[SourceSurvey], tasks: Sequence[tuple[int, BuildConfig, str, Fragment]]
) -> None:
    with ProgressBar("survey", len(tasks), "fragments") as progress:

        def done(index: int, result: Any) -> None:
            if isinstance(result, Crashed):
                crashed = (_UNKNOWN, "unknown", "reader_crashed", False)
                result = Counter({crashed: tasks[index][3].rows or 1}), Captions()
            found[tasks[index][0]].counts.update(result[0])
            found[tasks[index][0]].captions.add(result[1])
            progress.add()

        engine.run(survey_fragment, tasks, done, what="surveying the sources")


def _bytes_of(reader: Reader) -> int | None:
    """Bytes of all files of a source, if they are on this machine or their store tells."""
    folder = reader.folder()
    if folder is None:
        return None
    sizes = [stamp.partition(":")[0] for _, stamp in data_folder(str(folder)).files("")]
    return sum(int(size) for size in sizes if size.isdecimal())


def _details(counts: Counts) -> str:
    families: Counter[str] = Counter()
    codes: Counter[str] = Counter()
    for (family, _, code, _), count in counts.items():
        if code:
            codes[code] += count
        elif family:
            families[family] += count
    given = [f"{name} {families[name]:,}" for name in FAMILY_RULES if families[name]]
    left = [f"{code} {count:,}" for code, count in sorted(codes.items(), key=lambda one: (-one[1], one[0]))]
    return "; ".join(part for part in (", ".join(given), ", ".join(left)) if part)


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 1000 or unit == "TB":
            break
        count /= 1000
    return f"{count:.0f} {unit}" if count >= 100 or unit == "B" else f"{count:.1f} {unit}"


def _duration(hours: float) -> str:
    return f"{hours:.1f} hours" if hours >= 1 else f"{60 * hours:.0f} minutes" if hours > 1 / 60 else "a minute"
