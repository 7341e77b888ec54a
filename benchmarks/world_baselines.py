"""What the world's scores mean: python benchmarks/world_baselines.py CORPUS [--out EVALUATION ...] [--limit N].

Prints one Markdown table: each family's main metric and accuracy (mean and 95 % bootstrap interval over items, as
reports have them) of answers that no model makes, and of evaluations beside them:
  grey             a picture of middle grey
  mean             the mean of the family's answers in the training split
  first reference  handed back at the answer's size
  round trip       the right answer through the model's autoencoder at the model's size: what a perfect model of that
                   autoencoder could reach
Evaluations are folders of `sigma eval`, scored, of the same items: give the --split and --limit that they were made
with.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from pipelines.common.progress import ProgressBar
from pipelines.evaluate.aggregate import OVERALL, MetricInfo, RunScores, aggregate, main_metric
from pipelines.evaluate.benchmarks.samples import corpus_samples
from pipelines.evaluate.benchmarks.world import ACCURACY, Exact, WorldBenchmark
from pipelines.evaluate.benchmarks.world_pixels import cells
from pipelines.evaluate.item import Item, Result, Score
from pipelines.evaluate.metrics.base import at_size
from pipelines.evaluate.report.tables import figure, interval
from pipelines.evaluate.run_folder import digest_of_items
from pipelines.evaluate.runner import Evaluation, limited
from pipelines.evaluate.stored import bytes_of
from sigma_data.errors import ConfigError, SigmaError
from sigma_data.images.decode import load
from sigma_data.images.resample import resized
from sigma_data.sequence.layout import Kind
from sigma_model.config import VAE_FILE, find_file
from sigma_model.loading import describe_model
from sigma_model.vae import Vae

GREY = (128, 128, 128)
TRAINING = "train"

Answer = Callable[[Item], Image.Image]


def baselines(corpus: str, model: str) -> dict[str, Answer]:
    """What answers an item, by name. Raises SigmaError for a corpus without training split, or no model."""
    means = mean_answers(corpus)
    round_trip = through_autoencoder(model)
    return {
        "grey": lambda item: Image.new("RGB", size_of(item), GREY),
        "mean": lambda item: means[item.family],
        "first reference": lambda item: at_size(item.references[0], size_of(item)),
        "round trip": round_trip,
    }


def mean_answers(corpus: str) -> dict[str, Image.Image]:
    """Each family's mean answer over the training split, at the size of the first."""
    sums: dict[str, np.ndarray] = {}
    counts: dict[str, int] = {}
    for sample in corpus_samples(corpus, TRAINING):
        target = sample.turns[0].target
        data = next(image.data for image in sample.images if image.number == target)
        family = sample.family.value
        total = sums.get(family)
        size = load(data).size if total is None else (total.shape[1], total.shape[0])
        pixels = np.asarray(at_size(data or b"", size), dtype=np.float64)
        sums[family] = pixels if total is None else total + pixels
        counts[family] = counts.get(family, 0) + 1
    return {
        family: Image.fromarray((total / counts[family]).round().astype(np.uint8)) for family, total in sums.items()
    }


def through_autoencoder(model: str) -> Answer:
    """The answer as the model's autoencoder gives it back, at the size that the model would make."""
    description = describe_model(model)
    vae = Vae.load(find_file(VAE_FILE, *description.places), description.config.vae)

    def answer(item: Item) -> Image.Image:
        size, _ = description.geometry.fit(Kind.TARGET, size_of(item))
        pixels = torch.from_numpy(resized(bytes_of(item.answer or b""), size)).permute(2, 0, 1)
        (given,) = vae.decode(vae.encode([pixels]))
        return Image.fromarray((given.clamp(-1, 1) * 127.5 + 127.5).round().byte().permute(1, 2, 0).numpy())

    return answer


def size_of(item: Item) -> tuple[int, int]:
    """The size of the right answer."""
    assert item.size is not None
    return item.size


def score(benchmark: WorldBenchmark, items: Sequence[Item], answers: Mapping[str, Answer]) -> list[RunScores]:
    """A run for each way to answer; what is known of an item is drawn once for all."""
    scores: dict[str, list[Score]] = {name: [] for name in answers}
    with ProgressBar("score", len(items), "items") as shown:
        for item in items:
            exact = Exact(item)
            for name, answer in answers.items():
                values = exact.measure(cells(answer(item)))
                scores[name] += [Score(item.id, metric.name, values.get(metric.name)) for metric in benchmark.metrics]
            shown.add()
    results = [Result(item) for item in items]
    return [
        RunScores(name, benchmark.name, {}, benchmark.metrics, {}, results, found, main=benchmark.main)
        for name, found in scores.items()
    ]


def table(runs: Sequence[RunScores]) -> str:
    """A Markdown table: a row a family and metric, a column a run."""
    rows = [{row.family: row for row in aggregate(run)} for run in runs]
    lines = [["family", "metric", *(run.name for run in runs)]]
    for family, first in rows[0].items():
        known = {metric.name: metric for metric in runs[0].metrics}
        for name in dict.fromkeys(filter(None, (main_metric(runs[0], family), ACCURACY.name))):
            estimates = [of[family].cells[name].estimate for of in rows]
            named = f"{family} ({first.items})" if family != OVERALL else f"**all** ({first.items})"
            lines.append([
                named, f"{name} {_arrow(known[name])}",
                *(f"{figure(estimate.mean)} {interval(estimate)}".rstrip() for estimate in estimates),
            ])  # fmt: skip
    lines.insert(1, ["---"] * len(lines[0]))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _arrow(metric: MetricInfo) -> str:
    return "↑" if metric.better == "up" else "↓"


def evaluated(folder: Path, items: Sequence[Item]) -> RunScores:
    """The run of an evaluation of these items. Raises ConfigError where it is of others, or not scored."""
    evaluation = Evaluation.open(folder)
    settings = evaluation.settings
    if digest_of_items(items) != settings["items"]:
        raise ConfigError(
            f"{folder}: is an evaluation of other items (split {settings['split']}, limit {settings['limit']}): "
            "give --split and --limit to match"
        )
    return evaluation.scores(evaluation.results())


def main() -> int:
    """Score and print the table; 2 for a mistake, in one sentence."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", help="of the world, with a training split")
    parser.add_argument("--out", type=Path, nargs="+", default=[], help="folders of sigma eval")
    parser.add_argument("--split", default="test", help="which split is asked (default: test)")
    parser.add_argument("--limit", type=int, help="at most so many items, as sigma eval takes them")
    parser.add_argument("--model", default="tiny", help="whose autoencoder makes the round trip (default: tiny)")
    options = parser.parse_args()
    try:
        benchmark = WorldBenchmark(options.corpus, split=options.split)
        items = limited(benchmark.items(), options.limit)
        others = [evaluated(folder, items) for folder in options.out]
        *plain, best = score(benchmark, items, baselines(options.corpus, options.model))
    except SigmaError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    print(table([*plain, *others, best]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
