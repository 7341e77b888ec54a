"""Time and memory of planning a corpus of 200,000 rows in 8 sources: the dry run, and the plan of scanned rows.

    python benchmarks/corpus_plan.py [--rows N] [--workers N]

The sources are synthetic: four of JSON lines that name image files, four of parquet files with tiny images, each with
scores, tasks and broken rows. The dry run is `sigma build-dataset --dry-run` as a user starts it, interpreter included;
memory is the largest sum of resident sizes of its processes, read ten times a second. The plan is `make_plan` on scan
files of as many rows, two images each, in a process of its own.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from targets import check

SECONDS, MEMORY = 15.0, 500e6
SOURCES = 8
FAMILIES = ("compositional", "selective", "stylization", "relation", "editing", "layout")

_MAP = {
    "corpus": "synthetic", "families": ["editing", "stylization"], "license": "mit", "format": "jsonl",
    "rows": ["*.jsonl"], "images": {"from": "tree"},
    "fields": {"instruction": "instruction", "references": "source", "target": "target"},
    "family": {"by": "task", "map": {"style": "stylization"}, "default": "editing"},
    "filters": [{"field": "score", "min": 7.0, "missing": "drop"}],
}  # fmt: skip


def main() -> None:
    """Measure both, each in processes of its own, and print whether the dry run keeps to its aim."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--plan", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.plan:
        print(json.dumps(plan(options.plan)))
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        recipe = write_sources(folder, options.rows)
        words = ["build-dataset", "--config", str(recipe), "--dry-run", "--json", "--workers", str(options.workers)]
        found, seconds, memory = run([sys.executable, "-m", "cli", *words])
        rows = sum(row["rows"] for source in found["sources"] for row in source["rows"])
        tell(f"dry run of {rows:,} rows in {len(found['sources'])} sources", seconds, memory)
        what = f"dry run of {rows:,} rows"
        check(f"{what}, time", "", seconds, most=SECONDS, unit="s")
        check(f"{what}, memory", "", memory / 1e6, most=MEMORY / 1e6, unit="MB")
    with tempfile.TemporaryDirectory() as scratch:
        write_scans(Path(scratch), options.rows)
        found, seconds, memory = run([sys.executable, __file__, "--plan", scratch])
        tell(f"plan of {found['read']:,} scanned rows, {found['written']:,} written", seconds, memory)


def tell(what: str, seconds: float, memory: float) -> None:
    """A line of what was measured."""
    print(f"{what}: {seconds:.1f} s, {memory / 1e6:,.0f} MB")


def run(command: list[str]) -> tuple[Any, float, float]:
    """What a command prints as JSON, its seconds, and the largest resident size of it and its children."""
    start = time.perf_counter()
    peak = 0
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        while process.poll() is None:
            peak = max(peak, resident(process.pid))
            time.sleep(0.1)
        seconds = time.perf_counter() - start
        assert process.stdout is not None
        return json.loads(process.stdout.read()), seconds, peak


def resident(pid: int) -> int:
    """Resident bytes of a process and all below it."""
    try:
        text = Path(f"/proc/{pid}/status").read_text()
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return 0
    own = next((int(line.split()[1]) * 1024 for line in text.splitlines() if line.startswith("VmRSS")), 0)
    return own + sum(resident(int(child)) for child in children)


def write_sources(folder: Path, rows: int) -> Path:
    """Eight sources and a recipe over them."""
    (folder / "map.yaml").write_text(yaml.safe_dump(_MAP))
    each = rows // SOURCES
    dice = np.random.default_rng(0)
    sources = []
    for number in range(SOURCES):
        place = folder / f"s{number}"
        place.mkdir()
        scores = dice.uniform(0, 10, each).round(1).tolist()
        tasks = [("style", "swap", "removal")[value] for value in dice.integers(0, 3, each)]
        words = ["" if index % 997 == 0 else f"Change number {index} of {number}, please" for index in range(each)]
        if number % 2:
            lines = [
                {"source": f"images/{index}.jpg", "target": f"edited/{index}.jpg", "instruction": text, "task": task,
                 "score": score}
                for index, (text, task, score) in enumerate(zip(words, tasks, scores, strict=True))
            ]  # fmt: skip
            (place / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
            sources.append(
                {"source": "map", "path": str(folder / "map.yaml"), "root": str(place), "name": f"s{number}"}
            )
        else:
            image = [{"bytes": bytes(64), "path": None}] * each
            table = {"task": tasks, "src_img": image, "edited_img": image, "edited_prompt_list": [[w] for w in words],
                     "o_score": scores}  # fmt: skip
            pq.write_table(pa.table(table), place / "train-00000.parquet", row_group_size=1000)
            sources.append({"source": "omniedit", "path": str(place), "name": f"s{number}"})
    recipe = folder / "recipe.yaml"
    recipe.write_text(yaml.safe_dump({"sources": sources, "quotas": {"editing": 50_000}}))
    return recipe


def write_scans(folder: Path, rows: int) -> None:
    """Scan files of eight sources, with some duplicates and shared images."""
    from pipelines.build_dataset.scan import scan_schema
    from sigma_data.images.fingerprint import SIGNATURE_BYTES

    dice = np.random.default_rng(0)
    each = rows // SOURCES
    for source in range(SOURCES):
        written = []
        for row in range(each):
            number = source * each + row
            images = [
                {"number": place + 1, "role": role, "member": f"{role}.jpg", "format": "JPEG", "mode": "RGB",
                 "width": 512, "height": 512, "size": 60_000, "sha256": hashlib.sha256(f"{shown}".encode()).hexdigest(),
                 "signature": np.random.default_rng(shown).bytes(SIGNATURE_BYTES)}
                for place, (role, shown) in enumerate((("reference", number // 2), ("target", rows + number)))
            ]  # fmt: skip
            text = f"text {number - (row % 100 == 1)}"
            written.append({
                "id": hashlib.sha256(f"{number}".encode()).hexdigest()[:20], "family": FAMILIES[number % 6],
                "family_inferred": False, "images": images, "instruction": text, "attributes": ["subject"],
                "turns": [{"instruction": text, "target": 2, "response": None}], "references": 1, "tokens": 2000,
                "content": text, "text": text, "source": f"s{source}", "location": "file", "row": row,
                "license": "mit", "warnings": [], "position": row, "status": "ok", "json": b"{}", "json_size": 600,
                "json_sha256": "", "size": 130_000 + int(dice.integers(9)) * 512,
            })  # fmt: skip
        pq.write_table(pa.Table.from_pylist(written, schema=scan_schema()), folder / f"{source}.parquet")


def plan(folder: Path) -> dict[str, int]:
    """Plan the scans of a folder."""
    from pipelines.build_dataset.config import BuildConfig
    from pipelines.build_dataset.plan import make_plan

    made = make_plan(sorted(folder.glob("*.parquet")), BuildConfig.model_validate({"quotas": {"editing": 20_000}}))
    return {"read": made.read, "written": len(made.places)}


if __name__ == "__main__":
    main()
