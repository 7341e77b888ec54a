"""What attribute tokens and the group mask bring: python benchmarks/ablation.py [--out DIR] [--seeds N] [--steps N].

Trains the recipe of configs/quickstart.yaml on the world with attribute tokens and the group mask, with tokens alone,
and without tokens (where the mask changes nothing), each with several seeds of the data's order, noise and dropout.
All are asked the same questions: the quickstart's test split, and compositions of another seed in which two references
show a thing of the same class, so that they compete for what the answer takes from one of them. Prints one Markdown
table: means over seeds, and paired differences (same seed, same questions) with 95 % t-intervals over the seeds.
Run it again to go on where it was stopped.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from pipelines.build_dataset.config import BuildConfig
from pipelines.build_dataset.run import build
from pipelines.common.process_pool import default_workers
from pipelines.common.settings import load_settings
from pipelines.evaluate.aggregate import RunScores
from pipelines.evaluate.benchmarks.world import ACCURACY, LEAKAGE
from pipelines.evaluate.generate import Generation
from pipelines.evaluate.report.report import REPORT
from pipelines.evaluate.report.tables import Column, metrics
from pipelines.evaluate.runner import EvalOptions, Evaluation, evaluate
from pipelines.quickstart.journal import Journal
from pipelines.quickstart.stages import CONFIG, SIZE, SPLITS, QuickstartOptions, Stages
from pipelines.train.config import TrainConfig
from pipelines.train.export import export_run
from sigma_data.errors import SigmaError
from sigma_model.sampling.settings import Guidance, SamplingSettings

ROOT = Path(__file__).resolve().parents[1]
RUN, LOG, MODEL = "run", "train.log", "model"
TEST, COMPETING = "test", "competing"
"""The two sets of questions, and the folders of their evaluations."""
COMPETING_SEED = 1
"""Of the world that the second set comes from; the first is of seed 0."""


@dataclass(frozen=True)
class Arm:
    """A recipe, with or without attribute tokens in its instructions and the group mask over these."""

    name: str
    folder: str
    tokens: bool
    group_mask: bool

    def corpus(self, questions: str = "corpus") -> str:
        """The folder of its corpus, or of the questions: two of the arms share them."""
        return f"{questions}-{'tokens' if self.tokens else 'plain'}"


MASKED = Arm("tokens + group mask", "tokens-mask", tokens=True, group_mask=True)
TOKENS = Arm("tokens", "tokens", tokens=True, group_mask=False)
PLAIN = Arm("no tokens", "plain", tokens=False, group_mask=True)
ARMS = (MASKED, TOKENS, PLAIN)
DIFFERENCES = {"group mask": (TOKENS, MASKED), "tokens": (PLAIN, TOKENS), "both": (PLAIN, MASKED)}
"""What two arms differ in: without it, with it."""
_T = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306, 10: 2.262}
"""The 97.5 % point of Student's t for so many seeds."""


@dataclass(frozen=True)
class Trained:
    """One training of an arm."""

    arm: Arm
    seed: int

    @property
    def folder(self) -> str:
        """Its folder below the ablation's."""
        return f"{self.arm.folder}-{self.seed}"


def build_corpora(out: Path, samples: int, limit: int) -> None:
    """The same samples twice, as `sigma quickstart` splits them, and questions; a corpus that is there stays."""
    for arm in (TOKENS, PLAIN):
        said = f"size={SIZE}&attributes={'yes' if arm.tokens else 'no'}"
        train = BuildConfig(sources=(f"world:{samples}?{said}",), splits=SPLITS)
        build(train, out / arm.corpus(), workers=default_workers())
        asked = f"world:{2 * limit}?{said}&families=compositional&seed={COMPETING_SEED}"
        build(BuildConfig(sources=(asked,), splits={"test": 100.0}), out / arm.corpus(COMPETING), workers=1)


def train(out: Path, config: TrainConfig, steps: int, jobs: int, runs: Sequence[Trained]) -> None:
    """Train or go on, in `jobs` processes. Raises CalledProcessError where one ends badly; the others save and stop."""
    waiting = [run for run in runs if not (out / run.folder / MODEL).exists()]
    running: list[subprocess.Popen[bytes]] = []
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                running.append(start(out, config, steps, waiting.pop(0)))
            time.sleep(0.2)
            for process in running:
                if process.poll():
                    raise subprocess.CalledProcessError(process.returncode, process.args)
            running = [process for process in running if process.returncode is None]
    finally:
        for process in running:
            process.terminate()  # all at once: each saves first
        for process in running:
            process.wait()


def start(out: Path, config: TrainConfig, steps: int, run: Trained) -> subprocess.Popen[bytes]:
    """`sigma train` with the configuration's recipe: as long, saved and looked at as `sigma quickstart` does."""
    folder, arm = out / run.folder, run.arm
    often = {"checkpoint.every": config.checkpoint.every, "validation.every": config.validation.every}
    settings = {
        "out": str(folder / RUN), "steps": steps, "model.group_mask": arm.group_mask, "data.seed": run.seed,
        "data.corpora": [{"path": str(out / arm.corpus())}],
        **{name: max(1, every * steps // (config.steps or steps)) for name, every in often.items()},
    }  # fmt: skip
    words = ["train", str(CONFIG), "--nproc", "1", *(f"{name}={json.dumps(value)}" for name, value in settings.items())]
    folder.mkdir(exist_ok=True)
    sys.stderr.write(f"training: {arm.name}, seed {run.seed}, as {folder / LOG} tells\n")
    with (folder / LOG).open("a") as log:
        single = {**os.environ, "OMP_NUM_THREADS": "1"}
        return subprocess.Popen([sys.executable, "-m", "cli", *words], cwd=ROOT, env=single, stdout=log, stderr=log)


def scored(out: Path, config: TrainConfig, limit: int, jobs: int, run: Trained) -> tuple[RunScores, RunScores]:
    """All scores of a trained run, asked as `sigma quickstart` asks: of the test questions, of those that compete."""
    folder, seen, arm = out / run.folder, config.validation, run.arm
    if not (folder / MODEL).exists():  # it appears whole
        export_run(folder / RUN, folder / MODEL, ema=config.ema is not None)
    found = []
    for name, corpus, count in ((TEST, arm.corpus(), limit), (COMPETING, arm.corpus(COMPETING), None)):
        if not (folder / name / REPORT).exists():
            guidance = Guidance(text=seen.text_scale, image=seen.image_scale)
            settings = SamplingSettings(steps=seen.image_steps, guidance=guidance, group_mask=arm.group_mask)
            evaluate(EvalOptions(
                benchmark=f"world:{out / corpus}", out=folder / name, model=str(folder / MODEL),
                name=arm.name, limit=count, generation=Generation(settings=settings), nproc=jobs,
            ))  # fmt: skip
        evaluation = Evaluation.open(folder / name)
        found.append(evaluation.scores(evaluation.results()))
    return found[0], only_competing(found[1])


def only_competing(run: RunScores) -> RunScores:
    """The items of which two references show a thing of the same class (both a creature, both a vase ...)."""
    results = [result for result in run.results if competes(result.item.truth["references"])]
    kept = {result.item.id for result in results}
    return replace(run, results=results, scores=[score for score in run.scores if score.item in kept])


def competes(references: Sequence[Mapping[str, Any]]) -> bool:
    """Whether two references show a thing of the same class."""
    seen: set[str] = set()
    for reference in references:
        shown = {str(thing["shape"]) for thing in reference["scene"]["objects"]}
        if seen & shown:
            return True
        seen |= shown
    return False


Scored = Mapping[str, Sequence[tuple[RunScores, RunScores]]]
"""By arm, the scores of each seed: the test questions' and the competing ones'."""


def table(found: Scored) -> str:
    """A Markdown table of the arms: each family's main metric, then accuracy and leakage of both sets of questions."""
    first, rest = next(iter(found.values()))[0]
    rows: list[tuple[str, int, int, str | None, str]] = []
    rows += [(family, items(first, family), 0, family, first.main[family]) for family in first.families]
    for label, which, run in (("all", 0, first), ("competing references", 1, rest)):
        rows += [(label, len(run.results), which, None, metric.name) for metric in (ACCURACY, LEAKAGE)]
    lines = [["questions", "metric", *found, *(f"{name}: with − without" for name in DIFFERENCES)]]
    lines.append(["---"] * len(lines[0]))
    for label, count, which, family, name in rows:
        values = {arm: [mean_of(runs[which], family, name) for runs in seeds] for arm, seeds in found.items()}
        better = metrics([first])[name].better
        lines.append([
            f"{label} ({count})", Column(name, better).heading,
            *(f"{fmean(means):.3f} ({min(means):.3f} to {max(means):.3f})" for means in values.values()),
            *(
                difference([more - less for less, more in zip(values[without.name], values[with_.name], strict=True)],
                           better)
                for without, with_ in DIFFERENCES.values()
            ),
        ])  # fmt: skip
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def items(run: RunScores, family: str) -> int:
    """How many questions of a family were asked."""
    return sum(result.item.family == family for result in run.results)


def mean_of(run: RunScores, family: str | None, metric: str) -> float:
    """The mean of a metric over a family's items, or all."""
    wanted = {result.item.id for result in run.results if family in (None, result.item.family)}
    values = [one.value for one in run.scores if one.item in wanted and one.metric == metric and one.value is not None]
    return fmean(values)


def difference(each: Sequence[float], better: str) -> str:
    """The mean of a difference over seeds with its t-interval; bold with a verdict where that excludes 0."""
    mean = round(fmean(each), 3) + 0.0  # no "-0.000"
    if len(each) < 2:
        return f"{mean:+.3f}"
    half = _T[len(each)] * stdev(each) / math.sqrt(len(each))
    words = f"{mean:+.3f} [{mean - half:+.3f}, {mean + half:+.3f}]"
    if abs(mean) <= half:
        return words
    return f"**{words}** {'better' if (mean > 0) == (better == 'up') else 'worse'}"


def _failed(code: int, sentence: str) -> int:
    sys.stderr.write(f"{sentence}\n")
    return code


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what is left to do and print the table; 2 for a mistake, 1 for a failed training, 130 where interrupted."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("ablation"), help="folder of all of it (default: ablation)")
    parser.add_argument("--samples", type=int, default=2000, help="samples of each corpus (default: 2000)")
    parser.add_argument("--seeds", type=int, default=3, choices=range(1, 11), metavar="N", help="trainings an arm")
    parser.add_argument("--steps", type=int, help="training steps (default: those of the configuration)")
    parser.add_argument("--limit", type=int, default=120, help="at most so many test items (default: 120)")
    parser.add_argument("--jobs", type=int, choices=(1, 2, 3), default=2, help="trainings at once (default: 2)")
    options = parser.parse_args(arguments)
    out = options.out.resolve()
    try:
        settings = Stages(QuickstartOptions(out, options.samples, options.limit, options.steps)).settings()
        config = load_settings(TrainConfig, CONFIG, ())
        with Journal(out, {"benchmark": Path(__file__).name, **settings}):
            build_corpora(out, options.samples, options.limit)
            runs = [Trained(arm, seed) for seed in range(options.seeds) for arm in ARMS]
            train(out, config, settings["--steps"], options.jobs, runs)
            found: dict[str, list[tuple[RunScores, RunScores]]] = {arm.name: [] for arm in ARMS}
            for run in runs:
                found[run.arm.name].append(scored(out, config, options.limit, options.jobs, run))
    except SigmaError as error:
        return _failed(2, str(error))
    except subprocess.CalledProcessError as error:
        return _failed(1, f"a training ended with {error.returncode}: see {LOG} in the folders of {out}")
    except KeyboardInterrupt:
        return _failed(130, "interrupted; run the same command again to continue")
    print(table(found))
    print(f"\nmeans over {options.seeds} seeds (smallest to largest); bold: the interval of the difference excludes 0")
    return 0


if __name__ == "__main__":
    sys.exit(main())
