"""Dialogues that stand in one row: numbered fields, keyed lists, lists of turns; holes are faults, ends are not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from support.layouts import lines, picture, put, put_tar, read, sample, told

from sigma_data.sample import Rejection

SEED = "SEED-Data-Edit-Part2-3/multi_turn_editing"


def seed_row(turns: int, **changes: Any) -> dict[str, Any]:
    row: dict[str, Any] = {"source_image": "d/0.jpg"}
    for n in range(1, turns + 1):
        row |= {f"instruction_{n}": f"Do {n}", f"edit_image_{n}": f"d/{n}.jpg"}
    return row | changes


def seed_edit(root: Path, *rows: dict[str, Any]) -> Path:
    put_tar(root / SEED / "images/multi_turn.tar.gz", {f"d/{n}.jpg": picture(n) for n in range(6)}, ".part-{:02}", 3)
    put(root / SEED / "annotations/split_0.jsonl", lines(rows))
    return root


def test_numbered_turns_end_where_nothing_follows_and_have_no_holes(tmp_path: Path) -> None:
    root = seed_edit(
        tmp_path / "c",
        seed_row(2),
        seed_row(3, instruction_4=None, edit_image_4=None, instruction_5="", edit_image_5=None),
        seed_row(3, instruction_2=None),
        seed_row(3, edit_image_2=None),
        seed_row(2, instruction_3="Do 3"),
        seed_row(2, edit_image_2="d/9.jpg"),
        seed_row(0),
        seed_row(5),
        seed_row(2, source_image=None),
    )
    found = read("seed_edit", root)
    assert told(found) == [
        "editing", "editing", "turns_mismatch", "turns_mismatch", "turns_mismatch", "missing_picture", "bad_fields", "editing",
        "missing_picture",
    ]  # fmt: skip
    longest = sample(found[7])
    assert [image.data for image in longest.images] == [picture(n) for n in range(6)]
    assert [(turn.instruction, turn.target) for turn in longest.turns] == [(f"Do {n}", n + 1) for n in range(1, 6)]
    assert longest.references == (1,)


def test_turns_may_be_samples_of_their_own(tmp_path: Path) -> None:
    found = [sample(one) for one in read("seed_edit", seed_edit(tmp_path / "c", seed_row(3)), turns="single")]
    assert [[image.data for image in one.images] for one in found] == [[picture(n), picture(n + 1)] for n in range(3)]
    assert len({one.id for one in found}) == 3
    assert {one.source.row for one in found} == {0}


def test_pairs_of_seed_edit_come_from_two_archives(tmp_path: Path) -> None:
    place = tmp_path / "c/SEED-Data-Edit-Part1-Openimages/auto_editing/openimages"
    for side, first in (("source", 0), ("target", 10)):
        put_tar(
            place / f"images/{side}_images.tar.gz", {f"split_0/{side}_images/0.jpg": picture(first)}, ".part-{:02}", 2
        )
    put(place / "annotations_GPT4V/split_0.jsonl", lines([
        {"source_image": f"split_0/source_images/{n}.jpg", "target_image": f"split_0/target_images/{n}.jpg",
         "instruction": "Do"} for n in range(2)
    ]))  # fmt: skip
    found = read("seed_edit", tmp_path / "c")
    assert told(found) == ["editing", "missing_picture"]
    assert [image.data for image in sample(found[0]).images] == [picture(0), picture(10)]


def pico_row(*turns: str, files: list[tuple[str, str]] | None = None) -> dict[str, Any]:
    names = [*(f"edit_turn{n}" for n in range(1, len(turns))), "final_image"]
    files = files or [(name, f"images/multi-turn/{n}.png") for n, name in enumerate(names)]
    return {
        "files": [{"id": key, "url": url} for key, url in [*files, ("original_input_image", "https://x.org/1.jpg")]],
        "metadata_edit_turn_prompts": list(turns),
        "local_input_image": "/Users/me/openimage_source_images/a/1.jpg",
    }


def test_turns_and_prompts_of_pico_banana_must_agree(tmp_path: Path) -> None:
    root = tmp_path / "c"
    put(root / "openimage_source_images/a/1.jpg", picture(0))
    for n in range(3):
        put(root / f"images/multi-turn/{n}.png", picture(n + 1))
    final = ("final_image", "images/multi-turn/2.png")
    rows = [
        pico_row("one", "two", "three"),
        pico_row("one", "two", files=[("edit_turn2", "images/multi-turn/0.png"), final]),
        pico_row("one", "two", files=[("edit_turn1", "images/multi-turn/0.png")]),
        pico_row("one", files=[("edit_turn1", "images/multi-turn/0.png"), final]),
    ]
    put(root / "jsonl/multi_turn_with_local_source_image_path.jsonl", lines(rows[:1]))
    found = read("pico_banana", root)
    assert told(found) == ["editing"]
    assert [image.data for image in sample(found[0]).images] == [picture(n) for n in range(4)]
    assert [turn.instruction for turn in sample(found[0]).turns] == ["one", "two", "three"]
    put(root / "jsonl/multi_turn_with_local_source_image_path.jsonl", lines(rows[1:]))
    assert set(told(read("pico_banana", root))) <= {"turns_mismatch", "ambiguous_name"}


def test_both_rows_that_name_one_output_are_refused(tmp_path: Path) -> None:
    root = tmp_path / "c"
    for n in range(3):
        put(root / f"images/positive-edit/{n}.png", picture(n + 1))
        put(root / f"openimage_source_images/{n}.jpg", picture(n + 20))
    rows = [
        {"text": "Do", "summarized_text": "do", "output_image": f"images/positive-edit/{out}.png",
         "edit_type": kind, "local_input_image": local}
        for out, kind, local in [
            (0, "Add a new object", "openimage_source_images/0.jpg"), (1, "Add", "openimage_source_images/1.jpg"),
            (1, "Add", None), (2, "Pixar cartoon style", None),
        ]
    ]  # fmt: skip
    put(root / "jsonl/sft.jsonl", lines(rows))
    assert told(read("pico_banana", root)) == ["editing", "ambiguous_name", "ambiguous_name", "missing_picture"]


def img_turn(prompt: str, takes: list[str], makes: list[str]) -> dict[str, Any]:
    return {"prompt": prompt, "input_images": takes, "output_images": makes}


def imgedit(root: Path, name: str, rows: list[list[dict[str, Any]]]) -> Path:
    put(root / "Parquet/x", b"")
    pq.write_table(pa.Table.from_pylist([{"data": row} for row in rows]), root / f"Parquet/{name}.parquet")
    images = {f"S/origin_{n}.png": picture(n) for n in range(2)} | {
        f"S/result_{n}.png": picture(n + 1) for n in range(3)
    }
    images["S/origin_2.png"] = picture(1, kind="BMP")  # the second image, saved again
    images["S/other.png"] = picture(99)
    put_tar(
        root / f"Multiturn/results_{name}.tar", {f"top/{key}": data for key, data in images.items()}, ".split.{:03}", 3
    )
    return root


def test_a_turn_without_images_is_a_rule_for_those_that_follow(tmp_path: Path) -> None:
    rows = [
        [img_turn("Everything must be red.", [], []), img_turn("add a ball", ["a/S/origin_0.png"], ["a/S/result_0.png"]),
         img_turn("and a box", ["a/S/origin_1.png"], ["a/S/result_1.png"])],
        [img_turn("add a ball", ["a/S/origin_0.png"], ["a/S/result_0.png"]), img_turn("Everything must be red.", [], [])],
    ]  # fmt: skip
    found = read("imgedit", imgedit(tmp_path / "c", "content_memory_part2", rows))
    assert told(found) == ["editing", "turns_mismatch"]
    assert [turn.instruction for turn in sample(found[0]).turns] == ["Everything must be red. add a ball", "and a box"]
    assert sample(found[0]).references == (1,)
    assert told(read("imgedit", tmp_path / "c", turns="single")) == told(found)  # hangs together


def test_a_turn_may_begin_with_an_earlier_image_but_with_no_other(tmp_path: Path) -> None:
    def row(third: str) -> list[dict[str, Any]]:
        return [
            img_turn("one", ["a/S/origin_0.png"], ["a/S/result_0.png"]),
            img_turn("two", ["a/S/origin_1.png"], ["a/S/result_1.png"]),
            img_turn("undo, and three", [third], ["a/S/result_2.png"]),
        ]

    rows = [row("a/S/origin_2.png"), row("a/S/other.png"), row("a/S/none.png")]
    found = read("imgedit", imgedit(tmp_path / "c", "version_backtracking_part0", rows))
    assert told(found) == ["editing", "turns_mismatch", "missing_picture"]
    first = sample(found[0])
    assert [image.data for image in first.images] == [picture(n) for n in range(4)]
    assert json.loads(first.provenance or "")["takes"] == [[1], [2], [2]]
    single = read("imgedit", tmp_path / "c", turns="single")
    third = next(one for one in single if not isinstance(one, Rejection) and one.source.location.endswith("#turn3"))
    assert [image.data for image in third.images] == [picture(1, kind="BMP"), picture(3)]
