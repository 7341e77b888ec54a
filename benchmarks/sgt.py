"""Does learning to segment help to answer? python benchmarks/sgt.py [--out DIR] [--samples N] [--steps N] [--seeds N].

Trains the recipe of configs/quickstart-sgt.yaml twice a seed, on colour maps and questions (2 : 1) and on the same
questions alone, with as many steps and the same questions a step; asks both held-out questions about unseen scenes, and
prints accuracy by kind with 95 % intervals, the paired difference, IoU of the colour maps over the steps, and for
comparison what needs no training.
A seed draws the vision encoder, the order of the data and the noise. Intervals resample conversations, of the mean over
seeds, so they are of the choice of questions; the figures of every seed stand beside them.
Run it again to go on where it was stopped.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image

from pipelines.build_dataset.config import BuildConfig
from pipelines.build_dataset.run import build
from pipelines.common.bundled_configs import CONFIGS
from pipelines.common.settings import load_settings
from pipelines.evaluate.aggregate import SEED, Estimate, RunScores, bootstrap
from pipelines.evaluate.benchmarks import open_benchmark
from pipelines.evaluate.benchmarks.questions import EXACT, plain
from pipelines.evaluate.benchmarks.segmentation import HUNGARIAN
from pipelines.evaluate.generate import Generation
from pipelines.evaluate.metrics.instance_maps import Answer, measure
from pipelines.evaluate.questions import limited
from pipelines.evaluate.report.report import REPORT
from pipelines.evaluate.report.tables import figure, interval
from pipelines.evaluate.runner import EvalOptions, Evaluation, evaluate
from pipelines.evaluate.stored import bytes_of
from pipelines.plan.config import PlanConfig
from pipelines.plan.run import run_plan
from pipelines.quickstart.journal import Journal
from pipelines.train.config import TrainConfig
from pipelines.train.export import export_run
from pipelines.train.launch import Launch, launch
from sigma_data.errors import SigmaError
from sigma_data.images.decode import load
from sigma_data.sample import Family
from sigma_data.synthetic.families.understanding import KINDS
from sigma_model.config import WEIGHT_FILES, preset, preset_directory
from sigma_model.new_vision import add_vision
from sigma_model.sampling.settings import Guidance, SamplingSettings
from sigma_model.vae import Vae

CONFIG = CONFIGS / "quickstart-sgt.yaml"
SIZE = 64
LOOKS = 4
"""How often over the run colour maps are scored."""
ALL = "all"


@dataclass(frozen=True)
class Arm:
    """A way to train: with colour maps or without."""

    name: str
    folder: str
    families: tuple[Family, ...]


JOINT = Arm("maps + questions", "joint", (Family.SEGMENTATION, Family.UNDERSTANDING))
ALONE = Arm("questions alone", "alone", (Family.UNDERSTANDING,))
ARMS = (JOINT, ALONE)


@dataclass(frozen=True)
class Experiment:
    """Where all of it lies and how large it is."""

    out: Path
    samples: int
    held_out: int
    steps: int
    seeds: int
    maps: int

    @property
    def corpus(self) -> Path:
        """What is trained on."""
        return self.out / "corpus"

    @property
    def unseen(self) -> Path:
        """Scenes of another seed of the world: half of them colour maps, half questions."""
        return self.out / "unseen"

    def folder(self, arm: Arm, seed: int) -> Path:
        """Of a run and all that is made of it."""
        return self.out / f"{arm.folder}-{seed}"

    @property
    def looks(self) -> list[int]:
        """The steps after which colour maps are scored."""
        return [self.steps * number // LOOKS for number in range(1, LOOKS + 1)]


def corpora(work: Experiment, workers: int) -> None:
    """Build both corpora; one that is there stays."""
    shares = f"world:{work.samples}?size={SIZE}&families=segmentation:2,understanding:1"
    build(BuildConfig(sources=(shares,), splits={"train": 98, "val": 2, "test": 0}), work.corpus, workers=workers)
    unseen = f"world:{work.held_out}?size={SIZE}&seed=1&families=segmentation,understanding"
    build(BuildConfig(sources=(unseen,), splits={"train": 0, "val": 0, "test": 100}), work.unseen, workers=workers)


def budget_alone(work: Experiment, start: Path) -> int:
    """Tokens of a pack of questions alone, so that an epoch has as many packs, and a pack as many questions."""
    corpora = [{"path": str(work.corpus)}]
    config = load_settings(PlanConfig, CONFIG, (), data={"corpora": corpora}, model={"path": str(start)})
    tokens = {name: sum(kinds.values()) for name, kinds in run_plan(config)["epochs"][0]["tokens"].items()}
    share: float = tokens[Family.UNDERSTANDING] / sum(tokens.values())
    return int(config.data.budget * share)


def train(work: Experiment, arm: Arm, seed: int) -> None:
    """Train a run, or go on with it. Raises KeyboardInterrupt where it was stopped."""
    folder, start = work.folder(arm, seed), work.out / f"start-{seed}"
    if not (start / WEIGHT_FILES[0]).exists():
        add_vision("tiny-base", "tiny", start, seed=seed)
    if (folder / "trained").exists():
        return
    data: dict[str, Any] = {"corpora": [{"path": str(work.corpus), "families": [*arm.families]}], "seed": seed}
    changes: tuple[str, ...] = ()
    if arm is ALONE:
        data |= {"budget": budget_alone(work, start)}
        changes = ("data.mixture=null",)
    every = work.steps // LOOKS
    config = load_settings(
        TrainConfig, CONFIG, changes,
        out=str(folder / "run"), steps=work.steps, data=data, model={"path": str(start), "seed": seed},
        checkpoint={"every": every, "keep": LOOKS + 1}, validation={"every": every, "images": 0},
    )  # fmt: skip
    result = launch(config, Launch(nproc=1))
    if result is None or result["stopped"]:
        raise KeyboardInterrupt
    (folder / "trained").touch()


def asked(work: Experiment, arm: Arm, seed: int, benchmark: str, step: int) -> RunScores:
    """The scores of a run after a step: `benchmark` is questions or segmentation."""
    folder = work.folder(arm, seed)
    model, out = folder / f"model-{step}", folder / f"{benchmark}-{step}"
    if not model.exists():  # it appears whole
        export_run(folder / "run", model, step=step, ema=True)
    if not (out / REPORT).exists():
        settings = SamplingSettings(steps=8, guidance=Guidance(text=1.0, image=1.0))
        evaluate(EvalOptions(
            benchmark=f"{benchmark}:{work.unseen}", out=out, model=str(model), name=f"{arm.name}, seed {seed}",
            limit=work.maps if benchmark == "segmentation" else None,
            generation=Generation(settings=settings, max_tokens=12, batch=32),
        ))  # fmt: skip
    evaluation = Evaluation.open(out)
    return evaluation.scores(evaluation.results())


def by_kind(runs: Sequence[RunScores]) -> dict[str, dict[str, tuple[str, float]]]:
    """Kind -> item -> (its conversation, its mean score over the runs)."""
    found: dict[str, dict[str, tuple[str, float]]] = {kind: {} for kind in (*KINDS, ALL)}
    for item, (kind, _) in runs[0].answered.items():
        values = [run.by_item[item][EXACT.name].value or 0.0 for run in runs]
        entry = (runs[0].questions[item], sum(values) / len(values))
        found[kind][item] = found[ALL][item] = entry
    return {kind: entries for kind, entries in found.items() if entries}


def estimate(entries: Mapping[str, tuple[str, float]]) -> Estimate:
    """The mean with an interval over conversations."""
    return bootstrap([value for _, value in entries.values()], seed=SEED, groups=[g for g, _ in entries.values()])


def table(runs: Mapping[Arm, Sequence[RunScores]]) -> str:
    """Accuracy by kind: both arms, the paired difference, and every seed's figures."""
    joint, alone = by_kind(runs[JOINT]), by_kind(runs[ALONE])
    each = {arm: [by_kind([run]) for run in runs[arm]] for arm in ARMS}
    lines = [["kind (questions)", JOINT.name, ALONE.name, "difference", "each seed"], ["---"] * 5]
    for kind, entries in joint.items():
        difference = {item: (group, value - alone[kind][item][1]) for item, (group, value) in entries.items()}
        seeds = "; ".join(
            f"{figure(estimate(with_maps[kind]).mean)} / {figure(estimate(without[kind]).mean)}"
            for with_maps, without in zip(each[JOINT], each[ALONE], strict=True)
        )
        cells = [estimate(entries), estimate(alone[kind]), estimate(difference)]
        lines.append([f"{kind} ({len(entries)})", *(f"{figure(c.mean)} {interval(c)}".rstrip() for c in cells), seeds])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def course(work: Experiment, maps: Mapping[int, Sequence[RunScores]]) -> str:
    """IoU of colour maps over the steps, a column a seed."""
    lines = [["step", *(f"seed {seed}" for seed in range(work.seeds))], ["---"] * (1 + work.seeds)]
    for step, runs in maps.items():
        cells = []
        for run in runs:
            values = [run.by_item[item][HUNGARIAN.name].value or 0.0 for item in run.answered]
            found = bootstrap(values, seed=SEED)
            cells.append(f"{figure(found.mean)} {interval(found)}".rstrip())
        lines.append([f"{step:,}", *cells])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def bounds(work: Experiment) -> str:
    """What needs no training: the commonest answer of a kind, a map that is black or the image, and the best a VAE can.

    Answers are counted in what is trained on.
    """
    seen: dict[str, Counter[str]] = defaultdict(Counter)
    for item in open_benchmark(f"questions:{work.corpus}", split="train").items():
        seen[item.family][plain(item.answer_text or "")] += 1
    items = open_benchmark(f"questions:{work.unseen}").items()
    common = {kind: answers.most_common(1)[0][0] for kind, answers in seen.items()}
    right = [float(plain(item.answer_text or "") == common.get(item.family)) for item in items]
    kinds = {
        kind: [one for one, item in zip(right, items, strict=True) if kind in (ALL, item.family)]
        for kind in (*KINDS, ALL)
    }
    vae = Vae.load(preset_directory("tiny") / "ae.safetensors", preset("tiny").vae)
    maps: dict[str, list[float]] = defaultdict(list)
    for item in limited(open_benchmark(f"segmentation:{work.unseen}").items(), work.maps):
        image, answer = load(bytes_of(item.references[0])), load(bytes_of(item.answer or b""))
        pixels = torch.from_numpy(np.asarray(answer).copy()).permute(2, 0, 1).float() / 127.5 - 1
        with torch.no_grad():
            [decoded] = vae.decode(vae.encode([pixels]))
        again = ((decoded.clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
        right_map = Answer.of(answer)
        for name, output in (
            ("black", Image.new("RGB", answer.size)), ("the image itself", image),
            ("the answer through the VAE", Image.fromarray(again)),
        ):  # fmt: skip
            maps[name].append(measure(output, right_map)["hungarian"])
    answers = ", ".join(f"{kind} {figure(fmean(some))}" for kind, some in kinds.items() if some)
    overlaps = ", ".join(f"{name} {figure(fmean(some))}" for name, some in maps.items())
    return f"The commonest answer: {answers}. IoU of {overlaps}."


def run(work: Experiment, workers: int) -> str:
    """Do what is left to do; returns the tables."""
    digest = hashlib.sha256(json.dumps(yaml.safe_load(CONFIG.read_text("utf-8")), sort_keys=True).encode()).hexdigest()
    settings = {**{f"--{name}": value for name, value in vars(work).items() if name != "out"}, CONFIG.name: digest[:16]}
    with Journal(work.out, {"benchmark": Path(__file__).name, **settings}):
        corpora(work, workers)
        answers: dict[Arm, list[RunScores]] = {arm: [] for arm in ARMS}
        maps: dict[int, list[RunScores]] = {step: [] for step in work.looks}
        for seed in range(work.seeds):
            for arm in ARMS:
                train(work, arm, seed)
                answers[arm].append(asked(work, arm, seed, "questions", work.steps))
            for step in work.looks:
                maps[step].append(asked(work, JOINT, seed, "segmentation", step))
            sys.stderr.write(f"after {seed + 1} of {work.seeds} seeds:\n{table(answers)}\n\n")
        title = f"IoU of {work.maps} colour maps of unseen scenes:"
        return "\n\n".join((table(answers), title, course(work, maps), bounds(work)))


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what is left to do and print the tables; 2 for a mistake, 130 where interrupted."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("sgt-experiment"), help="folder (default: sgt-experiment)")
    parser.add_argument("--samples", type=int, default=3000, help="samples to train on (default: 3000)")
    parser.add_argument("--held-out", type=int, default=600, help="samples to ask about (default: 600)")
    parser.add_argument("--steps", type=int, default=800, help="training steps (default: 800)")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each kind (default: 3)")
    parser.add_argument("--maps", type=int, default=120, help="colour maps to score (default: 120)")
    parser.add_argument("--workers", type=int, default=1, help="processes that draw the corpora (default: 1)")
    options = parser.parse_args(arguments)
    work = Experiment(
        options.out.resolve(), options.samples, options.held_out, options.steps, options.seeds, options.maps
    )
    try:
        print(run(work, options.workers))
    except SigmaError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("interrupted; run the same command again to continue\n")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
