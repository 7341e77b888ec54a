"""Webdataset tars of others: all their names of members, joined tars, and hostile ones."""

from __future__ import annotations

import io
import json
import struct
import tarfile
from pathlib import Path

import pytest
from support.foreign_layouts import records, tar_bytes, told
from support.image_files import image_bytes

from sigma_data.sample import Rejection, Sample

Members = list[tuple[str, bytes]]


def row(key: str, seed: int, *names: str, text: str = "do it", **fields: object) -> Members:
    """The members of a row: images by their suffixes, JSON, text."""
    images = [(f"{key}.{name}", image_bytes(seed=10 * seed + index)) for index, name in enumerate(names)]
    return [
        *images,
        (f"{key}.json", json.dumps({"instruction": text, **fields}).encode()),
        (f"{key}.txt", text.encode()),
    ]


def write(folder: Path, name: str, *parts: bytes) -> None:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(b"".join(parts))


def read(folder: Path, *parts: bytes, name: str = "kontext/0.tar") -> list[str]:
    write(folder, name, *parts)
    return [told(record) for record in records(f"x2edit:{folder}")]


@pytest.mark.parametrize(
    ("names", "used"),
    [
        (["1.0.jpg", "2.jpg"], (0, 1)),
        (["1.0.jpg", "1.1.jpg", "2.jpg"], (0, 2)),
        (["1.jpg", "2.jpg", "3.jpg"], (0, 1)),
        ([".1.jpg", ".2.jpg"], (0, 1)),
        (["1.JPG", "2.png"], (0, 1)),
        (["jpg", "png"], (0, 1)),
        (["png", "jpg"], (1, 0)),
        (["2.jpg", "1.0.webp"], (1, 0)),
    ],
)
def test_every_way_to_name_source_and_target_is_read(tmp_path: Path, names: list[str], used: tuple[int, int]) -> None:
    members = row("a/000", 1, *names)
    write(tmp_path, "kontext/0.tar", tar_bytes(members))
    (sample,) = records(f"x2edit:{tmp_path}")
    assert isinstance(sample, Sample)
    assert [image.data for image in sample.images] == [members[index][1] for index in used]


def test_joined_tars_begin_keys_anew(tmp_path: Path) -> None:
    first = tar_bytes(row("0", 1, "1.0.jpg", "2.jpg", text="one") + row("1", 2, "1.0.jpg", "2.jpg", text="two"))
    second = tar_bytes(row("1", 3, "1.0.jpg", "2.jpg", text="three"))
    write(tmp_path, "kontext/0.tar", first, second)
    found = records(f"x2edit:{tmp_path}")
    assert [record.turns[0].instruction for record in found if isinstance(record, Sample)] == ["one", "two", "three"]
    assert [record.source.row for record in found if isinstance(record, Sample)] == [0, 1, 2]


def test_texts_come_from_json_or_text_file_and_never_describe_the_original(tmp_path: Path) -> None:
    members = [
        *row("0", 1, "1.0.jpg", "2.jpg", text="None"),
        *row("1", 1, "1.0.jpg", "2.jpg", text="", instruction_ori="a photograph"),
        *row("2", 2, "1.0.jpg", "2.jpg")[:2], ("2.txt", b"['first', 'second']"),
        *row("3", 3, "jpg", "png")[:2], ("3.json", json.dumps({"style_zh": "变老"}).encode()),
        *row("4", 4, "1.0.jpg", "2.jpg")[:2],
        *row("5", 5, "1.0.jpg", "2.jpg")[:2], ("5.json", b"{broken"),
        *row("6", 6, "1.0.jpg", "2.jpg")[:2], ("6.json", b"[1]"),
        *row("7", 7, "1.0.jpg"),
    ]  # fmt: skip
    assert read(tmp_path, tar_bytes(members)) == [
        "empty_instruction", "empty_instruction", "editing", "editing", "bad_fields", "bad_line", "bad_fields",
        "missing_picture",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"task": "Style Change"}, "stylization"),
        ({"task": "风格更改"}, "stylization"),
        ({"label": "Style Transfer"}, "stylization"),
        ({"task": "personalized-generation"}, "compositional"),
        ({"task": "anything else"}, "editing"),
        ({"task": None}, "editing"),
    ],
)
def test_the_family_follows_the_task_however_it_is_written(
    tmp_path: Path, fields: dict[str, str], expected: str
) -> None:
    assert read(tmp_path, tar_bytes(row("0", 1, "1.0.jpg", "2.jpg", **fields))) == [expected]


GOOD = {"liqe_score_edit": 4.0, "aesthetic_score_v2_5_edit": 5.0, "liqe_score_clip_edit": 0.7, "score_7b": "[5, 4]"}


@pytest.mark.parametrize(
    ("model", "fields", "expected"),
    [
        ("step1x", GOOD, "editing"),
        ("step1x", GOOD | {"score_7b": "[4, 4]"}, "(low_score)"),
        ("step1x", GOOD | {"score_7b": "None", "score": "[9, 9]"}, "editing"),
        ("step1x", GOOD | {"score_7b": None, "score": "[9, 8]"}, "(low_score)"),
        ("step1x", GOOD | {"score": "[1, 1]"}, "editing"),
        ("step1x", GOOD | {"liqe_score_edit": 2.9}, "(low_score)"),
        ("step1x", GOOD | {"liqe_score_edit": float("nan")}, "(no_score)"),
        ("X2Edit_data/step1x-edit/3", GOOD | {"liqe_score_clip_edit": 0.5}, "(low_score)"),
        ("delete", {"label": "Delete", "score": "[5, 4]"}, "editing"),
        ("delete", {"label": "Delete", "score": "[5, 3]"}, "(low_score)"),
        ("X2Edit_data/lama/0", {"score": "[5, 3]"}, "(low_score)"),
        ("X2Edit_data/kontext/0", {"score": "[5, 3]", "liqe_score_edit": None}, "editing"),
        ("gpt4o", {"aesthetic_score_v2_5_edit": "5.9"}, "(low_score)"),
        ("step1x", GOOD | {"task": "text change", "instruction": "改"}, "(task_excluded)"),
    ],
)
def test_the_publishers_thresholds_depend_on_the_model(
    tmp_path: Path, model: str, fields: dict[str, object], expected: str
) -> None:
    content = tar_bytes(row("0", 1, "1.0.jpg", "2.jpg", **fields))
    assert read(tmp_path, content, name=f"{model}/0.tar") == [expected]
    assert [told(record) for record in records(f"x2edit:{tmp_path}?filters=off")] == ["editing"]


def test_a_tar_that_ends_early_is_read_up_to_its_end(tmp_path: Path) -> None:
    whole = tar_bytes(row("0", 1, "1.0.jpg", "2.jpg") + row("1", 2, "1.0.jpg", "2.jpg"))
    assert read(tmp_path, whole[: whole.index(b"1.2.jpg") + 700]) == ["editing", "missing_picture", "truncated"]


def test_bytes_that_are_no_member_are_not_passed_over(tmp_path: Path) -> None:
    first, second = (tar_bytes(row(key, 1, "1.0.jpg", "2.jpg")) for key in "01")
    assert read(tmp_path, first, b"garbage " * 64, second) == ["editing", "truncated"]
    assert read(tmp_path, first, bytes(1024), second) == ["editing", "editing"]


def hostile(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> bytes:
    """A tar of one good row, then one with a hostile member."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for good, data in row("0", 1, "1.0.jpg", "2.jpg"):
            member = tarfile.TarInfo(good)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
        member = tarfile.TarInfo(name)
        member.type, member.linkname = kind, link
        tar.addfile(member, io.BytesIO())
    return buffer.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        hostile("../1.1.0.jpg"),
        hostile("/etc/1.2.jpg"),
        hostile("1.1.0.jpg", tarfile.SYMTYPE, "/etc/passwd"),
        hostile("1.1.0.jpg", tarfile.LNKTYPE, "../x"),
        hostile("1.1.0.jpg", tarfile.CHRTYPE),
    ],
)
def test_members_that_leave_the_tar_are_unsafe(tmp_path: Path, content: bytes) -> None:
    assert read(tmp_path, content) == ["editing", "unsafe_path"]


def test_a_header_that_claims_ten_gigabytes_costs_nothing(tmp_path: Path) -> None:
    member = tarfile.TarInfo("1.1.0.jpg")
    member.size = 10 * 2**30
    good = tar_bytes(row("0", 1, "1.0.jpg", "2.jpg")).rstrip(b"\0")
    good += bytes(-len(good) % 512)
    assert read(tmp_path, good, member.tobuf(), bytes(2048))[:2] == ["editing", "truncated"]


def test_what_is_no_tar_is_one_rejection(tmp_path: Path) -> None:
    for content in (b"no tar at all" * 100, struct.pack("<I", 1), b"\x1f\x8b" + bytes(600)):
        write(tmp_path, "a/0.tar", content)
        (found,) = records(f"x2edit:{tmp_path}")
        assert isinstance(found, Rejection)
        assert found.code == "truncated"
        assert found.row is None
