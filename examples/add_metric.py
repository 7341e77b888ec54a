"""Score with a metric of your own: python examples/add_metric.py [FOLDER [MODEL]]."""

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pipelines.build_dataset import build_dataset
from pipelines.evaluate import evaluate
from pipelines.evaluate.item import Item, Result
from pipelines.evaluate.metrics.base import Metric, pixel_pair
from pipelines.evaluate.metrics.registry import register


class Brightness(Metric):
    """How far an image's mean brightness is from that of the reference answer."""

    name = "brightness"
    better = "down"
    scale = "0 to 255"
    definition = "Absolute difference of the mean levels of output and reference answer."

    def applies(self, item: Item) -> bool:
        """Wherever there is a reference answer."""
        return item.answer is not None

    def score(self, results: Sequence[Result]) -> list[float]:
        """A number a result."""
        return [abs(float(np.mean(output) - np.mean(answer))) for output, answer in map(pixel_pair, results)]


register(Brightness)


def main(folder: Path, model: str) -> None:
    """Evaluate a few test scenes with two metrics; the report explains both."""
    build_dataset("world:60?size=64", folder / "scenes", workers=1, splits={"test": 1.0})
    found = evaluate(
        f"world:{folder / 'scenes'}",
        folder / "evaluation",
        model=model,
        limit=4,
        metrics=["PSNR", "brightness"],
        steps=4,
    )
    print(f"{found['items']} items, {len(found['failed'])} failed; {found['report']}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "examples-out"), sys.argv[2] if len(sys.argv) > 2 else "tiny-base")
