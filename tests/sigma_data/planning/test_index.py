"""The index of a corpus: made once, whole or not at all, and only from what the corpus was committed with."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow.parquet as pq
import pytest
from support import corpora, planning
from support.places import TESTS
from support.planning import Counter, mixed_corpus

from pipelines.validate.run import validate_corpus
from sigma_data.corpus.corpus import COMMIT, INDEXES, MANIFEST, open_corpus
from sigma_data.errors import CorpusError
from sigma_data.planning.index import CorpusIndex, open_index
from sigma_data.sample import Family
from sigma_data.sequence.tokenizer import Tokenizer
from sigma_model.config import preset_directory

ARRAYS = [
    "ids", "families", "splits", "shard", "json_offset", "json_size", "image_first", "image_number", "image_width",
    "image_height", "image_offset", "image_size", "piece_first", "piece_kind", "piece_image", "piece_length", "words_only",
]  # fmt: skip


def opened(corpus: Path | str, **options: Any) -> CorpusIndex:
    return open_index(str(corpus), Counter(), **options)


def alike(one: CorpusIndex, other: CorpusIndex) -> bool:
    return all(np.array_equal(getattr(one, name), getattr(other, name)) for name in ARRAYS)


def built(corpus: Path | str, **options: Any) -> bool:
    """Whether opening had to build."""
    told: list[int] = []
    opened(corpus, progress=lambda done, total: told.append(done), **options)
    return bool(told)


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    return mixed_corpus(tmp_path / "corpus")


@pytest.fixture
def real(small_corpus: Path, tmp_path: Path) -> Path:
    """A corpus with shards."""
    return Path(shutil.copytree(small_corpus, tmp_path / "real", ignore=shutil.ignore_patterns(INDEXES)))


@pytest.fixture(scope="session")
def tiny() -> Tokenizer:
    return Tokenizer.load(preset_directory("tiny"))


# What it holds --------------------------------------------------------------------------------------


@pytest.mark.slow
def test_it_says_where_every_byte_of_every_sample_lies(real: Path, tiny: Tokenizer) -> None:
    index, manifest = open_index(str(real), tiny), open_corpus(real).manifest
    assert len(index) == len(manifest) == 37
    for row, said in enumerate(manifest.iter_rows(named=True)):
        images = slice(index.image_first[row], index.image_first[row + 1])
        assert index.ids[row].decode() == said["id"]
        assert list(Family)[index.families[row]] == said["family"]
        assert index.meta["splits"][index.splits[row]] == said["split"]
        assert index.shards[index.shard[row]] == said["shard"]
        assert (index.json_offset[row], index.json_size[row]) == (said["json_offset"], said["json_size"])
        for name in ("number", "width", "height", "offset", "size"):
            assert getattr(index, f"image_{name}")[images].tolist() == [image[name] for image in said["images"]]
        assert index.words_only[row] == (not any(image["role"] == "target" for image in said["images"]))
        assert index.name(row)[0] == index.names[row]
    assert list(index.shard_bytes) == [(real / name).stat().st_size for name in index.shards]
    assert index.digest == open_corpus(real).commit["files"][MANIFEST]["sha256"]
    assert index.faults == {}


def test_the_corpus_is_still_sound_with_it(real: Path, tiny: Tokenizer) -> None:
    open_index(str(real), tiny)
    assert (real / INDEXES).is_dir()
    assert validate_corpus(real, deep=True, workers=0).problems == []


def test_a_corpus_without_samples_has_an_index(tmp_path: Path) -> None:
    index = opened(planning.write_corpus(tmp_path, []))
    assert [len(getattr(index, name)) for name in ARRAYS] == [int(name.endswith("_first")) for name in ARRAYS]


def test_it_pickles_as_its_place(tmp_path: Path) -> None:
    index = opened(mixed_corpus(tmp_path / "corpus", scale=10))
    assert len(index.names) + len(index.ids) + index.image_first[-1] > 0
    again = pickle.loads(pickle.dumps(index))
    assert len(pickle.dumps(index)) < 600
    assert alike(index, again)
    assert (again.uri, again.folder) == (index.uri, index.folder)


# Made once ------------------------------------------------------------------------------------------


def test_it_is_made_once_for_each_tokenizer(corpus: Path, tiny: Tokenizer) -> None:
    assert built(corpus)
    assert not built(corpus)
    by_words, by_bytes = opened(corpus), open_index(str(corpus), tiny)
    assert by_words.folder != by_bytes.folder
    assert not np.array_equal(by_words.piece_length, by_bytes.piece_length)
    assert np.array_equal(by_words.piece_kind, by_bytes.piece_kind)


def test_another_manifest_has_another(corpus: Path) -> None:
    before = opened(corpus)
    corpora.write_manifest(corpus, corpora.read_manifest(corpus)[:-1])
    corpora.forge_commit(corpus)
    assert len(opened(corpus)) == len(before) - 1
    assert opened(corpus).folder != before.folder


@pytest.mark.parametrize("damage", ["cut", "gone", "no meta"])
def test_a_half_copied_index_is_made_anew(damage: str, corpus: Path) -> None:
    folder = opened(corpus).folder
    whole = {path.name: path.read_bytes() for path in folder.iterdir()}
    match damage:
        case "cut":
            (folder / "ids.npy").write_bytes(whole["ids.npy"][:-1])
        case "gone":
            (folder / "shard.npy").unlink()
        case _:
            (folder / "index.json").unlink()
    assert built(corpus)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == whole


# Read-only and remote -------------------------------------------------------------------------------


def test_a_corpus_that_may_not_be_written_to_has_its_index_in_the_cache(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    access = os.access
    monkeypatch.setattr(
        os, "access", lambda path, mode: corpus not in (Path(path), *Path(path).parents) and access(path, mode)
    )
    monkeypatch.setenv("SIGMA_CACHE", str(tmp_path / "cache"))
    assert built(corpus)
    assert not built(corpus)
    index = opened(corpus)
    assert index.folder.is_relative_to(tmp_path / "cache")
    assert index.uri == str(corpus)
    assert not (corpus / INDEXES).exists()


def test_an_index_that_lies_in_a_read_only_corpus_is_used(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = opened(corpus).folder
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert opened(corpus, cache=tmp_path / "cache").folder == there
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("protocol", ["file", "memory"])
def test_a_remote_corpus_is_read_through_a_copy_of_its_manifest(protocol: str, corpus: Path, tmp_path: Path) -> None:
    uri = f"file://{corpus}"
    if protocol == "memory":
        uri = f"memory://{tmp_path.name}/corpus"
        fsspec.filesystem("memory").put(str(corpus), f"/{tmp_path.name}/corpus", recursive=True)
    cache = tmp_path / "cache"
    assert built(uri, cache=cache)
    assert not built(uri, cache=cache)
    index = opened(uri, cache=cache)
    assert (index.uri, index.folder.is_relative_to(cache)) == (uri, True)
    assert not (corpus / INDEXES).exists()
    assert alike(index, opened(corpus))


def test_a_remote_corpus_that_changed_is_read_anew_and_one_changed_by_hand_is_refused(
    corpus: Path, tmp_path: Path
) -> None:
    uri, cache = f"file://{corpus}", tmp_path / "cache"
    assert len(opened(uri, cache=cache)) == 125
    corpora.write_manifest(corpus, corpora.read_manifest(corpus)[:-5])
    with pytest.raises(CorpusError, match="is not the file that was committed"):
        # Without the copy that is still there: it is the one that was committed.
        opened(uri, cache=tmp_path / "other")
    corpora.forge_commit(corpus)
    assert len(opened(uri, cache=cache)) == 120


@pytest.mark.parametrize("uri", ["memory://nowhere/at-all", "file:///nowhere/at-all"])
def test_a_remote_place_without_a_corpus_is_an_error_that_names_it(uri: str, tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=f"{uri}: cannot be read as a corpus"):
        opened(uri, cache=tmp_path)


def test_a_place_where_nothing_can_be_written_is_an_error_in_words(corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(CorpusError, match="cannot be read as a corpus"):
        opened(f"file://{corpus}", cache=tmp_path / "file")
    (corpus / INDEXES).write_text("in the way")
    with pytest.raises(CorpusError, match="the index cannot be written"):
        opened(corpus, cache=tmp_path / "file")


# Killed, and two at once ----------------------------------------------------------------------------


def process(corpus: Path, before: str = "") -> subprocess.Popen[str]:
    code = (
        f"import sys; sys.path[:0] = [{str(TESTS)!r}]\n"
        "import os, signal, pathlib\nfrom support import planning\n"
        "from sigma_data.planning.index import open_index\n"
        "import sigma_data.planning.index, sigma_data.planning.index_writer\n"
        "sigma_data.planning.index_writer._CHUNK = 10\n"
        f"{before}\n"
        "print('ready', flush=True); sys.stdin.readline()\n"
        "print(len(open_index(sys.argv[1], planning.Counter())))\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(TESTS.parent)}
    return subprocess.Popen(
        [sys.executable, "-c", code, str(corpus)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
    )  # fmt: skip


KILL = "os.kill(os.getpid(), signal.SIGKILL)"
MOMENTS = {
    "between chunks": f"sigma_data.planning.index.write_arrays = lambda *a, w=sigma_data.planning.index.write_arrays, **k: w(*a[:3], lambda d, t: d > 50 and {KILL}, **k)",
    "before it is complete": f"sigma_data.planning.index.json.dumps = lambda *a, **k: {KILL}",
    "before it has its name": f"pathlib.Path.rename = lambda *a: {KILL}",
}


@pytest.mark.slow
@pytest.mark.parametrize("moment", MOMENTS)
def test_a_build_that_is_killed_leaves_nothing_half_and_no_litter_for_long(moment: str, corpus: Path) -> None:
    killed = process(corpus, MOMENTS[moment])
    killed.communicate("\n", timeout=60)
    assert killed.returncode == -signal.SIGKILL
    left = [path.name for path in (corpus / INDEXES).iterdir()]
    assert len(left) == 1
    assert left[0].startswith("."), "nothing under the name of an index"
    assert len(opened(corpus)) == 125
    assert [path.name.startswith(".") for path in (corpus / INDEXES).iterdir()] == [False]


@pytest.mark.slow
def test_two_processes_at_once_both_get_it(corpus: Path) -> None:
    both = [process(corpus) for _ in range(2)]
    for one in both:
        assert one.stdout is not None
        assert one.stdout.readline() == "ready\n"
    for one in both:
        assert one.stdin is not None
        one.stdin.write("\n")
        one.stdin.flush()
    ended = [one.communicate(timeout=60) for one in both]
    assert [(one.returncode, out) for one, (out, _) in zip(both, ended, strict=True)] == [(0, "125\n")] * 2, ended
    assert len(list((corpus / INDEXES).iterdir())) == 1


def test_who_is_overtaken_takes_the_index_of_the_other(corpus: Path) -> None:
    overtaken = False

    def overtake(done: int, total: int) -> None:
        nonlocal overtaken
        if not overtaken:
            overtaken = True
            opened(corpus)

    assert len(opened(corpus, progress=overtake)) == 125
    assert overtaken
    assert len(list((corpus / INDEXES).iterdir())) == 1


# Untrusted ------------------------------------------------------------------------------------------


def test_a_manifest_that_was_changed_after_the_commit_is_refused(corpus: Path) -> None:
    rows = corpora.read_manifest(corpus)
    rows[3]["turns"][0]["instruction"] += " a"
    corpora.write_manifest(corpus, rows)
    with pytest.raises(CorpusError, match=r"manifest.parquet: is not the file that was committed; run sigma validate"):
        opened(corpus)
    assert not list(corpus.glob(f"{INDEXES}/*"))


def image(name: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda row: row["images"][1].update({name: value})


FORGERIES: dict[str, tuple[Callable[[dict[str, Any]], None], str]] = {
    "record behind the end": (lambda row: row.update(json_offset=4999), "offsets or sizes"),
    "negative record": (lambda row: row.update(json_offset=-1), "offsets or sizes"),
    "negative size": (lambda row: row.update(json_size=-300), "offsets or sizes"),
    "sum that wraps around": (lambda row: row.update(json_offset=2**62, json_size=2**62 + 2**61), "offsets or sizes"),
    "picture behind the end": (image("offset", 4950), "offsets or sizes"),
    "largest picture": (image("size", 2**63 - 1), "offsets or sizes"),
    "picture that wraps around": (lambda row: row["images"][1].update(offset=2**63 - 1, size=2**63 - 1), "offsets or"),
    "no width": (image("width", 0), "without a size or a number"),
    "negative height": (image("height", -5), "without a size or a number"),
    "picture zero": (image("number", 0), "without a size or a number"),
    "nothing in a width": (image("width", None), "has no value in images.width"),
    "nothing for a picture": (lambda row: row.update(images=[None]), "has no value in images"),
    "nothing for pictures": (lambda row: row.update(images=None), "has no value in images"),
    "nothing for a turn": (lambda row: row.update(turns=[None]), "has no value in turns.instruction"),
    "nothing for an instruction": (lambda row: row["turns"][0].update(instruction=None), "has no value in turns"),
    "nothing for an offset": (lambda row: row.update(json_offset=None), "has no value in json_offset"),
    "nothing for an id": (lambda row: row.update(id=None), "has no value in id"),
    "an id with a path": (lambda row: row.update(id="../x"), "not a key of a shard"),
    "another shard": (lambda row: row.update(shard="train/editing-99999.tar"), "names a shard"),
    "another split": (lambda row: row.update(split="elsewhere"), "names a split"),
    "another family": (lambda row: row.update(family="painting"), "names a family"),
}


@pytest.mark.parametrize("name", FORGERIES)
def test_a_forged_manifest_is_refused_in_words(name: str, corpus: Path) -> None:
    forge, words = FORGERIES[name]
    rows = corpora.read_manifest(corpus)
    forge(rows[7])
    corpora.write_manifest(corpus, rows)
    corpora.forge_commit(corpus)
    with pytest.raises(CorpusError, match=words):
        opened(corpus)
    assert not list(corpus.glob(f"{INDEXES}/*"))


def test_a_manifest_with_other_columns_is_refused(corpus: Path) -> None:
    table = pq.read_table(corpus / MANIFEST)
    offsets = table["json_offset"].cast("string")
    for changed in (table.drop_columns("json_size"), table.set_column(8, "json_offset", offsets)):
        pq.write_table(changed, corpus / MANIFEST)
        corpora.forge_commit(corpus)
        with pytest.raises(CorpusError, match=r"the columns json_\w+ are not there, or of another type"):
            opened(corpus)
    (corpus / MANIFEST).write_bytes(b"PAR1 and then nothing of the kind PAR1")
    corpora.forge_commit(corpus)
    with pytest.raises(CorpusError, match="cannot be read"):
        opened(corpus)


def test_a_commit_that_is_gone_is_no_corpus(corpus: Path) -> None:
    opened(corpus)
    (corpus / COMMIT).unlink()
    with pytest.raises(CorpusError, match="not a corpus"):
        opened(corpus)


def test_the_metadata_is_json_of_the_documented_kind(corpus: Path) -> None:
    index = opened(corpus)
    meta = json.loads((index.folder / "index.json").read_text())
    assert meta["manifest"] == index.digest
    assert meta["tokenizer"] == Counter.digest
    assert set(meta["files"]) == {f"{name}.npy" for name in ARRAYS}
