"""Hostile commits and manifests: any value and any byte may be wrong: a commit whose sums add up, or one sentence."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from support import corpora, image_files

from pipelines.inspect.run import inspect_corpus, inspect_sample
from pipelines.shard.run import Selection, export_release, reshard
from pipelines.validate.run import validate_corpus
from sigma_data.corpus.corpus import COMMIT, MANIFEST, open_corpus
from sigma_data.errors import CorpusError, SigmaError

pytestmark = pytest.mark.usefixtures("no_hang")


def touch_everything(corpus: Path, out: Path) -> bool:
    """Every command on a corpus: True where validate --deep calls it sound. Only SigmaErrors are caught."""
    before = corpora.files_below(corpus)
    result = validate_corpus(corpus, deep=True, workers=0)
    json.dumps(result.as_dict()).encode()
    fast = validate_corpus(corpus, deep=False, workers=0)
    assert not (fast.problems and not result.problems)
    options: dict[str, Any] = {"shard_bytes": 10**6, "shard_samples": 10, "workers": 0}
    calls: list[Callable[[], Any]] = [
        lambda: inspect_corpus(corpus).show(),
        lambda: inspect_sample(corpus, "0").as_dict(),
        lambda: inspect_sample(corpus, "11").as_dict(),
        lambda: reshard(corpus, out / "again", Selection(), **options),
        lambda: export_release(corpus, out / "release", Selection(limit=4)),
    ]
    for call in calls:
        try:
            call()
        except SigmaError as error:
            str(error).encode()
    assert corpora.files_below(corpus) == before
    for path in (out / "again", out / "release"):
        shutil.rmtree(path, ignore_errors=True)
    assert list(out.iterdir()) == []
    return not result.problems


@pytest.fixture
def hostile_corpus(twelve_samples: Path, arena: Path) -> Path:
    (arena / "out").mkdir()
    return Path(shutil.copytree(twelve_samples, arena / "in" / "corpus"))


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path to every value inside JSON, containers included."""
    if path:
        yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from leaves(inner, (*path, key))


HOSTILE_VALUES = [None, -1, 2**70, 1.5, float("nan"), "../../evil", "", [], {}, "\ud800", [[]], True, "9" * 5000]


@pytest.mark.slow
def test_any_value_in_the_commit_may_be_wrong(hostile_corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    generator = np.random.default_rng(6)
    original = corpora.read_commit(hostile_corpus)
    places = [place for place in leaves(original) if place != ("digest",)]
    top = [place for place in places if len(place) <= 2]
    for index in range(70):
        pool = top if index % 2 else places
        *path, last = pool[generator.integers(len(pool))]
        commit = json.loads(json.dumps(original))
        inner = commit
        for key in path:
            inner = inner[key]
        inner[last] = HOSTILE_VALUES[generator.integers(len(HOSTILE_VALUES))]
        corpora.write_commit(hostile_corpus, commit)
        touch_everything(hostile_corpus, hostile_corpus.parents[1] / "out")


@pytest.mark.slow
def test_any_byte_of_the_commit_may_be_wrong(hostile_corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    generator = np.random.default_rng(7)
    sound = (hostile_corpus / COMMIT).read_bytes()
    for index in range(60):
        broken = image_files.mutated(sound, generator, times=1 + index % 3)
        (hostile_corpus / COMMIT).write_bytes(broken)
        assert touch_everything(hostile_corpus, hostile_corpus.parents[1] / "out") == (broken == sound)


@pytest.mark.slow
def test_any_byte_of_the_manifest_may_be_wrong(hostile_corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    generator = np.random.default_rng(8)
    sound = (hostile_corpus / MANIFEST).read_bytes()
    for index in range(60):
        tail = max(0, len(sound) - 6000) if index % 2 else 0
        broken = sound[:tail] + image_files.mutated(sound[tail:], generator, times=1 + index % 3)
        (hostile_corpus / MANIFEST).write_bytes(broken)
        if index % 4:
            corpora.forge_commit(hostile_corpus)  # so that the broken table is really read
        touch_everything(hostile_corpus, hostile_corpus.parents[1] / "out")


@pytest.mark.slow
def test_any_value_in_the_manifest_may_be_wrong(hostile_corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    generator = np.random.default_rng(9)
    original = corpora.read_manifest(hostile_corpus)
    for index in range(30):
        rows = json_like(original)
        row = rows[generator.integers(len(rows))]
        holder = row["images"][0] if index % 3 == 0 else row["turns"][0] if index % 7 == 1 else row
        name = list(holder)[generator.integers(len(holder))]
        value = holder[name]
        if isinstance(value, bool):
            choices: list[Any] = [not value, None]
        elif isinstance(value, int):
            choices = [None, -1, 0, 2**15 - 1, value + 1] + ([2**62] if abs(value) > 2**15 or name == "row" else [])
        elif isinstance(value, list):
            choices = [None, [], value + value] + ([[None]] if name in ("images", "turns", "attributes") else [])
        elif isinstance(value, bytes):
            choices = [None, b"", b"x" * 86, b"x" * 90]
        elif name == "value_range":  # a struct of its own
            choices = [{"rule": "min_max", "low": 0.0, "high": 4000.0}, {"rule": "", "low": None, "high": 1e300}]
        else:
            choices = [None, "", "../../evil.tar", "train/../../evil-00000.tar", "\0", "x" * 100_000, "val"]
        new = choices[generator.integers(len(choices))]
        holder[name] = new
        corpora.write_manifest(hostile_corpus, rows)
        corpora.forge_commit(hostile_corpus)
        sound = touch_everything(hostile_corpus, hostile_corpus.parents[1] / "out")
        # Nothing but these may be made up, for nothing that is stored speaks against it.
        assert not sound or new == value or name in ("content", "component", "warnings", "reencoded"), (name, new)


def json_like(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A deep copy."""
    return [
        {name: [dict(v) if isinstance(v, dict) else v for v in value] if isinstance(value, list) else value
         for name, value in row.items()}
        for row in rows
    ]  # fmt: skip


OUTSIDE = ["../../evil.tar", "/sigma_evil.tar", "train/../../evil-00000.tar", "a/b/editing-00000.tar",
           "train/editing-00000.tar/../evil", "..", "", "train\\editing-00000.tar",
           "train/editing-00000.tar\n"]  # fmt: skip


@pytest.mark.parametrize("name", OUTSIDE, ids=repr)
def test_a_commit_that_names_a_shard_outside_is_refused(
    hostile_corpus: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    def add(commit: dict[str, Any]) -> None:
        commit["shards"][name] = commit["shards"].pop("train/editing-00000.tar")

    corpora.forge_commit(hostile_corpus, add)
    with pytest.raises(CorpusError):
        open_corpus(hostile_corpus)
    problems = validate_corpus(hostile_corpus, deep=True, workers=0).problems
    assert [problem.code for problem in problems] == ["bad_commit"]
    touch_everything(hostile_corpus, hostile_corpus.parents[1] / "out")


@pytest.mark.parametrize("name", OUTSIDE, ids=repr)
def test_a_commit_that_names_a_file_outside_is_refused(hostile_corpus: Path, name: str) -> None:
    corpora.forge_commit(hostile_corpus, lambda commit: commit["files"].update({name: {"bytes": 1, "sha256": ""}}))
    with pytest.raises(CorpusError):
        open_corpus(hostile_corpus)


@pytest.mark.parametrize("name", OUTSIDE, ids=repr)
def test_a_manifest_that_names_a_shard_outside_is_refused(
    hostile_corpus: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    rows = corpora.read_manifest(hostile_corpus)
    for row in rows[:2]:
        row["shard"] = name
    corpora.write_manifest(hostile_corpus, rows)
    corpora.forge_commit(hostile_corpus)
    with pytest.raises(CorpusError, match="names the shard"):
        _ = open_corpus(hostile_corpus).manifest
    options: dict[str, Any] = {"shard_bytes": 10**6, "shard_samples": 10, "workers": 0}
    with pytest.raises(CorpusError):
        reshard(hostile_corpus, hostile_corpus.parents[1] / "out" / "again", Selection(), **options)
    with pytest.raises(CorpusError):
        inspect_corpus(hostile_corpus)
    touch_everything(hostile_corpus, hostile_corpus.parents[1] / "out")


@pytest.mark.parametrize("split", ["../..", "a/b", "/tmp", "", "a.b", "train\n"], ids=repr)
def test_a_split_that_is_no_folder_name_is_refused(
    hostile_corpus: Path, capsys: pytest.CaptureFixture[str], split: str
) -> None:
    rows = corpora.read_manifest(hostile_corpus)
    for row in rows:
        if row["split"] == "val":
            row["split"] = split
            row["shard"] = row["shard"].replace("val/", f"{split}/")
    corpora.write_manifest(hostile_corpus, rows)
    corpora.forge_commit(hostile_corpus)
    with pytest.raises(CorpusError):
        _ = open_corpus(hostile_corpus).manifest
    corpora.forge_commit(hostile_corpus, lambda commit: commit["sums"]["splits"].update({split: 1}))
    with pytest.raises(CorpusError):
        open_corpus(hostile_corpus)
    touch_everything(hostile_corpus, hostile_corpus.parents[1] / "out")


def test_sizes_in_the_manifest_cannot_make_reshard_fill_the_disk(hostile_corpus: Path) -> None:
    rows = corpora.read_manifest(hostile_corpus)
    rows[0]["size"] = 2**45
    corpora.write_manifest(hostile_corpus, rows)
    corpora.forge_commit(hostile_corpus)
    options: dict[str, Any] = {"shard_bytes": 2**48, "shard_samples": 10, "workers": 0}
    with pytest.raises(CorpusError, match="run sigma validate"):
        reshard(hostile_corpus, hostile_corpus.parents[1] / "out" / "again", Selection(), **options)


def test_a_shard_that_is_a_link_out_of_the_corpus_does_not_pass_as_another_file(hostile_corpus: Path) -> None:
    path = hostile_corpus / "train/editing-00000.tar"
    path.unlink()
    path.symlink_to("/etc/passwd")
    problems = validate_corpus(hostile_corpus, deep=True, workers=0).problems
    assert any(problem.where == "train/editing-00000.tar" for problem in problems)


def test_no_manifest_is_read_that_is_not_the_committed_one(hostile_corpus: Path) -> None:
    frame = pl.read_parquet(hostile_corpus / MANIFEST)
    frame.write_parquet(hostile_corpus / MANIFEST)
    with pytest.raises(CorpusError, match="not the file that was committed"):
        _ = open_corpus(hostile_corpus).manifest
