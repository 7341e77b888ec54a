"""Pillow's own test images as rows of a release: is each one's verdict Pillow's, its size that of HF `datasets`?

    pip download --no-binary pillow --no-deps pillow==12.3.0 -d pillow
    python benchmarks/pillow_images.py pillow/pillow-12.3.0.tar.gz

Every file below Tests/images is the target of a row; a corpus is built from them, with the rules about what suits
training relaxed. A file of a known format must be written exactly where Pillow decodes it in full, no file may stop
the build, the sums must hold, and the manifest's size must be the one that `datasets` delivers.
"""

from __future__ import annotations

import io
import sys
import tarfile
import tempfile
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from pipelines.build_dataset.config import BuildConfig
from pipelines.build_dataset.run import build
from sigma_data.corpus.corpus import QUARANTINE
from sigma_data.errors import ConfigError
from sigma_data.images.decode import PILLOW_MAX_PIXELS, ImageFault, sniff

_RELAXED = ("too_small", "extreme_aspect", "over_budget", "target_equals_reference")


def main() -> int:
    """Print the comparison; 1 where something differs."""
    files = read_images(Path(sys.argv[1]))
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "source")
        source.mkdir()
        write_rows(source / "chunk_0.parquet", files)
        config = BuildConfig.model_validate({
            "sources": [f"release:{source}"],
            "checks": dict.fromkeys(_RELAXED, "off"),
            "limits": {"max_pixels": PILLOW_MAX_PIXELS},
        })  # fmt: skip
        try:
            corpus = build(config, Path(folder, "out"), workers=2).corpus
        except ConfigError as error:
            print(error)
            return 1
        written = {
            row["row"]: row["images"][1] for row in corpus.manifest.select("row", "images").iter_rows(named=True)
        }
        table = pl.read_parquet(corpus.path / QUARANTINE)
        refused = {row["row"]: row for row in table.iter_rows(named=True)}
    sums = corpus.commit["sums"]
    print(f"{len(files)} files: {sums['written']} written, {sums['duplicates']} duplicates, codes {sums['codes']}")
    formats = Counter(image["format"] for image in written.values())
    print("written by format: " + ", ".join(f"{name} {count}" for name, count in sorted(formats.items())))
    wrong = 0
    for row, (name, data) in enumerate(files):
        size = size_in_datasets(data)
        known = is_known(data)
        if row in written:
            image = written[row]
            if size is None:
                print(f"  {name}: written, and datasets cannot read it")
            elif (image["width"], image["height"]) != size:
                print(f"  {name}: {image['width']} x {image['height']}, and datasets delivers {size[0]} x {size[1]}")
                wrong += 1
        elif refused[row]["code"] == "duplicate":
            pass
        elif known and decodes(data):
            print(f"  {name}: refused, and Pillow decodes it: {refused[row]['message']}")
            wrong += 1
        if row in written and not decodes(data):
            print(f"  {name}: written, and Pillow refuses it")
    print(f"{wrong} differ" if wrong else "every verdict is Pillow's, every size that of datasets")
    return int(wrong > 0)


def read_images(place: Path) -> list[tuple[str, bytes]]:
    """(name, bytes) of Tests/images of a source distribution, packed or unpacked, by name."""
    if place.is_dir():
        return [(path.name, path.read_bytes()) for path in sorted(place.rglob("*")) if path.is_file()]
    found = []
    with tarfile.open(place) as tar:
        for member in tar:
            if member.isfile() and "/Tests/images/" in member.name and (file := tar.extractfile(member)):
                found.append((member.name.split("/Tests/images/")[1], file.read()))
    return sorted(found)


def write_rows(path: Path, files: list[tuple[str, bytes]]) -> None:
    """A row a file: one reference, and the file as the target."""
    buffer = io.BytesIO()
    Image.linear_gradient("L").save(buffer, "PNG")
    schema = pa.schema({"image_list": pa.list_(pa.binary()), "instruction_list": pa.list_(pa.list_(pa.string()))})
    rows = [
        {"image_list": [buffer.getvalue(), data], "instruction_list": [[f"Turn <image_1> into {number}"]]}
        for number, (_, data) in enumerate(files)
    ]
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), path, row_group_size=16)


def is_known(data: bytes) -> bool:
    """Whether the bytes announce a format that a corpus takes."""
    try:
        sniff(data)
    except ImageFault:
        return False
    return True


def decodes(data: bytes) -> bool:
    """Whether Pillow decodes the first frame in full."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            Image.open(io.BytesIO(data)).load()
    except Exception:
        return False
    return True


def size_in_datasets(data: bytes) -> tuple[int, int] | None:
    """(width, height) as HF `datasets` decodes it; None where it raises."""
    import datasets

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image: Any = datasets.Image().decode_example({"path": None, "bytes": data})
    except Exception:
        return None
    return image.width, image.height


if __name__ == "__main__":
    raise SystemExit(main())
