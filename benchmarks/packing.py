"""How full packs are, and what is lost: python benchmarks/packing.py [--samples N] [--plan N ...] [--index N].

The six-family mix (benchmarks/mix.py) in packs of 30,000 tokens, conditions dropped at SIGMA's rates, four ways:
  ours        sigma_data.planning.plan: best fit over windows of 512 samples
  reference   how BAGEL's and SIGMA's released loaders pack, at the settings of SIGMA's training script. Samples come
              one by one in random order. One that is longer alone than a pack's maximum is skipped. One that does not
              fit the open pack goes into a buffer of 50; where that is full the pack is closed and the sample
              thrown away. While the open pack has less than 16,384 tokens, samples come from the buffer, the oldest
              first; one that does not fit then closes the pack and is thrown away, too. A pack that reaches the
              expected number of tokens (30,000, the maximum as well) is closed. Whether a sample fits is asked with
              its length before conditions are dropped; what is packed is what dropping leaves. What lies in the
              buffer or in an open pack at the end counts as neither packed nor lost.
  first fit   first-fit decreasing over the same windows, each packed by itself
  greedy      samples in order, a pack is closed by the first that does not fit
Fill is tokens in packs over packs times 30,000. The exit code is 1 where ours is below its aim.

--plan N measures a plan of N samples, --index N an index of N rows of a manifest, each in a process of its own
(benchmarks/plan_costs.py).
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from mix import GEOMETRY, write_index
from plan_costs import measure_index, measure_plan
from targets import check

from sigma_data.planning.mixture import CorpusSettings
from sigma_data.planning.plan import Planner, PlanSettings
from sigma_data.planning.segment_table import segment_table

Integers = npt.NDArray[np.int64]

FILL_AIM = 0.98
BUDGET, WINDOW = 30_000, 512
BUFFER, BUFFER_FIRST_BELOW = 50, 16_384
"""The reference's defaults, which SIGMA's script leaves as they are."""


@dataclass
class Packed:
    """Tokens of each pack, and how many samples are in packs, were thrown away, or are left at the end."""

    fills: list[int]
    packed: int = 0
    lost: int = 0
    left: int = 0


def reference(whole: Sequence[int], kept: Sequence[int], order: Iterable[int]) -> Packed:
    """Pack as the module's docstring says: `whole` are lengths before, `kept` after conditions are dropped."""
    result = Packed([])
    buffer: deque[int] = deque()
    coming = iter(order)
    tokens = members = 0

    def close() -> None:
        nonlocal tokens, members
        result.fills.append(tokens)
        result.packed += members
        tokens = members = 0

    while True:
        from_buffer = bool(buffer) and tokens < BUFFER_FIRST_BELOW
        sample = buffer.popleft() if from_buffer else next(coming, None)
        if sample is None:
            result.left = len(buffer) + members
            return result
        if tokens + whole[sample] > BUDGET:
            if len(buffer) < BUFFER and not from_buffer:
                buffer.append(sample)
            else:
                close()
                result.lost += 1
            continue
        tokens += kept[sample]
        members += 1
        if tokens >= BUDGET:
            close()


def greedy(kept: Sequence[int]) -> Packed:
    """One pack after another, in order."""
    result = Packed([], packed=len(kept))
    tokens = 0
    for length in kept:
        if tokens + length > BUDGET:
            result.fills.append(tokens)
            tokens = 0
        tokens += length
    result.fills.append(tokens)
    return result


def first_fit(kept: Integers) -> Packed:
    """First-fit decreasing, window by window."""
    result = Packed([], packed=len(kept))
    for start in range(0, len(kept), WINDOW):
        lengths = np.sort(kept[start : start + WINDOW])[::-1]
        room = np.full(len(lengths), BUDGET)
        for length in lengths:
            room[np.argmax(room >= length)] -= length
        result.fills += (BUDGET - room[room < BUDGET]).tolist()
    return result


def fills(samples: int) -> bool:
    """Pack the mix in all ways and print the table; whether ours meets its aim."""
    with tempfile.TemporaryDirectory() as folder:
        index = write_index(Path(folder) / "index", samples)
        settings = PlanSettings(corpora=(CorpusSettings(path=folder),), budget=BUDGET, window=WINDOW)
        start = time.perf_counter()
        planner = Planner(settings, [index], GEOMETRY, tokenizer="")
        plan = planner.plan(0)
        seconds = {"ours": time.perf_counter() - start}
        totals = segment_table(index, GEOMETRY).total
    whole = totals[plan.draws.row]
    unfit = int((totals > BUDGET).sum())
    kept = plan.lengths
    order = np.random.default_rng(0).permutation(len(kept)).tolist()
    results = {"ours": Packed(plan.fills.tolist(), packed=sum(len(plan.members(pack)) for pack in range(len(plan))))}
    others: Mapping[str, Callable[[], Packed]] = {
        "reference": lambda: reference(whole.tolist(), kept.tolist(), order),
        "first fit": lambda: first_fit(kept),
        "greedy": lambda: greedy(kept.tolist()),
    }
    for name, way in others.items():
        start = time.perf_counter()
        results[name] = way()
        seconds[name] = time.perf_counter() - start
    print(
        f"{samples:,} samples of six families; {unfit:,} ({unfit / samples:.2%}) are longer than a pack;\n"
        f"the others have {kept.mean():,.0f} tokens on average ({whole.mean():,.0f} before conditions are dropped), "
        f"from {kept.min():,} to {kept.max():,}\n"
    )
    print(f"  {'':<12}{'packs':>9}{'fill':>9}{'poorest 1 %':>13}{'samples lost':>15}{'left over':>11}{'seconds':>9}")
    for name, result in results.items():
        share = result.lost / (result.packed + result.lost)
        print(
            f"  {name:<12}{len(result.fills):>9,}{np.mean(result.fills) / BUDGET:>9.4f}"
            f"{np.percentile(result.fills, 1) / BUDGET:>13.3f}{share:>14.2%}{result.left:>12,}{seconds[name]:>9.2f}"
        )
    fill = float(np.mean(results["ours"].fills)) / BUDGET
    print()
    filled = check("fill of packs", "", fill, least=FILL_AIM)
    whole_epoch = check("samples left out of an epoch", "", float(len(kept) - results["ours"].packed), most=0.0)
    print()
    return filled and whole_epoch


def main() -> int:
    """Run what is asked for; 1 where an aim is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=100_000)
    parser.add_argument("--plan", type=int, nargs="*", default=[], help="measure plans of so many samples")
    parser.add_argument("--index", type=int, nargs="*", default=[], help="measure indexes of so many samples")
    parser.add_argument("--folder", type=Path, help="where large files go for the time (default: a temporary folder)")
    options = parser.parse_args()
    met = [measure_plan(samples, options.folder) for samples in options.plan]
    for samples in options.index:
        measure_index(samples, options.folder)
    if not options.plan and not options.index:
        met.append(fills(options.samples))
    return int(not all(met))


if __name__ == "__main__":
    sys.exit(main())
