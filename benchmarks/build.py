"""Building a corpus against doing less: python benchmarks/build.py [RELEASE] [--samples N] [--rounds N].

Side by side in one run, medians over rounds:
  plain loop       pyarrow -> webdataset.ShardWriter, one process, nothing checked
  write pass       ours, the same rows, one and two workers, started beforehand
  read + decode    two workers that read the rows and decode every picture fully with Pillow
  decode           the same without the time for reading
  whole build      ours with two workers, from the command to the commit: every picture decoded,
                   checked, hashed exactly and perceptually, written, reported
Twice: with the release's rows repeated (a picture met again is not decoded again by us), and with
every copy's picture bytes made different, as if no two samples shared a picture.
Without RELEASE the rows come from the embedded `world` corpus.
"""

from __future__ import annotations

import argparse
import io
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from PIL import Image
from rows import repeat_release
from targets import check

from pipelines.build_dataset.config import BuildConfig
from pipelines.build_dataset.plan import make_plan
from pipelines.build_dataset.run import _list, _scan, _write, build, finish_shards
from pipelines.build_dataset.scan import list_fragments
from pipelines.build_dataset.workspace import Workspace
from pipelines.common.process_pool import ProcessPool
from pipelines.shard.run import Selection, export_release

WORKERS = 2
SHARD_BYTES = 64 * 2**20
GOAL = 700_000
TARGET = 0.85
"""Of bare full decoding, where no two samples share an image."""


def plain_loop(release: Path, out: Path) -> None:
    """What one would write in ten minutes: no check, no index, no resume."""
    import webdataset

    out.mkdir()
    with webdataset.ShardWriter(str(out / "%05d.tar"), maxcount=100_000, maxsize=SHARD_BYTES, verbose=0) as sink:
        number = 0
        for path in sorted(release.rglob("*.parquet")):
            for batch in pq.ParquetFile(path).iter_batches(10):
                for row in batch.to_pylist():
                    sample = {"__key__": f"{number:08d}", "json": {"instruction": row["instruction_list"][0][0]}}
                    *references, target = row["image_list"]
                    for index, data in enumerate(references, 1):
                        sample[f"ref_{index:02d}.{_extension(data)}"] = data
                    sample[f"target.{_extension(target)}"] = target
                    sink.write(sample)
                    number += 1


def decode_file(path: str) -> tuple[int, int, float]:
    """Decode every picture of a parquet file fully; returns (pictures, bytes, seconds of decoding)."""
    pictures = size = 0
    seconds = 0.0
    for batch in pq.ParquetFile(path).iter_batches(10, columns=["image_list"]):
        encoded = [data for row in batch.to_pylist() for data in row["image_list"]]
        start = time.perf_counter()
        for data in encoded:
            Image.open(io.BytesIO(data)).load()
        seconds += time.perf_counter() - start
        pictures += len(encoded)
        size += sum(map(len, encoded))
    return pictures, size, seconds


def decode_only(engine: ProcessPool, release: Path) -> tuple[int, int, float]:
    """Pictures, bytes, and seconds of pure decoding a worker."""
    found: list[tuple[int, int, float]] = []
    paths = [str(path) for path in sorted(release.rglob("*.parquet"))]
    engine.run(decode_file, paths, lambda _, value: found.append(value), what="decoding")
    return sum(f[0] for f in found), sum(f[1] for f in found), sum(f[2] for f in found) / engine.workers


def main() -> int:
    """Run every arm `rounds` times in turn and print medians and ratios; 1 where the target is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("release", nargs="?", type=Path)
    parser.add_argument("--samples", type=int, default=3_000)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        return int(not measure(Path(folder), options.release, options.samples, options.rounds))


def measure(folder: Path, release: Path | None, samples: int, rounds: int) -> bool:
    """Prepare the rows, time the arms, print the tables; whether the target is met."""
    if release is None:
        world = BuildConfig(sources=("world:300?size=512&format=jpg",))
        build(world, folder / "world", workers=WORKERS)
        export_release(folder / "world", folder / "world-release", Selection())
        release = folder / "world-release"
    for mark in (False, True):
        rows = folder / f"rows-{mark}"
        repeat_release(release, rows, samples, mark=mark)
        print("every picture's bytes its own:" if mark else "pictures repeated as they are:", end=" ")
        decoding = _measure_rows(folder, rows, samples, rounds)
        if mark:
            return check("build of distinct images", "bare decoding", decoding, least=TARGET, unit="times")
    return True


def _measure_rows(folder: Path, rows: Path, samples: int, rounds: int) -> float:
    """Print the table of an arrangement of rows; returns the rate of the whole build in that of decoding."""
    config = BuildConfig(sources=(f"release:{rows}",), shard_bytes=SHARD_BYTES)
    times: dict[str, list[float]] = {}

    def timed(name: str, arm: Callable[[], Any]) -> Any:
        os.sync()  # what the arm before has left to write must not be waited for by this one
        start = time.perf_counter()
        value = arm()
        times.setdefault(name, []).append(time.perf_counter() - start)
        return value

    pictures = size = 0
    for _ in range(rounds):
        timed("plain loop", partial(plain_loop, rows, folder / "plain"))
        for workers in (1, WORKERS):
            _time_write(config, folder / "write", workers, timed)
        with ProcessPool(WORKERS) as engine:
            _warm(engine, config)
            pictures, size, seconds = timed("read + decode", partial(decode_only, engine, rows))
            times.setdefault("decode", []).append(seconds)
        timed("whole build", partial(build, config, folder / "out", workers=WORKERS))
        for name in ("plain", "write", "out"):
            shutil.rmtree(folder / name)
    _report(times, samples, pictures, size)
    return statistics.median(bare / whole for bare, whole in zip(times["decode"], times["whole build"], strict=True))


def _time_write(config: BuildConfig, out: Path, workers: int, timed: Callable[[str, Callable[[], Any]], Any]) -> None:
    shutil.rmtree(out, ignore_errors=True)
    with ProcessPool(workers) as engine, Workspace(out, config, config.digest()) as work:
        located = _list(engine, config.sources)
        with ProcessPool(WORKERS) as both:
            scans = _scan(both, config, located, work)
        plan = make_plan(scans, config)
        _warm(engine, config)
        name = f"write pass, {workers} worker{'s' if workers > 1 else ''}"

        def write() -> None:
            _write(engine, config, located, scans, plan, work)
            finish_shards(engine, plan.shards, work)

        timed(name, write)


def _warm(engine: ProcessPool, config: BuildConfig) -> None:
    engine.run(list_fragments, list(config.sources) * engine.workers, lambda *_: None, what="starting")


def _extension(data: bytes) -> str:
    return "png" if data[:4] == b"\x89PNG" else "webp" if data[:4] == b"RIFF" else "jpg"


def _report(times: dict[str, list[float]], samples: int, pictures: int, size: int) -> None:
    median = {name: statistics.median(values) for name, values in times.items()}
    print(
        f"{samples:,} samples, {pictures:,} pictures, {size / 1e6:,.0f} MB; medians of {len(times['decode'])} rounds\n"
    )
    print(f"{'':<24}{'seconds':>9}{'pictures/s':>12}{'MB/s':>8}   of the plain loop   of decoding")
    for name, seconds in median.items():
        print(
            f"{name:<24}{seconds:>9.2f}{pictures / seconds:>12,.0f}{size / 1e6 / seconds:>8,.0f}"
            f"{median['plain loop'] / seconds:>20.2f}{median['decode'] / seconds:>14.2f}"
        )
    hours = median["whole build"] / samples * GOAL / 3600
    print(
        f"\n{GOAL:,} such samples: {hours:.2f} hours on {WORKERS} cores, {hours * WORKERS / 64 * 60:.0f} minutes on 64"
    )
    rate = size / 1e6 / median["whole build"] * 64 / WORKERS
    print(f"(scaled by cores; on 64 the disks must keep up with {rate:,.0f} MB/s)\n")


if __name__ == "__main__":
    sys.exit(main())
