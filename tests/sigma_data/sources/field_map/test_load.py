"""Field maps as YAML: what is wrong is named in one line with its place and what to write instead."""

from __future__ import annotations

from pathlib import Path

import pytest

from sigma_data.errors import ConfigError
from sigma_data.sources.base import field_maps
from sigma_data.sources.field_map.load import load_map, load_shipped

MAP = """
corpus: Mine
families: [editing]
format: json
rows: "**/*.jsonl"
fields: {instruction: text, references: input, target: output}
images: {from: tree}
family: editing
"""


def load(folder: Path, text: str) -> str:
    """The error message of a map."""
    (folder / "mine.yaml").write_text(text)
    with pytest.raises(ConfigError) as error:
        load_map(folder / "mine.yaml")
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_map_of_one_layout_needs_no_list(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(MAP)
    found = load_map(tmp_path / "mine.yaml")
    assert found.layouts[0].fields.instruction == ("text",)
    assert found.layouts[0].fields.references[0].field == "input"


def test_keys_beside_the_list_hold_for_every_layout(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(f"{MAP}layouts: [{{name: a}}, {{name: b, rows: b.jsonl}}]\n")
    found = load_map(tmp_path / "mine.yaml")
    assert [layout.rows for layout in found.layouts] == [("**/*.jsonl",), ("b.jsonl",)]


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("rows:", "row:", ["row", "did you mean rows?"]),
        ("{from: tree}", "{form: tree}", ["images", "form", "did you mean from?"]),
        ("instruction: text", "instructions: text", ["fields", "instructions", "did you mean instruction?"]),
        ("{from: tree}", "{from: tre}", ["images", "from", "tree"]),
        ("format: json", "format: csv", ["format", "parquet"]),
        ("family: editing", "family: edit", ["family"]),
        ("family: editing", "famly: editing", ["famly", "did you mean family?"]),
        ("{from: tree}", "{from: tree, replace: [['(', x]]}", ["regular expression"]),
        ("family: editing", "family: editing\nfilters: [{field: a, missing: drop}]", ["one of min"]),
        ("family: editing", "family: editing\nfamily: layout", ["twice"]),
        ("corpus: Mine", "corpus: [", ["not YAML"]),
        ("corpus: Mine", "corpus: !!python/object:os.system x", ["not YAML"]),
    ],
)
def test_what_is_wrong_is_named_with_what_to_write(tmp_path: Path, old: str, new: str, words: list[str]) -> None:
    assert old in MAP
    message = load(tmp_path, MAP.replace(old, new, 1))
    assert all(word in message for word in words), message


@pytest.mark.parametrize("text", ["", "- a", "text", "layouts: 3", "layouts: [3]"])
def test_what_is_no_map_is_refused(tmp_path: Path, text: str) -> None:
    load(tmp_path, text)


def test_a_map_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="none.yaml"):
        load_map(tmp_path / "none.yaml")


@pytest.mark.parametrize("name", field_maps())
def test_every_shipped_map_is_valid_and_says_how_to_lay_out_the_files(name: str) -> None:
    found = load_shipped(name)
    assert found.files.strip()
    assert found.certainty != "unknown"
    assert found.hub
