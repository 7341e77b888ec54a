"""A sample that comes out otherwise the second time costs itself, never the build; a corrected source is noticed."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image, ImageCms
from support import corpora, image_files

import pipelines.build_dataset.run as run
import pipelines.build_dataset.write as write
from pipelines.validate.run import validate_corpus
from sigma_data.errors import BuildError, ConfigError
from sigma_data.storage.data_folder import data_folder


def source(folder: Path, rows: int = 12) -> Path:
    """A release whose bytes stand in the file as they are, the targets BMP."""
    folder.mkdir(parents=True)
    made = [corpora.release_row(seed, kind="jpeg", target_kind="bmp") for seed in range(rows)]
    table = pa.Table.from_pylist(made, schema=corpora.RELEASE_SCHEMA)
    pq.write_table(table, folder / "chunk_0.parquet", row_group_size=4, compression="none", use_dictionary=False)
    return folder


def change_unseen(path: Path, old: bytes, new: bytes) -> None:
    """Replace bytes by as many others, and put the time back."""
    before = path.stat()
    data = path.read_bytes()
    assert len(old) == len(new)
    assert old in data
    path.write_bytes(data.replace(old, new))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def quarantine(corpus: Path) -> pl.DataFrame:
    return pl.read_parquet(corpus / "quarantine.parquet").filter(pl.col("code") != "duplicate")


def hook_before_writing(monkeypatch: pytest.MonkeyPatch, *actions: object) -> None:
    """Run one action before each write pass."""
    plan, left = run.make_plan, list(actions)

    def planned(*arguments: object) -> object:
        made = plan(*arguments)  # type: ignore[arg-type]
        if left:
            left.pop(0)()  # type: ignore[operator]
        return made

    monkeypatch.setattr(run, "make_plan", planned)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_bytes_that_differ_when_read_again_cost_one_sample_with_the_true_reason(
    workers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = source(tmp_path / "release")
    target = corpora.release_row(5, kind="jpeg", target_kind="bmp")["image_list"][-1]
    hook_before_writing(
        monkeypatch,
        lambda: change_unseen(release / "chunk_0.parquet", target, target[:-1] + bytes([target[-1] ^ 1])),
    )
    corpora.build(tmp_path / "out", f"release:{release}", workers=workers)
    sums = corpora.read_commit(tmp_path / "out")["sums"]
    assert corpora.adds_up(sums)
    assert (sums["read"], sums["written"], sums["codes"]) == (12, 11, {"unstable": 1})
    (row,) = quarantine(tmp_path / "out").iter_rows(named=True)
    assert (row["row"], row["message"]) == (5, "reading image 2 a second time gave other bytes")
    assert not validate_corpus(tmp_path / "out", deep=True, workers=0).problems
    assert not (tmp_path / "out" / ".sigma").exists()


@pytest.mark.slow
def test_samples_that_differ_in_one_pass_after_another_are_each_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = source(tmp_path / "release")
    rows = [corpora.release_row(seed, kind="jpeg", target_kind="bmp")["image_list"][-1] for seed in range(12)]

    def change(seed: int) -> object:
        old = rows[seed]
        return lambda: change_unseen(release / "chunk_0.parquet", old, old[:-1] + bytes([old[-1] ^ 1]))

    hook_before_writing(monkeypatch, change(2), change(9))
    corpora.build(tmp_path / "out", f"release:{release}")
    assert corpora.read_commit(tmp_path / "out")["sums"]["codes"] == {"unstable": 2}
    assert sorted(quarantine(tmp_path / "out")["row"]) == [2, 9]
    assert not validate_corpus(tmp_path / "out", deep=True, workers=0).problems


@pytest.mark.slow
def test_encoding_that_gives_other_bytes_each_time_costs_the_sample(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = source(tmp_path / "release")
    right, times = write.reencode, iter(range(100))

    def different(data: bytes, *rest: object, **options: object) -> tuple[bytes, str] | None:
        made = right(data, *rest, **options)  # type: ignore[arg-type]
        return (made[0] + b"now", made[1]) if made and next(times) == 7 else made

    monkeypatch.setattr(write, "reencode", different)
    corpora.build(tmp_path / "out", f"release:{release}", max_side=60)
    sums = corpora.read_commit(tmp_path / "out")["sums"]
    assert (sums["written"], sums["codes"]) == (11, {"unstable": 1})
    assert "encoding image" in quarantine(tmp_path / "out")["message"][0]


def test_what_was_unstable_stays_left_out_after_an_interruption(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = source(tmp_path / "release")
    target = corpora.release_row(5, kind="jpeg", target_kind="bmp")["image_list"][-1]

    def stop() -> None:
        raise BuildError("power cut")

    changed = target[:-1] + bytes([target[-1] ^ 1])
    hook_before_writing(monkeypatch, lambda: change_unseen(release / "chunk_0.parquet", target, changed), stop)
    with pytest.raises(BuildError, match="power cut"):
        corpora.build(tmp_path / "out", f"release:{release}")
    monkeypatch.undo()
    corpora.build(tmp_path / "out", f"release:{release}")
    assert corpora.read_commit(tmp_path / "out")["sums"]["codes"] == {"unstable": 1}
    assert not validate_corpus(tmp_path / "out", deep=True, workers=0).problems


@pytest.mark.slow
def test_a_lab_tiff_among_ordinary_rows_is_built_and_the_same_for_any_number_of_workers(tmp_path: Path) -> None:
    transform = ImageCms.buildTransform(ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB")
    rows = [corpora.release_row(seed) for seed in range(6)]
    lab: Image.Image | None = ImageCms.applyTransform(image_files.smooth(77), transform)
    assert lab is not None
    rows[3]["image_list"][-1] = image_files.encoded(lab, "TIFF")
    corpora.write_parquet(tmp_path / "release" / "chunk_0.parquet", rows, group=2)
    for workers in (0, 2):
        result = corpora.build(tmp_path / f"out{workers}", f"release:{tmp_path / 'release'}", workers=workers)
        assert result.corpus.commit["sums"]["written"] == 6
    first, second = corpora.files_below(tmp_path / "out0"), corpora.files_below(tmp_path / "out2")
    assert first == second


# A source that changed after its corpus was complete ------------------------------------------------


def test_a_correction_of_equal_length_is_no_longer_the_complete_corpus(tmp_path: Path) -> None:
    release = source(tmp_path / "release")
    corpora.build(tmp_path / "out", f"release:{release}")
    assert not corpora.build(tmp_path / "out", f"release:{release}").fresh
    change_unseen(release / "chunk_0.parquet", b"in shade 7", b"in colour7")
    with pytest.raises(ConfigError, match="its sources have changed since"):
        corpora.build(tmp_path / "out", f"release:{release}")


def test_a_copied_or_touched_source_is_still_the_complete_corpus(tmp_path: Path) -> None:
    release = source(tmp_path / "release")
    corpora.build(tmp_path / "out", f"release:{release}")
    os.utime(release / "chunk_0.parquet", (1, 1))
    assert not corpora.build(tmp_path / "out", f"release:{release}").fresh
    copy = shutil.copytree(release, tmp_path / "copy", copy_function=shutil.copyfile)
    shutil.rmtree(release)
    copy.rename(release)
    assert not corpora.build(tmp_path / "out", f"release:{release}").fresh


@pytest.mark.slow
def test_a_corrected_shard_of_equal_length_is_noticed_too(tmp_path: Path) -> None:
    release = source(tmp_path / "release")
    corpora.build(tmp_path / "first", f"release:{release}")
    shards = tmp_path / "shards"
    (shards / "train").mkdir(parents=True)
    for shard in (tmp_path / "first").glob("*/*.tar"):
        shutil.copyfile(shard, shards / "train" / shard.name)
    corpora.build(tmp_path / "out", f"webdataset:{shards}")
    shard = next(iter((shards / "train").glob("*.tar")))
    data = shard.read_bytes()
    place = data.index(b"in shade")
    shard.write_bytes(data[:place] + b"in paint" + data[place + 8 :])
    with pytest.raises(ConfigError, match="its sources have changed since"):
        corpora.build(tmp_path / "out", f"webdataset:{shards}")


@pytest.mark.parametrize(
    ("place", "keep_time", "noticed"),
    [(10, True, True), (-10, True, True), (3_000_000, False, True), (3_000_000, True, False)],
)
def test_of_a_large_file_both_ends_size_and_time_count(
    place: int, keep_time: bool, noticed: bool, tmp_path: Path
) -> None:
    path = tmp_path / "large.bin"
    path.write_bytes(bytes(6 * 2**20))
    os.utime(path, ns=(1, 1))
    there = data_folder(str(tmp_path))

    def seen() -> str:
        ((location, stamp),) = there.files(".bin")
        return there.fingerprint(location, stamp)

    before = seen()
    data = bytearray(path.read_bytes())
    data[place] = 1
    path.write_bytes(data)
    os.utime(path, ns=(1, 1) if keep_time else (2, 2))
    assert (seen() != before) == noticed
