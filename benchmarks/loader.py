"""Loading side by side: python benchmarks/loader.py [--source release:DIR] [--rounds N] [--passes N].

The same pictures, two worker processes each, delivered as float tensors in [-1, 1]: every picture at the size the
VAE takes, every reference at the ViT's, too. Contestants:
  ours          sigma_data.loading.loader: planned packs of 30,000 tokens, with everything else that a training step
                needs (text ids, positions, tags, noise); nothing dropped
  bare          two processes that only decode, resize and make floats, of bytes in memory; nothing is sent anywhere
  others        benchmarks/peers.py: full decode by Pillow, then resized for each use
Bytes become floats where the tensors arrive, ours and the others' (for all of them faster, or as fast, as sending
floats; one is shown both ways, and with torch's resize, which is a part of what ours gains). All make floats by the
same function on one thread.

Every turn is a process of its own: it warms up, then delivers the corpus `--passes` times over, steadily, so that
neither start nor end counts. Contestants take turns, round after round. `ours / it` is the median over rounds of the
ratio of pictures a second, next to it the least and the largest; `by CPU` is how many times more CPU, of all its
processes, a contestant takes for a picture, which other users of a machine disturb less. Without --source the
pictures are drawn. The exit code is 1 where an aim is missed.
"""

from __future__ import annotations

import argparse
import gc
import json
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped, unused-ignore]
import torch
from mix import GEOMETRY
from peers import AHEAD, PEERS, WORKERS, Delivery, Place, Stream, by_torch, webdataset
from processes import run_within
from targets import check

from sigma_data.corpus.corpus import open_corpus
from sigma_data.images.resample import resized_all
from sigma_data.images.resize_rule import VAE_RULE, VIT_RULE
from sigma_data.loading.batch import Widths, unit_range
from sigma_data.planning.index import CorpusIndex, open_index
from sigma_data.planning.segment_table import segment_table
from sigma_data.sequence.tokenizer import Tokenizer
from sigma_model.config import preset_directory

PEER_AIM, BARE_AIM, KERNEL_AIM = 2.8, 0.8, 1.8
WORLD = "world:120?size=1024&format=jpg"
SHARD_BYTES = 2**20
"""Small shards, so that loaders which split work by shards keep both workers busy."""
WARM_SAMPLES = 64
"""More than all workers are ahead."""
TURN_SECONDS = 180
WIDTHS = Widths(latent=64, patch=588, latent_grid=64, patch_grid=70)
"""BAGEL's."""


def ours(place: Place) -> Stream:
    """The loader of this project."""
    from sigma_data.loading.loader import Loader, LoaderSettings, PackDataset
    from sigma_data.planning.mixture import CorpusSettings
    from sigma_data.planning.plan import Dropout, Planner, PlanSettings

    tokenizer, index = _index(place[0])
    nothing = Dropout(text=0, latent=0, patch=0)
    settings = PlanSettings(corpora=(CorpusSettings(path=str(place[0])),), dropout=nothing)
    planner = Planner(settings, [index], GEOMETRY, tokenizer=tokenizer.digest)
    dataset = PackDataset([index], planner.recipe, tokenizer, GEOMETRY, WIDTHS)
    for loaded in Loader(planner, dataset, settings=LoaderSettings(workers=WORKERS, prefetch=AHEAD)):
        batch = loaded.batch
        yield Delivery(batch.names, (*batch.images, batch.patches))


def bare(place: Place) -> Stream:
    """Decoding, resizing and making floats in processes that send nothing but the names of samples done."""
    context = multiprocessing.get_context("fork")
    done = context.Queue()
    work = []
    corpus = open_corpus(place[0])
    for row in corpus.manifest.iter_rows(named=True):
        pictures = [
            (corpus.read(row["shard"], image["offset"], image["size"]), _sizes(image)) for image in row["images"]
        ]
        work.append((row["id"], pictures))
    workers = [
        context.Process(target=_work, args=(work, first, done), daemon=True)
        for first in range(0, len(work), -(-len(work) // WORKERS))
    ]
    try:
        for worker in workers:
            worker.start()
        while True:
            yield Delivery((done.get(),), ())
    finally:
        for worker in workers:
            worker.kill()


def _work(work: Sequence[tuple[str, list[tuple[bytes, list[tuple[int, int]]]]]], first: int, done: Any) -> None:
    torch.set_num_threads(1)
    while True:
        name, pictures = work[first % len(work)]
        for data, sizes in pictures:
            for pixels in resized_all(data, sizes):
                unit_range(torch.from_numpy(pixels).permute(2, 0, 1))
        done.put(name)
        first += 1


SAME_KERNEL = "webdataset, torch resize"
CONTESTANTS: Mapping[str, Callable[[Place], Stream]] = {
    "ours": ours,
    "bare": bare,
    **{name: lambda place, peer=peer: peer(place, "consumer") for name, peer in PEERS.items()},  # type: ignore[misc]
    "webdataset, floats sent": lambda place: webdataset(place, "worker"),
    SAME_KERNEL: lambda place: webdataset(place, "consumer", by_torch),
}


def _index(corpus: Path) -> tuple[Tokenizer, CorpusIndex]:
    tokenizer = Tokenizer.load(preset_directory("tiny"))
    return tokenizer, open_index(str(corpus), tokenizer)


def _sizes(image: Mapping[str, Any]) -> list[tuple[int, int]]:
    rules = (VAE_RULE, VIT_RULE) if image["role"] == "reference" else (VAE_RULE,)
    return [rule.size(image["width"], image["height"]) for rule in rules]


def facts(corpus: Path) -> dict[str, tuple[int, int, int, int]]:
    """Of each sample, by key: pictures, their encoded bytes, tokens, and numbers in all tensors delivered."""
    totals = segment_table(_index(corpus)[1], GEOMETRY).total
    found = {}
    for row, total in zip(open_corpus(corpus).manifest.iter_rows(named=True), totals.tolist(), strict=True):
        numbers = sum(3 * width * height for image in row["images"] for width, height in _sizes(image))
        found[row["id"]] = (len(row["images"]), sum(image["size"] for image in row["images"]), total, numbers)
    return found


def turn(name: str, place: Place, passes: int) -> dict[str, float]:
    """Let a contestant deliver; what a second brought, and CPU seconds a picture."""
    torch.set_num_threads(1)
    known = json.loads((place[1] / "facts.json").read_text())
    stream = CONTESTANTS[name](place)
    _deliver(stream, known, WARM_SAMPLES)
    cpu, start = _cpu(), time.perf_counter()
    pictures, size, tokens = _deliver(stream, known, passes * len(known))
    seconds, cpu = time.perf_counter() - start, _cpu() - cpu
    stream.close()
    gc.collect()  # the workers' end hangs on the last reference to their loader
    return {
        "pictures": pictures / seconds, "MB": size / seconds / 1e6, "tokens": tokens / seconds, "cpu": cpu / pictures,
    }  # fmt: skip


def _deliver(stream: Iterator[Delivery], known: Mapping[str, Sequence[int]], samples: int) -> tuple[int, int, int]:
    """Take so many samples, or a few more; pictures, bytes and tokens. What is delivered must be whole."""
    pictures = size = tokens = taken = 0
    while taken < samples:
        delivery = next(stream)
        expected = 0
        for key in delivery.keys:
            facts_of = known[key]
            pictures, size, tokens = pictures + facts_of[0], size + facts_of[1], tokens + facts_of[2]
            expected += facts_of[3]
        # One by one, as `bare` and the VAE take them: a pack's floats at once would be measured as fresh memory.
        found = sum(unit_range(pixels).numel() for pixels in delivery.pixels)
        assert not delivery.pixels or found == expected, delivery.keys
        taken += len(delivery.keys)
    return pictures, size, tokens


def _cpu() -> float:
    """CPU seconds of this process and its children so far."""
    process = psutil.Process()
    times = [one.cpu_times() for one in (process, *process.children(recursive=True))]
    return float(sum(one.user + one.system for one in times))


def run(name: str, place: Place, passes: int) -> dict[str, float] | str:
    """A turn in a process of its own, or why there is none."""
    command = [sys.executable, __file__, "--turn", name, str(place[0]), str(place[1]), "--passes", str(passes)]
    quiet = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = run_within(TURN_SECONDS, command, {**os.environ, **quiet})
    if done is None:
        return f"nothing after {TURN_SECONDS} seconds"
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        return lines[-1][:160] if lines else f"exit code {done.returncode}"
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def report(turns: Mapping[str, Sequence[dict[str, float]]], failed: Mapping[str, str]) -> bool:
    """Print the table and whether the aims are met."""
    best = max((name for name in PEERS if name in turns), key=lambda name: _median(turns[name], "pictures"), default="")
    print(
        f"  {'':<26}{'pictures/s':>11}{'MB/s':>8}{'tokens/s a core':>17}{'CPU ms a picture':>18}"
        f"{'ours / it':>12}{'least':>8}{'largest':>9}{'by CPU':>9}"
    )
    ratios: dict[str, list[float]] = {}
    costs: dict[str, float] = {}
    for name, rounds in turns.items():
        pairs = list(zip(turns["ours"], rounds, strict=True))
        ratios[name] = [own["pictures"] / other["pictures"] for own, other in pairs]
        costs[name] = statistics.median(other["cpu"] / own["cpu"] for own, other in pairs)
        print(
            f"  {name:<26}{_median(rounds, 'pictures'):>11.1f}{_median(rounds, 'MB'):>8.1f}"
            f"{_median(rounds, 'tokens') / WORKERS:>17,.0f}{1e3 * _median(rounds, 'cpu'):>18.2f}"
            f"{statistics.median(ratios[name]):>12.2f}{min(ratios[name]):>8.2f}{max(ratios[name]):>9.2f}{costs[name]:>9.2f}"
        )
    for name, reason in failed.items():
        print(f"  {name:<26}not measured: {reason}")
    print()
    kernel = costs.get(SAME_KERNEL)
    rivals = f"the best of {', '.join(name for name in PEERS if name in turns)}" if best else "the best rival"
    met = [
        check(
            "loader, images a second", "bare decode and resize", _middle(ratios, "bare"), least=BARE_AIM, unit="times"
        ),
        check(
            "loader, CPU time an image", "webdataset, the same resizing", kernel, least=KERNEL_AIM, unit="times less"
        ),
        check(
            "loader, images a second", f"{rivals}, as they come", _middle(ratios, best), least=PEER_AIM, unit="times"
        ),
    ]
    return all(met)


def _middle(ratios: Mapping[str, Sequence[float]], name: str) -> float | None:
    return statistics.median(ratios[name]) if name in ratios else None


def _median(rounds: Sequence[Mapping[str, float]], what: str) -> float:
    return statistics.median(one[what] for one in rounds)


def main() -> int:
    """Build the corpus, let all take turns, report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", default=WORLD, help=f"as for `sigma build-dataset` (default: {WORLD})")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--passes", type=int, default=2, help="how often a turn delivers the corpus")
    parser.add_argument("--only", nargs="+", choices=list(CONTESTANTS), default=[], help="besides ours")
    parser.add_argument("--turn", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.turn:
        name, corpus, prepared = options.turn
        print(json.dumps(turn(name, (Path(corpus), Path(prepared)), options.passes)))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        corpus, prepared = place = Path(folder) / "corpus", Path(folder) / "prepared"
        _build(options.source, corpus)
        prepared.mkdir()
        known = facts(corpus)
        (prepared / "facts.json").write_text(json.dumps(known))
        pictures, size, tokens = (sum(values[field] for values in known.values()) for field in range(3))
        print(
            f"{options.source}: {len(known):,} samples, {pictures:,} pictures, {size / 1e6:,.1f} MB\n"
            f"{tokens:,} tokens; {WORKERS} workers, {options.passes} passes a turn, {options.rounds} rounds\n",
            flush=True,
        )
        turns: dict[str, list[dict[str, float]]] = {}
        failed: dict[str, str] = {}
        names = [name for name in CONTESTANTS if not options.only or name in ("ours", *options.only)]
        for _ in range(options.rounds):
            for name in names:
                found = run(name, place, options.passes) if name not in failed else failed[name]
                if isinstance(found, str):
                    failed[name] = found
                else:
                    turns.setdefault(name, []).append(found)
    if "ours" in failed:
        sys.exit(f"ours: {failed['ours']}")
    return int(not report({name: rounds for name, rounds in turns.items() if name not in failed}, failed))


def _build(source: str, out: Path) -> None:
    from pipelines.build_dataset.config import BuildConfig
    from pipelines.build_dataset.run import build

    build(BuildConfig(sources=(source,), splits={"train": 1.0}, shard_bytes=SHARD_BYTES), out, workers=2)


if __name__ == "__main__":
    sys.exit(main())
