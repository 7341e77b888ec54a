"""A whole build beside others that only decode, hash and rewrite the same files: python benchmarks/build_rivals.py.

Rows in the release's layout, three JPEGs each. `sigma`'s build does all that it does (checks, signatures, duplicates,
splits, shards, tables, report). datatrove's local executor and Ray Data read the same parquet, decode every image,
hash it, and write the rows to parquet again. One process works in each arm; arms take turns, and the figure is the
processor time a row of the processes that work, the lowest of the rounds; the time by the clock stands beside it.

datatrove and Ray Data are not installed with sigma: --datatrove-python and --ray-python name interpreters that have
them; an arm that has none is left out.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import logging
import os
import resource
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from targets import check

_ROOT = Path(__file__).resolve().parents[1]


def photograph(seed: int, side: int) -> bytes:
    """A JPEG with coarse and fine detail, as photographs have."""
    import numpy as np
    from PIL import Image

    dice = np.random.default_rng(seed)
    layers = [
        np.asarray(Image.fromarray(dice.integers(0, 256, (size, size, 3), dtype=np.uint8)).resize((side, side)))
        for size in (6, 90)
    ]
    whole = layers[0] // 4 * 3 + layers[1] // 4
    out = io.BytesIO()
    Image.fromarray(whole).save(out, "JPEG", quality=92)
    return out.getvalue()


def write_rows(folder: Path, rows: int, side: int, files: int) -> None:
    """Rows in the release's layout."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema({
        "image_list": pa.list_(pa.binary()), "instruction_list": pa.list_(pa.list_(pa.string())),
        "data_prep_method": pa.string(),
    })  # fmt: skip
    folder.mkdir(parents=True)
    text = "Put <subject>the thing<image_1> into <background>the place<image_2>, shade {}"
    for number in range(files):
        made = [
            {"image_list": [photograph(3 * row + place, side) for place in range(3)],
             "instruction_list": [[text.format(row)]], "data_prep_method": "compositional"}
            for row in range(number * rows // files, (number + 1) * rows // files)
        ]  # fmt: skip
        pq.write_table(pa.Table.from_pylist(made, schema=schema), folder / f"chunk_{number}.parquet", row_group_size=10)


def decoded_and_hashed(data: bytes) -> str:
    """What the other arms do with an image."""
    from PIL import Image

    with Image.open(io.BytesIO(data)) as image:
        image.convert("RGB").load()
    return hashlib.sha256(data).hexdigest()


def sigma(rows: Path, out: Path) -> None:
    """The whole build."""
    from pipelines.build_dataset.config import BuildConfig
    from pipelines.build_dataset.run import build

    build(BuildConfig(sources=(f"release:{rows}",)), out, workers=1)


def datatrove(rows: Path, out: Path) -> None:
    """ParquetReader, a step of ours, ParquetWriter."""
    from datatrove.data import Document, DocumentsPipeline
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.readers import ParquetReader
    from datatrove.pipeline.writers import ParquetWriter

    def document(_self: Any, data: dict[str, Any], path: str, number: int | str) -> dict[str, Any]:
        return {"text": data["instruction_list"][0][0], "id": f"{path}/{number}", "media": [], "metadata": data}

    def hashed(data: DocumentsPipeline, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        for one in data or ():
            one.metadata["sha256"] = [decoded_and_hashed(image) for image in one.metadata["image_list"]]
            yield one

    reader = ParquetReader(str(rows), adapter=document, batch_size=10)
    steps = [reader, hashed, ParquetWriter(str(out), output_filename="${rank}.parquet")]
    logs = str(out.with_suffix(".logs"))
    LocalPipelineExecutor(pipeline=steps, tasks=len(list(rows.iterdir())), workers=1, logging_dir=logs).run()


def ray_data(rows: Path, out: Path) -> float:
    """`read_parquet`, `map_batches`, `write_parquet`; returns the processor time of Ray's workers."""
    import psutil  # type: ignore[import-untyped, unused-ignore]
    import ray

    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))  # else Ray leaves one in ~/.ray/auth_token
    ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    ray.data.DataContext.get_current().enable_progress_bars = False

    def hashed(batch: dict[str, Any]) -> dict[str, Any]:
        batch["sha256"] = [[decoded_and_hashed(image) for image in images] for images in batch["image_list"]]
        return batch

    ray.data.read_parquet(str(rows)).map_batches(hashed, batch_size=10).write_parquet(str(out))
    spent = 0.0
    for one in psutil.Process().children(recursive=True):
        if one.cmdline() and one.cmdline()[0].startswith("ray::"):
            spent += sum(one.cpu_times()[:2])
    return spent


_ARMS: dict[str, Callable[[Path, Path], float | None]] = {
    "sigma": sigma, "datatrove": datatrove, "ray data": ray_data,
}  # fmt: skip


def measure(arm: str, rows: Path, out: Path) -> None:
    """Run an arm in this process; print its processor time, that of its children included."""
    workers = _ARMS[arm](rows, out) or 0.0
    here, below = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    own = here.ru_utime + here.ru_stime
    children = 0.0 if arm == "ray data" else below.ru_utime + below.ru_stime
    print("\n" + json.dumps({"seconds": own + children + workers}))


def main() -> None:
    """Every arm in turns, and a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=600)
    parser.add_argument("--side", type=int, default=512, help="pixels")
    parser.add_argument("--files", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--datatrove-python", default=sys.executable)
    parser.add_argument("--ray-python", default=sys.executable)
    parser.add_argument("--arm", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.arm:
        sys.path.insert(0, str(_ROOT))
        measure(options.arm[0], Path(options.arm[1]), Path(options.arm[2]))
        return
    python = {"sigma": sys.executable, "datatrove": options.datatrove_python, "ray data": options.ray_python}
    best: dict[str, tuple[float, float]] = {}  # seconds of processor time and by the clock
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_rows(folder / "rows", options.rows, options.side, options.files)
        size = sum(file.stat().st_size for file in (folder / "rows").iterdir())
        for turn in range(options.rounds):
            for arm in _ARMS:
                words = [python[arm], __file__, "--arm", arm, str(folder / "rows"), str(folder / f"{arm} {turn}")]
                start = time.monotonic()
                done = subprocess.run(words, capture_output=True, text=True)
                clock = time.monotonic() - start
                if done.returncode:
                    print(f"{arm}: left out ({(done.stderr.splitlines() or [''])[-1]})", flush=True)
                    continue
                spent = (json.loads(done.stdout.splitlines()[-1])["seconds"], clock)
                best[arm] = min(spent, best.get(arm, spent))
    print(f"{options.rows:,} rows of three images of {options.side} pixels, {size / 1e6:,.0f} MB")
    for arm, (seconds, clock) in best.items():
        a_row = 1000 * seconds / options.rows
        print(f"{arm:<10} {seconds:6.1f} s of processor time, {a_row:6.2f} ms a row, {clock:6.1f} s by the clock")
    if len(best) > 1:
        others = min(seconds for arm, (seconds, _) in best.items() if arm != "sigma")
        ours = best["sigma"][0]
        check("a row of a whole build", "the fastest that does less", ours / others, most=1.0, unit="times")


if __name__ == "__main__":
    main()
