"""Rows that are odd or broken in ways that publishers' rows are: each gives what can be known, and no more."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import pytest
from support.foreign_layouts import hf_image, write_parquet
from support.layouts import lines, picture, put, read, sample, tar_of, told

from sigma_data.errors import SourceError

PICO = "sft_with_local_source_image_path.jsonl"


def pico(root: Path) -> list[dict[str, object]]:
    put(root / "openimage_source_images/s.jpg", picture(1))
    put(root / "images/positive-edit/t.png", picture(2))
    return [
        {
            "text": "Make it red",
            "summarized_text": "red",
            "edit_type": "Change color",
            "output_image": "images/positive-edit/t.png",
            "local_input_image": "openimage_source_images/s.jpg",
        }
    ]


def test_the_list_as_downloaded_beside_the_one_with_local_images_is_not_read(tmp_path: Path) -> None:
    root = tmp_path / "c"
    rows = pico(root)
    downloaded = [{name: value for name, value in row.items() if name != "local_input_image"} for row in rows]
    put(root / "jsonl/sft.jsonl", lines(downloaded))
    with pytest.raises(SourceError, match=r"sft.jsonl have no local_input_image"):
        read("pico_banana", root)
    put(root / f"jsonl/{PICO}", lines(rows))
    assert told(read("pico_banana", root)) == ["editing"]


@pytest.mark.parametrize("back", ["None", "", None, "无"])
def test_a_reverse_edit_without_words_leaves_the_edit(tmp_path: Path, back: str | None) -> None:
    row = {"input_image": hf_image(picture(1)), "output_image": hf_image(picture(2)), "edit": "do it"}
    rows = [{**row, "inverse_edit": back}, {**row, "inverse_edit": "undo it"}]
    write_parquet(tmp_path / "c/data/t.parquet", rows)
    found = read("hq_edit", tmp_path / "c")
    assert [sample(one).turns[0].instruction for one in found] == ["do it", "do it", "undo it"]


def conversation(*images: str) -> dict[str, object]:
    said = [{"from": "human", "value": "<image>\nmake it red"}, {"from": "gpt", "value": "<gen_image>"}]
    return {"image": list(images), "conversations": said}


@pytest.mark.parametrize("root", ["photos/set", "/home/publisher/photos/set", "./photos/set/"])
def test_the_list_of_roots_says_where_paths_begin(tmp_path: Path, root: str) -> None:
    put(tmp_path / "c/photos/set/a.png", picture(1))
    put(tmp_path / "c/photos/set/b.png", picture(2))
    put(tmp_path / "c/json/rows.json", json.dumps([conversation("a.png", "b.png"), conversation("a.png", "../b.png")]))
    assert told(read("uniworld", tmp_path / "c"))[0] == "missing_picture"
    put(tmp_path / "c/data.txt", f"{root},/home/publisher/json/rows.json,1\n")
    found = read("uniworld", tmp_path / "c")
    assert told(found) == ["editing", "unsafe_path"]
    assert [image.data for image in sample(found[0]).images] == [picture(1), picture(2)]


def test_a_list_of_roots_that_climbs_is_not_followed(tmp_path: Path) -> None:
    put(tmp_path / "a.png", picture(1))
    put(tmp_path / "c/json/rows.json", json.dumps([conversation("a.png", "a.png")]))
    put(tmp_path / "c/data.txt", "..,json/rows.json,1\n")
    assert told(read("uniworld", tmp_path / "c")) == ["missing_picture"]


def test_x2edit_tasks_in_other_spellings(tmp_path: Path) -> None:
    members = {}
    tasks = ["Style Change", "风格变换", "personalized-generation", "portrait_editing", "肖像", None]
    for number, task in enumerate(tasks):
        said = {"instruction": "make it so"} | ({"task": task} if task else {})
        members |= {f"k{number}.1.0.jpg": picture(number), f"k{number}.2.jpg": picture(number + 50)}
        members |= {f"k{number}.json": json.dumps(said).encode()}
    put(tmp_path / "c/X2Edit_data/kontext/0/0.tar", tar_of(members))
    put(tmp_path / "c/style/0.tar", tar_of({"a.jpg": picture(1), "a.png": picture(2), "a.txt": "动漫".encode()}))
    assert told(read("x2edit", tmp_path / "c")) == [
        "stylization", "stylization", "compositional", "editing", "compositional", "editing", "stylization",
    ]  # fmt: skip


def test_a_tar_that_claims_ten_gigabytes_is_truncated_and_not_read_for(tmp_path: Path) -> None:
    info = tarfile.TarInfo("a.1.0.jpg")
    info.size = 10 * 2**30
    out = io.BytesIO(info.tobuf() + picture(1))
    put(tmp_path / "c/X2Edit_data/kontext/0/0.tar", out.getvalue())
    assert told(read("x2edit", tmp_path / "c")) == ["truncated"]
