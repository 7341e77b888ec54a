"""A manifest is checked as a stream: in memory that its length hardly adds to, with the findings of one look at all."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support import corpora
from support.grown_corpus import grown
from support.places import ROOT

from pipelines.validate import manifest_check
from pipelines.validate.run import validate_corpus

BYTES_A_ROW = 1_000


@pytest.mark.slow
def test_memory_grows_by_less_than_a_kilobyte_a_row(twelve: Path, tmp_path: Path) -> None:
    measure = (
        "import json, sys; from pipelines.common.process_pool import peak_memory\n"
        "from pipelines.validate.run import validate_corpus\n"
        "found = validate_corpus(sys.argv[1], deep=False)\n"
        "print(json.dumps([found.samples, len(found.problems), peak_memory()]))\n"
    )
    peaks = []
    for rows in (12_000, 36_000):
        grown(twelve, tmp_path / str(rows), rows)
        command = [sys.executable, "-c", measure, str(tmp_path / str(rows))]
        done = subprocess.run(command, stdout=subprocess.PIPE, check=True, cwd=ROOT)
        samples, problems, peak = json.loads(done.stdout)
        assert (samples, problems) == (rows, 0)
        peaks.append(peak)
    assert peaks[1] - peaks[0] < BYTES_A_ROW * 24_000


@pytest.fixture(scope="module")
def twelve(tmp_path_factory: pytest.TempPathFactory) -> Path:
    release = corpora.make_release(tmp_path_factory.mktemp("twelve") / "release", 12)
    corpora.build(release.parent / "corpus", f"release:{release}", shard_samples=1, splits={"train": 60, "test": 40})
    return release.parent / "corpus"


def _two_images_leak(rows: list[dict[str, Any]]) -> None:
    train, test = ([row for row in rows if row["split"] == split] for split in ("train", "test"))
    for name in ("sha256", "signature"):
        test[-1]["images"][-1][name] = train[0]["images"][0][name]
    near = bytearray(train[0]["images"][-1]["signature"])
    near[0] ^= 1  # a bit of the hash
    test[-1]["images"][0]["signature"] = bytes(near)


def _a_component_leaks(rows: list[dict[str, Any]]) -> None:
    rows[-1]["component"] = rows[0]["component"]


def _an_id_stands_there_twice(rows: list[dict[str, Any]]) -> None:
    rows[-1]["id"] = rows[0]["id"]


def _the_rows_of_two_shards_alternate(rows: list[dict[str, Any]]) -> None:
    rows[2]["shard"] = rows[4]["shard"] = rows[0]["shard"]
    rows[3]["shard"] = rows[1]["shard"]
    for row in rows[:5]:
        row["split"], row["family"] = rows[0]["split"], rows[0]["family"]
        row["shard"] = row["shard"].replace(row["shard"].split("-")[0], f"{row['split']}/{row['family']}")


@pytest.mark.parametrize(
    ("change", "codes"),
    [
        (_two_images_leak, {"leak"}),
        (_a_component_leaks, {"leak"}),
        (_an_id_stands_there_twice, {"duplicate_id"}),
        (_the_rows_of_two_shards_alternate, {"bad_sums", "missing_member"}),
    ],
)
def test_a_row_at_a_time_finds_what_all_at_once_do(
    change: Any, codes: set[str], twelve: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = Path(shutil.copytree(twelve, tmp_path / "corpus"))
    rows = corpora.read_manifest(corpus)
    change(rows)
    corpora.write_manifest(corpus, rows)
    corpora.forge_commit(corpus)
    found = {}
    for many in (1, 4096):
        monkeypatch.setattr(manifest_check, "_ROWS", many)
        found[many] = [validate_corpus(corpus, deep=deep, workers=0).problems for deep in (False, True)]
    assert found[1] == found[4096]
    for problems in found[1]:
        assert codes <= {problem.code for problem in problems}
    if change is _two_images_leak:
        leaks = [[problem.message for problem in problems if problem.code == "leak"] for problems in found[1]]
        assert [message.startswith("this image lies") for message in leaks[0]] == [True]
        assert len(leaks[1]) == 2, "the near one is found where images are compared"
