"""A build removes nothing but what a build wrote, and takes no folder that is not its own."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from support import corpora, image_files

from pipelines.build_dataset.config import BuildConfig
from pipelines.common.settings import load_settings
from pipelines.shard.run import Selection, export_release, reshard
from pipelines.validate.run import validate_corpus
from sigma_data.corpus.corpus import open_corpus
from sigma_data.errors import ConfigError, SigmaError, SourceError

WORLD = "world:12?size=64"


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def release(tmp_path: Path) -> Path:
    return corpora.make_release(tmp_path / "data" / "release", 12, seed=8)


@pytest.mark.parametrize("out", ["data/release", "data", "data/release/corpus", "."])
@pytest.mark.parametrize("overwrite", [False, True])
def test_a_corpus_is_never_written_over_into_or_around_its_source(
    out: str, overwrite: bool, release: Path, tmp_path: Path
) -> None:
    before = files(tmp_path)
    with pytest.raises(ConfigError, match="overlap"):
        corpora.build(tmp_path / out, f"release:{release}", overwrite=overwrite)
    assert files(tmp_path) == before


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_that_only_has_a_folder_of_our_name_is_not_taken(overwrite: bool, tmp_path: Path) -> None:
    out = tmp_path / "home"
    for name in (".sigma/settings.txt", "precious/years.txt", "train/notes.tar"):
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_text("mine")
    before = files(out)
    with pytest.raises(ConfigError, match="not empty and holds no corpus"):
        corpora.build(out, WORLD, overwrite=overwrite)
    assert files(out) == before


def test_a_foreign_corpus_json_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "corpus.json").write_text("{}")
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "a.txt").write_text("mine")
    before = files(tmp_path)
    with pytest.raises(ConfigError, match="remove it by hand"):
        corpora.build(tmp_path, WORLD, overwrite=True)
    assert files(tmp_path) == before


@pytest.mark.slow
def test_overwriting_leaves_what_others_put_into_the_folder(tmp_path: Path) -> None:
    out = tmp_path / "out"
    corpora.build(out, WORLD)
    (out / "train" / "notes.txt").write_text("mine")
    (out / "figures").mkdir()
    (out / "figures" / "a.png").write_text("mine")
    corpora.build(out, WORLD, seed=3, overwrite=True)
    assert (out / "train" / "notes.txt").read_text() == (out / "figures" / "a.png").read_text() == "mine"


def test_a_corpus_is_not_filtered_or_sharded_into_itself(small_corpus: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(small_corpus, tmp_path / "outer" / "corpus")
    before = files(tmp_path)
    for out in (copy, tmp_path / "outer", copy / "part"):
        with pytest.raises(ConfigError, match="overlap"):
            corpora.build(out, f"webdataset:{copy}", overwrite=True)
        with pytest.raises(ConfigError, match="overlap"):
            reshard(copy, out, Selection(), shard_bytes=10**9, shard_samples=9, workers=0, overwrite=True)
        with pytest.raises(ConfigError, match="overlap"):
            export_release(copy, out, Selection())
    assert files(tmp_path) == before


def test_a_mistyped_source_does_not_claim_the_folder(release: Path, tmp_path: Path) -> None:
    with pytest.raises(SourceError):
        corpora.build(tmp_path / "out", "release:/nowhere/at/all")
    assert not (tmp_path / "out").exists()
    assert corpora.build(tmp_path / "out", f"release:{release}").fresh


@pytest.mark.slow
def test_files_that_a_power_cut_emptied_count_as_not_there(release: Path, tmp_path: Path) -> None:
    import pipelines.build_dataset.run as run

    whole = corpora.build(tmp_path / "whole", f"release:{release}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "make_plan", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            corpora.build(tmp_path / "out", f"release:{release}")
    for scan in (tmp_path / "out" / ".sigma" / "scan").iterdir():
        scan.write_bytes(b"")
    assert corpora.build(tmp_path / "out", f"release:{release}").corpus.commit == whole.corpus.commit


def test_a_damaged_state_is_one_sentence_and_overwriting_helps(release: Path, tmp_path: Path) -> None:
    (tmp_path / "out" / ".sigma").mkdir(parents=True)
    (tmp_path / "out" / ".sigma" / "config.json").write_text("")
    with pytest.raises(ConfigError, match="damaged: add --overwrite"):
        corpora.build(tmp_path / "out", f"release:{release}")
    assert corpora.build(tmp_path / "out", f"release:{release}", overwrite=True).fresh


@pytest.mark.slow
def test_pictures_that_reencoding_makes_illegal_are_rejected_not_committed(tmp_path: Path) -> None:
    with pytest.raises(SigmaError, match="too_small 12"):
        corpora.build(tmp_path / "all", WORLD, max_side=16)
    rows = [corpora.release_row(1), corpora.release_row(2)]
    rows[0]["image_list"][0] = image_files.image_bytes("jpeg", 5, width=400, height=60)
    corpora.write_parquet(tmp_path / "r" / "a.parquet", rows)
    corpus = corpora.build(tmp_path / "out", f"release:{tmp_path / 'r'}", max_side=64).corpus
    assert corpus.sums["codes"] == {"too_small": 1}
    assert not validate_corpus(corpus.path, deep=True, workers=0).problems


def test_an_incomplete_or_unfinished_corpus_is_refused_as_a_source(small_corpus: Path, tmp_path: Path) -> None:
    missing, extra, unfinished = (shutil.copytree(small_corpus, tmp_path / name) for name in "abc")
    shard = next(iter(json.loads((missing / "corpus.json").read_text())["shards"]))
    (missing / shard).unlink()
    shutil.copy(extra / shard, extra / "train" / "editing-00077.tar")
    (unfinished / "corpus.json").unlink()
    (unfinished / ".sigma").mkdir()
    for path, words in ((missing, "is not there"), (extra, "is not named"), (unfinished, "has not finished")):
        with pytest.raises(SourceError, match=words):
            corpora.build(tmp_path / "out", f"webdataset:{path}")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_splits_stay_through_a_folder_of_corpora_and_unknown_ones_are_named(small_corpus: Path, tmp_path: Path) -> None:
    shutil.copytree(small_corpus, tmp_path / "many" / "one")
    before = open_corpus(small_corpus).manifest
    merged = corpora.build(tmp_path / "out", f"webdataset:{tmp_path / 'many'}").corpus.manifest
    assert dict(merged.select("id", "split").iter_rows()) == dict(before.select("id", "split").iter_rows())
    with pytest.raises(ConfigError, match=r"splits=new"):
        corpora.build(tmp_path / "other", f"webdataset:{small_corpus}", splits={"train": 1, "dev": 1})
    fresh = corpora.build(tmp_path / "third", f"webdataset:{small_corpus}?splits=new", splits={"train": 1, "dev": 1})
    assert fresh.fresh


@pytest.mark.slow
def test_a_component_that_grows_keeps_its_split(tmp_path: Path) -> None:
    def rows(start: int, stop: int) -> list[dict[str, object]]:
        made = [corpora.release_row(seed) for seed in range(start, stop)]
        for row in made:
            row["image_list"][0] = image_files.image_bytes("jpeg", 77)
        return made

    for seed in range(6):
        shares = {"train": 1.0, "test": 1.0}
        corpora.write_parquet(tmp_path / f"r{seed}" / "chunk_0.parquet", rows(0, 45))
        before = corpora.build(tmp_path / f"a{seed}", f"release:{tmp_path / f'r{seed}'}", splits=shares, seed=seed)
        corpora.write_parquet(tmp_path / f"r{seed}" / "chunk_1.parquet", rows(45, 60))
        after = corpora.build(tmp_path / f"b{seed}", f"release:{tmp_path / f'r{seed}'}", splits=shares, seed=seed)
        assert set(after.corpus.manifest["split"]) == set(before.corpus.manifest["split"])


def test_overriding_one_share_leaves_the_others() -> None:
    assert load_settings(BuildConfig, None, ["splits.val=10"]).splits == {"train": 95.0, "val": 10.0, "test": 2.5}


def test_linked_folders_are_read_once(release: Path, tmp_path: Path) -> None:
    place = tmp_path / "place"
    place.mkdir()
    (place / "link").symlink_to(release)
    (place / "loop").symlink_to(place)
    assert corpora.build(tmp_path / "out", f"release:{place}").corpus.sums["read"] == 12
