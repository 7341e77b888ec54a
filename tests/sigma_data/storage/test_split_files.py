"""Files cut into parts: joined by number, holes told before reading, read as one without copying."""

from __future__ import annotations

import io
import random
import string
from fnmatch import fnmatch
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sigma_data.errors import SourceError
from sigma_data.storage.data_folder import data_folder
from sigma_data.storage.split_files import JoinedFile, Part, SplitFile, find_split_files


def names(*locations: str) -> list[tuple[str, str]]:
    return [(location, "10:0") for location in locations]


def only(found: list[SplitFile]) -> SplitFile:
    assert len(found) == 1
    return found[0]


def order(file: SplitFile) -> list[str]:
    return [part.location.rpartition("/")[2] for part in file.parts]


def test_parts_are_joined_by_number_not_by_text() -> None:
    listing = names(*(f"a/x.tar.gz.part{n}" for n in [10, 2, 1, 0, 9, 8, 7, 6, 5, 4, 3]))
    file = only(find_split_files(listing))
    assert file.location == "a/x.tar.gz"
    assert order(file) == [f"x.tar.gz.part{n}" for n in range(11)]
    assert file.missing is None


@pytest.mark.parametrize(
    "parts",
    [
        ["x.tar.split.000", "x.tar.split.001"],
        ["x.tar.part-00", "x.tar.part-01"],
        ["x.tar.part-aa", "x.tar.part-ab"],
        ["x.tar.gz.part_aa", "x.tar.gz.part_ab"],
        ["x.tar.001", "x.tar.002"],
        ["x.tar.gz.part1", "x.tar.gz.part2"],
        ["x.tar.part00"],
    ],
)
def test_the_spellings_of_parts(parts: list[str]) -> None:
    file = only(find_split_files(names(*reversed(parts))))
    assert order(file) == parts
    assert file.missing is None


@pytest.mark.parametrize(
    ("parts", "missing"),
    [
        (["x.tar.split.000", "x.tar.split.002"], "part 001 is missing"),
        (["x.tar.gz.part8", "x.tar.gz.part9"], "begin with 8"),
        (["x.tar.part-aa", "x.tar.part-ac"], "part ab is missing"),
        (["x.tar.part-ab"], "begin with ab"),
        ([f"x.tar.part-a{c}" for c in string.ascii_lowercase[:25]] + ["x.tar.part-bb"], "part az is missing"),
        (["x.tar.part00", "x.tar.split.000"], "several kinds"),
    ],
)
def test_a_hole_in_the_numbers_is_told_by_names_alone(parts: list[str], missing: str) -> None:
    message = only(find_split_files(names(*parts))).missing
    assert message is not None
    assert missing in message


def test_numbers_as_split_of_gnu_widens_them_have_no_hole() -> None:
    digits = [f"{n:02}" for n in range(90)] + [f"{9000 + n}" for n in range(900)] + ["990000"]
    letters = [a + b for a in string.ascii_lowercase[:25] for b in string.ascii_lowercase] + ["zaaa", "zaab"]
    for numbers in (digits, letters):
        file = only(find_split_files(names(*(f"x.tar.part-{number}" for number in numbers))))
        assert order(file) == [f"x.tar.part-{number}" for number in numbers]
        assert file.missing is None
    assert only(find_split_files(names(*(f"x.tar.part-{n}" for n in digits if n != "9000")))).missing


def test_what_is_no_part_stays_a_file_and_parts_that_were_joined_give_way() -> None:
    listing = names("a/2024.jpg", "a/x.tar", "a/x.tar.part0", "b/y.v2", "sa_0001.tar", "n.1.0.jpg")
    assert [file.location for file in find_split_files(listing)] == [
        "a/2024.jpg", "a/x.tar", "b/y.v2", "sa_0001.tar", "n.1.0.jpg",
    ]  # fmt: skip
    assert all(len(file.parts) == 1 for file in find_split_files(listing))


def test_a_pattern_names_the_joined_file_or_its_parts() -> None:
    listing = names("s/a.tar.split.000", "s/a.tar.split.001", "m/b.tar", "s/readme.txt")
    for pattern in ("s/*.tar", "s/*.tar.split.*"):
        assert [file.location for file in find_split_files(listing, partial(fnmatch, pat=pattern))] == ["s/a.tar"]


@settings(max_examples=30, deadline=None)
@given(sizes=st.lists(st.integers(0, 400), min_size=1, max_size=30), seed=st.integers(0, 1 << 32))
def test_a_joined_file_reads_like_the_whole(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], seed: int
) -> None:
    folder = tmp_path_factory.mktemp("parts")
    draw = random.Random(seed)
    pieces = [draw.randbytes(size) for size in sizes]
    for number, piece in enumerate(pieces):
        (folder / f"x.tar.part{number}").write_bytes(piece)
    parts = tuple(Part(f"x.tar.part{n}", size if n % 3 else -1, "") for n, size in enumerate(sizes))
    joined, whole = JoinedFile(data_folder(str(folder)), parts), io.BytesIO(b"".join(pieces))
    assert joined.size == sum(sizes)
    for _ in range(30):
        offset, size = draw.randrange(sum(sizes) + 10), draw.randrange(600)
        joined.seek(offset)
        whole.seek(offset)
        assert joined.read(size) == whole.read(size) == joined.read_at(offset, size)
    joined.seek(0)
    assert io.BufferedReader(joined).read() == whole.getvalue()


def test_a_part_that_cannot_be_read_is_a_source_error(tmp_path: Path) -> None:
    joined = JoinedFile(data_folder(str(tmp_path)), (Part("x.tar", 10, ""),))
    with pytest.raises(SourceError, match=r"x\.tar"):
        joined.read_at(0, 5)
