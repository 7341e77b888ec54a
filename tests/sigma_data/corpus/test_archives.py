"""What lies in the place of a shard is told in one sentence; our own shards packed anew are read and told apart."""

from __future__ import annotations

import gzip
import io
import json
import random
import shutil
import tarfile
import zipfile
from pathlib import Path

import pytest
from support import corpora

from pipelines.train.preflight import check_shards
from pipelines.validate.run import validate_corpus
from sigma_data.corpus.archives import archive_fault
from sigma_data.corpus.corpus import open_corpus
from sigma_data.errors import CorpusError, SourceError
from sigma_data.planning.index import open_index
from sigma_data.sample import Sample
from sigma_data.sequence.tokenizer import Tokenizer
from sigma_data.sources import open_source
from sigma_model.config import preset_directory

FORMATS = {"pax": tarfile.PAX_FORMAT, "gnu": tarfile.GNU_FORMAT, "ustar": tarfile.USTAR_FORMAT}


def add(tar: tarfile.TarFile, name: str, data: bytes, **fields: object) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for field, value in fields.items():
        setattr(info, field, value)
    tar.addfile(info, io.BytesIO(data))


def pack_anew(corpus: Path, kind: str = "pax", *, prefix: str = "./", order: str = "shuffled") -> None:
    """Every shard as a person leaves it who has unpacked it and packed it with tar."""
    for path in corpus.rglob("*.tar"):
        with tarfile.open(path) as tar:
            members = [(info.name, tar.extractfile(info).read()) for info in tar]  # type: ignore[union-attr]
        if order == "shuffled":
            random.Random(0).shuffle(members)
        with tarfile.open(path, "w", format=FORMATS[kind]) as tar:
            if prefix:
                add(tar, prefix, b"", type=tarfile.DIRTYPE, mode=0o755)
            for name, data in members:
                extended = {"pax_headers": {"mtime": "1690000000.5"}} if kind == "pax" else {}
                add(tar, f"{prefix}{name}", data, mtime=1690000000, uname="somebody", mode=0o664, **extended)


@pytest.fixture
def corpus(small_corpus: Path, tmp_path: Path) -> Path:
    return shutil.copytree(small_corpus, tmp_path / "corpus")


def splits_of(path: Path) -> dict[str, str]:
    return dict(open_corpus(path).manifest.select("id", "split").iter_rows())


# Our own shards, packed anew -----------------------------------------------------------------------------


@pytest.mark.parametrize("deep", [False, True])
def test_shards_packed_anew_are_told_with_the_command_that_mends_them(corpus: Path, deep: bool) -> None:
    pack_anew(corpus)
    problems = validate_corpus(corpus, deep=deep, workers=0).problems
    shards = [problem for problem in problems if problem.where.endswith(".tar")]
    assert {problem.code for problem in shards} == {"wrong_size", "packed_anew"}
    (message,) = {problem.message for problem in shards if problem.code == "packed_anew"}
    assert f"sigma build-dataset webdataset:{corpus} --out NEW" in message


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "prefix", "order"),
    [("pax", "./", "shuffled"), ("gnu", "", "shuffled"), ("ustar", "some folder/", "kept"), ("ustar", "", "kept")],
)
def test_a_corpus_is_built_again_from_shards_packed_anew(
    kind: str, prefix: str, order: str, corpus: Path, tmp_path: Path
) -> None:
    before = open_corpus(corpus)
    pack_anew(corpus, kind, prefix=prefix, order=order)
    again = corpora.build(
        tmp_path / "again", f"webdataset:{corpus}", splits={"train": 60, "val": 20, "test": 20}
    ).corpus
    assert (again.sums["written"], again.sums["quarantined"]) == (37, 0)
    assert splits_of(again.path) == dict(before.manifest.select("id", "split").iter_rows())
    assert validate_corpus(again.path, deep=True, workers=0).problems == []


def test_training_is_told_what_was_done_to_the_shards(corpus: Path, tmp_path: Path) -> None:
    encoder = Tokenizer.load(preset_directory("tiny"), vocab_size=4096)
    index = open_index(str(corpus), encoder)
    pack_anew(corpus)
    with pytest.raises(CorpusError, match=r"repacked.*sigma build-dataset webdataset:\S+ --out NEW"):
        check_shards(index)
    for path in corpus.rglob("*.tar"):
        path.write_bytes(gzip.compress(path.read_bytes()))
    with pytest.raises(CorpusError, match="is compressed by gzip.*gzip -dc"):
        check_shards(index)
    found = validate_corpus(corpus, deep=False, workers=0).problems
    assert {problem.code for problem in found if problem.where.endswith(".tar")} == {"wrong_size", "not_a_shard"}


def test_a_tar_packed_anew_with_something_of_others_or_outside_is_not_taken_for_ours(tmp_path: Path) -> None:
    for number, name in enumerate(("../k.json", "/k.json", "notes.txt")):
        with tarfile.open(tmp_path / f"{number}.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
            add(tar, "a.ref_01.png", b"x", mtime=7)
            add(tar, name, b"{}")
        records = [r for f in open_source(f"webdataset:{tmp_path}/{number}.tar").fragments()
                   for r in open_source(f"webdataset:{tmp_path}/{number}.tar").read(f)]  # fmt: skip
        assert records
        assert not any(isinstance(record, Sample) for record in records)


# What is not ours ------------------------------------------------------------------------------------------


def pairs(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for number in range(3):
            add(tar, f"{number:09d}.jpg", b"\xff\xd8\xff")
            add(tar, f"{number:09d}.txt", b"an image")
            add(tar, f"{number:09d}.json", json.dumps({"key": number, "caption": "an image"}).encode())
    return path


def x2edit(path: Path) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, data in (("0.1.jpg", b"x"), ("0.2.jpg", b"x"), ("0.json", b'{"instruction": "brighten"}')):
            add(tar, name, data)
    return path


def zipped(path: Path) -> Path:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("a.tar", b"x")
    return path


def written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"cd" * 32 + b"\nsize 9999\n"

FOREIGN = {
    "foreign": (lambda d: pairs(d / "00000.tar"), r"is a tar of KEY\.jpg, KEY\.txt, KEY\.json, which sigma did not write.*release:"),
    "x2edit": (lambda d: x2edit(d / "edit-0.tar"), r"is a tar of KEY\.1\.jpg, KEY\.2\.jpg, KEY\.json"),
    "gz": (lambda d: written(d / "edit-0.tar.gz", gzip.compress(b"x" * 2000)), r"compressed by gzip.*gzip -dc .* > .*edit-0\.tar"),
    "tgz": (lambda d: written(d / "edit-0.tgz", gzip.compress(b"x" * 2000)), r"compressed by gzip.*edit-0\.tar"),
    "gz named tar": (lambda d: written(d / "e.tar", gzip.compress(b"x" * 2000)), r"compressed by gzip.*e\.unpacked\.tar"),
    "zst": (lambda d: written(d / "e.tar.zst", b"\x28\xb5\x2f\xfd" + b"x" * 600), r"compressed by zstd.*zstd -dc"),
    "zip": (lambda d: zipped(d / "e.zip"), r"is a zip archive.*unzip"),
    "lfs": (lambda d: written(d / "edit-0.tar", LFS), r"is a Git LFS pointer.*git lfs pull"),
    "web page": (lambda d: written(d / "edit-0.tar", b"<!DOCTYPE html><html>"), r"is a web page.*fetch it again"),
}  # fmt: skip


@pytest.mark.parametrize("name", FOREIGN)
@pytest.mark.parametrize("as_folder", [True, False])
def test_what_is_not_ours_is_one_sentence_with_what_it_is_and_what_to_do(
    name: str, as_folder: bool, tmp_path: Path
) -> None:
    make, words = FOREIGN[name]
    folder = tmp_path / "tars [v1]"
    folder.mkdir()
    file = make(folder)
    place = folder if as_folder else file
    with pytest.raises(SourceError, match=words) as source:
        open_source(f"webdataset:{place}").fragments()
    with pytest.raises(CorpusError, match=words) as opened:  # what inspect, shard, plan and train show
        open_corpus(place)
    for error in (source, opened):
        assert "\n" not in str(error.value)
        assert str(place) in str(error.value)
    if as_folder:
        (problem,) = validate_corpus(place, deep=False, workers=0).problems
        assert problem.code == "not_committed"
    else:
        with pytest.raises(CorpusError, match=words):
            validate_corpus(place, deep=False, workers=0)


def test_a_source_of_another_layout_is_named(small_corpus: Path, tmp_path: Path) -> None:
    release = corpora.make_release(tmp_path / "release", 2)
    with pytest.raises(
        SourceError, match=r"no \.tar file.*chunk_0\.parquet: it is a parquet file: read it with release:"
    ):
        open_source(f"webdataset:{release}").fragments()
    with pytest.raises(SourceError, match="is a corpus that sigma has built: read it with webdataset:"):
        open_source(f"release:{small_corpus}").fragments()
    with pytest.raises(SourceError, match=r"no \.parquet file.*it is a tar: if sigma wrote it.*webdataset:"):
        open_source(f"release:{small_corpus / 'train'}").fragments()
    with pytest.raises(SourceError, match="is an archive: unpack it first"):
        open_source(f"release:{zipped(tmp_path / 'x.zip')}").fragments()
    with pytest.raises(
        CorpusError, match="it holds parquet: build a corpus from it, sigma build-dataset release:.* public"
    ):
        open_corpus(release)


def test_a_shard_that_is_damaged_is_not_taken_for_foreign(small_corpus: Path, tmp_path: Path) -> None:
    shard = next(small_corpus.rglob("*.tar"))
    for cut in (700, len(shard.read_bytes()) // 2):
        file = written(tmp_path / "editing-00000.tar", shard.read_bytes()[:cut])
        assert len(open_source(f"webdataset:{file}").fragments()) == 1
    assert archive_fault(shard.read_bytes()[:512], str(shard)) is None


def test_something_foreign_among_our_shards_is_a_rejection_that_says_what_it_is(
    small_corpus: Path, tmp_path: Path
) -> None:
    shutil.copy(next(small_corpus.rglob("*.tar")), tmp_path / "editing-00000.tar")
    written(tmp_path / "editing-00001.tar", gzip.compress(b"x" * 2000))
    reader = open_source(f"webdataset:{tmp_path}")
    records = [record for fragment in reader.fragments() for record in reader.read(fragment)]
    (rejection,) = [record for record in records if not isinstance(record, Sample)]
    assert "is compressed by gzip" in rejection.message
    assert len(records) > 1
