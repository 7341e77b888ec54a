"""Columns of the manifest that follow from the record alone, and tables that are read in bounded memory."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.places import ROOT

from sigma_data.corpus.manifest import read_batches, sample_columns
from sigma_data.sample import Family, Sample, Source


@pytest.mark.parametrize(
    ("provenance", "made"),
    [
        (None, None),
        (json.dumps({"resolved": ["bytes"]}), None),
        (json.dumps({"made": {"rule": "reversed", "from": ["a", "b"]}}), "reversed: a, b"),
        (json.dumps({"made": "somehow"}), None),
        (json.dumps({"made": {"rule": "reversed"}}), None),
        (json.dumps(["made"]), None),
        ('{"made"', None),
    ],
)
def test_a_made_sample_names_its_rule_and_what_it_is_made_of(provenance: str | None, made: str | None) -> None:
    sample = Sample("id", Family.SELECTIVE, (), (), Source("s", "file", 0), provenance=provenance)
    assert sample_columns(sample)["made"] == made


def test_row_groups_that_were_read_are_let_go(tmp_path: Path) -> None:
    schema = pa.schema([("text", pa.string())])
    path = tmp_path / "table.parquet"
    size, groups = 1_000_000, 24
    with pq.ParquetWriter(path, schema, compression="none", use_dictionary=False) as writer:
        for number in range(groups):
            writer.write_table(pa.table({"text": [chr(97 + number) * size]}, schema))
    before, most = pa.total_allocated_bytes(), 0
    for batch in read_batches(path, schema, rows=1):
        most = max(most, pa.total_allocated_bytes() - before)
        del batch
    assert most < groups // 2 * size


def test_no_reader_buffers_a_whole_file_ahead() -> None:
    opened = [
        (path.relative_to(ROOT).as_posix(), line)
        for package in ("sigma_data", "pipelines")
        for path in ROOT.glob(f"{package}/**/*.py")
        for line in re.findall(r"^.*with pq\.ParquetFile\(.*$", path.read_text("utf-8"), re.MULTILINE)
    ]
    assert opened
    assert not [(path, line) for path, line in opened if "pre_buffer=False" not in line]
