"""Batch inference: every prompt of a source answered into a folder, by several processes, resumable.

An answer appears by rename, so a run that was killed goes on with what is missing; failures are tried again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from pipelines.common.answerer import Answerer, answering_of, load_answerer
from pipelines.common.folder_lock import LOCK, FolderLock, refuse_other_settings
from pipelines.common.inference_config import EMBEDDED, InferenceConfig
from pipelines.common.made_size import Size, size_told
from pipelines.common.process_pool import run_ranks
from pipelines.common.progress import ProgressBar
from pipelines.common.together import together_or_each
from pipelines.evaluate.defaults import BATCH
from pipelines.evaluate.generate import request_of
from pipelines.evaluate.item import Item
from pipelines.evaluate.model_facts import ModelFacts, model_facts
from pipelines.evaluate.stored import sha256_of
from pipelines.generate.prompts import UNREADABLE, read_prompts
from pipelines.generate.sheet import write_sheet
from sigma_data.errors import ConfigError, SigmaError
from sigma_data.storage.files import disk_error, dump_json, write_atomic
from sigma_data.storage.path_settings import LocalPath, ModelPath
from sigma_data.text_format import counted
from sigma_model.loading import choose_device
from sigma_model.sampling.generate import Request
from sigma_model.sampling.settings import Solver

logger = logging.getLogger(__name__)

SETTINGS, RESULTS, ANSWERS = "settings.json", "results.jsonl", "answers"
FASTER = frozenset({"sampler", "cache", "cache_every", "cache_order", "cache_threshold", "guidance_threshold"})
"""Settings that older folders do not have, and that are recorded where they are in use."""
_NAME = re.compile(r"[^A-Za-z0-9._-]+")


class BatchConfig(InferenceConfig):
    """Which prompts are answered, by what, and where to."""

    source: LocalPath
    """JSON lines, the release's parquet, or a corpus."""
    out: LocalPath = Path("generated")
    model: ModelPath = EMBEDDED
    split: str | None = None
    """Of a corpus; test by default."""
    start: int = 0
    """Prompts to leave out first."""
    limit: int | None = None
    """Prompts at most."""
    batch: int = BATCH
    """Prompts that are answered together."""
    nproc: int = 1
    text: bool = False
    """Answer with text instead of images."""

    def prompts(self) -> Iterator[tuple[int, Item]]:
        """The items, each with its index in the source. Raises ConfigError."""
        return read_prompts(self.source, text=self.text, split=self.split, start=self.start, limit=self.limit)


@dataclass(frozen=True)
class Asked:
    """A prompt of the source, without its images. `digest` names all that is asked: text, images, `size`."""

    index: int
    id: str
    prompt: str
    references: int
    digest: str
    size: Size | None = None

    @classmethod
    def of(cls, index: int, item: Item) -> Asked:
        """What `item` asks."""
        digest = hashlib.sha256(json.dumps([item.instruction, item.size, item.bindings]).encode())
        for data in (*(turn.instruction.encode() for turn in item.before), *item.references):
            digest.update(bytes.fromhex(sha256_of(data)))
        return cls(index, item.id, item.instruction, len(item.references), digest.hexdigest()[:8], item.size)

    def file(self, *, text: bool) -> str:
        """Where its answer lies in the folder; what is asked otherwise lies elsewhere."""
        name = _NAME.sub("_", self.id)[:80].strip("._") or "item"
        return f"{ANSWERS}/{self.index:06d}-{name}-{self.digest}{'.txt' if text else '.png'}"


def run_batch(config: BatchConfig) -> dict[str, Any]:
    """Answer what is missing; returns the counts, for `batch_summary`. Raises SigmaError.

    One item that cannot be answered stops no other: it is listed with the reason.
    """
    answering_of(config, text=config.text)  # raises for values that make no sense
    out = config.out
    if out.exists() and not out.is_dir():
        raise ConfigError(f"--out {out}: is a file: choose a folder")
    facts = model_facts(config.model, base=config.base, adapter=config.adapter)
    asked = _read(config)
    if not asked:
        part = bool(config.start) or config.limit is not None or config.split is not None
        told = "has no prompt there: look at --start, --limit and --split" if part else "holds no prompt"
        raise ConfigError(f"--from {config.source}: {told}")
    _tell_sizes(config, asked, facts)
    settings = config.model_dump(
        mode="json", exclude={"source", "out", "model", "base", "adapter", "nproc", "start", "limit"}
    )
    settings = {name: value for name, value in settings.items() if name not in FASTER or value != _usual(name)}
    if config.cached:
        settings["cache_used"] = json.loads(json.dumps(config.caching.recorded))  # with what was fitted for the model
    settings |= {"weights": facts.digest, "source": str(config.source)}
    try:
        lock = FolderLock(out / LOCK, "generation")
    except OSError as error:
        raise disk_error(error, out) from None
    try:
        _enter(out, settings)
        to_do = [one for one in asked if not (out / one.file(text=config.text)).is_file()]
        failures = _generate(config, asked, to_do)
        rows = _rows(config, asked, failures)
        try:
            write_atomic(out / RESULTS, "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows))
            sheet = write_sheet(out, f"{config.source.name}: {counted(len(rows), 'prompt')}", rows)
        except OSError as error:
            raise disk_error(error, out) from None
    finally:
        lock.release()
    if len(failures) == len(asked):
        index, reason = next(iter(failures.items()))
        raise ConfigError(f"{config.source}: no prompt could be answered; the first, number {index}: {reason}")
    return {
        "out": str(out),
        "prompts": len(asked),
        "answered": len(asked) - len(failures),
        "before": len(asked) - len(to_do),
        "failed": {str(index): reason for index, reason in sorted(failures.items())},
        "results": str(out / RESULTS),
        "sheet": str(sheet),
        "trained": facts.trained,
    }


def _usual(name: str) -> Any:
    """A setting's default, as JSON has it."""
    return BatchConfig.model_fields[name].get_default()


def _read(config: BatchConfig) -> list[Asked]:
    """What is asked: a pass over the source with its images, which for many takes minutes.

    Raises ConfigError where not one prompt can be read.
    """
    asked, unreadable = [], []
    with ProgressBar("read", config.limit, "prompts") as shown:
        for index, item in config.prompts():
            asked.append(Asked.of(index, item))
            unreadable += [item.truth[UNREADABLE]] if UNREADABLE in item.truth else []
            shown.add()
    if asked and len(unreadable) == len(asked):
        raise ConfigError(f"--from {config.source}: no prompt can be read; the first: {unreadable[0]}")
    return asked


def _tell_sizes(config: BatchConfig, asked: Sequence[Asked], facts: ModelFacts) -> None:
    """Say that the model does not make some of the sizes that are asked for, and what it makes instead."""
    wanted = Counter(size for one in asked if (size := config.size or one.size) is not None and not config.text)
    told = {}
    for size in wanted:
        with contextlib.suppress(SigmaError):  # one that it cannot make at all fails its prompts, with the reason
            told[size] = size_told(facts.directory.name, size, facts.fit(size))
    others = [size for size, words in told.items() if words]
    if others:
        count = sum(wanted[size] for size in others)
        logger.info("sigma: %s, and so for %s", told[others[0]], counted(count, "prompt"))


def batch_summary(result: dict[str, Any]) -> str:
    """The counts, the first failures, where to look."""
    answered = f"{result['answered']:,} of {counted(result['prompts'], 'prompt')} answered"
    lines = [f"{result['out']}: {answered}; {result['sheet']}"]
    lines += [f"  failed: number {index}: {reason}" for index, reason in [*result["failed"].items()][:5]]
    if len(result["failed"]) > 5:
        lines.append(f"  and {len(result['failed']) - 5:,} more, in {result['results']}")
    return "\n".join([*lines, ""])


def failures_told(result: dict[str, Any]) -> str | None:
    """How many prompts failed, where they are listed and what to do, in a sentence; None where all were answered."""
    count = len(result["failed"])
    if not count:
        return None
    return (
        f"{count:,} of {counted(result['prompts'], 'prompt')} failed, listed with the reasons in {result['results']}: "
        "what was made is kept, and the same command makes what is missing"
    )


def _enter(out: Path, settings: dict[str, Any]) -> None:
    """Record the settings. Raises ConfigError where something was made there with others."""
    path = out / SETTINGS
    try:
        if path.exists():
            there = json.loads(path.read_text("utf-8"))
            if (solver := there.pop("solver", None)) is not None and Solver(solver) is not Solver.EULER:
                there["sampler"] = Solver(solver).value  # as folders named it before 0.2
            names = dict.fromkeys([*settings, *sorted(FASTER & there.keys())])
            differ = [name for name in names if there.get(name) != settings.get(name)]
            refuse_other_settings(
                out, [f"{name} ({there.get(name)} there, {settings.get(name)} now)" for name in differ]
            )
        elif {one.name for one in out.iterdir()} - {LOCK}:
            raise ConfigError(f"{out} is not empty, and nothing was generated there: choose another --out")
        write_atomic(path, dump_json(settings))
    except OSError as error:
        raise disk_error(error, out) from None
    except (ValueError, AttributeError):
        raise ConfigError(f"{path}: cannot be read: choose another --out") from None


def _generate(config: BatchConfig, asked: Sequence[Asked], to_do: Sequence[Asked]) -> dict[int, str]:
    """Answer what is missing; returns index -> reason for what failed."""
    # Batches are cut by the place in the source: an image's last bits depend on what it is computed with.
    numbers = sorted({one.index // config.batch for one in to_do})
    shares = [frozenset(numbers[rank :: config.nproc]) for rank in range(min(config.nproc, len(numbers)))]
    with ProgressBar("generate", len(asked), "prompts", found=len(asked) - len(to_do)) as shown:
        if numbers:
            run_ranks(partial(_share, config), shares, shown.add)
    missing = [one for one in to_do if not (config.out / one.file(text=config.text)).is_file()]
    return {one.index: _reason(config.out, one) for one in missing}


def _share(config: BatchConfig, rank: int, share: frozenset[int], progress: Callable[[int], None]) -> None:
    """What a rank does: it reads the source once, and keeps what is its own."""
    import torch

    device = choose_device(config.device)
    if device == "cuda" and config.device_map is None:
        device = f"cuda:{rank % torch.cuda.device_count()}"
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # sums are rounded by how they are split over threads
    try:
        model = load_answerer(config.model_copy(update={"device": device}), text=config.text)
        if rank == 0 and model.caveat:
            logger.info("sigma: %s %s", model.name, model.caveat)
        for some in _batches(config, share):
            progress(_answer(config, model, some))
    finally:
        torch.set_num_threads(threads)


def _batches(config: BatchConfig, share: frozenset[int]) -> Iterator[list[tuple[int, Item]]]:
    """The batches of a share, whole, also where a part was answered before."""
    some: list[tuple[int, Item]] = []
    for index, item in config.prompts():
        number = index // config.batch
        if some and some[0][0] // config.batch != number:
            yield some
            some = []
        if number in share:
            some.append((index, item))
    if some:
        yield some


def _answer(config: BatchConfig, model: Answerer, items: Sequence[tuple[int, Item]]) -> int:
    """Answer a batch and write what is new; returns how many that are. What fails leaves its reason instead."""
    requests: list[tuple[Asked, Request]] = []
    for index, item in items:
        one = Asked.of(index, item)
        if reason := item.truth.get(UNREADABLE):
            _fail(config.out, one, reason)
            continue
        request = _request(config, item)
        try:
            model.check(request)
            requests.append((one, request))
        except SigmaError as error:
            _fail(config.out, one, str(error))
    count = 0
    answers = together_or_each(model.answers, [request for _, request in requests], SigmaError)
    for (one, request), made in zip(requests, answers, strict=True):
        path = config.out / one.file(text=config.text)
        if isinstance(made, SigmaError):
            _fail(config.out, one, str(made))
            continue
        if path.is_file():  # beside a prompt that failed before, its last bits would be others
            continue
        count += 1
        try:
            path.parent.mkdir(exist_ok=True)
            _failure(config.out, one).unlink(missing_ok=True)
            if isinstance(made, str):
                write_atomic(path, made)
        except OSError as error:
            raise disk_error(error, path) from None
        if not isinstance(made, str):
            model.write(made, path, request)
    return count


def _request(config: BatchConfig, item: Item) -> Request:
    asked = request_of(item, seed=config.seed)
    return replace(asked, size=config.size or item.size, names=item.truth.get("files") or asked.names)


def _rows(config: BatchConfig, asked: Sequence[Asked], failures: dict[int, str]) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for one in asked:
        file = one.file(text=config.text)
        row: dict[str, Any] = {"index": one.index, "id": one.id, "prompt": one.prompt, "references": one.references}
        if one.index in failures:
            row["failure"] = failures[one.index]
        elif config.text:
            row["text"] = (config.out / file).read_text("utf-8")
        else:
            row["file"] = file
        rows.append(row)
    return rows


def _failure(out: Path, one: Asked) -> Path:
    return out / ANSWERS / f"{one.index:06d}.failed"


def _fail(out: Path, one: Asked, reason: str) -> None:
    path = _failure(out, one)
    try:
        path.parent.mkdir(exist_ok=True)
        write_atomic(path, reason)
    except OSError as error:
        raise disk_error(error, path) from None


def _reason(out: Path, one: Asked) -> str:
    path = _failure(out, one)
    return path.read_text("utf-8") if path.is_file() else "no answer was written"
