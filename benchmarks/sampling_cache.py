"""Images with steps left out, against the exact sampler: python benchmarks/sampling_cache.py CORPUS [options].

CORPUS is one of `world:` with a split `test`. Questions of it are answered in batches of 8 with 50 noise levels and
everything else at its default, by each arm in turn, batch after batch:
  exact      every step and every branch of guidance computed
  taylor     `--cache taylor`
  tea        `--cache tea` with the polynomial and threshold in the model's tea_cache.json (tools/fit_tea_cache.py
             chooses on questions of the split `val`)
  dpmpp      `--sampler dpmpp` with 18 noise levels, for comparison
  euler      18 noise levels
  layers     an OmniGen2 only: `--step-cache taylorseer`, its library's way: the main layers' output is continued
Of each arm: times as fast (median over batches of the ratio of this process's CPU time, whole images: prefill, sampling
and decoding), PSNR to the exact images (mean over images, and the least), and the share of the world's attributes
that are right. Aims: taylor 2.5 times at 30 dB, tea 2.0 times at 33 dB, accuracy within 0.01 of the exact one's; of an
OmniGen2 taylor and layers 2.0 times at 30 dB. The exit code is 1 where an aim is missed. `--model DIR` is another
model, an OmniGen2 too (`--base` for its missing parts); `--every` and `--order` are those of taylor; `--arms` names
some of them.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from targets import check

from pipelines.common.answerer import load_answerer
from pipelines.common.inference_config import InferenceConfig
from pipelines.evaluate.benchmarks import open_benchmark
from pipelines.evaluate.benchmarks.world import ACCURACY
from pipelines.evaluate.generate import encoded_png, request_of
from pipelines.evaluate.item import Item, Result
from pipelines.evaluate.questions import limited
from sigma_data.errors import SigmaError
from sigma_model.omnigen2.settings import StepCacheKind
from sigma_model.sampling.generate import Request
from sigma_model.sampling.settings import CacheMethod, Solver, StepCaching

STEPS, FEW, BATCH = 50, 18, 8
EXACT = "exact"
AIMS = {"taylor": (2.5, 30.0), "tea": (2.0, 33.0)}
AIMS_OMNIGEN2 = {"taylor": (2.0, 30.0), "layers": (2.0, 30.0)}
NEAR = 0.01
"""How far the accuracy may be from the exact sampler's."""

Answer = Callable[[Sequence[Request]], Sequence[Image.Image]]


@dataclass
class Arm:
    """What an arm has made, and the CPU seconds of each batch."""

    seconds: list[float] = field(default_factory=list)
    images: list[Image.Image] = field(default_factory=list)


def configurations(model: str, base: str | None, every: int, order: int) -> dict[str, InferenceConfig]:
    """What each arm is asked with; `every` and `order` are those of taylor."""
    plain = InferenceConfig(model=model, base=base, device="cpu", steps=STEPS)
    few = plain.model_copy(update={"steps": FEW})
    taylor = {"cache": CacheMethod.TAYLOR, "cache_every": every, "cache_order": order}
    layers = {"layers": plain.model_copy(update={"step_cache": StepCacheKind.TAYLORSEER})} if plain.omnigen2 else {}
    return {
        EXACT: plain,
        "taylor": plain.model_copy(update=taylor),
        **layers,
        "tea": plain.model_copy(update={"cache": CacheMethod.TEA}),
        "dpmpp": few.model_copy(update={"sampler": Solver.DPMPP}),
        "euler": few,
    }


def answers(configs: dict[str, InferenceConfig]) -> dict[str, Answer]:
    """Each arm as a function; the model is loaded once."""
    model = load_answerer(configs[EXACT], text=False)
    return {name: model.asked_otherwise(config, text=False).images for name, config in configs.items()}


def psnr(image: Image.Image, exact: Image.Image) -> float:
    """In dB, at most 80 (nearly equal images)."""
    error = np.square(np.asarray(image, dtype=float) - np.asarray(exact, dtype=float)).mean()
    return float(10 * np.log10(255**2 / max(error, 255**2 / 1e8)))


def measure(arms: dict[str, Answer], items: Sequence[Item]) -> dict[str, Arm]:
    """Answer all items with every arm in turn, batch after batch."""
    made = {name: Arm() for name in arms}
    requests = [request_of(item) for item in items]
    for answer in arms.values():
        answer(requests[:1])  # not measured
    for number, start in enumerate(range(0, len(requests), BATCH)):
        order = list(arms)[number % len(arms) :] + list(arms)[: number % len(arms)]
        for name in order:
            begin = time.process_time()
            made[name].images += arms[name](requests[start : start + BATCH])
            made[name].seconds.append(time.process_time() - begin)
    return made


def main() -> int:
    """Print the table; 1 where an aim is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", type=Path)
    parser.add_argument("--model", default="tiny-base")
    parser.add_argument("--base")
    parser.add_argument("--questions", type=int, default=64)
    parser.add_argument("--every", type=int, default=StepCaching.every)
    parser.add_argument("--order", type=int, default=StepCaching.order)
    parser.add_argument("--arms", help="e.g. taylor,layers; by default all")
    options = parser.parse_args()
    torch.set_num_threads(1)
    benchmark = open_benchmark(f"world:{options.corpus}", split="test")
    items = limited(benchmark.items(), options.questions)
    configs = configurations(options.model, options.base, options.every, options.order)
    if options.arms is not None:
        configs = {name: config for name, config in configs.items() if name in (EXACT, *options.arms.split(","))}
    aims = AIMS_OMNIGEN2 if configs[EXACT].omnigen2 else AIMS
    made = measure(answers(configs), items)
    exact = made[EXACT]
    print(
        f"{len(items)} test questions of the world, {STEPS} noise levels (dpmpp and euler: {FEW}), batches of {BATCH}, "
        f"taylor every {options.every} order {options.order}, {Path(options.model).name}, one thread, "
        f"torch {torch.__version__}, {platform.machine()}"
    )
    print(f"  {'':<8}{'CPU s an image':>16}{'faster':>9}{'PSNR dB':>10}{'least':>8}{'accuracy':>10}")
    right: dict[str, float] = {}
    targets: dict[str, tuple[float, float, float, float, float]] = {}
    missed = 0
    for name, arm in made.items():
        results = [Result(item, image=encoded_png(image)) for item, image in zip(items, arm.images, strict=True)]
        values = [s.value for s in benchmark.own_scores(results) if s.metric == ACCURACY.name and s.value is not None]
        right[name] = statistics.fmean(values)
        ratio = statistics.median(whole / mine for whole, mine in zip(exact.seconds, arm.seconds, strict=True))
        near = [psnr(*pair) for pair in zip(arm.images, exact.images, strict=True)]
        mean = statistics.fmean(near)
        line = f"  {name:<8}{sum(arm.seconds) / len(items):>16.3f}{ratio:>8.2f}x{mean:>10.2f}{min(near):>8.2f}"
        line += f"{right[name]:>10.4f}"
        if name in aims:
            speed, quality = aims[name]
            away = abs(right[name] - right[EXACT])
            targets[name] = (ratio, speed, mean, quality, away)
        print(line)
    for name, (ratio, speed, mean, quality, away) in targets.items():
        said = f"{Path(options.model).name} --cache {name}"
        missed += not check(said, "the exact sampler", ratio, least=speed, unit="times as fast")
        missed += not check(f"{said}, PSNR to the exact images", "", mean, least=quality, unit="dB")
        missed += not check(f"{said}, world accuracy away from the exact one", "", away, most=NEAR)
    return int(missed > 0)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except SigmaError as error:
        sys.exit(str(error))
