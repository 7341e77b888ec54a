"""Samples made from others: what a corpus holds is read as it is needed, so memory hardly grows with it."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support import corpora
from support.image_files import image_bytes
from support.places import ROOT

from pipelines.build_dataset import made
from pipelines.build_dataset.config import BuildConfig
from pipelines.build_dataset.scan import good_row, scan_schema
from sigma_data.corpus.checks import examine
from sigma_data.images.image_info import ImageInfo
from sigma_data.sample import Family, Image, Sample, Source, Turn, sample_id

FILE_ROWS = 300
BYTES_A_ROW = 3_000
EDITS = ("Turn it into a watercolor painting.", "Make it snowy", "Remove the dog on the left")


def _info(seed: int) -> ImageInfo:
    data = hashlib.shake_256(str(seed).encode()).digest(86)
    return ImageInfo(
        format="JPEG", mode="RGB", width=96, height=80, size=9000, sha256=hashlib.sha256(data).hexdigest(),
        signature=data, coarse=seed, orientation=1,
    )  # fmt: skip


def _row(number: int, config: BuildConfig) -> dict[str, Any]:
    """A composition whose first thing can be taken out again, or a pair of one of three edits."""
    family, references = (Family.STYLIZATION, 1) if number % 2 else (Family.COMPOSITIONAL, 2)
    text = f"Put the red toy from the first image on the sofa of the second image, number {number}"
    infos = {image: _info(10 * number + image) for image in range(1, references + 2)}
    images = tuple(Image(image, info.sha256.encode()) for image, info in infos.items())
    turn = Turn(EDITS[number % 3] if number % 2 else text, target=references + 1)
    sample = Sample(sample_id("r", "x", number), family, images, (turn,), Source("r", "x", number, "mit"))
    known = {info.sha256.encode(): info for info in infos.values()}
    found = examine(sample, config.limits, severities=config.checks, prober=lambda data: known[data or b""])
    return good_row(found, {}) | {"position": number % FILE_ROWS}


@pytest.mark.slow
def test_memory_of_a_plan_with_made_samples_grows_by_less_than_three_kilobytes_a_row(tmp_path: Path) -> None:
    # 12 KB when all parents and all made samples were held; a row stands for itself and what is made of it.
    measure = (
        "import json, sys; from pathlib import Path\n"
        "from pipelines.build_dataset.config import BuildConfig\n"
        "from pipelines.build_dataset.plan import make_plan\n"
        "from pipelines.common.process_pool import peak_memory\n"
        "config = BuildConfig.model_validate({'made': {'selective': True, 'relation': True}})\n"
        "plan = make_plan(sorted(Path(sys.argv[1]).glob('*.parquet')), config)\n"
        "print(json.dumps([plan.made_samples, peak_memory()]))\n"
    )
    peaks = []
    config = BuildConfig()
    for count in (3_000, 9_000):
        folder = tmp_path / str(count)
        folder.mkdir()
        for start in range(0, count, FILE_ROWS):
            rows = [_row(number, config) for number in range(start, start + FILE_ROWS)]
            pq.write_table(pa.Table.from_pylist(rows, schema=scan_schema()), folder / f"{start:06d}.parquet")
        command = [sys.executable, "-c", measure, str(folder)]
        done = subprocess.run(command, stdout=subprocess.PIPE, check=True, cwd=ROOT)
        samples, peak = json.loads(done.stdout)
        assert samples > count
        peaks.append(peak)
    assert peaks[1] - peaks[0] < BYTES_A_ROW * 6_000


def test_rings_read_a_few_pairs_at_a_time_make_what_rings_in_memory_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [
        {"image_list": [image_bytes("jpeg", 2 * number + image, width=96, height=80) for image in range(2)],
         "instruction_list": [[EDITS[number % 3]]], "data_prep_method": "stylization"}
        for number in range(24)
    ]  # fmt: skip
    for file in range(3):
        corpora.write_parquet(tmp_path / "release" / f"chunk_{file}.parquet", rows[file::3])
    settings: dict[str, Any] = {"made": {"relation": True, "relations_a_pair": 4}, "splits": {"train": 1.0}}
    corpora.build(tmp_path / "whole", f"release:{tmp_path / 'release'}", **settings)
    monkeypatch.setattr(made, "_HELD", 1)
    monkeypatch.setattr(made, "_STRETCH", 2)
    monkeypatch.setattr(made._Pairs, "__init__", _holding_one)
    corpora.build(tmp_path / "few", f"release:{tmp_path / 'release'}", **settings)
    whole, few = (corpora.files_below(tmp_path / name) for name in ("whole", "few"))
    assert any("relation" in name for name in whole)
    assert whole == few


def _holding_one(self: Any, parents: Any, order: Any, held: Any) -> None:
    """As if the ring were so long that all but its first pair are read as it comes to them."""
    self._parents, self._order, self._stretches = parents, order, {}
    self._held = {order[0]: held[order[0]]}
