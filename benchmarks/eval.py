"""Evaluation: how fast it generates and scores, and what it holds: python benchmarks/eval.py [SECTION ...] [--quick].

  batch     32 pictures of the world in one batch against one by one, through the code of `sigma eval` with its one
            thread; two arms more: its default batches, and one by one as BAGEL's release samples (three forward
            passes a step, caches merged anew in every layer). Also the most that any batch could reach: one by
            one against the batch's convolutions and matrix products alone, at the speed of a large product here
  questions 32 questions as a user asks them: tiny-base, 50 noise levels, batches of 8 (the default) against one by one,
            which gives the bits and takes the time of version e709f58; with `--cache taylor`, too
  scoring   the world's own scores, and general metrics that need no weights, against generating at 12 noise levels
  memory    peak memory of a whole evaluation of 500 and of 5,000 items with pictures of about 300 kB, every stage but
            the network, each in a process of its own: under 1 GB, however many items. The benchmark is a parquet file,
            whose pictures are copied into a temporary file; those of a corpus are read from its shards
The model is the tiny preset, pictures have 64 pixels. Arms take turns, round after round; ratios are medians over
rounds of ratios of this process's CPU time, for others may use the machine too. The exit code is 1 where an aim is
missed.
"""

from __future__ import annotations

import argparse
import io
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from gathered import MergingSampler
from packs import interleave, speedup
from PIL import Image
from targets import check
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from pipelines.build_dataset.config import BuildConfig
from pipelines.build_dataset.run import build
from pipelines.common.answerer import answerer_of
from pipelines.evaluate.benchmarks import Benchmark, open_benchmark
from pipelines.evaluate.generate import Generation, batches, generate, request_of, results
from pipelines.evaluate.item import Item, Result
from pipelines.evaluate.metrics.base import Metric
from pipelines.evaluate.metrics.registry import make_metrics
from pipelines.evaluate.runner import EvalOptions, evaluate, limited
from pipelines.evaluate.stored import bytes_of
from sigma_data.loading.batch import Specials
from sigma_model.loading import LoadedModel, load_for_inference
from sigma_model.model import SigmaModel
from sigma_model.sampling import generate as sampling
from sigma_model.sampling.generate import generate_images
from sigma_model.sampling.sampler import Branches, times
from sigma_model.sampling.settings import CacheMethod, Guidance, SamplingSettings, StepCaching

BATCH_AIM, SCORING_AIM, QUESTIONS_AIM = 3.0, 1.0, 1.5
PEAK_AIM = 1e9
"""Bytes of memory."""
SIDE = 320
"""Of a picture of noise, which takes about 300 kB."""
METRICS = ("PSNR", "SSIM", "F1")
REFERENCES = 3


@dataclass(frozen=True)
class Sizes:
    """How much is measured: pictures, noise levels, rounds, and items of the two evaluations whose memory is read."""

    pictures: int = 32
    steps: int = 12
    rounds: int = 3
    few: int = 500
    many: int = 5000


QUICK = Sizes(pictures=8, steps=4, rounds=1, few=50, many=500)


@contextmanager
def world(pictures: int) -> Iterator[tuple[Path, Benchmark, list[Item]]]:
    """A folder to work in, the world as a benchmark, and so many of its items."""
    with tempfile.TemporaryDirectory() as folder:
        corpus = Path(folder) / "corpus"
        source = f"world:{pictures}?size=64"
        build(BuildConfig(sources=(source,), splits={"test": 1.0}), corpus, workers=1)
        benchmark = open_benchmark(f"world:{corpus}")
        yield Path(folder), benchmark, limited(benchmark.items(), pictures)


def tiny() -> LoadedModel:
    """The tiny preset with weights that do something: those that training starts from put out zeros."""
    loaded = load_for_inference("tiny", device="cpu")
    torch.nn.init.normal_(loaded.model.latent_out.weight, std=0.3, generator=torch.Generator().manual_seed(0))
    return loaded


class Generate:
    """Generates items as `sigma eval` does, into a new folder at each call."""

    def __init__(self, loaded: LoadedModel, items: Sequence[Item], folder: Path, generation: Generation) -> None:
        self._loaded, self._items, self._folder, self._generation = loaded, items, folder, generation
        self._calls = 0

    def __call__(self) -> None:
        self._calls += 1
        share = dict(enumerate(batches(self._items, self._generation.batch)))
        generate(answerer_of(self._loaded, self._generation), share, self.out, self._generation)

    @property
    def out(self) -> Path:
        """Where the last call wrote to."""
        return self._folder / f"{self._generation.batch}-{self._calls}"

    def results(self) -> list[Result]:
        """What the last call made."""
        return list(results(self.out, self._items, self._generation.batch))


def batch(sizes: Sizes) -> bool:
    """Time all arms; whether one batch meets its aim against one by one."""
    with world(sizes.pictures) as (folder, _, items):
        loaded = tiny()

        def arm(size: int, name: str) -> Generate:
            generation = Generation(batch=size, settings=SamplingSettings(steps=sizes.steps))
            return Generate(loaded, items, folder / name, generation)

        one, eights, whole = arm(1, "one"), arm(8, "eights"), arm(sizes.pictures, "whole")
        released = arm(1, "released")

        def as_released() -> None:
            with mock.patch("sigma_model.sampling.generate.sample_latents", merging):
                released()

        arms: dict[str, Callable[[], None]] = {
            f"{sizes.pictures} in one batch": whole,
            "batches of 8, the default": eights,
            "one by one as the release samples": as_released,
            "one by one": one,
        }
        with FlopCounterMode(display=False) as counter:
            whole()
        for make in (eights, as_released, one):
            make()
        apart = max(difference(one.results(), other.results()) for other in (whole, eights, released))
        assert apart < 1, f"arms differ by {apart} levels of 255"
        print(
            f"batch: {sizes.pictures} pictures of 64 pixels, {sizes.steps} noise levels, guidance of text and "
            f"references, tiny model, {torch.get_num_threads()} thread; pictures agree within {apart:.2f} of 255 levels"
        )
        square = torch.randn(1024, 1024)
        clocks = interleave({**arms, "product": lambda: square @ square}, sizes.rounds)
    product = clocks.pop("product")
    alone = counter.get_total_flops() / (2 * len(square) ** 3)  # in products
    first, *others = clocks.values()
    print(f"  {'':<36}{'wall s':>9}{'CPU s':>9}{'batch faster':>15}   medians of {sizes.rounds}")
    for name, clock in clocks.items():
        print(f"  {name:<36}{clock.wall_ms / 1e3:>9.2f}{clock.cpu_ms / 1e3:>9.2f}{speedup(first, clock):>14.2f}x")
    most = statistics.median(one / (alone * each) for one, each in zip(others[-1].cpu, product.cpu, strict=True))
    print(f"  {'bare arithmetic':<36}{'':>9}{alone * product.cpu_ms / 1e3:>9.2f}   so at most {most:.2f}x")
    return check("one batch of questions", "one by one", speedup(first, others[-1]), least=BATCH_AIM, unit="times")


def questions(sizes: Sizes) -> bool:
    """Time batches of the default size, in turn with their items one by one; whether the aim is met."""
    with world(sizes.pictures) as (_, _, items):
        loaded = load_for_inference("tiny-base", device="cpu")
        exact = SamplingSettings()
        taylor = replace(exact, cache=StepCaching(CacheMethod.TAYLOR))
        arms = {"one by one": (1, exact), "batches of 8": (8, exact), "batches of 8, taylor": (8, taylor)}
        seconds: dict[str, list[float]] = {name: [] for name in arms}
        requests = [request_of(item) for item in items]
        generate_images(loaded, requests[:2], replace(exact, steps=4))  # not measured
        for start in range(0, len(requests), 8):
            for name, (size, settings) in arms.items():
                begin = time.process_time()
                for first in range(start, min(start + 8, len(requests)), size):
                    generate_images(loaded, requests[first : min(first + size, start + 8)], settings)
                seconds[name].append(time.process_time() - begin)
    print(f"questions: {len(requests)} of the world, tiny-base, {exact.steps} noise levels, one thread")
    one = seconds["one by one"]
    ratios = {}
    for name, mine in seconds.items():
        ratios[name] = statistics.median(a / b for a, b in zip(one, mine, strict=True))
        print(f"  {name:<36}{sum(mine) / len(requests):>9.3f} CPU s a question{ratios[name]:>9.2f}x")
    what = f"{len(requests)} questions in batches of 8"
    return check(what, "one by one", ratios["batches of 8"], least=QUESTIONS_AIM, unit="times")


def merging(
    model: SigmaModel,
    requests: Sequence[Branches],
    noise: Sequence[Tensor],
    specials: Specials,
    *,
    steps: int,
    timestep_shift: float,
    guidance: Guidance,
    group_mask: bool,
    **others: Any,
) -> list[Tensor]:
    """`sample_latents` of the sampler, request by request and branch by branch; the group mask is always on.

    `others` are what is off here: no steps are left out, and nobody watches.
    """
    assert group_mask
    assert others.keys() >= {"progress", "cache"}
    found = []
    for branches, x in zip(requests, noise, strict=True):
        sampler = MergingSampler(model, branches, specials, guidance=guidance)
        for level, following in pairwise(times(steps, timestep_shift)):
            x = x - sampler.velocity(x, level) * (level - following)
        found.append(x)
    return found


def difference(some: Sequence[Result], others: Sequence[Result]) -> float:
    """The mean absolute difference of the pictures, in levels of 255; of the pair that differs most."""
    found = []
    for pair in zip(some, others, strict=True):
        one, other = (
            np.asarray(Image.open(io.BytesIO(bytes_of(result.image or b"")))).astype(float) for result in pair
        )
        found.append(float(np.abs(one - other).mean()))
    return max(found)


def scoring(sizes: Sizes) -> bool:
    """Time each score and generating; whether all scores together keep up."""
    with world(sizes.pictures) as (folder, benchmark, items):
        make = Generate(tiny(), items, folder / "made", Generation(settings=SamplingSettings(steps=sizes.steps)))
        make()
        made = make.results()
        metrics, skipped = make_metrics(METRICS, {}, "cpu", 32)
        arms: dict[str, Callable[[], Any]] = {"generate": make, "world": partial(benchmark.own_scores, made)}
        counts = {"generate": len(items), "world": len(items)}
        for metric in metrics:
            assert isinstance(metric, Metric)
            fitting = [result for result in made if metric.applies(result.item)]
            if fitting:
                arms[metric.name] = partial(metric.score, fitting)
                counts[metric.name] = len(fitting)
        for score in arms.values():
            score()
        clocks = interleave(arms, sizes.rounds)
    print(f"scoring: {len(items)} results of 64 pixels, {sizes.steps} noise levels, batches of 8, one thread")
    seconds = {name: clock.cpu_ms / 1e3 / counts[name] for name, clock in clocks.items()}
    for name, each in seconds.items():
        print(f"  {name:<36}{1 / each:>9,.1f} items a CPU second")
    print("".join(f"  {name:<36}skipped: {reason}\n" for name, reason in skipped.items()), end="")
    whole = statistics.median(
        clock / sum(clocks[name].cpu[turn] / counts[name] for name in seconds if name != "generate") / len(items)
        for turn, clock in enumerate(clocks["generate"].cpu)
    )
    print(f"  {'all scores against generating':<36}{whole:>9.1f} times as fast")
    return check("scoring with all metrics", "generating", whole, least=SCORING_AIM, unit="times")


def memory(sizes: Sizes) -> bool:
    """Weigh two evaluations; whether the larger one stays under its limit."""
    with tempfile.TemporaryDirectory() as folder:
        peaks = []
        for items in (sizes.few, sizes.many):
            command = [sys.executable, __file__, "--one", str(items), "--folder", f"{folder}/{items}"]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            peaks.append(json.loads(done.stdout.splitlines()[-1]))
    print(
        f"memory: a whole evaluation without its network, {REFERENCES} references, an answer and an output an item, "
        f"of {SIDE * SIDE * 3 / 1e3:,.0f} kB each"
    )
    for items, peak in zip((sizes.few, sizes.many), peaks, strict=True):
        print(f"  {items:>6,} items, {peak['pictures'] / 1e6:>6,.0f} MB of pictures:  peaks in MB", end="")
        print("".join(f"   {stage} {peak[stage] / 1e6:,.0f}" for stage in ("generate", "score", "report")))
    what = f"peak memory of an evaluation of {sizes.many:,} items"
    return check(what, "", peaks[1]["report"] / 1e9, most=PEAK_AIM / 1e9, unit="GB")


def weigh(items: int, folder: Path) -> None:
    """Evaluate so many synthetic items and print peaks of this process after each stage as a line of JSON."""
    from pipelines.common.process_pool import peak_memory
    from pipelines.evaluate.defaults import Stage

    weight = write_release(folder / "release.parquet", items)
    random = np.random.default_rng(1)

    def stand_in(
        loaded: LoadedModel, requests: Sequence[Any], settings: SamplingSettings, **_: Any
    ) -> list[Image.Image]:
        return [noise_picture(random) for _ in requests]

    options = partial(EvalOptions, f"sigma:{folder / 'release.parquet'}", folder / "out", model="tiny", metrics=("F1",))
    told = {"pictures": round(weight * (REFERENCES + 2) / (REFERENCES + 1))}
    with mock.patch.object(sampling, "generate_images", stand_in):
        for stage in (Stage.GENERATE, Stage.SCORE, Stage.REPORT):
            evaluate(options(stage=stage))
            told[stage.value] = peak_memory()
    print(json.dumps(told))


def write_release(path: Path, items: int) -> int:
    """A parquet file in the release's layout, all pictures apart; returns their bytes."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema({
        "image_list": pa.list_(pa.binary()),
        "instruction_list": pa.list_(pa.list_(pa.string())),
        "data_prep_method": pa.string(),
    })  # fmt: skip
    path.parent.mkdir(parents=True)
    words = "Put <subject>thing {} <image_1> and <subject>the other <image_2> into <background>the room <image_3>"
    random, weight = np.random.default_rng(0), 0
    with pq.ParquetWriter(path, schema, compression="NONE", use_dictionary=False) as writer:
        for start in range(0, items, 50):
            rows = []
            for number in range(start, min(start + 50, items)):
                pictures = [encoded(noise_picture(random)) for _ in range(REFERENCES + 1)]
                weight += sum(map(len, pictures))
                rows.append({
                    "image_list": pictures,
                    "instruction_list": [[words.format(number)]],
                    "data_prep_method": "compositional",
                })  # fmt: skip
            writer.write_table(pa.Table.from_pylist(rows, schema=schema))
    return weight


def noise_picture(random: np.random.Generator) -> Image.Image:
    """A picture that cannot be compressed."""
    return Image.frombytes("RGB", (SIDE, SIDE), random.bytes(SIDE * SIDE * 3))


def encoded(picture: Image.Image) -> bytes:
    """The picture as BMP, which is quickest."""
    buffer = io.BytesIO()
    picture.save(buffer, "BMP")
    return buffer.getvalue()


def main() -> int:
    """Run the sections; 1 where an aim is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sections: dict[str, Callable[[Sizes], bool]] = {
        "batch": batch,
        "questions": questions,
        "scoring": scoring,
        "memory": memory,
    }
    parser.add_argument("sections", nargs="*", choices=[[], *sections], default=[], help="default: all")
    parser.add_argument("--quick", action="store_true", help="few pictures, one round: whether it runs")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        weigh(options.one, options.folder)
        return 0
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}\n")
    sizes = QUICK if options.quick else Sizes()
    passed = [sections[name](sizes) for name in options.sections or sections]
    return int(not all(passed))


if __name__ == "__main__":
    sys.exit(main())
