"""Corpora of earlier versions open, validate, train and are built from as ever.

`golden/older_corpus` was built before the column and the key `license` had that name, by commit a6f572d:
`sigma build-dataset "world:3?size=64&families=editing,relation&format=jpg&licence=cc-by-4.0" splits.train=1
splits.val=0 splits.test=0`.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import polars as pl
import pytest
import yaml
from support import corpora
from support.places import GOLDEN

from pipelines.build_dataset.config import BuildConfig
from pipelines.shard.run import Selection, reshard
from pipelines.validate.run import validate_corpus
from sigma_data.corpus.corpus import CARD, MANIFEST, open_corpus
from sigma_data.planning.index import open_index
from sigma_data.sequence.tokenizer import Tokenizer
from sigma_model.config import preset_directory

SOURCE = "world:3?size=64&families=editing,relation&format=jpg&licence=cc-by-4.0"
SPLITS = {"train": 1.0, "val": 0.0, "test": 0.0}


@pytest.fixture
def older(tmp_path: Path) -> Path:
    return Path(shutil.copytree(GOLDEN / "older_corpus", tmp_path / "older"))


def records(corpus: Path) -> list[dict[str, dict[str, str]]]:
    tars = sorted(corpus.rglob("*.tar"))
    return [json.loads(data) for tar in tars for name, data in corpora.members(tar) if name.endswith(".json")]


def json_keys_of_the_source(corpus: Path) -> set[str]:
    """The keys of a record's source as the card gives them to `datasets`."""
    head = yaml.safe_load((corpus / CARD).read_text("utf-8").split("---")[1])
    json_feature = next(part for part in head["dataset_info"][0]["features"] if part["name"] == "json")
    source = next(part for part in json_feature["struct"] if part["name"] == "source")
    return {part["name"] for part in source["struct"]}


def test_an_older_corpus_opens_and_is_sound(older: Path) -> None:
    assert "licence" in pl.read_parquet(older / MANIFEST).columns
    corpus = open_corpus(older)
    assert set(corpus.manifest["license"]) == {"cc-by-4.0"}
    assert {corpus.sample(row).source.license for row in corpus.manifest.iter_rows(named=True)} == {"cc-by-4.0"}
    assert not validate_corpus(older, deep=True, workers=0).problems
    assert len(open_index(str(older), Tokenizer.load(preset_directory("tiny")))) == 3


def test_the_build_of_an_older_corpus_is_complete(older: Path) -> None:
    assert not corpora.build(older, SOURCE, splits=SPLITS).fresh


@pytest.mark.slow
def test_a_new_build_differs_in_the_name_of_the_license_alone(older: Path, tmp_path: Path) -> None:
    new = corpora.build(tmp_path / "new", SOURCE, splits=SPLITS).corpus
    before, after = (pl.read_parquet(path / MANIFEST) for path in (older, new.path))
    assert after.columns == ["license" if name == "licence" else name for name in before.columns]
    assert after.drop("json_sha256").equals(before.rename({"licence": "license"}).drop("json_sha256"))
    assert {tar.name: tar.read_bytes() for tar in new.path.rglob("*.tar")} == {
        tar.name: renamed(tar) for tar in older.rglob("*.tar")
    }
    assert json_keys_of_the_source(new.path) == set(records(new.path)[0]["source"])


def renamed(tar: Path) -> bytes:
    return tar.read_bytes().replace(b'"licence":', b'"license":')


def test_an_older_corpus_is_sharded_anew_as_it_is(older: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    reshard(older, out, Selection(), shard_bytes=2**30, shard_samples=1, workers=0)
    assert not validate_corpus(out, deep=True, workers=0).problems
    assert set(open_corpus(out).manifest["license"]) == {"cc-by-4.0"}
    assert json_keys_of_the_source(out) == set(records(out)[0]["source"])


def test_an_older_corpus_is_a_source(older: Path, tmp_path: Path) -> None:
    corpus = corpora.build(tmp_path / "out", f"webdataset:{older}", splits=SPLITS).corpus
    assert set(corpus.manifest["license"]) == {"cc-by-4.0"}
    assert {record["source"]["license"] for record in records(corpus.path)} == {"cc-by-4.0"}


def test_a_configuration_has_the_digest_that_it_had() -> None:
    digest = "78fbe35c5fb769ec3eedb1976b9551d12b597ef60165bc96c8af39fefda859bb"
    assert BuildConfig(sources=("release:x",)).digest() == digest
