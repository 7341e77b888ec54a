"""Samples by byte ranges: the right bytes from any kind of place, no more than wanted, damage named."""

from __future__ import annotations

import os
import pickle
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import fsspec
import numpy as np
import pytest
from support.corpora import build
from support.training_data import changed, index_of

from sigma_data.corpus.corpus import Corpus, open_corpus
from sigma_data.errors import CorpusError
from sigma_data.loading import shard_reader as reader_module
from sigma_data.loading.shard_cache import ShardCache
from sigma_data.loading.shard_reader import ShardReader
from sigma_data.planning.index import CorpusIndex
from sigma_data.sample import Sample


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("reader") / "corpus"
    build(out, "world:24?size=64")
    index_of(out)
    return out


@pytest.fixture
def corpus(built: Path, tmp_path: Path) -> Path:
    """A copy to be damaged."""
    return Path(shutil.copytree(built, tmp_path / "corpus"))


def everything(reader: ShardReader, row: int) -> Sample:
    sample = reader.sample(row)
    data = reader.images(row, {image.number for image in sample.images})
    return replace(sample, images=tuple(replace(image, data=data[image.number]) for image in sample.images))


def all_samples(reader: ShardReader) -> list[Sample]:
    return [everything(reader, row) for row in range(len(reader.index))]


def expected(corpus: Corpus) -> list[Sample]:
    return [corpus.sample(row) for row in corpus.manifest.iter_rows(named=True)]


@pytest.mark.slow
@pytest.mark.parametrize("place", ["folder", "file", "memory", "file through a cache", "memory through a cache"])
def test_every_sample_is_the_one_that_was_built_wherever_it_lies(place: str, built: Path, tmp_path: Path) -> None:
    uri = str(built)
    if place.startswith("file"):
        uri = built.as_uri()
    elif place.startswith("memory"):
        uri = f"memory://{tmp_path.name}"
        fsspec.filesystem("memory").put(str(built), tmp_path.name, recursive=True)
    cache = ShardCache(tmp_path / "shards", 2**30) if "cache" in place else None
    reader = ShardReader(index_of(uri, cache=tmp_path / "indexes"), cache)
    assert all_samples(reader) == expected(open_corpus(built))
    assert (tmp_path / "shards").exists() == ("cache" in place)


def test_only_the_record_and_the_pictures_that_are_wanted_are_read(built: Path) -> None:
    index = index_of(built)
    reader = ShardReader(index)
    for row in range(len(index)):
        before = reader.bytes_read
        sample = reader.sample(row)
        assert reader.bytes_read - before == index.json_size[row]
        assert all(image.data is None for image in sample.images)
        target = sample.targets[0]
        (place,) = [
            i for i in range(index.image_first[row], index.image_first[row + 1]) if index.image_number[i] == target
        ]
        before = reader.bytes_read
        assert list(reader.images(row, {target})) == [target]
        assert reader.bytes_read - before == index.image_size[place]
        assert reader.images(row, ()) == {}


def test_reads_that_bring_less_than_asked_are_gone_on_with(built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, index = expected(open_corpus(built)), index_of(built)
    full = os.pread
    monkeypatch.setattr(os, "pread", lambda descriptor, size, offset: full(descriptor, min(size, 1000), offset))
    assert all_samples(ShardReader(index)) == whole


def open_shards(folder: Path) -> list[Path]:
    """Targets of this process's descriptors that are shards."""
    links = [link for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]
    return [shard for link in links if (shard := link.readlink()).suffix == ".tar" and folder in shard.parents]


def test_few_shards_are_open_at_a_time_and_none_when_the_reader_is_gone(
    corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader_module, "_OPEN_SHARDS", 2)
    index = index_of(corpus)
    reader = ShardReader(index)
    rows = np.random.default_rng(0).permutation(len(index)).tolist()
    whole = expected(open_corpus(corpus))
    assert len(index.shards) > 2
    assert all(everything(reader, row) == whole[row] for row in rows)
    assert len(open_shards(corpus)) == 2
    del reader
    assert open_shards(corpus) == []


def test_a_reader_travels_between_processes_without_its_open_shards(built: Path) -> None:
    reader = ShardReader(index_of(built))
    first = everything(reader, 0)
    assert everything(pickle.loads(pickle.dumps(reader)), 0) == first


def cut(shard: Path) -> None:
    os.truncate(shard, 700)


def overwrite(shard: Path) -> None:
    with shard.open("r+b") as file:
        file.seek(512)
        file.write(b"}}")


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (cut, "ends [0-9,]+ bytes too early; run sigma validate"),
        (Path.unlink, "is not there any more; put it back"),
        (overwrite, r"the JSON is not a valid record .*run sigma validate"),
    ],
    ids=["cut", "gone", "overwritten"],
)
@pytest.mark.parametrize("remote", [False, True])
def test_damage_is_an_error_that_names_shard_and_sample_and_says_what_to_do(
    damage: Callable[[Path], None], says: str, remote: bool, corpus: Path, tmp_path: Path
) -> None:
    index = index_of(corpus.as_uri() if remote else corpus, cache=tmp_path / "indexes")
    shard = index.shards[index.shard[0]]
    damage(corpus / shard)
    with pytest.raises(CorpusError, match=f"{corpus / shard}: sample {index.ids[0].decode()} .*{says}"):
        ShardReader(index).sample(0)


def test_a_shard_that_is_gone_from_its_remote_place_is_named_with_a_cache_too(corpus: Path, tmp_path: Path) -> None:
    index = index_of(corpus.as_uri(), cache=tmp_path / "indexes")
    shard = corpus / index.shards[index.shard[0]]
    shard.unlink()
    with pytest.raises(CorpusError, match=f"{shard}: sample {index.ids[0].decode()} .*not there any more"):
        ShardReader(index, ShardCache(tmp_path / "shards", 2**30)).sample(0)


def test_a_remote_place_whose_client_fails_is_named(
    built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = index_of(built.as_uri(), cache=tmp_path)

    def refuse(*_: object, **__: object) -> bytes:
        raise RuntimeError("connection reset by peer")

    monkeypatch.setattr(fsspec.get_filesystem_class("file"), "cat_file", refuse)
    with pytest.raises(CorpusError, match="connection reset by peer.*look whether its place can be reached"):
        ShardReader(index).sample(0)


def swapped(index: CorpusIndex) -> CorpusIndex:
    return changed(index, ids=np.roll(index.ids, 1))


def renumbered(index: CorpusIndex) -> CorpusIndex:
    return changed(index, image_number=np.asarray(index.image_number) + 1)


@pytest.mark.parametrize(
    ("other", "says"),
    [(swapped, "is not there, but sample"), (renumbered, "has other images than the manifest says")],
    ids=["another sample", "other pictures"],
)
def test_a_record_that_is_not_the_indexed_one_is_refused(
    other: Callable[[CorpusIndex], CorpusIndex], says: str, built: Path
) -> None:
    with pytest.raises(CorpusError, match=says):
        ShardReader(other(index_of(built))).sample(0)
