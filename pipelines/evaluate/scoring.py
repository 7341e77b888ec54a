"""The second stage of an evaluation: its own scores and the general metrics, in this process or by an engine's workers.

Workers are given stretches of results with their images, so they need neither the questions nor a shared folder;
numbers of whole sets (FID) are made here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path

from pipelines.common.engine import Engine
from pipelines.common.lazy_tasks import LazyTasks
from pipelines.common.process_pool import Crashed
from pipelines.common.progress import ProgressBar
from pipelines.evaluate import score
from pipelines.evaluate.benchmarks import Benchmark
from pipelines.evaluate.item import Result, Score
from pipelines.evaluate.metrics.base import Metric, SetMetric
from pipelines.evaluate.metrics.registry import backbones, make_metrics
from pipelines.evaluate.questions import QuestionSet
from pipelines.evaluate.stored import bytes_of
from sigma_data.errors import BuildError
from sigma_data.storage.files import disk_error
from sigma_model.loading import choose_device

GENEVAL = "geneval"
"""The folder for GenEval's own scorer."""

_METRIC_BATCH = 32
"""Images that go through a metric's model at once."""
_STRETCH = 16
"""Results of a task: their images travel with it."""


@dataclass(frozen=True)
class Scorer:
    """By what a stretch is scored: the benchmark `spec` itself if `metric` is None, else a general metric by name.

    `models` are (backbone, name or directory); `device` is as the user gave it, for each machine to choose by.
    """

    spec: str
    questions: QuestionSet
    metric: str | None
    models: tuple[tuple[str, str], ...]
    device: str


def score_results(
    out: Path,
    benchmark: Benchmark,
    made: Sequence[Result],
    wanted: Sequence[str],
    scorer: Scorer,
    engine: Engine | None,
) -> None:
    """Score what was not scored yet, here or by an `engine`'s workers. The folder is held."""
    if benchmark.name == "geneval":
        from pipelines.evaluate.benchmarks.geneval import write_folder

        try:
            write_folder(made, out / GENEVAL)
        except OSError as error:
            raise disk_error(error, out / GENEVAL) from None
    of = score.digest(made)
    with ExitStack() as stack:
        running = None if engine is None else stack.enter_context(engine)
        if not score.is_scored(out, score.OWN, of, benchmark.metrics):
            with _bar(benchmark.name, made, running) as shown:
                own = None if running is None else by_workers(running, scorer, made, shown.add)
                score.score_own(benchmark, made, out, of, scores=own)
                if running is None:
                    shown.add(len(made))
        if wanted:
            _score_metrics(out, made, of, wanted, scorer, running)


def _score_metrics(
    out: Path, made: Sequence[Result], of: str, wanted: Sequence[str], scorer: Scorer, engine: Engine | None
) -> None:
    models = dict(scorer.models)
    metrics, skipped = make_metrics(wanted, models, choose_device(scorer.device), _METRIC_BATCH)
    for name, reason in skipped.items():
        score.skip(out, name, of, reason, backbones=backbones(name, models))
    for metric in metrics:
        if not score.is_scored(out, metric.name, of, [score.info(metric)]):
            with _bar(metric.name, made, engine) as shown:
                if engine is None or isinstance(metric, SetMetric):
                    score.score_metric(metric, made, out, of, progress=shown.add)
                else:
                    found = by_workers(engine, replace(scorer, metric=metric.name), made, shown.add)
                    score.write(out, metric.name, score.Scored(of, [score.info(metric)], found))


def _bar(name: str, made: Sequence[Result], engine: Engine | None) -> ProgressBar:
    at_work = str if engine is None else engine.at_work
    return ProgressBar(f"score {name}", len(made), "results", at_work=at_work)


def by_workers(engine: Engine, scorer: Scorer, made: Sequence[Result], progress: Callable[[int], None]) -> list[Score]:
    """The scores of all results, in their order, by a running engine. Raises BuildError where that kills a worker."""
    starts = range(0, len(made), _STRETCH)
    found: dict[int, list[Score]] = {}

    def task(number: int) -> tuple[Scorer, list[Result]]:
        return scorer, [_at_hand(result) for result in made[starts[number] : starts[number] + _STRETCH]]

    def done(number: int, result: list[Score] | Crashed) -> None:
        if isinstance(result, Crashed):
            first = made[starts[number]].item.id
            raise BuildError(f"scoring {first} or one of the next {_STRETCH} kills the worker ({result.signal})")
        found[number] = result
        progress(len(made[starts[number] : starts[number] + _STRETCH]))

    engine.run(score_stretch, LazyTasks(len(starts), task), done, what="scoring")
    return [one for number in range(len(starts)) for one in found[number]]


def score_stretch(task: tuple[Scorer, list[Result]]) -> list[Score]:
    """The scores of some results, on whatever machine this is."""
    scorer, results = task
    return _scorer(scorer)(results)


@cache
def _scorer(scorer: Scorer) -> Callable[[list[Result]], list[Score]]:
    """What scores; a model is loaded once a worker."""
    if scorer.metric is None:
        return scorer.questions.benchmark(scorer.spec).own_scores
    device = choose_device(scorer.device)
    made, skipped = make_metrics([scorer.metric], dict(scorer.models), device, _METRIC_BATCH)
    if skipped:
        raise BuildError(f"{scorer.metric} cannot be computed on a node: {skipped[scorer.metric]}")
    (metric,) = made
    assert isinstance(metric, Metric)
    return partial(score.metric_scores, metric)


def _at_hand(result: Result) -> Result:
    """With its images, which another machine could not read."""
    item = result.item
    references = tuple(bytes_of(data) for data in item.references)
    answer = None if item.answer is None else bytes_of(item.answer)
    image = None if result.image is None else bytes_of(result.image)
    return replace(result, item=replace(item, references=references, answer=answer), image=image)


def scorer_of(spec: str, questions: QuestionSet, models: Mapping[str, str], device: str) -> Scorer:
    """The benchmark's own scorer; those of metrics differ in `metric` alone."""
    return Scorer(spec, questions, None, tuple(models.items()), device)
