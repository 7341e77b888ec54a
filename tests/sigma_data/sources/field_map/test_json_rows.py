"""Rows of JSON: arrays and lines, whole and broken, in bounded memory."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sigma_data.sources.field_map import json_rows
from sigma_data.sources.field_map.json_rows import JsonRows
from sigma_data.sources.field_map.rows import FRAGMENT_ROWS
from sigma_data.sources.field_map.values import RowFault
from sigma_data.storage.data_folder import data_folder


def rows(file: Path, content: bytes) -> list[tuple[int | None, Any]]:
    """Every row of a file with its number; a fault as its code."""
    file.write_bytes(content)
    reader = JsonRows(data_folder(str(file.parent)))
    found: list[tuple[int | None, Any]] = []
    for fragment in reader.fragments(file.name, "1:1"):
        inside = list(reader.read(fragment))
        assert len(inside) == fragment.rows
        found += [(row, value.code if isinstance(value, RowFault) else value) for row, value in inside]
    assert [row for row, _ in found] == list(range(len(found)))
    return found


def values(file: Path, content: bytes) -> list[Any]:
    return [value for _, value in rows(file, content)]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@pytest.mark.slow
@settings(deadline=None)
@given(
    st.lists(st.dictionaries(st.text(max_size=4), JSON, max_size=3), max_size=6),
    st.booleans(),
    st.sampled_from([None, 1]),
)
def test_arrays_and_lines_read_as_written(
    tmp_path_factory: pytest.TempPathFactory, items: list[dict[str, Any]], ascii_only: bool, indent: int | None
) -> None:
    file = tmp_path_factory.mktemp("rows") / "a.json"
    array = json.dumps(items, ensure_ascii=ascii_only, indent=indent)
    assert values(file, array.encode("utf-8", "surrogatepass") if ascii_only else array.encode()) == items
    lines = "\n".join(json.dumps(item, ensure_ascii=ascii_only) for item in items)
    assert values(file, lines.encode()) == items


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf", b"\xef\xbb\xbf \n", b" " * 10_000])
def test_the_first_character_tells_arrays_from_lines(tmp_path: Path, mark: bytes) -> None:
    assert values(tmp_path / "a.jsonl", mark + b'[{"a": 1},\n{"a": 2}]') == [{"a": 1}, {"a": 2}]
    assert values(tmp_path / "a.json", mark + b'{"a": 1}\r\n\n{"a": 2}') == [{"a": 1}, {"a": 2}]
    assert values(tmp_path / "a.json", mark) == []


def test_a_broken_line_is_one_fault_in_its_place(tmp_path: Path) -> None:
    content = b'{"a": 1}\n{"a": 2\nnot\n[1]\n\xff\xfe\n{"a": NaN}\n' + b"[" * 100_000 + b'\n{"a": 7}'
    found = values(tmp_path / "a.jsonl", content)
    assert found[:5] == [{"a": 1}, "bad_line", "bad_line", "bad_fields", "bad_line"]
    assert found[5]["a"] != found[5]["a"]  # NaN
    assert found[6:] == ["bad_line", {"a": 7}]


def test_many_rows_keep_their_numbers_over_fragments(tmp_path: Path) -> None:
    items = [{"n": number} for number in range(2 * FRAGMENT_ROWS + 3)]
    assert values(tmp_path / "a.json", json.dumps(items).encode()) == items
    assert values(tmp_path / "a.json", "\n".join(map(json.dumps, items)).encode()) == items


def test_bytes_that_are_no_text_spoil_one_element_of_an_array(tmp_path: Path) -> None:
    content = b'[{"a": 1}, {"a": "\xff"}, {"a": "\xc3\xa9"}, {"a": 4}]'
    assert values(tmp_path / "a.json", content) == [{"a": 1}, "bad_line", {"a": "é"}, {"a": 4}]


@pytest.mark.parametrize("rest", [b'{"a": 2', b"nonsense]", b"\xff]", b"{'a': 2}]", b""])
def test_a_broken_array_is_read_up_to_the_break(tmp_path: Path, rest: bytes) -> None:
    assert values(tmp_path / "a.json", b'[{"a": 1}, ' + rest) == [{"a": 1}, "bad_line"]


@pytest.mark.slow
def test_long_files_and_long_lines_take_little_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_rows, "MOST_ROW_BYTES", 2**20)
    monkeypatch.setattr(json_rows, "_READ_BYTES", 2**16)
    text = "x" * 500
    array = "[" + ", ".join(json.dumps({"n": n, "t": text}) for n in range(40_000)) + "]"  # 20 MB in one line
    lines = f'{{"a": 1}}\n{{"a": "{"x" * 20_000_000}"}}\n{{"a": 2}}'
    tracemalloc.start()
    for name, content in (("array.json", array), ("lines.json", lines)):
        (tmp_path / name).write_text(content)
    array_rows, found = 0, []
    reader = JsonRows(data_folder(str(tmp_path)))
    tracemalloc.reset_peak()
    before = tracemalloc.get_traced_memory()[0]
    for fragment in reader.fragments("array.json", "1:1"):
        array_rows += sum(1 for _ in reader.read(fragment))
    for fragment in reader.fragments("lines.json", "1:1"):
        found += [value.code if isinstance(value, RowFault) else value for _, value in reader.read(fragment)]
    peak = tracemalloc.get_traced_memory()[1] - before
    tracemalloc.stop()
    assert array_rows == 40_000
    assert found == [{"a": 1}, "bad_line", {"a": 2}]
    assert peak < 12_000_000
