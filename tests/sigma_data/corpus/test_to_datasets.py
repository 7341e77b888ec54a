"""A corpus from Python: by row and id, and as HF data sets."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.corpora import build

import sigma_data
from sigma_data import Corpus, open_corpus
from sigma_data.errors import ConfigError


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    out = tmp_path_factory.mktemp("datasets") / "corpus"
    build(out, "world:60?size=64", splits={"train": 0.8, "test": 0.2})
    return open_corpus(out)


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path)


def test_the_public_names_are_there() -> None:
    assert all(getattr(sigma_data, name) is not None for name in sigma_data.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = sigma_data.nothing


@pytest.mark.slow
def test_samples_by_row_and_by_id(corpus: Corpus) -> None:
    ids = corpus.manifest["id"].to_list()
    assert [sample.id for sample in corpus] == ids and len(corpus) == len(ids)
    assert corpus[0].id == ids[0] and corpus[-1].id == ids[-1] and corpus[ids[3]] == corpus[3]
    assert all(image.data for image in corpus[0].images)
    for key, error in ((len(ids), IndexError), (-len(ids) - 1, IndexError), ("nothing", KeyError)):
        with pytest.raises(error, match="has no sample"):
            corpus[key]


@pytest.mark.parametrize("streaming", [False, True])
def test_rows_hold_what_the_samples_hold(corpus: Corpus, streaming: bool) -> None:
    found = corpus.to_datasets(streaming=streaming)
    assert list(found) == ["train", "test"]
    rows = {row["id"]: row for split in found.values() for row in split}
    assert set(rows) == set(corpus.manifest["id"])
    for sample in corpus:
        row = rows[sample.id]
        assert row["numbers"] == [image.number for image in sample.images] and row["family"] == sample.family
        assert [turn["instruction"] for turn in row["turns"]] == [turn.instruction for turn in sample.turns]
        assert [role == "target" for role in row["roles"]] == [
            image.number in sample.targets for image in sample.images
        ]
        assert all(image.size[0] == 64 for image in row["images"])
    assert found["train"].features == found["test"].features


def test_a_streamed_split_is_read_in_parts_by_workers(corpus: Corpus) -> None:
    from torch.utils.data import DataLoader

    train = corpus.to_datasets(split="train", streaming=True)
    shards = [name for name in corpus.shards if name.startswith("train/")]
    assert train.num_shards == len(shards) > 1
    ids = [row["id"] for row in DataLoader(train, batch_size=None, num_workers=2)]
    assert sorted(ids) == sorted(corpus.manifest.filter(corpus.manifest["split"] == "train")["id"])


def test_an_unknown_split_names_the_known(corpus: Corpus) -> None:
    with pytest.raises(ConfigError, match=r"has no split 'dev': it has train, test"):
        corpus.to_datasets(split="dev")


@pytest.mark.slow
def test_a_corpus_that_was_built_anew_is_not_taken_for_the_old_one(corpus: Corpus, tmp_path: Path) -> None:
    build(tmp_path / "corpus", "world:20?size=64", splits={"train": 1.0})
    rows = open_corpus(tmp_path / "corpus").to_datasets(split="train", streaming=True)
    build(tmp_path / "corpus", "world:30?size=64", splits={"train": 1.0}, overwrite=True)
    with pytest.raises(ConfigError, match="was built anew"):
        next(iter(rows))


@pytest.mark.slow
def test_webdataset_reads_every_sample_of_a_split(corpus: Corpus) -> None:
    rows = [
        row["id"] for row in corpus.manifest.sort("shard", "offset").iter_rows(named=True) if row["split"] == "test"
    ]
    found = {sample.id: sample for sample in corpus.to_webdataset(split="test")}
    assert sorted(found) == sorted(rows) and all(found[name] == corpus[name] for name in rows)
    with pytest.raises(ConfigError, match="has no split 'dev': it has "):
        corpus.to_webdataset(split="dev")
