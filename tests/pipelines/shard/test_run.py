"""`sigma shard`: other shards, fewer samples, another layout, and nothing changed on the way."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest
from support import corpora

from pipelines.shard.run import Selection, export_release, reshard
from pipelines.validate.run import validate_corpus
from sigma_data.corpus.corpus import open_corpus
from sigma_data.errors import ConfigError, CorpusError


def shard_anew(source: Path, out: Path, selection: Selection | None = None, **options: int) -> dict[str, int]:
    settings = {"shard_bytes": 2**30, "shard_samples": 5, **options}
    return reshard(source, out, selection or Selection(), workers=0, **settings)


def samples(path: Path) -> dict[str, object]:
    corpus = open_corpus(path)
    return {row["id"]: (row["split"], corpus.sample(row)) for row in corpus.manifest.iter_rows(named=True)}


@pytest.mark.slow
def test_resharding_keeps_every_sample_split_and_byte(small_corpus: Path, tmp_path: Path) -> None:
    counts = shard_anew(small_corpus, tmp_path / "out")
    assert samples(tmp_path / "out") == samples(small_corpus)
    assert counts["shards"] > len(open_corpus(small_corpus).shards)
    assert open_corpus(tmp_path / "out").manifest.group_by("shard").len()["len"].max() == 5
    assert not validate_corpus(tmp_path / "out", deep=True, workers=0).problems


def test_a_shard_never_grows_beyond_its_limit_in_bytes(small_corpus: Path, tmp_path: Path) -> None:
    limit = 3 * max(open_corpus(small_corpus).manifest["size"])
    shard_anew(small_corpus, tmp_path / "out", shard_bytes=limit, shard_samples=1000)
    assert max((tmp_path / "out" / shard).stat().st_size for shard in open_corpus(tmp_path / "out").shards) <= limit


@pytest.mark.parametrize(
    ("selection", "rule"),
    [
        (Selection(families=("editing", "layout")), pl.col("family").is_in(["editing", "layout"])),
        (Selection(splits=("val",)), pl.col("split") == "val"),
        (Selection(where="\"references\" >= 2 AND family <> 'relation'"), (pl.col("references") >= 2) & (pl.col("family") != "relation")),
        (Selection(splits=("train",), where="tokens < 5000"), (pl.col("split") == "train") & (pl.col("tokens") < 5000)),
    ],
)  # fmt: skip
def test_a_selection_takes_exactly_the_samples_that_fit(
    selection: Selection, rule: pl.Expr, small_corpus: Path, tmp_path: Path
) -> None:
    wanted = open_corpus(small_corpus).manifest.filter(rule)["id"].to_list()
    shard_anew(small_corpus, tmp_path / "out", selection)
    assert sorted(open_corpus(tmp_path / "out").manifest["id"]) == sorted(wanted)
    assert not validate_corpus(tmp_path / "out", deep=True, workers=0).problems


@pytest.mark.parametrize(
    "selection",
    [
        Selection(families=("edit",)),
        Selection(splits=("dev",)),
        Selection(where="no_such_column = 1"),
        Selection(where="read_csv('/etc/passwd')"),
        Selection(where="tokens <"),
        Selection(where="tokens"),
        Selection(where="tokens > 10000000"),
        Selection(where="SELECT 1"),
    ],
)
def test_a_wrong_selection_is_one_sentence_and_writes_nothing(
    selection: Selection, small_corpus: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError) as raised:
        shard_anew(small_corpus, tmp_path / "out", selection)
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "out").exists()


def test_a_damaged_corpus_is_not_copied(small_corpus: Path, tmp_path: Path) -> None:
    import shutil

    copy = shutil.copytree(small_corpus, tmp_path / "copy")
    row = open_corpus(copy).manifest.row(0, named=True)
    with (copy / row["shard"]).open("r+b") as file:
        file.seek(row["images"][0]["offset"] + 20)
        byte = file.read(1)
        file.seek(-1, 1)
        file.write(bytes([byte[0] ^ 1]))
    with pytest.raises(CorpusError, match="damaged; run sigma validate --deep"):
        shard_anew(copy, tmp_path / "out")
    with pytest.raises(CorpusError, match="damaged; run sigma validate --deep"):
        export_release(copy, tmp_path / "release", Selection())
    assert not (tmp_path / "release").exists()
    assert not (tmp_path / "out" / "corpus.json").exists()


@pytest.mark.slow
def test_an_export_builds_back_into_the_same_samples(small_corpus: Path, tmp_path: Path) -> None:
    counts = export_release(small_corpus, tmp_path / "release", Selection())
    before = open_corpus(small_corpus).manifest
    assert (counts["samples"], counts["left_out"]) == (len(before), 0)
    again = corpora.build(tmp_path / "again", f"release:{tmp_path / 'release'}").corpus
    assert again.sums["written"] == len(before)
    assert sorted(again.manifest["content"]) == sorted(before["content"])
    assert sorted(again.manifest["family"]) == sorted(before["family"])


def splits_of(path: Path) -> dict[str, str]:
    """Content of each sample -> its split."""
    return dict(open_corpus(path).manifest.select("content", "split").iter_rows())


@pytest.mark.slow
def test_an_export_has_a_folder_a_split_and_every_sample_keeps_its_split_on_the_way_back(
    small_corpus: Path, tmp_path: Path
) -> None:
    import pyarrow.parquet as pq

    counts = export_release(small_corpus, tmp_path / "release", Selection())
    before = splits_of(small_corpus)
    assert counts["splits"] == {split: list(before.values()).count(split) for split in ("train", "val", "test")}
    for split, count in counts["splits"].items():
        files = (tmp_path / "release" / split).rglob("*.parquet")
        assert sum(pq.ParquetFile(file).metadata.num_rows for file in files) == count
    for seed in (0, 1):
        again = corpora.build(tmp_path / f"again-{seed}", f"release:{tmp_path / 'release'}", seed=seed).corpus
        assert splits_of(again.path) == before
    # A folder taken from it, or files moved about, keep them, too.
    corpora.build(tmp_path / "part", f"release:{tmp_path / 'release' / 'test'}")
    assert set(splits_of(tmp_path / "part").values()) == {"test"}


def test_splits_of_an_export_are_drawn_anew_where_that_is_asked_for(small_corpus: Path, tmp_path: Path) -> None:
    export_release(small_corpus, tmp_path / "release", Selection(splits=("test",)))
    assert [path.name for path in (tmp_path / "release").iterdir() if path.is_dir()] == ["test"]
    source = f"release:{tmp_path / 'release'}"
    corpora.build(tmp_path / "new", f"{source}?splits=new", splits={"train": 1, "test": 1})
    assert set(splits_of(tmp_path / "new").values()) == {"train", "test"}
    with pytest.raises(ConfigError, match=r"split 'test', which this build does not have.*\?splits=new"):
        corpora.build(tmp_path / "other", source, splits={"train": 1, "held": 1})


@pytest.mark.slow
def test_an_export_is_laid_out_like_the_release_with_relative_paths(tmp_path: Path) -> None:
    import json

    import pyarrow.parquet as pq

    corpora.make_release(tmp_path / "source", 320, seed=6)
    corpora.build(tmp_path / "corpus", f"release:{tmp_path / 'source'}")
    export_release(tmp_path / "corpus", tmp_path / "release", Selection())
    info = json.loads((tmp_path / "release" / "parquet_info.json").read_text())
    assert sum(entry["num_rows"] for entry in info.values()) == 320
    for name, entry in info.items():
        file = pq.ParquetFile(tmp_path / "release" / name)
        assert (file.num_row_groups, file.metadata.num_rows) == (entry["num_row_groups"], entry["num_rows"])
        assert entry["num_rows"] <= 300
        assert all(file.metadata.row_group(group).num_rows <= 10 for group in range(file.num_row_groups))


def test_an_export_keeps_no_statistics_dictionary_or_compression_of_whole_images(
    small_corpus: Path, tmp_path: Path
) -> None:
    import pyarrow.parquet as pq

    export_release(small_corpus, tmp_path / "release", Selection())
    for path in (tmp_path / "release").rglob("*.parquet"):
        metadata = pq.ParquetFile(path).metadata
        for group in range(metadata.num_row_groups):
            columns = [metadata.row_group(group).column(number) for number in range(metadata.num_columns)]
            images = next(column for column in columns if column.path_in_schema.startswith("image_list"))
            assert images.compression == "UNCOMPRESSED"
            assert not images.is_stats_set
            assert not images.has_dictionary_page
            assert all(column.is_stats_set for column in columns if column is not images)
            largest = sum(column.total_compressed_size for column in columns)
        assert metadata.serialized_size < 20_000 < largest, "and none of them in the footer"


def test_an_export_never_overwrites(small_corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "release").mkdir()
    (tmp_path / "release" / "mine.txt").write_text("")
    with pytest.raises(ConfigError, match="is there already"):
        export_release(small_corpus, tmp_path / "release", Selection())
