"""Warnings of a build: counted by code in the printed summary and in `--json`, and never silent."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, PngImagePlugin
from support import corpora, image_files
from typer.testing import CliRunner

from cli import app
from pipelines.commands.build_dataset import build_summary
from pipelines.validate.run import validate_corpus
from sigma_data.errors import BuildError
from sigma_data.images.decode import probe


def source(folder: Path, *images: bytes) -> str:
    """A release with a row for each image, as its reference."""
    rows = [corpora.release_row(number) for number in range(len(images))]
    for row, image in zip(rows, images, strict=True):
        row["image_list"][0] = image
    corpora.write_parquet(folder / "chunk_0.parquet", rows)
    return f"release:{folder}"


def black(seed: int) -> bytes:
    noise = np.random.default_rng(seed).integers(0, 12, (80, 80, 3), dtype=np.uint8)
    return image_files.encoded(Image.fromarray(noise), "png")


def with_text(seed: int) -> bytes:
    """A PNG as image generators write it: a workflow that unpacks to 2 MB."""
    info = PngImagePlugin.PngInfo()
    info.add_text("workflow", "words " * 350_000, zip=True)
    return image_files.encoded(image_files.smooth(seed), "png", pnginfo=info)


@pytest.mark.slow
def test_the_summary_and_json_count_warnings_by_code(tmp_path: Path) -> None:
    spec = source(tmp_path / "in", black(1), black(2), with_text(3), image_files.image_bytes("png", 4))
    corpus = corpora.build(tmp_path / "out", spec).corpus
    assert dict(corpus.warnings) == {"near_black": 2, "large_metadata": 1}
    assert "warnings, of samples written: near_black 2, large_metadata 1" in build_summary(corpus, fresh=True)
    result = CliRunner().invoke(app, ["build-dataset", spec, "--out", str(tmp_path / "out"), "--json"])
    assert json.loads(result.stdout)["warnings"] == {"near_black": 2, "large_metadata": 1}


def test_a_corpus_without_warnings_does_not_speak_of_them(tmp_path: Path) -> None:
    corpus = corpora.build(tmp_path / "out", source(tmp_path / "in", image_files.image_bytes("png", 4))).corpus
    assert not corpus.warnings
    summary = build_summary(corpus, fresh=True)
    assert "warnings, of samples" not in summary
    assert re.search(r"\n\d+ images?, [\d.]+ MB in 1 shard: /", summary)


def test_a_png_that_pillow_refuses_for_its_metadata_is_named_in_manifest_report_and_card_with_how_to_read_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = with_text(3)
    with pytest.raises(ValueError, match="MAX_TEXT_CHUNK"):
        Image.open(io.BytesIO(data)).load()
    assert probe(data).large_metadata
    assert not probe(image_files.image_bytes("png", 4)).large_metadata
    corpus = corpora.build(tmp_path / "out", source(tmp_path / "in", data)).corpus
    assert corpus.manifest["warnings"].to_list() == [["large_metadata"]]
    assert "<code>large_metadata</code>" in (corpus.path / "report.html").read_text("utf-8")
    card = (corpus.path / "README.md").read_text("utf-8")
    monkeypatch.setattr(PngImagePlugin, "MAX_TEXT_CHUNK", PngImagePlugin.MAX_TEXT_CHUNK)  # put back afterwards
    monkeypatch.setattr(PngImagePlugin, "MAX_TEXT_MEMORY", PngImagePlugin.MAX_TEXT_MEMORY)
    scope: dict[str, Any] = {}
    exec(card.partition("## PNGs with large metadata")[2].split("```python\n")[1].partition("```")[0], scope)
    Image.open(io.BytesIO(data)).load()


def test_stored_as_shown_such_a_png_has_no_metadata_left_and_opens_everywhere(tmp_path: Path) -> None:
    spec = source(tmp_path / "in", with_text(3))
    corpus = corpora.build(tmp_path / "out", spec, store="shown").corpus
    (row,) = corpus.manifest.iter_rows(named=True)
    image = row["images"][0]
    assert (row["warnings"], image["reencoded"]) == ([], "large_metadata")
    Image.open(io.BytesIO(corpus.read(row["shard"], image["offset"], image["size"]))).load()
    assert "## PNGs with large metadata" not in (corpus.path / "README.md").read_text("utf-8")
    assert not validate_corpus(corpus.path, deep=True, workers=0).problems


def test_a_source_without_records_is_said_to_have_none(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match="no records in it"):
        corpora.build(tmp_path / "out", source(tmp_path / "empty"))
