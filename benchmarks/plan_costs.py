"""Time and peak memory of planning an epoch, and of indexing a corpus, each in a process of its own.

Run by benchmarks/packing.py. Memory is the peak resident size of the whole process, the interpreter and the
pages of memory-mapped arrays included. Nothing of it needs a picture, so the corpora have none.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from loading import resident
from mix import GEOMETRY, write_index
from targets import check

PLAN_AIMS = {700_000: (20.0, 600e6), 10_000_000: (300.0, 4e9)}
"""Samples -> seconds, bytes."""

_CHUNK = 65_536  # rows of a row group, as a build writes them
_PLACEHOLDER = re.compile(r"<image_\d+>")


def measure_plan(samples: int, scratch: Path | None) -> bool:
    """Plan an epoch of the six-family mix; whether time and memory keep to their aims, where there are any."""
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        write_index(Path(folder) / "index", samples)
        found = _run("--plan", folder)
    print(
        f"plan of {samples:,} samples: {found['tables']:.1f} s for lengths + {found['plan']:.1f} s for the epoch, peak "
        f"{found['peak'] / 1e6:,.0f} MB; {found['packs']:,} packs, fill {found['fill']:.4f}; another epoch "
        f"{found['next']:.1f} s"
    )
    if samples not in PLAN_AIMS:
        return True
    seconds, memory = PLAN_AIMS[samples]
    what = f"plan of {samples:,} samples"
    quick = check(f"{what}, time", "", found["tables"] + found["plan"], most=seconds, unit="s")
    small = check(f"{what}, memory", "", found["peak"] / 1e6, most=memory / 1e6, unit="MB")
    return quick and small


def measure_index(samples: int, scratch: Path | None) -> None:
    """Index a manifest of `samples` rows with the tiny preset's tokenizer: made (cold), then opened (warm)."""
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        write_corpus(Path(folder) / "corpus", samples)
        for state in ("cold", "warm"):
            found = _run("--index", str(Path(folder) / "corpus"))
            print(
                f"index of {samples:,} samples, {state}: {found['seconds']:.2f} s, peak {found['peak'] / 1e6:,.0f} MB"
            )


def write_corpus(out: Path, samples: int) -> None:
    """A commit and a manifest of `samples` rows: those of a small corpus of `world` again and again.

    Ids differ, and so do all texts, each by a word in it: a text that occurs twice would be counted once.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    from pipelines.build_dataset.config import BuildConfig
    from pipelines.build_dataset.run import build
    from sigma_data.corpus.corpus import COMMIT, MANIFEST
    from sigma_data.corpus.manifest import manifest_schema

    build(BuildConfig(sources=("world:600?size=64&format=jpg",), splits={"train": 1.0}), out, workers=2)
    schema = manifest_schema()
    rows = pq.read_table(out / MANIFEST, schema=schema).to_pylist()
    with pq.ParquetWriter(out / MANIFEST, schema, compression="zstd") as writer:
        for start in range(0, samples, _CHUNK):
            some = [_copied(rows[i % len(rows)], i) for i in range(start, min(start + _CHUNK, samples))]
            writer.write_table(pa.Table.from_pylist(some, schema=schema))
    commit = json.loads((out / COMMIT).read_text())
    manifest = (out / MANIFEST).read_bytes()
    commit["files"][MANIFEST] = {"bytes": len(manifest), "sha256": hashlib.sha256(manifest).hexdigest()}
    commit["sums"]["written"] = samples
    (out / COMMIT).write_text(json.dumps(commit))


def _copied(row: dict[str, Any], number: int) -> dict[str, Any]:
    turns = []
    for turn in row["turns"]:
        text = _PLACEHOLDER.sub(rf"\g<0> in {number}", f"Variant {number}: {turn['instruction']}")
        turns.append({**turn, "instruction": text})
    return {**row, "id": f"{number:020x}", "turns": turns}


def _plan(folder: Path) -> dict[str, float]:
    from sigma_data.planning.index import CorpusIndex
    from sigma_data.planning.mixture import CorpusSettings
    from sigma_data.planning.plan import Planner, PlanSettings

    start = time.perf_counter()
    settings = PlanSettings(corpora=(CorpusSettings(path=str(folder)),))
    planner = Planner(settings, [CorpusIndex(folder / "index", "")], GEOMETRY, tokenizer="")
    tables = time.perf_counter()
    plan = planner.plan(0)
    end = time.perf_counter()
    peak = resident("VmHWM")
    packs, fill = len(plan), float(plan.fills.mean()) / settings.budget
    again = time.perf_counter()
    planner.plan(1)
    return {
        "tables": tables - start, "plan": end - tables, "next": time.perf_counter() - again, "peak": peak,
        "packs": packs, "fill": fill,
    }  # fmt: skip


def _index(corpus: Path) -> dict[str, float]:
    from sigma_data.planning.index import open_index
    from sigma_data.sequence.tokenizer import Tokenizer
    from sigma_model.config import preset_directory

    tokenizer = Tokenizer.load(preset_directory("tiny"))
    start = time.perf_counter()
    index = open_index(str(corpus), tokenizer)
    assert len(index)
    return {"seconds": time.perf_counter() - start, "peak": resident("VmHWM")}


def _run(*arguments: str) -> dict[str, float]:
    """This script in another process; what it found."""
    command = [sys.executable, __file__, *arguments]
    found: dict[str, float] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Run by benchmarks/packing.py.")
    parser.add_argument("--plan", type=Path)
    parser.add_argument("--index", type=Path)
    options = parser.parse_args()
    print(json.dumps(_plan(options.plan) if options.plan else _index(options.index)))
