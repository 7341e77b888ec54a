"""A build: the same bytes however it is run, nothing lost, nothing mixed."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from support import corpora, image_files

from pipelines.validate.run import validate_corpus
from sigma_data.corpus.corpus import open_corpus
from sigma_data.errors import BuildError, ConfigError, SigmaError, SourceError


def contents(
    folder: Path, *, only: tuple[str, ...] = (".tar", "manifest.parquet", "quarantine.parquet")
) -> dict[str, bytes]:
    """The files that must not depend on how a build went."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name.endswith(only)
    }


def everything(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("release")
    corpora.make_release(folder, 72, seed=3, files=3)
    broken = corpora.release_row(5) | {"image_list": [b"", image_files.image_bytes("jpeg", 1)]}
    corpora.write_parquet(folder / "seedxedit_multi" / "chunk_3.parquet", [broken, corpora.release_row(9)] * 2)
    return folder


@pytest.mark.slow
def test_shards_and_manifest_are_byte_identical_for_any_number_of_workers(release: Path, tmp_path: Path) -> None:
    builds = []
    for workers in (0, 1, 3):
        out = tmp_path / f"workers-{workers}"
        corpora.build(out, f"release:{release}", workers=workers, shard_samples=7)
        builds.append(everything(out))
    assert len([name for name in builds[0] if name.endswith(".tar")]) > 8
    assert builds[0] == builds[1] == builds[2]


@pytest.mark.slow
def test_every_row_is_written_quarantined_or_a_counted_duplicate(release: Path, tmp_path: Path) -> None:
    result = corpora.build(tmp_path / "out", f"release:{release}")
    sums, quarantine = result.corpus.sums, result.corpus.quarantine
    assert (sums["read"], sums["quarantined"], sums["duplicates"]) == (76, 2, 1)
    assert sums["codes"] == {"empty": 2}
    assert sums["written"] == len(result.corpus.manifest) == 73
    assert Counter(quarantine["code"]) == {"empty": 2, "duplicate": 1}
    assert all(quarantine["message"].str.len_chars() > 10)
    places = {*result.corpus.manifest.select("location", "row").iter_rows()}
    places |= {*quarantine.select("location", "row").iter_rows()}
    assert len(places) == 76


@pytest.mark.slow
def test_image_bytes_pass_through_untouched(release: Path, tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    corpus = corpora.build(tmp_path / "out", f"release:{release}").corpus
    rows = {path.name: pq.read_table(path).to_pylist() for path in release.rglob("*.parquet")}
    for row in corpus.manifest.iter_rows(named=True):
        source = rows[Path(row["location"]).name][row["row"]]["image_list"]
        assert [image.data for image in corpus.sample(row).images] == source
        assert all(image["reencoded"] is None for image in row["images"])


@pytest.mark.slow
def test_a_limit_on_the_long_side_reencodes_and_says_so(release: Path, tmp_path: Path) -> None:
    corpus = corpora.build(tmp_path / "out", f"release:{release}", max_side=64).corpus
    images = [image for row in corpus.manifest.iter_rows(named=True) for image in row["images"]]
    assert max(max(image["width"], image["height"]) for image in images) == 64
    assert {image["reencoded"] for image in images} == {None, "max_side"}
    assert not validate_corpus(corpus.path, deep=True, workers=0).problems


@pytest.mark.slow
def test_a_rerun_finds_the_corpus_complete_and_changes_nothing(release: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    corpora.build(out, f"release:{release}")
    before = everything(out)
    result = corpora.build(out, f"release:{release}")
    assert not result.fresh
    assert everything(out) == before


@pytest.mark.slow
def test_another_configuration_in_the_same_place_is_refused_naming_what_differs(release: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    corpora.build(out, f"release:{release}")
    before = everything(out)
    with pytest.raises(ConfigError, match=r"another configuration \(it differs in seed\)"):
        corpora.build(out, f"release:{release}", seed=1)
    assert everything(out) == before
    assert corpora.build(out, f"release:{release}", seed=1, overwrite=True).fresh


@pytest.mark.slow
def test_another_configuration_is_refused_by_an_unfinished_build_too(release: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    corpora.build(out, f"release:{release}")
    (out / ".sigma").mkdir()
    commit = json.loads((out / "corpus.json").read_text())
    state = {"config_digest": commit["config_digest"], "config": commit["config"]}
    (out / ".sigma" / "config.json").write_text(json.dumps(state))
    (out / "corpus.json").unlink()
    with pytest.raises(ConfigError, match=r"differs in quotas"):
        corpora.build(out, f"release:{release}", quotas={"editing": 3})


def test_a_folder_with_other_things_in_it_is_refused(release: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ConfigError, match="not empty and holds no corpus"):
        corpora.build(tmp_path, f"release:{release}", overwrite=True)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.slow
def test_sources_that_changed_since_the_commit_are_noticed(release: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(release, tmp_path / "release")
    corpora.build(tmp_path / "out", f"release:{copy}")
    corpora.write_parquet(copy / "seedxedit_multi" / "chunk_4.parquet", [corpora.release_row(800)])
    with pytest.raises(ConfigError, match="sources have changed since"):
        corpora.build(tmp_path / "out", f"release:{copy}")


@pytest.mark.slow
def test_a_moved_source_and_another_name_of_the_folder_give_the_same_shards(release: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(release, tmp_path / "elsewhere")
    corpora.build(tmp_path / "a", f"release:{release}")
    corpora.build(tmp_path / "b", f"release:{copy}")
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


@pytest.mark.slow
def test_data_added_behind_leaves_every_sample_in_its_split(release: Path, tmp_path: Path) -> None:
    shares = {"train": 50.0, "val": 25.0, "test": 25.0}
    before = corpora.build(tmp_path / "a", f"release:{release}", splits=shares).corpus.manifest
    copy = shutil.copytree(release, tmp_path / "release")
    more = [corpora.release_row(seed, family="compositional") for seed in range(700, 720)]
    corpora.write_parquet(copy / "seedxedit_multi" / "chunk_10.parquet", more)
    after = corpora.build(tmp_path / "b", f"release:{copy}", splits=shares).corpus.manifest
    splits = dict(after.select("id", "split").iter_rows())
    assert len(splits) == len(before) + 20
    assert all(splits[name] == split for name, split in before.select("id", "split").iter_rows())


@pytest.mark.slow
def test_pictures_shared_between_samples_never_straddle_splits(tmp_path: Path) -> None:
    rows = []
    for group in range(30):  # each group of three samples shares one reference, once re-encoded
        first = corpora.release_row(group, family="editing")
        second = corpora.release_row(1000 + group, family="editing")
        third = corpora.release_row(2000 + group, family="editing")
        second["image_list"][0] = first["image_list"][0]
        third["image_list"][0] = image_files.encoded(image_files.smooth(100 * group, 64), "jpeg", quality=60)
        rows += [first, second, third]
    corpora.write_parquet(tmp_path / "r" / "a.parquet", rows)
    manifest = corpora.build(
        tmp_path / "out", f"release:{tmp_path / 'r'}", splits={"train": 1, "val": 1, "test": 1}
    ).corpus.manifest
    assert manifest["component"].n_unique() == 30
    split = dict(manifest.select("row", "split").iter_rows())
    assert all(split[3 * group] == split[3 * group + 1] == split[3 * group + 2] for group in range(30))
    assert len(set(split.values())) == 3


@pytest.mark.slow
def test_merged_corpora_keep_their_splits_and_count_what_they_share(release: Path, tmp_path: Path) -> None:
    shares = {"train": 60.0, "val": 20.0, "test": 20.0}
    first = corpora.build(tmp_path / "a", f"release:{release}", splits=shares).corpus
    corpora.make_release(tmp_path / "other", 30, seed=11)
    second = corpora.build(tmp_path / "b", f"release:{tmp_path / 'other'}?name=other", splits=shares, seed=5).corpus
    merged = corpora.build(tmp_path / "ab", f"webdataset:{first.path}", f"webdataset:{second.path}", splits=shares)
    assert merged.corpus.sums["written"] == len(first.manifest) + len(second.manifest)
    splits = dict(merged.corpus.manifest.select("id", "split").iter_rows())
    for corpus in (first, second):
        assert all(splits[name] == split for name, split in corpus.manifest.select("id", "split").iter_rows())
    twice = corpora.build(tmp_path / "aa", f"webdataset:{first.path}", f"webdataset:{tmp_path / 'ab'}", splits=shares)
    assert twice.corpus.sums["duplicates"] == len(first.manifest)


def test_two_sources_of_one_name_are_refused_before_anything_is_read(release: Path, tmp_path: Path) -> None:
    corpora.make_release(tmp_path / "other", 6, seed=1)
    with pytest.raises(ConfigError, match="name=second"):
        corpora.build(tmp_path / "out", f"release:{release}", f"release:{tmp_path / 'other'}")


def test_nothing_is_committed_when_no_record_can_be_used(tmp_path: Path) -> None:
    corpora.write_parquet(tmp_path / "r" / "a.parquet", [corpora.release_row(1) | {"image_list": [b"x", b"y"]}])
    with pytest.raises(BuildError, match=r"none of the 1 records .*wrong_type 1"):
        corpora.build(tmp_path / "out", f"release:{tmp_path / 'r'}")
    assert not (tmp_path / "out" / "corpus.json").exists()


@pytest.mark.parametrize(
    "spec", ["release:/nowhere/at/all", "release:{empty}", "webdataset:{empty}", "nonsense:x", "x"]
)
def test_a_source_that_is_not_there_is_one_sentence(spec: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises((SourceError, ConfigError)) as raised:
        corpora.build(tmp_path / "out", spec.format(empty=tmp_path / "empty"))
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "out" / "corpus.json").exists()


def test_a_second_build_waits_for_nobody_and_says_so(release: Path, tmp_path: Path) -> None:
    import fcntl

    out = tmp_path / "out"
    (out / ".sigma").mkdir(parents=True)
    with (out / ".sigma" / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(ConfigError, match="another build is running"):
            corpora.build(out, f"release:{release}")


@pytest.mark.slow
def test_a_source_that_changes_between_the_passes_is_noticed(
    release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pipelines.build_dataset.run as run

    copy = shutil.copytree(release, tmp_path / "release")
    plan = run.make_plan

    def swap(*arguments: object) -> object:
        made = plan(*arguments)  # type: ignore[arg-type]
        corpora.make_release(copy, 72, seed=4, files=3)
        return made

    monkeypatch.setattr(run, "make_plan", swap)
    with pytest.raises(SigmaError, match="changed while the corpus was built"):
        corpora.build(tmp_path / "out", f"release:{copy}")
    assert not (tmp_path / "out" / "corpus.json").exists()
    monkeypatch.undo()
    corpora.build(tmp_path / "out", f"release:{copy}")
    assert not validate_corpus(tmp_path / "out", deep=True, workers=0).problems


def test_remote_places_are_read_like_local_ones(release: Path) -> None:
    import fsspec

    from sigma_data.sources import open_source

    memory = fsspec.filesystem("memory")
    for path in release.rglob("*.parquet"):
        memory.pipe(f"/bucket/{path.relative_to(release).as_posix()}", path.read_bytes())
    local, remote = open_source(f"release:{release}"), open_source("release:memory://bucket")
    assert [(f.location, f.part) for f in local.fragments()] == [(f.location, f.part) for f in remote.fragments()]
    read = [
        [record for fragment in reader.fragments() for record in reader.read(fragment)] for reader in (local, remote)
    ]
    assert read[0] == read[1]


@pytest.mark.slow
def test_the_commit_names_every_file_of_the_corpus(release: Path, tmp_path: Path) -> None:
    corpora.build(tmp_path / "out", f"release:{release}")
    corpus = open_corpus(tmp_path / "out")
    files = {path.relative_to(corpus.path).as_posix() for path in corpus.path.rglob("*") if path.is_file()}
    assert files == {*corpus.shards, *corpus.commit["files"], "corpus.json"}


def test_rows_broken_in_every_way_are_found_and_legal_oddities_pass(tmp_path: Path) -> None:
    from PIL import Image

    def row(seed: int, **changes: object) -> dict[str, object]:
        return corpora.release_row(seed) | changes

    good, exif = image_files.image_bytes("jpeg", 1), Image.Exif()
    exif[0x0112] = 6
    broken = {
        "truncated": row(1, image_list=[good[: len(good) // 2], good]),
        "no_pictures": row(2, image_list=[]),
        "empty": row(3, image_list=[good, b""]),
        "no_reference": row(4, image_list=[good]),
        "too_small": row(5, image_list=[image_files.image_bytes("png", 2, width=3, height=3), good]),
        "empty_instruction": row(6, instruction_list=[[""]]),
        "unknown_token": row(7, instruction_list=[["Give <subjct> the person in <image 1> a hat."]]),
        "bomb": row(8, image_list=[image_files.huge_png(30_000, 30_000), good]),
        "placeholder_without_picture": row(9, instruction_list=[["Put <subject> the toy from <image 7> there."]]),
        "wrong_type": row(10, image_list=[b"<html>404 not found</html>", good]),
        "target_as_reference": row(11, instruction_list=[["Make <image 2> red"]]),
        "target_equals_reference": row(12, image_list=[good, good]),
        "extreme_aspect": row(13, image_list=[image_files.image_bytes("png", 3, width=900, height=40), good]),
    }
    deep = Image.fromarray(np.linspace(0, 65535, 80 * 64).reshape(64, 80).astype(np.uint16))
    frames = [image_files.smooth(seed) for seed in (41, 42, 43)]
    odd = [
        image_files.image_bytes("jpeg", 31, mode="CMYK"),
        image_files.image_bytes("png", 32, mode="RGBA"),
        image_files.image_bytes("jpeg", 33, exif=exif),
        image_files.image_bytes("png", 34, mode="P"),
        image_files.encoded(deep, "png"),
        image_files.encoded(frames[0], "gif", save_all=True, append_images=frames[1:]),
    ]
    rows = [*broken.values(), *(row(100 + place, image_list=[data, good]) for place, data in enumerate(odd))]
    corpora.write_parquet(tmp_path / "r" / "a.parquet", rows)
    corpus = corpora.build(tmp_path / "out", f"release:{tmp_path / 'r'}").corpus
    assert dict(corpus.quarantine.select("row", "code").iter_rows()) == dict(enumerate(broken))
    assert sorted(corpus.manifest["row"]) == list(range(len(broken), len(rows)))
    turned = corpus.manifest.filter(corpus.manifest["row"] == len(broken) + 2)["images"][0][0]
    assert (turned["width"], turned["height"]) == (64, 80), "the EXIF rotation is applied"
