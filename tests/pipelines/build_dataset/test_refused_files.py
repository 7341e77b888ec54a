"""Files that a source cannot use at all: every row of theirs is counted, they are named, and can be an error."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.corpora import adds_up, build, make_release, release_row, write_parquet
from typer.testing import CliRunner

from cli import app
from pipelines.build_dataset.scan import ScanTask, crashed_fragment, read_scan
from pipelines.commands.build_dataset import build_summary
from sigma_data.corpus.corpus import REPORT
from sigma_data.corpus.refused_files import refused_files
from sigma_data.errors import SourceError
from sigma_data.sources import Fragment


def drifting(folder: Path) -> Path:
    """Three files of 12 rows: a good one, one whose instructions are all null, one of another layout."""
    make_release(folder, 12)
    rows = [release_row(500 + index) for index in range(12)]
    images = pa.array([row["image_list"] for row in rows], pa.list_(pa.binary()))
    pq.write_table(pa.table({"image_list": images, "instruction_list": [[[None]]] * 12}), folder / "nulls.parquet")
    pq.write_table(pa.table({"images": images, "instruction_list": [[["a"]]] * 12}), folder / "other.parquet")
    return folder


@pytest.mark.slow
def test_every_row_of_a_refused_file_is_read_and_quarantined(tmp_path: Path) -> None:
    corpus = build(tmp_path / "corpus", f"release:{drifting(tmp_path / 'source')}").corpus
    assert (corpus.sums["read"], corpus.sums["written"]) == (36, 12)
    assert corpus.sums["codes"] == {"empty_instruction": 12, "wrong_columns": 12}
    assert adds_up(corpus.sums)
    (file,) = refused_files(corpus.quarantine)
    assert (file.location, file.records, file.code) == ("other.parquet", 12, "wrong_columns")


def test_a_refused_file_is_a_line_of_the_summary_and_of_the_report(tmp_path: Path) -> None:
    corpus = build(tmp_path / "corpus", f"release:{drifting(tmp_path / 'source')}").corpus
    line = next(line for line in build_summary(corpus, fresh=True).splitlines() if "other.parquet" in line)
    assert "12 rows, wrong_columns: no column image_list" in line
    assert "REFUSED: 1 file (12 rows)" in build_summary(corpus, fresh=True)
    report = (tmp_path / "corpus" / REPORT).read_text("utf-8")
    assert "1 source file could not be used" in report
    assert "other.parquet: 12 rows, wrong_columns" in report


def test_a_corpus_without_refused_files_does_not_speak_of_them(tmp_path: Path) -> None:
    corpus = build(tmp_path / "corpus", f"release:{make_release(tmp_path / 'source', 6)}").corpus
    assert "REFUSED" not in build_summary(corpus, fresh=True)
    assert "could not be used" not in (tmp_path / "corpus" / REPORT).read_text("utf-8")


@pytest.mark.slow
def test_strict_files_make_a_refused_file_an_error_before_anything_is_written(tmp_path: Path) -> None:
    source, out = drifting(tmp_path / "source"), tmp_path / "corpus"
    result = CliRunner().invoke(app, ["build-dataset", f"release:{source}", "--out", str(out), "--strict-files"])
    assert isinstance(result.exception, SourceError)
    assert "other.parquet: 12 rows, wrong_columns" in str(result.exception)
    assert "\n" not in str(result.exception)
    assert not out.exists()


@pytest.mark.slow
def test_strict_files_see_what_only_reading_finds_and_what_a_finished_corpus_lacks(tmp_path: Path) -> None:
    first = build(tmp_path / "first", f"release:{make_release(tmp_path / 'source', 40)}", shard_samples=8)
    shard = sorted((tmp_path / "first" / "train").glob("*.tar"))[0]
    (tmp_path / "cut").mkdir()
    (tmp_path / "cut" / "a.tar").write_bytes(shard.read_bytes()[:-20_000])
    assert first.fresh
    command = ["build-dataset", f"webdataset:{tmp_path / 'cut'}", "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(app, [*command, "--strict-files"])
    assert isinstance(result.exception, SourceError)
    assert CliRunner().invoke(app, command).exit_code == 0  # without it, what can be read is built
    result = CliRunner().invoke(app, [*command, "--strict-files"])
    assert isinstance(result.exception, SourceError)
    assert "a.tar" in str(result.exception)


@pytest.mark.slow
def test_json_output_names_refused_files(tmp_path: Path) -> None:
    source = drifting(tmp_path / "source")
    result = CliRunner().invoke(app, ["build-dataset", f"release:{source}", "--out", str(tmp_path / "c"), "--json"])
    (file,) = json.loads(result.stdout)["refused_files"]
    assert (file["location"], file["records"], file["code"]) == ("other.parquet", 12, "wrong_columns")


@pytest.mark.parametrize(("rows", "counted"), [(32, 32), (None, 1)])
def test_a_fragment_that_kills_its_reader_counts_all_its_rows(tmp_path: Path, rows: int | None, counted: int) -> None:
    fragment = Fragment("chunk_0.parquet", "groups 0:3 from row 0", "1:1", rows)
    task = ScanTask("release:x", fragment, {}, str(tmp_path / "scan.parquet"))
    crashed_fragment(task, "SIGSEGV")
    found = read_scan(tmp_path / "scan.parquet", ["position", "code"]).to_pylist()
    assert [row["position"] for row in found] == list(range(counted))
    assert {row["code"] for row in found} == {"reader_crashed"}


@pytest.mark.slow
def test_a_file_of_one_source_refused_leaves_the_sums_of_the_other_right(tmp_path: Path) -> None:
    write_parquet(tmp_path / "a" / "chunk_0.parquet", [release_row(index) for index in range(5)])
    (tmp_path / "a" / "chunk_1.parquet").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    corpus = build(tmp_path / "corpus", f"release:{tmp_path / 'a'}", "world:4").corpus
    assert (corpus.sums["read"], corpus.sums["written"], corpus.sums["codes"]) == (10, 9, {"lfs_pointer": 1})
    assert "git lfs pull" in build_summary(corpus, fresh=True)
