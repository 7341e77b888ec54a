"""Sources against the plainest loop with the publisher's own means, side by side in one process.

    python benchmarks/sources.py [--rows 300] [--repeats 5] [--bytes 600000]

Corpora in publishers' layouts are made in a temporary folder, their images of random bytes in sizes as published. Both
sides read every image of every row once, in turn; figures are medians over the repeats, ratios are plain time over
ours. Whether both read the same bytes is checked.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import random
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from targets import check

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import pyarrow as pa
import pyarrow.parquet as pq

from sigma_data.sample import Sample
from sigma_data.sources import open_source, source_spec

Images = Iterator[bytes]


@dataclass(frozen=True)
class Case:
    """A layout: `make` writes rows below a folder, `plain` reads their images as its publisher's own code would."""

    name: str
    layout: str
    target: float
    make: Callable[[Path, int, int], None]
    plain: Callable[[Path, Path], Images]
    fresh: bool = False
    """Whether ours begins without a cache every time, as the plain loop unpacks every time."""


def image(seed: int, size: int) -> bytes:
    """Bytes that begin like a JPEG and cannot be compressed."""
    return b"\xff\xd8\xff\xe0" + random.Random(seed).randbytes(size - 4)


def tar_of(members: Iterator[tuple[str, bytes]], compress: str = "") -> bytes:
    """A tar in memory."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=f"w:{compress}") as tar:  # type: ignore[call-overload]
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


def put_parts(path: Path, content: bytes, ending: str, parts: int = 7) -> None:
    """Write a file in parts."""
    path.parent.mkdir(parents=True, exist_ok=True)
    step = -(-len(content) // parts)
    for number in range(parts):
        path.with_name(path.name + ending.format(number)).write_bytes(content[number * step : (number + 1) * step])


def joined(folder: Path, pattern: str, work: Path) -> Path:
    """`cat` the parts into one file, as publishers say."""
    parts = sorted(folder.glob(pattern))
    whole = work / "whole.tar"
    with whole.open("wb") as out:
        subprocess.run(["cat", *map(str, parts)], stdout=out, check=True)
    return whole


# parquet with images in it


def make_omniedit(folder: Path, rows: int, size: int) -> None:
    """OmniEdit: struct<bytes, path> in row groups of a hundred rows."""
    table = [
        {"omni_edit_id": str(n), "task": "env", "src_img": {"bytes": image(2 * n, size), "path": "a.jpg"},
         "edited_img": {"bytes": image(2 * n + 1, size), "path": "b.jpg"}, "o_score": 9.0,
         "edited_prompt_list": [f"Do {n}", f"Do it {n}"]}
        for n in range(rows)
    ]  # fmt: skip
    (folder / "data").mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(table), folder / "data/train-0.parquet", row_group_size=100)


def plain_parquet(folder: Path, work: Path) -> Images:
    """Pyarrow, batch by batch."""
    for path in sorted(folder.glob("data/*.parquet")):
        for batch in pq.ParquetFile(path).iter_batches(
            8, columns=["src_img", "edited_img", "edited_prompt_list", "o_score"]
        ):
            for row in batch.to_pylist():
                yield row["src_img"]["bytes"]
                yield row["edited_img"]["bytes"]


def plain_datasets(folder: Path, work: Path) -> Images:
    """`datasets`, streaming, images as they are stored."""
    import datasets

    rows = datasets.load_dataset("parquet", data_files=str(folder / "data/*.parquet"), split="train", streaming=True)
    for row in rows:
        yield row["src_img"]["bytes"]
        yield row["edited_img"]["bytes"]


# rows and a tree of images


def make_nano(folder: Path, rows: int, size: int) -> None:
    """Nano-consistent-150k: JSON lines and files."""
    lines = []
    for n in range(rows):
        names = f"Image/orignal/people/{n}.jpg", f"Image/output/action/Wave/{n}.jpg"
        for side, name in enumerate(names):
            path = folder / "Nano-150k" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(image(2 * n + side, size))
        lines.append(json.dumps({
            "task_type": "ic", "instruction": f"Do {n}, and keep the face", "input_images": [f"Nano-150k/{names[0]}"],
            "output_image": f"Nano-150k/{names[1]}", "general_prompt": "wave",
        }))  # fmt: skip
    (folder / "Nano-150k/json").mkdir(parents=True)
    (folder / "Nano-150k/json/action_cleaned.jsonl").write_text("\n".join(lines) + "\n")


def plain_nano(folder: Path, work: Path) -> Images:
    """Json and open."""
    for path in sorted(folder.glob("*/json/*.jsonl")):
        with path.open() as file:
            for line in file:
                row = json.loads(line)
                for name in (*row["input_images"], row["output_image"]):
                    with (folder / name).open("rb") as picture:
                        yield picture.read()


# split tars


def make_imgedit(folder: Path, rows: int, size: int) -> None:
    """ImgEdit: a parquet of paths and a plain tar cut by bytes."""
    top = "results_add_laion_part0"
    names = [(f"{top}/{n:09}/original.png", f"{top}/{n:09}/result.png") for n in range(rows)]
    (folder / "Parquet").mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist([
        {"input_images": [a], "output_images": [b], "prompt": f"add {n}"} for n, (a, b) in enumerate(names)
    ]), folder / "Parquet/add_part0.parquet")  # fmt: skip
    members = ((name, image(2 * n + side, size)) for n, pair in enumerate(names) for side, name in enumerate(pair))
    put_parts(folder / f"Singleturn/{top}.tar", tar_of(members), ".split.{:03}")


def _rows_of_imgedit(folder: Path) -> Iterator[str]:
    for path in sorted(folder.glob("Parquet/*.parquet")):
        for row in pq.read_table(path).to_pylist():
            yield from (*row["input_images"], *row["output_images"])


def plain_imgedit(folder: Path, work: Path) -> Images:
    """Join, unpack, read: the README's `cat` and `tar xf`."""
    with tarfile.open(joined(folder, "Singleturn/*.tar.split.*", work)) as tar:
        tar.extraction_filter = getattr(tarfile, "data_filter", None)  # Python 3.11.4 and newer have it
        tar.extractall(work)
    for name in _rows_of_imgedit(folder):
        yield (work / name).read_bytes()


def plain_imgedit_in_place(folder: Path, work: Path) -> Images:
    """Join, then members by name from the one tar: nothing is unpacked, but the parts are copied."""
    with tarfile.open(joined(folder, "Singleturn/*.tar.split.*", work)) as tar:
        members = {member.name: member for member in tar}
        for name in _rows_of_imgedit(folder):
            file = tar.extractfile(members[name])
            assert file is not None
            yield file.read()


def make_seed_edit(folder: Path, rows: int, size: int) -> None:
    """SEED-Data-Edit Part 1: two tar.gz in parts."""
    place = folder / "Part1/auto_editing/openimages"
    for side, name in enumerate(("source", "target")):
        members = ((f"split_0/{name}_images/{n:06}.jpg", image(2 * n + side, size)) for n in range(rows))
        put_parts(place / f"images/{name}_images.tar.gz", tar_of(members, "gz"), ".part-{:02}")
    (place / "annotations").mkdir()
    (place / "annotations/split_0.jsonl").write_text("".join(
        json.dumps({"source_image": f"split_0/source_images/{n:06}.jpg", "instruction": f"Do {n}",
                    "target_image": f"split_0/target_images/{n:06}.jpg"}) + "\n"
        for n in range(rows)
    ))  # fmt: skip


def plain_seed_edit(folder: Path, work: Path) -> Images:
    """Join, unpack, read."""
    place = folder / "Part1/auto_editing/openimages"
    for side in ("source", "target"):
        with tarfile.open(joined(place, f"images/{side}_images.tar.gz.part-*", work)) as tar:
            tar.extraction_filter = getattr(tarfile, "data_filter", None)  # Python 3.11.4 and newer have it
            tar.extractall(work)
    for line in (place / "annotations/split_0.jsonl").read_text().splitlines():
        row = json.loads(line)
        yield (work / row["source_image"]).read_bytes()
        yield (work / row["target_image"]).read_bytes()


# webdataset of others


def make_x2edit(folder: Path, rows: int, size: int) -> None:
    """X2Edit: tars of KEY.1.0.jpg, KEY.2.jpg, KEY.json."""
    place = folder / "X2Edit_data/kontext/0"
    place.mkdir(parents=True)

    def members() -> Iterator[tuple[str, bytes]]:
        for n in range(rows):
            yield f"{n:09}.1.0.jpg", image(2 * n, size)
            yield f"{n:09}.2.jpg", image(2 * n + 1, size)
            yield f"{n:09}.json", json.dumps({"instruction": f"Make it {n}", "task": "color_change"}).encode()

    (place / "0.tar").write_bytes(tar_of(members()))


def plain_x2edit(folder: Path, work: Path) -> Images:
    """Tarfile, member by member."""
    for path in sorted(folder.glob("X2Edit_data/*/*/*.tar")):
        with tarfile.open(path, ignore_zeros=True) as tar:
            for member in tar:
                file = tar.extractfile(member)
                assert file is not None
                data = file.read()
                if member.name.endswith(".jpg"):
                    yield data


CASES = (
    Case("parquet, against pyarrow", "omniedit", 1.0, make_omniedit, plain_parquet),
    Case("parquet, against datasets streaming", "omniedit", 1.0, make_omniedit, plain_datasets),
    Case("tree, against json and open", "nano150k", 1.0, make_nano, plain_nano),
    Case("split tar, against cat, unpack, open", "imgedit", 1.5, make_imgedit, plain_imgedit, fresh=True),
    Case("split tar, against cat, tarfile in place", "imgedit", 1.5, make_imgedit, plain_imgedit_in_place, fresh=True),
    Case("split tar.gz, against cat, unpack, open", "seed_edit", 1.0, make_seed_edit, plain_seed_edit, fresh=True),
    Case("split tar.gz unpacked before, against the same", "seed_edit", 1.5, make_seed_edit, plain_seed_edit),
    Case("webdataset tar, against tarfile", "x2edit", 1.0, make_x2edit, plain_x2edit),
)


def ours(case: Case, folder: Path, cache: Path) -> Images:
    """All images through the source."""
    reader = open_source(f"{source_spec(case.layout, str(folder))}?cache={cache}")
    for fragment in reader.fragments():
        for record in reader.read(fragment):
            if not isinstance(record, Sample):
                raise SystemExit(f"{case.name}: {record}")
            for one in record.images:
                yield one.data or b""


def seconds(images: Images) -> tuple[float, int, str]:
    """How long reading takes, how many bytes, and a digest of their order-independent content."""
    start = time.perf_counter()
    size, heads = 0, []
    for data in images:
        size += len(data)
        heads.append(data[:64])
    spent = time.perf_counter() - start
    return spent, size, hashlib.sha256(b"".join(sorted(heads))).hexdigest()


def measure(case: Case, folder: Path, repeats: int) -> dict[str, Any]:
    """Medians of both sides, in turn."""
    times: dict[str, list[float]] = {"ours": [], "plain": []}
    with tempfile.TemporaryDirectory(dir=folder.parent) as kept:
        if not case.fresh:
            seconds(ours(case, folder, Path(kept)))
        for _ in range(repeats):
            with tempfile.TemporaryDirectory(dir=folder.parent) as work:
                spent, size, digest = seconds(case.plain(folder, Path(work)))
                times["plain"].append(spent)
            with tempfile.TemporaryDirectory(dir=folder.parent) as cache:
                spent, own_size, own_digest = seconds(ours(case, folder, Path(cache if case.fresh else kept)))
                times["ours"].append(spent)
            if (size, digest) != (own_size, own_digest):
                raise SystemExit(f"{case.name}: both sides read other images")
    middle = {name: statistics.median(values) for name, values in times.items()}
    ratios = sorted(plain / own for plain, own in zip(times["plain"], times["ours"], strict=True))
    return middle | {"bytes": size, "ratio": middle["plain"] / middle["ours"], "low": ratios[0], "high": ratios[-1]}


def main() -> int:
    """Measure all; the exit status is 1 where a target was missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=300)
    parser.add_argument("--bytes", type=int, default=600_000, help="size of an image")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--case", help="only cases whose name holds this")
    options = parser.parse_args()
    ratios: list[tuple[Case, float]] = []
    print(f"{options.rows} rows of two images of {options.bytes:,} bytes; medians of {options.repeats} repeats")
    print(f"{'':48}{'ours':>10}{'plain':>10}{'ratio':>8}{'(range)':>14}{'target':>8}")
    with tempfile.TemporaryDirectory(prefix="sigma-sources-") as top:
        for case in CASES:
            if options.case and options.case not in case.name:
                continue
            folder = Path(top) / case.layout
            if not folder.exists():
                case.make(folder, options.rows, options.bytes)
            found = measure(case, folder, options.repeats)
            speeds = [f"{found['bytes'] / found[side] / 1e6:,.0f} MB/s" for side in ("ours", "plain")]
            spread = f"({found['low']:.2f}-{found['high']:.2f})"
            ratios.append((case, found["ratio"]))
            row = f"{case.name:48}{speeds[0]:>10}{speeds[1]:>10}{found['ratio']:>8.2f}{spread:>14}{case.target:>8}"
            print(row, flush=True)
    met = [check(case.name, "the plainest loop", ratio, least=case.target, unit="times") for case, ratio in ratios]
    return int(not all(met))


if __name__ == "__main__":
    sys.exit(main())
