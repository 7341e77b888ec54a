"""What attribute tokens and the group mask bring: python benchmarks/ablation.py [--out DIR] [--samples N] [--steps N].

Trains the recipe of configs/quickstart.yaml three times, on the world with attribute tokens and the group mask, with
tokens alone, and without tokens (where the mask changes nothing), asks the same test questions of each, and prints one
Markdown table: means with 95 % bootstrap intervals over items, and paired differences over the same items.
A recipe is trained once: the intervals are of the choice of questions, not of the luck of a training run.
Run it again to go on where it was stopped.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipelines.build_dataset.config import BuildConfig
from pipelines.build_dataset.run import build
from pipelines.common.process_pool import default_workers
from pipelines.common.settings import load_settings
from pipelines.evaluate.aggregate import OVERALL, Difference, Estimate, RunScores, aggregate, compare
from pipelines.evaluate.benchmarks.world import ACCURACY, LEAKAGE
from pipelines.evaluate.generate import Generation
from pipelines.evaluate.report.report import REPORT
from pipelines.evaluate.report.tables import Column, figure, interval, metrics
from pipelines.evaluate.runner import EvalOptions, Evaluation, evaluate
from pipelines.quickstart.journal import Journal
from pipelines.quickstart.stages import CONFIG, SIZE, SPLITS, QuickstartOptions, Stages
from pipelines.train.config import TrainConfig
from pipelines.train.export import export_run
from sigma_data.errors import SigmaError
from sigma_model.sampling.settings import Guidance, SamplingSettings

ROOT = Path(__file__).resolve().parents[1]
RUN, LOG, MODEL, EVALUATION = "run", "train.log", "model", "evaluation"


@dataclass(frozen=True)
class Arm:
    """A run, with or without attribute tokens in its instructions and the group mask over these."""

    name: str
    folder: str
    tokens: bool
    group_mask: bool

    @property
    def corpus(self) -> str:
        """The folder of its corpus: two of the runs share one."""
        return "corpus-tokens" if self.tokens else "corpus-plain"


MASKED = Arm("tokens + group mask", "tokens-mask", tokens=True, group_mask=True)
TOKENS = Arm("tokens", "tokens", tokens=True, group_mask=False)
PLAIN = Arm("no tokens", "plain", tokens=False, group_mask=True)
ARMS = (MASKED, TOKENS, PLAIN)
DIFFERENCES = {"group mask": (TOKENS, MASKED), "tokens": (PLAIN, TOKENS), "both": (PLAIN, MASKED)}
"""What two runs differ in: without it, with it."""


def build_corpora(out: Path, samples: int) -> None:
    """The same samples twice, as `sigma quickstart` splits them; a corpus that is there stays."""
    for arm in (TOKENS, PLAIN):
        source = f"world:{samples}?size={SIZE}&attributes={'yes' if arm.tokens else 'no'}"
        build(BuildConfig(sources=(source,), splits=SPLITS), out / arm.corpus, workers=default_workers())


def train(out: Path, config: TrainConfig, steps: int, jobs: int) -> None:
    """Train or go on, in `jobs` processes. Raises CalledProcessError where one ends badly; the others save and stop."""
    waiting = [arm for arm in ARMS if not (out / arm.folder / MODEL).exists()]
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


def start(out: Path, config: TrainConfig, steps: int, arm: Arm) -> subprocess.Popen[bytes]:
    """`sigma train` with the configuration's recipe: as long, saved and looked at as `sigma quickstart` does."""
    folder = out / arm.folder
    often = {"checkpoint.every": config.checkpoint.every, "validation.every": config.validation.every}
    settings = {
        "out": str(folder / RUN), "steps": steps, "model.group_mask": arm.group_mask,
        "data.corpora": [{"path": str(out / arm.corpus)}],
        **{name: max(1, every * steps // (config.steps or steps)) for name, every in often.items()},
    }  # fmt: skip
    words = ["train", str(CONFIG), "--nproc", "1", *(f"{name}={json.dumps(value)}" for name, value in settings.items())]
    folder.mkdir(exist_ok=True)
    sys.stderr.write(f"training: {arm.name}, as {folder / LOG} tells\n")
    with (folder / LOG).open("a") as log:
        single = {**os.environ, "OMP_NUM_THREADS": "1"}
        return subprocess.Popen([sys.executable, "-m", "cli", *words], cwd=ROOT, env=single, stdout=log, stderr=log)


def scored(out: Path, config: TrainConfig, limit: int, jobs: int, arm: Arm) -> RunScores:
    """All scores of a trained run, which is asked as `sigma quickstart` asks."""
    folder, seen = out / arm.folder, config.validation
    if not (folder / MODEL).exists():  # it appears whole
        export_run(folder / RUN, folder / MODEL, ema=config.ema is not None)
    if not (folder / EVALUATION / REPORT).exists():
        guidance = Guidance(text=seen.text_scale, image=seen.image_scale)
        settings = SamplingSettings(steps=seen.image_steps, guidance=guidance, group_mask=arm.group_mask)
        evaluate(EvalOptions(
            benchmark=f"world:{out / arm.corpus}", out=folder / EVALUATION, model=str(folder / MODEL),
            name=arm.name, limit=limit, generation=Generation(settings=settings), nproc=jobs,
        ))  # fmt: skip
    evaluation = Evaluation.open(folder / EVALUATION)
    return evaluation.scores(evaluation.results())


def table(runs: Sequence[RunScores]) -> str:
    """A Markdown table of the runs of `ARMS`: each family's main metric, and over all items accuracy and leakage."""
    by_name = {run.name: run for run in runs}
    rows = [{row.family: row for row in aggregate(run)} for run in runs]
    differences = [
        {(found.family, found.metric): found for found in compare(by_name[less.name], by_name[more.name]).differences}
        for less, more in DIFFERENCES.values()
    ]
    lines = [["family (items)", "metric", *by_name, *(f"{name}: with − without" for name in DIFFERENCES)]]
    lines.append(["---"] * len(lines[0]))
    asked = [(family, runs[0].main[family]) for family in runs[0].families]
    for family, name in (*asked, (OVERALL, ACCURACY.name), (OVERALL, LEAKAGE.name)):
        cells = [of[family].cells.get(name) for of in rows]
        lines.append([
            f"{family} ({rows[0][family].items})", Column(name, metrics(runs)[name].better).heading,
            *(_estimate(cell.estimate) if cell else figure(None) for cell in cells),
            *(_difference(of.get((family, name))) for of in differences),
        ])  # fmt: skip
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _estimate(estimate: Estimate) -> str:
    return f"{figure(estimate.mean)} {interval(estimate)}".rstrip()


def _difference(found: Difference | None) -> str:
    """The difference, bold and with a verdict where its interval excludes 0."""
    if found is None:
        return figure(None)
    words = _estimate(found.estimate)
    return words if found.verdict == "open" else f"**{words}** {found.verdict}"


def _failed(code: int, sentence: str) -> int:
    sys.stderr.write(f"{sentence}\n")
    return code


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what is left to do and print the table; 2 for a mistake, 1 for a failed training, 130 where interrupted."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("ablation"), help="folder of all of it (default: ablation)")
    parser.add_argument("--samples", type=int, default=2000, help="samples of each corpus (default: 2000)")
    parser.add_argument("--steps", type=int, help="training steps (default: those of the configuration)")
    parser.add_argument("--limit", type=int, default=120, help="at most so many test items (default: 120)")
    parser.add_argument("--jobs", type=int, choices=(1, 2, 3), default=2, help="trainings at once (default: 2)")
    options = parser.parse_args(arguments)
    out = options.out.resolve()
    try:
        settings = Stages(QuickstartOptions(out, options.samples, options.limit, options.steps)).settings()
        config = load_settings(TrainConfig, CONFIG, ())
        with Journal(out, {"benchmark": Path(__file__).name, **settings}):
            build_corpora(out, options.samples)
            train(out, config, settings["--steps"], options.jobs)
            runs = [scored(out, config, options.limit, options.jobs, arm) for arm in ARMS]
    except SigmaError as error:
        return _failed(2, str(error))
    except subprocess.CalledProcessError as error:
        return _failed(1, f"a training ended with {error.returncode}: see {LOG} in the folders of {out}")
    except KeyboardInterrupt:
        return _failed(130, "interrupted; run the same command again to continue")
    print(table(runs))
    print("\nbold: the interval of the difference excludes 0; all: over all items, families taking turns")
    return 0


if __name__ == "__main__":
    sys.exit(main())
