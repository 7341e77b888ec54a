"""The quickstart's training, another build's and this one's: python benchmarks/train_builds.py CHECKOUT [--steps N].

CHECKOUT is a working tree of the other build (`git worktree add DIR COMMIT`). Both train this build's tiny-base by
their own configs/quickstart.yaml, each on a corpus it built itself of the same source, in one run, taking turns.
Samples a second are those of the steps after the first few (the first epoch, in which every image is new), medians
over rounds; the held-out loss is that of the averaged weights. The exit code is 1 where the target is missed.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from targets import check

ROOT = Path(__file__).parent.parent
BASE = ROOT / "sigma_model" / "presets" / "tiny-base"
TARGET = 1.6
WARM_UP = 20
"""First steps that are left out: workers start, and the allocator grows."""


@dataclass
class Arm:
    """A build, and what its runs gave."""

    name: str
    checkout: Path
    rates: list[float] = field(default_factory=list)
    """Samples a second, a round each."""
    cpu: list[float] = field(default_factory=list)
    """CPU seconds of a whole run, a round each."""
    losses: dict[str, float] = field(default_factory=dict)
    """Held-out image loss before the first and after the last step."""

    def sigma(self, *arguments: str) -> float:
        """Run this build's command line; returns its CPU seconds with those of its workers."""
        before = os.times()
        subprocess.run(
            [sys.executable, "-m", "cli", *arguments],
            cwd=self.checkout, env={**os.environ, "PYTHONPATH": str(self.checkout)}, check=True, capture_output=True,
        )  # fmt: skip
        after = os.times()
        return after.children_user + after.children_system - before.children_user - before.children_system

    def train(self, folder: Path, round_: int, steps: int) -> None:
        """One run, and its figures."""
        out = folder / f"{self.name}-{round_}"
        seconds = self.sigma(
            "train", str(self.checkout / "configs" / "quickstart.yaml"), f"out={out}", f"steps={steps}",
            f"model.path={BASE}", f"data.corpora=[{{path: {self.corpus(folder)}}}]", f"validation.every={steps}",
            "checkpoint.every=0", "log.every=1", "log.tensorboard=false",
            f"validation.{self._images()}=0",
        )  # fmt: skip
        lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text("utf-8").splitlines()]
        self.cpu.append(seconds)
        self.rates.append(_median(lines[WARM_UP:], "samples_per_second"))
        for name in ("val_ema/image", "val_ema/picture"):
            found = [line[name] for line in lines if line.get(name) is not None]
            if found:
                self.losses = {"before": found[0], "after": found[-1]}

    def corpus(self, folder: Path) -> Path:
        """Where its corpus lies."""
        return folder / f"corpus-{self.name}"

    def _images(self) -> str:
        """What the setting of validation images is called: builds before 2026-11-28 said pictures."""
        said = (self.checkout / "configs" / "quickstart.yaml").read_text("utf-8")
        return "pictures" if "\n  pictures:" in said else "images"


def _median(lines: list[dict[str, Any]], name: str) -> float:
    values = [float(line[name]) for line in lines if line.get(name) is not None]
    return statistics.median(values)


def main() -> int:
    """Build both corpora, then train in turns."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path, help="working tree of the other build")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--samples", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=2)
    given = parser.parse_args()
    arms = [Arm("other", given.checkout.resolve()), Arm("this", ROOT)]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for arm in arms:
            arm.sigma("build-dataset", f"world:{given.samples}?size=64", "--out", str(arm.corpus(folder)))
        for round_ in range(given.rounds):
            for arm in arms if round_ % 2 == 0 else reversed(arms):
                arm.train(folder, round_, given.steps)
    for arm in arms:
        print(
            f"{arm.name:<6}{statistics.median(arm.rates):>8.2f} samples/s{statistics.median(arm.cpu):>8.0f} CPU s a run"
            f"   held-out loss {arm.losses['before']:.4f} -> {arm.losses['after']:.4f}"
        )
    ratio = statistics.median(arms[1].rates) / statistics.median(arms[0].rates)
    met = check("samples a second of the quickstart's training", given.checkout.name, ratio, least=TARGET, unit="times")
    return int(not met)


if __name__ == "__main__":
    sys.exit(main())
