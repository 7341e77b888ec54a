"""OmniGen2: training steps on packed samples against padded ones.

    python benchmarks/omnigen2.py [--steps 5] [--batch 4] [--width 240]

Samples have mixed sizes: targets and references of several aspect ratios and areas, 0 to 3 references, texts of 8 to 48
tokens, in a random order, `--batch` at a time. Packed and padded steps run the same layers on the same samples in turn;
what counts is target tokens a second over the whole run. Prints MISSED below 1.5 times.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence

import torch
from padded_omnigen2 import padded_velocities
from targets import check
from torch import Tensor

from sigma_model.omnigen2.checkpoint import init_transformer
from sigma_model.omnigen2.config import TransformerConfig
from sigma_model.omnigen2.pack import DiffusionSample, layout_of
from sigma_model.omnigen2.transformer import Omnigen2Transformer

TARGET_RATIO = 1.5
GRIDS = ((8, 8), (12, 16), (16, 12), (24, 16), (16, 24), (24, 32), (32, 32))
"""Rows and columns of tokens: 128 to 512 pixels."""


def mixed_samples(config: TransformerConfig, count: int, seed: int) -> list[DiffusionSample]:
    """Random samples of mixed sizes."""
    generator = torch.Generator().manual_seed(seed)

    def number(low: int, high: int) -> int:
        return int(torch.randint(low, high, (), generator=generator))

    def latent() -> Tensor:
        rows, columns = GRIDS[number(0, len(GRIDS))]
        return torch.randn(config.in_channels, 2 * rows, 2 * columns, generator=generator)

    return [
        DiffusionSample(
            torch.randn(number(8, 49), config.text_feat_dim, generator=generator),
            latent(),
            float(torch.rand((), generator=generator)),
            tuple(latent() for _ in range(number(0, 4))),
        )
        for _ in range(count)
    ]


def step(model: Omnigen2Transformer, samples: Sequence[DiffusionSample], *, padded: bool) -> float:
    """Seconds of forward and backward."""
    model.zero_grad(set_to_none=True)
    begin = time.perf_counter()
    velocities = padded_velocities(model, samples) if padded else model(samples)
    loss = torch.stack([velocity.square().sum() for velocity in velocities]).sum()
    loss.backward()
    return time.perf_counter() - begin


def training(model: Omnigen2Transformer, batches: Sequence[Sequence[DiffusionSample]]) -> float:
    """How many times as many target tokens a second packed steps give."""
    tokens = padding = targets = 0
    for batch in batches:
        layouts = [layout_of(one, model.config) for one in batch]
        tokens += sum(layout.tokens for layout in layouts)
        padding += len(layouts) * max(layout.tokens for layout in layouts)
        targets += sum(layout.target[0] * layout.target[1] for layout in layouts)
    ways: dict[str, Callable[[Sequence[DiffusionSample]], float]] = {
        "packed": lambda batch: step(model, batch, padded=False),
        "padded": lambda batch: step(model, batch, padded=True),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for name, run in ways.items():
        run(batches[0])  # not measured
        assert seconds[name] == []
    for batch in batches:
        for name, run in ways.items():
            seconds[name].append(run(batch))
    print(f"{targets:,} target tokens in {len(batches)} steps; {tokens:,} tokens packed, {padding:,} padded")
    for name, found in seconds.items():
        rate = targets / sum(found)
        print(f"{name:8} {rate:10,.0f} target tokens a second  (median step {statistics.median(found):.2f} s)")
    return sum(seconds["padded"]) / sum(seconds["packed"])


def main() -> int:
    """Print the table; 1 where a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--width", type=int, default=240)
    options = parser.parse_args()
    config = TransformerConfig(
        hidden_size=options.width,
        num_layers=4,
        num_refiner_layers=1,
        num_attention_heads=options.width // 60,
        num_kv_heads=options.width // 120,
        multiple_of=32,
        axes_dim_rope=(20, 20, 20),
        axes_lens=(1024, 1024, 1024),
        text_feat_dim=64,
    )
    model = init_transformer(config, seed=0)
    torch.manual_seed(0)
    samples = mixed_samples(config, options.steps * options.batch, seed=0)
    batches = [samples[at : at + options.batch] for at in range(0, len(samples), options.batch)]
    print(f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}, {torch.get_num_threads()} threads")
    ratio = training(model, batches)
    passed = check("OmniGen2 training, packed", "padded batches", ratio, least=TARGET_RATIO, unit="times as fast")
    return int(not passed)


if __name__ == "__main__":
    sys.exit(main())
