"""The SIGMA-Benchmark: rows of the release and samples of a corpus become the same kind of items."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support import corpora, image_files

from pipelines.evaluate.benchmarks import open_benchmark
from pipelines.evaluate.item import Item
from sigma_data.errors import ConfigError
from sigma_data.sample import Family


def items_of_row(folder: Path, *instructions: str, images: int, family: str = "layout") -> list[Item]:
    row = {
        "image_list": [image_files.image_bytes("png", number) for number in range(1, images + 1)],
        "instruction_list": [[text] for text in instructions],
        "data_prep_method": family,
    }
    corpora.write_parquet(folder / "part.parquet", [row])
    return open_benchmark(f"sigma:{folder}").items()


def test_the_last_image_of_a_row_is_the_reference_answer(tmp_path: Path) -> None:
    corpora.make_release(tmp_path, rows=12)
    items = open_benchmark(f"sigma:{tmp_path}").items()
    assert len(items) == 12 and len({item.id for item in items}) == 12
    for index, item in enumerate(items):
        row = corpora.release_row(
            index, family=item.family, kind=("jpeg", "jpeg", "png", "webp")[index % 4],
            target_kind="bmp" if index % 6 == 0 else ("jpeg", "png")[index % 2],
        )  # fmt: skip
        assert [*item.references, item.answer] == row["image_list"]


@pytest.mark.parametrize(
    ("instruction", "family", "condition", "style"),
    [
        ("Follow the <layout>depth map<image_2> to draw the <subject>dog<image_1>", "layout", 2, 0),
        ("<layout>map<image_3> in the <style>style of <image_1> with <image_2>", "layout", 3, 1),
        ("<image_1> <image_2> <image_3> as in the <layout>map", "layout", 3, 0),
        ("Draw what the depth map shows", "layout", 0, 0),
        ("Redraw <image_1> in the <style>style of <image_2>", "stylization", 0, 2),
        ("Place them with the <layout>layout of <image_2>", "compositional", 0, 0),  # no control map
        ("<style>style <image_9>", "stylization", 0, 0),
    ],
)
def test_condition_and_style_follow_from_the_tokens(
    tmp_path: Path, instruction: str, family: str, condition: int, style: int
) -> None:
    (item,) = items_of_row(tmp_path, instruction, images=4, family=family)
    assert (item.condition, item.style) == (condition, style)


def test_the_only_reference_of_a_layout_item_is_its_map(tmp_path: Path) -> None:
    (item,) = items_of_row(tmp_path, "Draw what the depth map shows", images=2)
    assert item.condition == 1


def test_every_turn_of_an_edit_is_an_item_that_sees_the_true_answers_before_it(tmp_path: Path) -> None:
    first, second = items_of_row(tmp_path, "Paint <image_1> red", "Now blue <image_2>", images=3, family="editing")
    images = [image_files.image_bytes("png", number) for number in (1, 2, 3)]
    assert (first.references, first.answer) == ((images[0],), images[1])
    assert (second.references, second.answer) == ((images[0], images[1]), images[2])
    assert first.id.endswith("-1") and second.id.endswith("-2")


@pytest.mark.slow
def test_a_corpus_gives_the_samples_of_its_test_split_or_of_the_one_named(tmp_path: Path) -> None:
    corpora.make_release(tmp_path / "release", rows=36)
    corpora.build(tmp_path / "corpus", f"release:{tmp_path / 'release'}", splits={"train": 1.0, "test": 1.0})
    rows: list[dict[str, Any]] = corpora.read_manifest(tmp_path / "corpus")
    items = {item.id: item for item in open_benchmark(f"sigma:{tmp_path / 'corpus'}").items()}
    assert items.keys() == {row["id"] for row in rows if row["split"] == "test"}
    trained = open_benchmark(f"sigma:{tmp_path / 'corpus'}", split="train")
    assert {item.id for item in trained.items()} == {row["id"] for row in rows if row["split"] == "train"}
    released = {item.id: item for item in open_benchmark(f"sigma:{tmp_path / 'release'}").items()}
    assert all(released[name] == item for name, item in items.items())


def test_a_row_that_cannot_be_read_stops_the_benchmark(tmp_path: Path) -> None:
    (tmp_path / "part.parquet").write_bytes(b"no parquet")
    with pytest.raises(ConfigError, match=r"part\.parquet: not a parquet file"):
        open_benchmark(f"sigma:{tmp_path}").items()


def test_a_row_without_images_stops_the_benchmark(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="row 0: has no answer"):
        items_of_row(tmp_path, "Paint it", images=0, family="editing")


def test_every_family_of_images_has_a_main_metric(tmp_path: Path) -> None:
    corpora.make_release(tmp_path, rows=6)
    main = open_benchmark(f"sigma:{tmp_path}").main
    assert set(main) == set(Family) - {Family.SEGMENTATION, Family.UNDERSTANDING}
