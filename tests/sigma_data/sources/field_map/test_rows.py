"""Globs that name the files with rows."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sigma_data.sources.field_map.rows import literal_glob, matches


@pytest.mark.parametrize(
    ("glob", "location", "expected"),
    [
        ("**/*.json", "a.json", True),
        ("**/*.json", "a/b/c.json", True),
        ("*.json", "a/b.json", False),
        ("a/*/c.json", "a/b/c.json", True),
        ("a/*/c.json", "a/b/b/c.json", False),
        ("a/**", "a/b/c", True),
        ("a?c", "abc", True),
        ("a?c", "a/c", False),
        ("[ab].txt", "a.txt", True),
        ("[!ab].txt", "a.txt", False),
        ("x(y,z)/*.parquet", "x(y,z)/0.parquet", True),
        ("a.json", "aXjson", False),
    ],
)
def test_globs(glob: str, location: str, expected: bool) -> None:
    assert matches(location, [glob]) is expected


@settings(deadline=None)
@given(st.text(alphabet="ab[]*?!^\\.(){}/-", max_size=12))
def test_a_literal_glob_names_itself_alone(text: str) -> None:
    assert matches(text, [literal_glob(text)])
    assert not matches(f"{text}x", [literal_glob(text)])
