"""A build with as many rows as the release, of tiny images: python benchmarks/scale.py [--rows N N] [--plan-rows N].

SIGMA's release has 653,237 rows in 2,177 files. This makes rows of the same layout, three images of 64 pixels each: a
target of its own and two references that four rows share. They are built and validated, each in a process of its own,
and for each size there are the seconds, the largest resident size of the parent and of any worker. Beyond a row group
of the tables (65,536 rows) the first may grow by 1.5 KB a row, and to 1.5 GB at the release's size. An epoch of packs
is planned, too. --keep FOLDER keeps rows and corpus there; started again, it goes on from what is there.

--plan-rows N N: only what the parent does, plan, tables and report, over scan files of so many rows with two images
each, written column by column. --pass-rows N N: of that the plan alone, which stays under 4 GB for 5 million.
"""

from __future__ import annotations

import argparse
import io
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image
from targets import check

FILE_ROWS = 300
ROW_GROUP = 65_536
RELEASE_ROWS = 653_237
PARENT_BYTES_A_ROW, PARENT_BYTES, WORKER_BYTES = 1_500, 1.5e9, 300e6
PLAN_ROWS, PLAN_BYTES = 5_000_000, 4e9
_FAMILIES = ("compositional", "selective", "stylization", "relation", "editing", "layout")
_SCAN_ROWS = 50_000


def picture(seed: int) -> bytes:
    """A small image unlike all others: blocks of colours, so that no two are near duplicates."""
    blocks = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(blocks.repeat(8, 0).repeat(8, 1)).save(out, "JPEG", quality=60)
    return out.getvalue()


def write_release(folder: Path, rows: int, *, file_rows: int = FILE_ROWS) -> None:
    """Rows in the release's layout, in files of 300."""
    schema = pa.schema({
        "image_list": pa.list_(pa.binary()), "instruction_list": pa.list_(pa.list_(pa.string())),
        "data_prep_method": pa.string(),
    })  # fmt: skip
    text = "Put <subject>the thing<image_1> into <background>the place<image_2>, shade {}"
    folder.mkdir(parents=True, exist_ok=True)
    references: list[bytes] = []
    for start in range(0, rows, file_rows):
        path = folder / f"chunk_{start // file_rows}.parquet"
        if path.exists():
            continue
        made = []
        for row in range(start, min(start + file_rows, rows)):
            if row % 4 == 0:
                references = [picture(3 * row + 1), picture(3 * row + 2)]
            made.append({"image_list": [*references, picture(3 * row)], "instruction_list": [[text.format(row)]],
                         "data_prep_method": "compositional"})  # fmt: skip
        table = pa.Table.from_pylist(made, schema=schema)
        begun = path.with_suffix(".begun")
        pq.write_table(table, begun, row_group_size=10)
        begun.rename(path)


def write_scans(folder: Path, rows: int) -> None:
    """Scan files of good rows, with two images each: one that two rows share, and one of its own."""
    from pipelines.build_dataset.scan import scan_schema
    from sigma_data.images.fingerprint import SIGNATURE_BYTES

    schema = scan_schema()
    dice = np.random.default_rng(0)
    for start in range(0, rows, _SCAN_ROWS):
        count = min(_SCAN_ROWS, rows - start)
        numbers = np.arange(start, start + count)
        digest = np.stack([numbers // 2, rows + numbers], axis=1).reshape(-1)
        entry = {
            "number": pa.array(np.tile([1, 2], count), pa.int16()),
            "role": pa.array(["reference", "target"] * count),
            "member": pa.array(["ref_01.jpg", "target.jpg"] * count),
            "format": constant("JPEG", 2 * count), "mode": constant("RGB", 2 * count),
            "width": pa.array(np.full(2 * count, 512), pa.int32()),
            "height": pa.array(np.full(2 * count, 512), pa.int32()),
            "size": pa.array(dice.integers(20_000, 90_000, 2 * count)),
            "sha256": hexadecimal(keyed(digest, 64)),
            "signature": fixed(keyed(digest, SIGNATURE_BYTES)),
        }  # fmt: skip
        image = schema.field("images").type.value_type
        images = pa.StructArray.from_arrays(
            [entry.get(field.name, pa.nulls(2 * count, field.type)).cast(field.type) for field in image],
            fields=list(image),
        )
        ends = pa.array(np.arange(0, 2 * count + 1, 2), pa.int32())
        text = hexadecimal(keyed(numbers + 2 * rows, 64))
        turn = schema.field("turns").type.value_type
        turns = pa.StructArray.from_arrays(
            [text, pa.array(np.full(count, 2), pa.int16()), pa.nulls(count, pa.string())], fields=list(turn)
        )
        one, none = (pa.array(np.arange(count + 1) * many, pa.int32()) for many in (1, 0))
        no_words = pa.ListArray.from_arrays(none, pa.array([], pa.string()))
        columns: dict[str, Any] = {
            "family_inferred": pa.array(np.zeros(count, dtype=bool)), "instruction": text,
            "turns": pa.ListArray.from_arrays(one, turns), "attributes": no_words, "warnings": no_words,
            "references": pa.array(np.ones(count), pa.int16()), "tokens": pa.array(np.full(count, 2000), pa.int32()),
            "id": hexadecimal(keyed(numbers + 3 * rows, 20)),
            "family": pa.array(np.array(_FAMILIES)[numbers % len(_FAMILIES)]),
            "source": constant("release", count), "location": constant(f"{start}.parquet", count),
            "row": pa.array(numbers), "license": constant("mit", count),
            "images": pa.ListArray.from_arrays(ends, images),
            "content": text, "text": text, "json_sha256": text, "status": constant("ok", count),
            "size": pa.array(dice.integers(100, 400, count) * 512),
            "json_size": pa.array(np.full(count, 600), pa.int64()), "position": pa.array(numbers - start, pa.int32()),
        }  # fmt: skip
        table = pa.table(
            [columns.get(field.name, pa.nulls(count, field.type)).cast(field.type) for field in schema], schema=schema
        )
        pq.write_table(table, folder / f"{start:09d}.parquet", compression="zstd", compression_level=1)


def keyed(numbers: NDArray[np.int64], width: int) -> NDArray[np.uint8]:
    """[n, width] bytes that follow from each number."""
    words = np.empty((len(numbers), -(-width // 8)), dtype=np.uint64)
    state = numbers.astype(np.uint64)
    for place in range(words.shape[1]):
        state = (state + np.uint64(0x9E3779B97F4A7C15)) * np.uint64(0xBF58476D1CE4E5B9)
        state ^= state >> np.uint64(31)
        words[:, place] = state
    return np.ascontiguousarray(words.view(np.uint8)[:, :width])


def hexadecimal(data: NDArray[np.uint8]) -> Any:
    """Each row of bytes as so many hexadecimal digits."""
    digits = np.frombuffer(b"0123456789abcdef", dtype=np.uint8)[data & 15]
    return fixed(digits).cast(pa.string())


def fixed(data: NDArray[np.uint8]) -> Any:
    """Each row of bytes as a value."""
    ends = np.arange(0, data.size + 1, data.shape[1], dtype=np.int32)
    return pa.Array.from_buffers(pa.binary(), len(data), [None, pa.py_buffer(ends), pa.py_buffer(data.tobytes())])


def constant(value: str, count: int) -> Any:
    """The same value so many times."""
    return pa.array([value]).take(pa.array(np.zeros(count, dtype=np.int64)))


def measure(what: str, folder: Path, workers: int) -> dict[str, Any]:
    """Do one thing in this process; returns its seconds and peaks."""
    from pipelines.common.process_pool import peak_memory

    start = time.perf_counter()
    found: dict[str, Any] = {}
    if what == "build":
        from pipelines.build_dataset.config import BuildConfig
        from pipelines.build_dataset.run import build

        config = BuildConfig(sources=(f"release:{folder / 'release'}",), shard_bytes=64 * 2**20)
        result = build(config, folder / "corpus", workers=workers)
        found = {"worker": result.peak_worker_bytes, "written": result.corpus.sums["written"]}
    elif what == "validate":
        from pipelines.validate.run import validate_corpus

        found = {"problems": len(validate_corpus(folder / "corpus", deep=False, workers=workers).problems)}
    elif what == "epoch":
        from pipelines.plan.config import plan_config
        from pipelines.plan.run import run_plan

        epoch = run_plan(plan_config([str(folder / "corpus")], ["budget=8192"]), ranks=8, epochs=1)["epochs"][0]
        found = {"packs": epoch["packs"], "fill": epoch["fill"]}
    elif what in ("plan", "pass"):
        from pipelines.build_dataset.config import BuildConfig
        from pipelines.build_dataset.plan import make_plan

        plan = make_plan(sorted(folder.glob("*.parquet")), BuildConfig())
        found = {"written": len(plan.places), "planned": peak_memory(), "plan": time.process_time()}
        if what == "plan":
            describe(plan, folder)
            found["described"] = time.process_time() - found["plan"]
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    found["workers_cpu"] = children.ru_utime + children.ru_stime
    return found | {"parent": peak_memory(), "seconds": time.perf_counter() - start, "cpu": time.process_time()}


def describe(plan: Any, folder: Path) -> None:
    """Tables and report of a plan, as the commit writes them; every image of the report is one picture."""
    from pipelines.build_dataset.commit import _summary, _write_table, sums_of
    from pipelines.build_dataset.tables import manifest_tables, quarantine_tables
    from sigma_data.corpus.manifest import manifest_schema, quarantine_schema
    from sigma_data.corpus.table_rows import FileRows
    from sigma_data.report.report import render_report

    manifest, quarantine = folder / "manifest", folder / "quarantine"
    _write_table(manifest, manifest_tables(plan, folder), folder)
    _write_table(quarantine, quarantine_tables(plan), folder)
    shown = picture(0)
    render_report(
        title="", summary=_summary(sums_of(plan)), manifest=FileRows(manifest, manifest_schema()),
        quarantine=FileRows(quarantine, quarantine_schema(), nulls=True), read=lambda *_: shown,
    )  # fmt: skip


@contextmanager
def place(kept: Path | None, scratch: Path | None, rows: int) -> Iterator[Path]:
    """Folder for so many rows: one that stays, or a temporary one."""
    if kept is not None:
        yield kept / str(rows)
        return
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        yield Path(folder)


def run(what: str, folder: Path, workers: int) -> dict[str, Any]:
    """`measure` in a process of its own; what was measured in this folder before is read."""
    known = folder / f"{what}.json"
    if known.exists():
        return dict(json.loads(known.read_text()))
    command = [sys.executable, __file__, "--measure", what, str(folder), "--workers", str(workers)]
    found: dict[str, Any] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    known.write_text(json.dumps(found))
    return found


def main() -> None:
    """Build each size, print a table and whether the promises are kept."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="*", default=[65_310, 130_620])
    parser.add_argument("--plan-rows", type=int, nargs="*", default=[])
    parser.add_argument("--pass-rows", type=int, nargs="*", default=[])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--scratch", type=Path, help="folder for the rows and the corpora")
    parser.add_argument("--keep", type=Path, help="folder in which rows and corpora stay")
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.measure[0], Path(options.measure[1]), options.workers)))
        return
    peaks: dict[int, float] = {}
    for rows in options.rows:
        with place(options.keep, options.scratch, rows) as folder:
            write_release(folder / "release", rows)
            built, checked, packed = (run(what, folder, options.workers) for what in ("build", "validate", "epoch"))
        if rows >= ROW_GROUP:
            peaks[rows] = built["parent"]
        tell(
            f"{rows:>9,} rows: build {built['seconds']:,.0f} s (processor time: {built['cpu']:,.0f} s the parent's, "
            f"{built['workers_cpu']:,.0f} s the workers'), "
            f"parent {megabytes(built['parent'])}, worker {megabytes(built['worker'])}",
            f"validate {checked['seconds']:,.0f} s, {megabytes(checked['parent'])}, {checked['problems']} problems",
            f"epoch of {packed['packs']:,} packs, {100 * packed['fill']:.2f} % full, planned in "
            f"{packed['seconds']:,.0f} s, {megabytes(packed['parent'])}",
        )
        check("largest worker of a build", "", built["worker"] / 1e6, most=WORKER_BYTES / 1e6, unit="MB")
        if rows >= RELEASE_ROWS:
            check(f"parent of a build of {rows:,} rows", "", built["parent"] / 1e6, most=PARENT_BYTES / 1e6, unit="MB")
    if len(peaks) > 1:
        (few, low), *_, (many, high) = sorted(peaks.items())
        slope = (high - low) / (many - few)
        release = high + slope * (RELEASE_ROWS - many)
        check_parent(slope, release)
    for rows in options.pass_rows:
        with tempfile.TemporaryDirectory(dir=options.scratch) as scratch:
            write_scans(Path(scratch), rows)
            found = run("pass", Path(scratch), options.workers)
        most = PLAN_BYTES * max(1, rows / PLAN_ROWS)
        tell(
            f"plan alone of {found['written']:,} rows: {found['plan']:,.0f} s of processor time, "
            f"{megabytes(found['planned'])}"
        )
        check(f"plan of {rows:,} rows", "", found["planned"] / 1e6, most=most / 1e6, unit="MB")
    planned: dict[int, dict[str, Any]] = {}
    for rows in options.plan_rows:
        with tempfile.TemporaryDirectory(dir=options.scratch) as scratch:
            write_scans(Path(scratch), rows)
            planned[rows] = found = run("plan", Path(scratch), options.workers)
        tell(
            f"plan of {found['written']:,} rows: {found['plan']:,.0f} s of processor time, "
            f"{megabytes(found['planned'])}",
            f"then tables and report: {found['described']:,.0f} s, {megabytes(found['parent'])}",
        )
    if len(planned) > 1:
        small, large = min(planned), max(planned)
        begun, ended = planned[small], planned[large]
        plan, whole = ((ended[name] - begun[name]) / (large - small) for name in ("planned", "parent"))
        release, most = ended["parent"] + whole * (RELEASE_ROWS - large), ended["planned"] + plan * (PLAN_ROWS - large)
        check_parent(whole, release)
        what = f"plan of {PLAN_ROWS:,} rows, by {plan:,.0f} bytes a row"
        check(what, "", most / 1e6, most=PLAN_BYTES / 1e6, unit="MB")


def tell(*parts: str) -> None:
    """A line of what was measured."""
    print("; ".join(parts), flush=True)


def megabytes(size: float) -> str:
    """Bytes in MB."""
    return f"{size / 1e6:,.0f} MB"


def check_parent(slope: float, release: float) -> None:
    """What a row adds to the parent, and all rows of the release by that, in bytes."""
    check("parent of a build, a row", "", slope, most=PARENT_BYTES_A_ROW, unit="bytes")
    check(f"parent of a build of {RELEASE_ROWS:,} rows, by that", "", release / 1e6, most=PARENT_BYTES / 1e6, unit="MB")


if __name__ == "__main__":
    main()
