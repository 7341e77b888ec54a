"""Fit a model's TeaCache: python -m tools.fit_tea_cache MODEL BENCHMARK [--limit 16] [--least 38] [--out FILE].

Questions of a validation split (`world:CORPUS --split val`) are answered exactly, and at every step two relative L1
changes are noted: of what the network is shown, and of the guided velocity. A polynomial of degree 4 through them by
least squares (TeaCache, arXiv 2411.19108, section 3.3) gives one from the other. The threshold is the largest of a list
with which images keep a PSNR of `--least` dB to the exact ones, on average over the same questions.
Writes `tea_cache.json` beside the weights (or to FILE) and prints the table. Sampling settings are the defaults.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pipelines.evaluate.benchmarks import open_benchmark
from pipelines.evaluate.generate import request_of
from pipelines.evaluate.questions import limited
from sigma_data.errors import SigmaError
from sigma_data.storage.files import dump_json, write_atomic
from sigma_model.config import PRESETS, preset_directory
from sigma_model.loading import LoadedModel, load_for_inference
from sigma_model.omnigen2 import generate as omnigen2
from sigma_model.omnigen2.files import is_omnigen2
from sigma_model.omnigen2.loading import LoadedOmnigen2, load_omnigen2
from sigma_model.omnigen2.settings import Omnigen2Generation, Omnigen2Sampling
from sigma_model.sampling import generate as bagel
from sigma_model.sampling import reuse
from sigma_model.sampling.generate import Request
from sigma_model.sampling.settings import CacheMethod, SamplingSettings, StepCaching
from sigma_model.sampling.tea_file import TEA_FILE

DEGREE = 4
THRESHOLDS = (0.1, 0.15, 0.2, 0.25, 0.3, 0.4)
BATCH = 8


@dataclass
class Noted:
    """Changes from step to step of a run, a request behind another."""

    shown: list[float] = field(default_factory=list)
    guided: list[float] = field(default_factory=list)


class Noting(reuse.Reuse[Tensor]):
    """Computes every step and notes the changes."""

    noted = Noted()

    def __init__(
        self, sampler: reuse.Branched[Tensor], caching: StepCaching, *, guidance_threshold: float = 0.0
    ) -> None:
        super().__init__(sampler, replace(caching, threshold=0.0), guidance_threshold=guidance_threshold)
        self._before: tuple[Sequence[Tensor], Sequence[Tensor]] | None = None

    def velocities(self, x: Tensor) -> list[Tensor]:
        shown = self._sampler.inputs(x, self._step)
        guided = super().velocities(x)
        if self._before is not None:
            for changes, before, now in zip(
                (self.noted.shown, self.noted.guided), self._before, (shown, guided), strict=True
            ):
                changes += [float(reuse.relative_change(*pair)) for pair in zip(before, now, strict=True)]
        self._before = shown, guided
        return guided


def images_of(
    loaded: LoadedModel | LoadedOmnigen2, requests: Sequence[Request], cache: StepCaching
) -> list[Image.Image]:
    """All requests answered, in batches."""
    made: list[Image.Image] = []
    for start in range(0, len(requests), BATCH):
        some = requests[start : start + BATCH]
        if isinstance(loaded, LoadedOmnigen2):
            made += omnigen2.generate_images(loaded, some, Omnigen2Generation(Omnigen2Sampling(steps=50, reuse=cache)))
        else:
            made += bagel.generate_images(loaded, some, SamplingSettings(cache=cache))
    return made


def psnr(image: Image.Image, exact: Image.Image) -> float:
    """In dB, at most 80 (equal images)."""
    error = np.square(np.asarray(image, dtype=float) - np.asarray(exact, dtype=float)).mean()
    return min(80.0, float(10 * np.log10(255**2 / error))) if error else 80.0


def main() -> int:
    """Fit, choose, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("benchmark")
    parser.add_argument("--split", default="val")
    parser.add_argument("--limit", type=int, default=16)
    parser.add_argument("--least", type=float, default=38.0, help="PSNR in dB that the threshold must keep")
    parser.add_argument("--base", help="where an OmniGen2 directory's missing parts lie")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    directory = preset_directory(options.model) if options.model in PRESETS else Path(options.model)
    loaded: LoadedModel | LoadedOmnigen2
    if is_omnigen2(directory):
        loaded = load_omnigen2(str(directory), base=options.base, device="cpu")
    else:
        loaded = load_for_inference(options.model, device="cpu")
    items = limited(open_benchmark(options.benchmark, split=options.split).items(), options.limit)
    requests = [request_of(item) for item in items]

    tea = StepCaching(CacheMethod.TEA)
    exact, noted = _exact(loaded, requests, tea)
    fit = np.polyfit(noted.shown, noted.guided, DEGREE)
    polynomial = tuple(float(f"{value:.6g}") for value in fit)
    residual = np.polyval(fit, noted.shown) - noted.guided
    explained = 1 - residual.var() / np.var(noted.guided)
    print(
        f"{len(noted.shown):,} steps of {len(items)} questions; the polynomial explains {explained:.2f} of the variance"
    )
    chosen = None
    for threshold in THRESHOLDS:
        cache = replace(tea, polynomial=polynomial, threshold=threshold)
        made = images_of(loaded, requests, cache)
        found = [psnr(*pair) for pair in zip(made, exact, strict=True)]
        print(f"threshold {threshold:<6} PSNR {np.mean(found):.2f} dB, {min(found):.2f} at least", flush=True)
        if np.mean(found) < options.least:
            break
        chosen = threshold
    if chosen is None:
        print("no threshold keeps that PSNR: ask for less with --least")
        return 1
    out = options.out or directory / TEA_FILE
    write_atomic(out, dump_json({"polynomial": list(polynomial), "threshold": chosen}))
    print(f"{out}: threshold {chosen}, polynomial {list(polynomial)}")
    return 0


def _exact(
    loaded: LoadedModel | LoadedOmnigen2, requests: Sequence[Request], tea: StepCaching
) -> tuple[list[Image.Image], Noted]:
    """The images with every step computed, and the changes on the way."""
    from unittest import mock

    Noting.noted = Noted()
    name = "sigma_model.omnigen2.sampler" if isinstance(loaded, LoadedOmnigen2) else "sigma_model.sampling.sampler"
    with mock.patch(f"{name}.Reuse", Noting):
        return images_of(loaded, requests, tea), Noting.noted


if __name__ == "__main__":
    try:
        sys.exit(main())
    except SigmaError as error:
        sys.exit(str(error))
