"""Other people's readers take our shards as they are, with pictures and JSON decoded."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image as PilImage
from support import corpora

from sigma_data.corpus.corpus import Corpus, open_corpus


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """Families with one to three references, in three formats, over three splits and many shards."""
    folder = tmp_path_factory.mktemp("interop")
    corpora.make_release(folder / "release", 90, seed=4)
    splits = {"train": 60, "val": 20, "test": 20}
    return corpora.build(folder / "corpus", f"release:{folder / 'release'}", splits=splits, shard_samples=8).corpus


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def expected(corpus: Corpus, split: str, family: str | None = None) -> dict[str, dict[str, Any]]:
    rows = corpus.manifest.iter_rows(named=True)
    return {row["id"]: row for row in rows if row["split"] == split and family in (None, row["family"])}


@pytest.mark.slow
def test_webdataset_reads_every_sample_decoded(corpus: Corpus) -> None:
    import webdataset

    for split in ("train", "val", "test"):
        shards = [str(corpus.path / shard) for shard in corpus.shards if shard.startswith(split)]
        found = {}
        for sample in webdataset.WebDataset(shards, shardshuffle=False, empty_check=False).decode("pil"):
            found[sample["__key__"]] = sample
        rows = expected(corpus, split)
        assert found.keys() == rows.keys()
        for key, row in rows.items():
            record = found[key]["json"]
            assert record["turns"][0]["instruction"] == row["instruction"]
            assert {image["member"] for image in record["images"]} == {m for m in found[key] if m[0] in "rt"}
            for image in row["images"]:
                assert found[key][image["member"]].size == (image["width"], image["height"])


def check_rows(rows: Iterator[dict[str, Any]], wanted: dict[str, dict[str, Any]]) -> None:
    found = {row["__key__"]: row for row in rows}
    assert found.keys() == wanted.keys()
    for key, row in wanted.items():
        record = found[key]["json"]
        assert record["turns"][0]["instruction"] == row["instruction"]
        assert record["family"] == row["family"]
        pictures = {name: value for name, value in found[key].items() if isinstance(value, PilImage.Image)}
        assert pictures.keys() == {image["member"] for image in row["images"]}, "no picture may be dropped"
        for image in row["images"]:
            assert pictures[image["member"]].size == (image["width"], image["height"])


@pytest.mark.slow
@pytest.mark.parametrize("streaming", [False, True])
def test_hf_datasets_loads_the_folder_with_every_picture(corpus: Corpus, streaming: bool) -> None:
    from datasets import load_dataset

    assert os.environ["HF_HUB_OFFLINE"] == "1"
    loaded = load_dataset(str(corpus.path), streaming=streaming)
    assert set(loaded) == {"train", "val", "test"}
    for split in loaded:
        check_rows(iter(loaded[split]), expected(corpus, split))


@pytest.mark.slow
def test_hf_datasets_loads_one_family_by_its_name(corpus: Corpus) -> None:
    from datasets import load_dataset

    loaded = load_dataset(str(corpus.path), "relation", split="train", streaming=True)
    check_rows(iter(loaded), expected(corpus, "train", "relation"))


def test_the_card_has_exactly_the_columns_that_occur(corpus: Corpus) -> None:
    text = (corpus.path / "README.md").read_text()
    head = yaml.safe_load(text.split("---\n")[1])
    members = {image["member"] for row in corpus.manifest.iter_rows(named=True) for image in row["images"]}
    info = next(info for info in head["dataset_info"] if info["config_name"] == "default")
    assert {feature["name"] for feature in info["features"]} == {*members, "json", "__key__", "__url__"}
    for config in head["configs"]:
        for files in config["data_files"]:
            assert list(corpus.path.glob(files["path"])), files


def test_gnu_tar_and_pythons_tarfile_list_what_the_manifest_names(corpus: Corpus) -> None:
    import subprocess
    import tarfile

    for shard in corpus.shards:
        rows = [row for row in corpus.manifest.iter_rows(named=True) if row["shard"] == shard]
        names = [f"{row['id']}.{m}" for row in rows for m in ("json", *(image["member"] for image in row["images"]))]
        with tarfile.open(corpus.path / shard) as tar:
            assert tar.getnames() == names
        listed = subprocess.run(["tar", "-tf", corpus.path / shard], capture_output=True, text=True, check=True)
        assert (listed.stdout.split(), listed.stderr) == (names, "")


def test_every_byte_range_of_the_manifest_is_the_picture_it_names(corpus: Corpus) -> None:
    import hashlib

    for row in open_corpus(corpus.path).manifest.iter_rows(named=True):
        for image in row["images"]:
            data = corpus.read(row["shard"], image["offset"], image["size"])
            assert hashlib.sha256(data).hexdigest() == image["sha256"]
