"""The SIGMA-Benchmark: rows of the release's parquet, or the samples of a corpus's split.

It asks for images and has no scores of its own: what it reports are general metrics, one main a family.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pipelines.evaluate.benchmarks.base import Benchmark
from pipelines.evaluate.benchmarks.samples import corpus_samples, is_corpus, items_of, release_samples
from pipelines.evaluate.item import Item
from sigma_data.errors import ConfigError
from sigma_data.sample import Family
from sigma_data.storage.paths import is_uri

_OTHERWISE = "make a corpus of another one with sigma build-dataset"


class SigmaBenchmark(Benchmark):
    """`path`: a parquet file, a folder of them, or a corpus, whose `split` (test) has the questions.

    An item's reference answer is the last image of its row. In the release, where a row does not say its
    family, it is inferred as `sigma build-dataset` does.
    """

    name = "sigma"
    version = "1"
    answers = "image"
    main = {
        Family.COMPOSITIONAL: "CLIP-I",
        Family.SELECTIVE: "CLIP-I",
        Family.STYLIZATION: "CLIP-I",
        Family.RELATION: "CLIP-I",
        Family.EDITING: "CLIP-I",
        Family.LAYOUT: "F1",
    }

    def __init__(self, path: str, *, split: str | None = None) -> None:
        if not is_uri(path) and not Path(path).exists():
            raise ConfigError(
                f"benchmark sigma: {path}: no such file or folder; "
                "`sigma download sigma-benchmark` fetches SIGMA-Benchmark to data/sigma-benchmark"
            )
        if is_corpus(path):
            self.split = "test" if split is None else split
        elif split is not None:
            raise ConfigError(f"benchmark sigma: {path}: is not a corpus and has no splits: leave --split out")
        self.path = path

    def iter_items(self) -> Iterator[Item]:
        """Raises ConfigError where a row of the release cannot be read: a benchmark must not shrink unseen."""
        samples = (
            release_samples(self.path, asked_by=f"benchmark sigma: {self.path}", otherwise=_OTHERWISE)
            if self.split is None
            else corpus_samples(self.path, self.split, self.places)
        )
        empty = True
        for sample in samples:
            for item in items_of(sample):
                empty = False
                yield item
        if empty:
            raise ConfigError(f"benchmark sigma: {self.path}: asks for no image")
