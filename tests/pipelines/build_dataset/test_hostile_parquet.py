"""Hostile parquet: no parquet at all, footers that lie, any bit changed: a commit whose sums add up, or one sentence."""

from __future__ import annotations

import io
import os
import shutil
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support import corpora, image_files
from support.hostile import build_safely, codes_by_location

from sigma_data.corpus.corpus import COMMIT
from sigma_data.errors import SigmaError

pytestmark = pytest.mark.usefixtures("no_hang")


def lying_footers(data: bytes, rows: int) -> Iterator[bytes]:
    """The file with each of its row counts, and all of them, raised a lot or lowered."""
    size = struct.unpack("<I", data[-8:-4])[0]
    start = len(data) - 8 - size
    count = struct.pack("BB", (2 * rows) & 0x7F | 0x80, (2 * rows) >> 7)  # zigzag varint
    places = [place for place in range(start, len(data) - 8) if data[place : place + 2] == count]
    assert len(places) >= 2
    for lie in (b"\xfe\x7f", b"\x80\x01", b"\x81\x01"):  # 8191, 64, a negative number
        for chosen in (*([place] for place in places), places):
            told = bytearray(data)
            for place in chosen:
                told[place : place + 2] = lie
            yield bytes(told)


def parquet_bytes(table: pa.Table) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    return buffer.getvalue()


@pytest.mark.slow
def test_files_that_are_no_release_parquet_are_rejected_each_by_name(arena: Path) -> None:
    folder = corpora.make_release(arena / "in", 6, seed=3)
    rows = [corpora.release_row(seed) for seed in range(3)]
    good = pa.Table.from_pylist(rows, schema=corpora.RELEASE_SCHEMA)
    bad: dict[str, tuple[bytes, str]] = {
        "empty": (b"", "unreadable_file"),
        "text": (b"not a parquet file", "unreadable_file"),
        "magic_only": (b"PAR1PAR1", "unreadable_file"),
        "long_footer": (b"PAR1" + bytes(100) + b"\xff\xff\xff\x7fPAR1", "unreadable_file"),
        "cut": (parquet_bytes(good)[:-100], "unreadable_file"),
        "picture": (image_files.image_bytes("jpeg"), "unreadable_file"),
        "other_columns": (parquet_bytes(pa.table({"a": [1], "b": ["x"]})), "wrong_columns"),
        "one_column": (parquet_bytes(good.select(["image_list"])), "wrong_columns"),
        "text_pictures": (parquet_bytes(good.set_column(0, "image_list", pa.array([["a"]] * 3))), "wrong_columns"),
        "numbers": (parquet_bytes(good.set_column(1, "instruction_list", pa.array([1, 2, 3]))), "wrong_columns"),
        "column_twice": (parquet_bytes(good.append_column("image_list", good.column(0))), "wrong_columns"),
    }
    for name, (data, _) in bad.items():
        (folder / f"{name}.parquet").write_bytes(data)
    sums = build_safely(arena / "out", f"release:{folder}", watch=arena.parents[2])
    assert sums is not None
    assert sums["written"] == 6
    found = codes_by_location(arena / "out")
    assert found == {f"{name}.parquet": {code} for name, (_, code) in bad.items()}


@pytest.mark.slow
def test_footers_that_lie_about_row_counts_lose_no_row_silently(arena: Path) -> None:
    folder = corpora.make_release(arena / "in", 6, seed=3)
    rows = [corpora.release_row(seed) for seed in range(70)]
    data = corpora.write_parquet(arena / "in" / "whole.parquet", rows, group=70).read_bytes()
    (arena / "in" / "whole.parquet").unlink()
    for index, lie in enumerate(lying_footers(data, 70)):
        (folder / f"lie_{index}.parquet").write_bytes(lie)
    sums = build_safely(arena / "out", f"release:{folder}", watch=arena.parents[2])
    assert sums is not None
    assert sums["quarantined"] > 0


@pytest.mark.slow
def test_mutated_parquet_files_end_in_a_commit_whose_sums_add_up(arena: Path) -> None:
    folder = corpora.make_release(arena / "in", 6, seed=3)
    generator = np.random.default_rng(3)
    for index in range(60):
        rows = [corpora.release_row(500 + 3 * index + row, kind="png" if index % 3 else "jpeg") for row in range(3)]
        path = corpora.write_parquet(folder / f"chunk_{index}.parquet", rows, group=2)
        data = path.read_bytes()
        if index % 2:  # the footer decides most
            path.write_bytes(data[:-1500] + image_files.mutated(data[-1500:], generator, times=1 + index % 3))
        else:
            path.write_bytes(image_files.mutated(data, generator, times=1 + index % 3))
    sums = build_safely(arena / "out", f"release:{folder}", watch=arena.parents[2])
    assert sums is not None
    assert sums["written"] >= 6
    assert sums["quarantined"] > 20


@pytest.mark.slow
def test_rows_with_mutated_pictures_and_texts_are_written_or_quarantined(arena: Path) -> None:
    generator = np.random.default_rng(4)
    rows = []
    for index in range(120):
        row = corpora.release_row(index, kind=image_files.KINDS[index % 6])
        row["image_list"][index % 2] = image_files.mutated(row["image_list"][index % 2], generator, times=1 + index % 3)
        rows.append(row)
    odd: list[dict[str, Any]] = [
        {"image_list": None, "instruction_list": None, "data_prep_method": None},
        {"image_list": [], "instruction_list": [], "data_prep_method": ""},
        {"image_list": [None, b""], "instruction_list": [None], "data_prep_method": "editing"},
        {"image_list": [b"x"] * 500, "instruction_list": [["a"]], "data_prep_method": "\0"},
        {"image_list": [b"x"], "instruction_list": [["a"]] * 500, "data_prep_method": None},
        {"instruction_list": [["<image>" * 20_000]]},
        {"instruction_list": [["Paint \0 \x1b[2J <image_1>", None, "Paint <image_1>"]]},
        {"instruction_list": [["<" * 50_000]]},
        {"instruction_list": [["Paint <image_000001> <image_0> <image_99999999999>"]]},
        {"data_prep_method": "x" * 1_000_000},
    ]
    rows += [corpora.release_row(900 + index) | row for index, row in enumerate(odd)]
    corpora.write_parquet(arena / "in" / "rows.parquet", rows)
    sums = build_safely(arena / "out", f"release:{arena / 'in'}", watch=arena.parents[2])
    assert sums is not None
    assert sums["read"] == len(rows)
    assert sums["quarantined"] > 60


@pytest.mark.parametrize("kind", ["pipe", "dangling link", "name that is no text", "link to itself"])
def test_a_source_with_something_that_is_no_file_ends_in_a_sentence(arena: Path, kind: str) -> None:
    folder = corpora.make_release(arena / "in", 2, seed=3)
    if kind == "pipe":
        os.mkfifo(folder / "pipe.parquet")
    elif kind == "dangling link":
        (folder / "link.parquet").symlink_to(arena / "nothing")
    elif kind == "link to itself":
        (folder / "loop.parquet").symlink_to(folder / "loop.parquet")
    else:
        shutil.copy(folder / "seedxedit_multi/chunk_0.parquet", folder / os.fsdecode(b"caf\xe9.parquet"))
    with pytest.raises(SigmaError) as raised:
        corpora.build(arena / "out", f"release:{folder}")
    assert ".parquet" in str(raised.value)
    str(raised.value).encode()  # it must be possible to print it
    assert not (arena / "out" / COMMIT).exists()


# --- pictures --------------------------------------------------------------------------------------
