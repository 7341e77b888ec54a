"""An evaluation from start to end: generate, score, report; each stage goes on from what is on disk.

Everything that a stage leaves is in files: so a report can be made of several folders at once, and long after.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pipelines.common.answerer import answerer_of, load_backbone, sees
from pipelines.common.caveats import caveat_of
from pipelines.common.engine import Engine, EngineName, open_engine
from pipelines.common.inference_config import InferenceConfig
from pipelines.common.process_pool import run_ranks
from pipelines.common.progress import ProgressBar
from pipelines.evaluate import run_folder
from pipelines.evaluate import score as score_module
from pipelines.evaluate.aggregate import RunScores, family_summary
from pipelines.evaluate.benchmarks import OF_CORPORA, Benchmark
from pipelines.evaluate.defaults import Stage
from pipelines.evaluate.generate import Generation, clean, generate, missing, results, shares
from pipelines.evaluate.item import Item, Result
from pipelines.evaluate.metrics import weights
from pipelines.evaluate.metrics.registry import NAMES
from pipelines.evaluate.metrics.registry import names as metric_names
from pipelines.evaluate.model_facts import model_facts
from pipelines.evaluate.questions import QuestionSet
from pipelines.evaluate.questions import limited as limited
from pipelines.evaluate.report.report import REPORT, write_report
from pipelines.evaluate.scoring import score_results, scorer_of
from pipelines.evaluate.stored import ImageStore, image_store
from sigma_data.errors import ConfigError
from sigma_data.storage.paths import is_uri, local_path
from sigma_data.version import sigma_version
from sigma_model.loading import DType, choose_device, shown_dtype
from sigma_model.quantization import Quantization

logger = logging.getLogger(__name__)

USUAL_METRICS: Mapping[str, tuple[str, ...]] = {
    "sigma": NAMES, "world": (), "segmentation": (), "questions": (), "geneval": ("CLIP", "AES"), "cv-bench": (),
}  # fmt: skip
"""The general metrics of a benchmark, where the user does not choose: those that its questions are scored with.

The world's own are exact, and a benchmark that is answered with text has no images.
"""


@dataclass(frozen=True)
class EvalOptions:
    """Options of an evaluation; `generation.text` is set by the benchmark.

    `split` None is the benchmark's usual one; `size` (width, height) None is each item's own; `images` are made of each
    prompt. `metrics` None are the usual ones. `models` gives backbones of metrics
    a name or directory. `stage` None is all of them; those after the first take all about generation from `out`.
    `refuse_unused`: a changed setting of `generation` that this kind of answer does not take is an error.
    """

    benchmark: str
    out: Path
    model: str | None = None
    base: str | None = None
    name: str | None = None
    split: str | None = None
    limit: int | None = None
    size: tuple[int, int] | None = None
    images: int | None = None
    metrics: tuple[str, ...] | None = None
    models: Mapping[str, str] = field(default_factory=dict)
    generation: Generation = field(default_factory=Generation)
    refuse_unused: bool = False
    nproc: int = 1
    device: str = "auto"
    dtype: DType = DType.AUTO
    device_map: str | None = None
    quantization: Quantization | None = None
    adapter: Path | None = None
    compare: tuple[Path, ...] = ()
    stage: Stage | None = None
    engine: EngineName = "local"
    address: str | None = None
    task_resources: str | None = None

    @property
    def questions(self) -> QuestionSet:
        """Which questions, and how many outputs of what size."""
        return QuestionSet(self.split, self.limit, self.size, self.images)


@dataclass(frozen=True)
class Evaluation:
    """An evaluation in `out` with its questions, open to be scored and reported."""

    out: Path
    settings: Mapping[str, Any]
    benchmark: Benchmark
    items: Sequence[Item]

    @classmethod
    def open(cls, out: Path, store: ImageStore | None = None) -> Evaluation:
        """Read its settings, and its questions again, whose images stay in files with a `store`.

        Raises ConfigError where they are not what they were.
        """
        settings = run_folder.read(out)
        benchmark, items = run_folder.questions(settings).open(settings["benchmark"], store)
        if run_folder.digest_of_items(items) != settings["items"]:
            raise ConfigError(f"{out}: {settings['benchmark']} asks other questions now: evaluate it into a new --out")
        return cls(out, settings, benchmark, items)

    def results(self) -> list[Result]:
        """What was made of every item. Raises ConfigError where some are not generated yet."""
        return list(results(self.out, self.items, self.settings["batch"]))

    def scores(self, made: Sequence[Result]) -> RunScores:
        """All scores on disk of what was made. Raises ConfigError if there are none."""
        found = score_module.collect(self.out, metric_names(), score_module.digest(made))
        return RunScores(
            name=self.settings["name"],
            benchmark=self.benchmark.name,
            settings=self.settings,
            metrics=found.metrics,
            skipped=found.skipped,
            results=made,
            scores=found.scores,
            summary=found.summary,
            main=self.benchmark.main,
            notes=found.notes,
        )


def evaluate(options: EvalOptions) -> dict[str, Any]:
    """Run the requested stages; returns their results, for `evaluation_summary`.

    What a user can get wrong is checked before anything is computed. Raises SigmaError.
    """
    with image_store() as store:
        return _evaluate(options, store)


def _evaluate(options: EvalOptions, store: ImageStore) -> dict[str, Any]:
    spec = _absolute(options.benchmark)
    engine = _engine(options)
    benchmark = options.questions.benchmark(spec)
    wanted = _wanted(benchmark, options)
    generates = options.stage in (None, Stage.GENERATE)
    if generates:
        generation = replace(options.generation, text=benchmark.answers == "text")
        if options.refuse_unused:
            run_folder.refuse_unused(generation, benchmark.name)
        evaluation = _settle(spec, benchmark, generation, options, store)
    else:
        evaluation = Evaluation.open(options.out, store)
        _check_recorded(spec, evaluation.settings, options)
        if options.name is not None:
            evaluation = replace(evaluation, settings={**evaluation.settings, "name": options.name})
    _check_compared(evaluation, options, store)
    with run_folder.claimed(options.out):
        if generates:
            clean(options.out)
            to_do = missing(options.out, evaluation.items, generation.batch)
            settings = run_folder.enter(options.out, evaluation.settings, complete=not to_do)
            evaluation = replace(evaluation, settings=settings)
            _generate(evaluation, to_do, generation, options)
        elif options.name is not None:
            run_folder.write(options.out, evaluation.settings)
        made = evaluation.results()
        if made and all(result.failure is not None for result in made):
            raise ConfigError(
                f"{options.out}: all {len(made):,} items failed, so there is nothing to score; the first, "
                f"{made[0].item.id}: {made[0].failure}; fix that and generate again, nothing of this is kept then"
            )
        result: dict[str, Any] = {
            "out": str(options.out),
            "name": evaluation.settings["name"],
            "benchmark": benchmark.name,
            "items": len(made),
            "failed": {result.item.id: result.failure for result in made if result.failure is not None},
        }
        if options.stage is Stage.GENERATE:
            return result
        if options.stage is not Stage.REPORT:
            questions = run_folder.questions(evaluation.settings)
            scorer = scorer_of(evaluation.settings["benchmark"], questions, options.models, options.device)
            score_results(options.out, benchmark, made, wanted, scorer, engine)
        run = evaluation.scores(made)
        result |= {"skipped": dict(run.skipped), "summary": dict(run.summary), "families": family_summary(run)}
        if options.stage is not Stage.SCORE:
            others = [Evaluation.open(other, store) for other in options.compare]
            write_report([*(other.scores(other.results()) for other in others), run], options.out)
            result["report"] = str(options.out / REPORT)
    return result


def _engine(options: EvalOptions) -> Engine | None:
    """The cluster that scores; None is this process. Raises ConfigError."""
    if options.engine == "ray" and options.stage in (Stage.GENERATE, Stage.REPORT):
        raise ConfigError(f"--engine ray is for scoring: leave it out with --stage {options.stage}")
    engine = open_engine(options.engine, None, address=options.address, resources=options.task_resources)
    return engine if options.engine == "ray" else None


def _absolute(spec: str) -> str:
    """The benchmark with its path in full: a report may be made from elsewhere.

    Raises ConfigError for a URI of what is no corpus.
    """
    name, colon, path = spec.partition(":")
    if is_uri(path) and name in OF_CORPORA:
        return spec.rstrip("/")
    return f"{name}:{local_path(path).resolve()}" if colon and path else spec


def _wanted(benchmark: Benchmark, options: EvalOptions) -> tuple[str, ...]:
    """The names of the general metrics to score. Raises ConfigError for what cannot be, before anything is made."""
    wanted = USUAL_METRICS[benchmark.name] if options.metrics is None else options.metrics
    if benchmark.answers == "text" and wanted:
        raise ConfigError(f"benchmark {benchmark.name} is answered with text: leave --metrics out")
    unknown = [name for name in wanted if name not in metric_names()]
    if unknown:
        raise ConfigError(f"--metrics {unknown[0]}: unknown metric; there are {', '.join(metric_names())}")
    for key, value in options.models.items():
        if key not in weights.DEFAULTS:
            raise ConfigError(
                f"--metric-model {key}: no metric has such a model; there are {', '.join(weights.DEFAULTS)}"
            )
        weights.check(key, value)
    return tuple(dict.fromkeys(wanted))


def _check_recorded(spec: str, settings: Mapping[str, Any], options: EvalOptions) -> None:
    """Raises ConfigError where an option differs from what the images on disk were made with.

    Options with their default value count as not given.
    """
    requested: dict[str, Any] = {"benchmark": spec, **run_folder.flat_questions(options.questions)}
    if options.dtype is not DType.AUTO or options.quantization is not None:
        dtype = settings["dtype"].partition(",")[0] if options.dtype is DType.AUTO else str(options.dtype)
        requested["dtype"] = shown_dtype(dtype, options.quantization)
    usual = run_folder.flat(Generation(text=settings["words"]))
    now = run_folder.flat(replace(options.generation, text=settings["words"]))
    requested |= {name: value for name, value in now.items() if value != usual.get(name)}
    if options.model is not None or options.base is not None:
        facts = model_facts(
            options.model or settings["model"], base=options.base or settings["base"], adapter=options.adapter
        )
        if facts.digest != settings["weights"]:  # it may have been moved
            requested["model"] = str(facts.directory.resolve())
            if requested["model"] == settings["model"]:
                raise ConfigError(f"{options.out}: was made with other weights, or another --base, than lie there now")
    for name, value in requested.items():
        if value not in (None, settings.get(name)):
            raise ConfigError(
                f"{options.out}: holds an evaluation of the {name} {settings.get(name)}, not of {value}: leave that "
                "option out, or choose another --out and generate there"
            )


def _check_compared(evaluation: Evaluation, options: EvalOptions, store: ImageStore) -> None:
    """Raises ConfigError for what cannot stand beside the evaluation in a report."""
    names = {evaluation.settings["name"]: evaluation.out}
    ids = {item.id for item in evaluation.items}
    for other in options.compare:
        settings = run_folder.read(other)
        if other.resolve() == evaluation.out.resolve():
            raise ConfigError(f"--compare {other}: is this evaluation itself, the --out: name another")
        benchmark, name = settings["benchmark"].partition(":")[0], settings["name"]
        if benchmark != evaluation.benchmark.name:
            raise ConfigError(f"--compare {other}: is of {benchmark}, and this is of {evaluation.benchmark.name}")
        if name in names:
            raise ConfigError(f"--compare {other}: is called {name}, as {names[name]} is: give one another --name")
        names[name] = other
        if options.stage in (None, Stage.REPORT):
            theirs = Evaluation.open(other, store)
            theirs.scores(theirs.results())
            shown = {item.id for item in theirs.items}
            if ids.isdisjoint(shown):
                raise ConfigError(
                    f"--compare {other}: has no item in common with the others; compare runs over the same split "
                    "and limit"
                )
            if len(names) == 2:  # the baseline, which a report compares with every other run
                ids = shown


def _settle(
    spec: str, benchmark: Benchmark, generation: Generation, options: EvalOptions, store: ImageStore
) -> Evaluation:
    """What is to be generated and how, with all that is recorded of it. Raises ConfigError for what cannot be."""
    if options.model is None:
        raise ConfigError("name the model to evaluate with --model, a directory or a preset (tiny-base)")
    generation.settings.check()
    device = choose_device(options.device)
    facts = model_facts(options.model, base=options.base, adapter=options.adapter)
    most = facts.max_tokens
    if generation.text and generation.max_tokens >= most:
        raise ConfigError(
            f"--max-tokens {generation.max_tokens:,}: leaves no room for a question, as the model takes {most:,} "
            "tokens for both: give fewer"
        )
    if options.size is not None:
        width, height = facts.fit(options.size)
        if (width, height) != options.size:
            logger.info("sigma: the model does not make the requested size, so images are %dx%d", width, height)
    items = options.questions.items(benchmark, store)
    before = run_folder.read(options.out) if (options.out / run_folder.SETTINGS).exists() else {}
    kept = before["name"] if before.get("weights") == facts.digest else None  # a name belongs to one model
    settings = {
        "name": options.name or kept or facts.directory.resolve().name,
        "benchmark": spec,
        "version": benchmark.version,
        **run_folder.flat_questions(options.questions),
        "split": benchmark.split,
        "items": run_folder.digest_of_items(items),
        "model": str(facts.directory.resolve()),
        "base": options.base,
        "weights": facts.digest,
        "trained": facts.trained,
        **run_folder.flat(generation),
        "device": device.partition(":")[0],
        "dtype": shown_dtype(facts.dtype(options.dtype, device), options.quantization),
        "torch": version("torch"),
        "sigma": sigma_version(),
    }
    return Evaluation(options.out, settings, benchmark, items)


def _generate(
    evaluation: Evaluation, to_do: Mapping[int, Sequence[Item]], generation: Generation, options: EvalOptions
) -> None:
    """The first stage: the batches that are missing. The folder is held."""
    items = evaluation.items
    assert options.model is not None
    blind = generation.text and not sees(options.model, options.base)
    if told := caveat_of(trained=evaluation.settings["trained"], sees=not blind, text=generation.text):
        logger.info("sigma: %s %s", options.model, told)
    found = len(items) - sum(map(len, to_do.values()))
    with ProgressBar("generate", len(items), "items", found=found) as shown:
        if to_do:
            device = choose_device(options.device)
            work = partial(_share, options, device, generation)
            run_ranks(work, shares(to_do, options.nproc), shown.add)


def _share(
    options: EvalOptions,
    device: str,
    generation: Generation,
    rank: int,
    share: Mapping[int, Sequence[Item]],
    progress: Callable[[int], None],
) -> None:
    """What a rank does."""
    import torch

    assert options.model is not None
    if device == "cuda" and options.device_map is None:
        device = f"cuda:{rank % torch.cuda.device_count()}"
    # Sums are rounded by how they are split over threads: with one, images are the same for any number of ranks.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        config = InferenceConfig(
            model=options.model,
            base=options.base,
            device=device,
            dtype=options.dtype,
            device_map=options.device_map,
            quantize=options.quantization,
            understanding=generation.understanding,
            adapter=options.adapter,
        )
        model = answerer_of(load_backbone(config), generation)
        generate(model, share, options.out, generation, progress=progress)
    finally:
        torch.set_num_threads(threads)
