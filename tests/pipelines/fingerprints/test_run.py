"""Fingerprints of benchmarks, and corpora without their images."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from support import corpora, image_files
from support.commands import sigma

from pipelines.fingerprints.run import write_benchmark_fingerprints
from pipelines.validate.run import validate_corpus
from sigma_data.errors import ConfigError, SourceError
from sigma_data.images.fingerprint_file import read_fingerprints


def digests(path: Path) -> set[str]:
    return {one.sha256 for one in read_fingerprints([path]).prints}


@pytest.fixture
def pictures(tmp_path: Path) -> dict[str, bytes]:
    return {f"{number}.png": image_files.image_bytes("png", number) for number in range(4)}


def test_one_set_of_images_gives_one_file_whatever_it_lies_in(pictures: dict[str, bytes], tmp_path: Path) -> None:
    folder = tmp_path / "folder" / "deep"
    folder.mkdir(parents=True)
    for name, data in pictures.items():
        (folder / name).write_bytes(data)
    (folder / "words.txt").write_text("no image")
    rows = [{"deep": [{"image": {"bytes": data, "path": name}}], "noise": b"none"} for name, data in pictures.items()]
    (tmp_path / "parquet").mkdir()
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "parquet" / "a.parquet")
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name, data in pictures.items():
            info = tarfile.TarInfo(f"x/{name}")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    found = []
    for place in ("folder", "parquet", "a.tar"):
        out = tmp_path / f"{place}.txt"
        collected = write_benchmark_fingerprints([str(tmp_path / place)], out)
        assert (collected.images, collected.different, collected.unreadable) == (4, 4, 0)
        found.append(digests(out))
    assert found[0] == found[1] == found[2]
    again = tmp_path / "again.txt"
    write_benchmark_fingerprints([str(tmp_path / "folder"), str(tmp_path / "folder")], again)
    assert again.read_bytes() == (tmp_path / "folder.txt").read_bytes()


@pytest.mark.slow
def test_the_fingerprints_of_a_corpus_are_those_of_its_manifest(tmp_path: Path) -> None:
    release = corpora.make_release(tmp_path / "release", 12)
    corpus = corpora.build(tmp_path / "corpus", f"release:{release}", splits={"train": 0.5, "test": 0.5}).corpus
    write_benchmark_fingerprints([str(corpus.path)], tmp_path / "all.txt")
    write_benchmark_fingerprints([f"release:{release}"], tmp_path / "source.txt")
    write_benchmark_fingerprints([str(release)], tmp_path / "folder.txt")
    assert digests(tmp_path / "all.txt") == digests(tmp_path / "source.txt") == digests(tmp_path / "folder.txt")
    write_benchmark_fingerprints([str(corpus.path)], tmp_path / "test.txt", split="test")
    test = corpus.manifest.filter(pl.col("split") == "test")["images"].explode().struct.field("sha256")
    assert digests(tmp_path / "test.txt") == set(test)
    with pytest.raises(ConfigError, match="has no split 'val', only train, test"):
        write_benchmark_fingerprints([str(corpus.path)], tmp_path / "x.txt", split="val")


def test_a_folder_read_as_a_data_set_is_a_source_and_no_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ConfigError, match=r"source hf:/.*: no map has this hub id"):
        write_benchmark_fingerprints([f"hf:{tmp_path}"], tmp_path / "out.txt")
    with pytest.raises(SourceError, match=r"^hf://datasets/a/b"):
        write_benchmark_fingerprints(["hf://datasets/a/b"], tmp_path / "out.txt")


def test_a_place_without_images_is_an_error_and_a_broken_image_is_counted(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "broken.png").write_bytes(image_files.image_bytes("png")[:80])
    with pytest.raises(ConfigError, match="has no image that can be read"):
        write_benchmark_fingerprints([str(tmp_path / "folder")], tmp_path / "out.txt")
    with pytest.raises(ConfigError, match="no such file or folder"):
        write_benchmark_fingerprints([str(tmp_path / "nowhere")], tmp_path / "out.txt")
    (tmp_path / "folder" / "good.png").write_bytes(image_files.image_bytes("png"))
    assert write_benchmark_fingerprints([str(tmp_path / "folder")], tmp_path / "out.txt").unreadable == 1
    (tmp_path / "folder" / "bad.parquet").write_bytes(b"not parquet")
    with pytest.raises(SourceError, match="not a parquet file"):
        write_benchmark_fingerprints([str(tmp_path / "folder")], tmp_path / "out.txt")
    (tmp_path / "folder" / "bad.parquet").unlink()
    (tmp_path / "folder" / "bad.tar").write_bytes(b"\x01" * 2000)
    with pytest.raises(SourceError, match="not a readable tar"):
        write_benchmark_fingerprints([str(tmp_path / "folder")], tmp_path / "out.txt")


@pytest.mark.parametrize(
    "content", ["", "nonsense\n", "# sigma fingerprints 1: sha256, signature, name\nabc\tdef\tg\n"]
)
def test_a_file_of_something_else_is_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text(content)
    with pytest.raises(ConfigError, match="sigma fingerprints"):
        read_fingerprints([tmp_path / "file"])
    with pytest.raises(ConfigError, match="cannot be read"):
        read_fingerprints([tmp_path / "none"])


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return corpora.make_release(tmp_path_factory.mktemp("release"), 24, seed=4)


def benchmark(release: Path, out: Path, rows: tuple[int, ...]) -> Path:
    """Fingerprints of an image of each of these rows, as a benchmark would have it: smaller, as JPEG."""
    out.mkdir()
    table = pq.read_table(next(release.rglob("*.parquet"))).to_pylist()
    for row in rows:
        with Image.open(io.BytesIO(table[row]["image_list"][0])) as image:
            small = image.convert("RGB").resize((image.width * 3 // 4, image.height * 3 // 4))
        (out / f"{row}.jpg").write_bytes(image_files.encoded(small, "jpeg", quality=85))
    (out / "exact.bin.png").write_bytes(table[rows[0]]["image_list"][-1])
    write_benchmark_fingerprints([str(out)], out / "prints.txt")
    return out / "prints.txt"


@pytest.mark.slow
def test_samples_with_a_benchmark_s_image_are_filtered_with_its_name(release: Path, tmp_path: Path) -> None:
    prints = benchmark(release, tmp_path / "benchmark", (3, 10))
    corpus = corpora.build(tmp_path / "out", f"release:{release}", exclude=[str(prints)]).corpus
    out = corpus.quarantine
    assert corpus.sums["filters"] == {"benchmark_image": 2}
    assert sorted(out["row"]) == [3, 10]
    assert "benchmark/10.jpg" in out.filter(pl.col("row") == 10)["message"][0]
    assert not set(corpus.manifest["row"]) & {3, 10}
    assert not validate_corpus(corpus.path, deep=True, workers=0).problems


@pytest.mark.slow
def test_another_content_of_the_file_is_another_input(release: Path, tmp_path: Path) -> None:
    prints = benchmark(release, tmp_path / "benchmark", (3, 10))

    def build(**more: Any) -> int:
        result = corpora.build(tmp_path / "out", f"release:{release}", exclude=[str(prints)], **more)
        return result.corpus.sums["filtered"] if result.fresh else -1

    assert build() == 2
    assert build() == -1
    prints.write_bytes(benchmark(release, tmp_path / "other", (3, 10, 11)).read_bytes())
    with pytest.raises(ConfigError, match="have changed since"):
        build()
    assert build(overwrite=True) == 3


@pytest.mark.slow
def test_the_commands_fit_together(release: Path, tmp_path: Path) -> None:
    done = sigma("fingerprints", str(release), "--out", str(tmp_path / "all.txt"))
    assert "different" in done.stdout
    done = sigma(
        "build-dataset", f"release:{release}", "--exclude", str(tmp_path / "all.txt"), "--out", str(tmp_path / "c")
    )
    assert done.returncode == 2
    assert "benchmark_image 24" in done.stderr
