"""Sources with a field map: which files and layouts are read, and what is said of folders that do not fit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.foreign_layouts import hf_image, records, told, write_lines, write_parquet
from support.image_files import image_bytes

from sigma_data.errors import ConfigError, SigmaError, SourceError
from sigma_data.sample import Sample
from sigma_data.sources import names, open_source

MAP = """
corpus: Mine
families: [editing, stylization]
license: cc-by-4.0
format: json
rows: "rows/*.jsonl"
subset: "rows/(?P<part>[a-z]+)\\\\."
fields:
  instruction: [text, short]
  alternatives: short
  references: inputs
  target: output
images: {from: tree, folders: ["images/{part}"], unique_target: true}
family: {by: text, wording: {"style|sketch": stylization}, default: editing}
"""


def corpus(folder: Path) -> str:
    """A corpus with a map of its own; gives its source."""
    (folder / "mine.yaml").write_text(MAP)
    for seed, name in enumerate(["a/1.jpg", "a/2.jpg", "a/3.jpg", "b/1.jpg", "b/2.jpg"]):
        (folder / "data" / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "data" / "images" / name).write_bytes(image_bytes(seed=seed))
    rows = [
        {"text": "make it red", "short": "red", "inputs": ["1.jpg"], "output": "2.jpg"},
        {"text": "as a Sketch", "inputs": "1.jpg", "output": "3.jpg"},
        {"text": "put both together", "inputs": ["1.jpg", "2.jpg"], "output": "4.jpg"},
        {"text": "nothing", "inputs": [], "output": "5.jpg"},
        {"text": "twice", "inputs": ["1.jpg"], "output": "6.jpg"},
        {"text": "twice more", "inputs": ["1.jpg"], "output": "./6.jpg"},
        {"text": "null", "inputs": ["1.jpg"], "output": None},
        {"text": 3, "inputs": ["1.jpg"], "output": "7.jpg"},
    ]
    write_lines(folder / "data" / "rows" / "a.jsonl", rows)
    write_lines(folder / "data" / "rows" / "b.jsonl", rows[:1])
    return f"map:{folder / 'mine.yaml'}?root={folder / 'data'}"


def test_a_map_of_ones_own_is_a_source(tmp_path: Path) -> None:
    found = records(corpus(tmp_path))
    assert [told(record) for record in found] == [
        "editing", "stylization", "missing_picture", "missing_picture", "ambiguous_name", "ambiguous_name",
        "empty_instruction", "bad_fields", "editing",
    ]  # fmt: skip
    first, second, last = found[0], found[1], found[-1]
    assert isinstance(first, Sample)
    assert isinstance(second, Sample)
    assert isinstance(last, Sample)
    assert first.source.name == "mine"
    assert first.source.license == "cc-by-4.0"
    assert first.turns[0].alternatives == ("red",)
    assert second.family_inferred
    assert not first.family_inferred
    assert json.loads(last.provenance or "") == {"resolved": 2 * ["as written under images/b"]}
    assert last.images[0].data == image_bytes(seed=3)


def test_another_map_of_the_same_files_is_noticed(tmp_path: Path) -> None:
    spec = corpus(tmp_path)
    before = [(one.stamp, open_source(spec).fingerprint(one)) for one in open_source(spec).fragments()]
    same = [(one.stamp, open_source(spec).fingerprint(one)) for one in open_source(spec).fragments()]
    (tmp_path / "mine.yaml").write_text(MAP.replace("[text, short]", "[short, text]"))
    after = [(one.stamp, open_source(spec).fingerprint(one)) for one in open_source(spec).fragments()]
    assert before == same
    assert all(one[0] != other[0] and one[1] != other[1] for one, other in zip(before, after, strict=True))
    assert [told(record) for record in records(spec)].count("editing") == 2


def message(spec: str) -> str:
    with pytest.raises(SigmaError) as error:
        open_source(spec).fragments()
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_map_needs_a_root_and_a_shipped_one_has_it_in_its_path(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(MAP)
    assert "?root=" in message(f"map:{tmp_path}/mine.yaml")
    assert "leave out root" in message(f"omniedit:{tmp_path}?root=x")
    with pytest.raises(ConfigError, match="filters"):
        open_source("omniedit:x?filters=perhaps")


def test_a_folder_without_such_files_is_told_what_is_there(tmp_path: Path) -> None:
    write_lines(tmp_path / "other.jsonl", [{"a": 1}])
    found = message(f"omniedit:{tmp_path}")
    assert all(words in found for words in ["**/*.parquet", "other.jsonl", "sigma sources omniedit"])
    assert "no such file" in message(f"omniedit:{tmp_path / 'none'}")


def test_rows_with_other_keys_are_told_with_the_nearest_map(tmp_path: Path) -> None:
    image = hf_image(image_bytes())
    row = {"input_image": image, "output_image": image, "edit": "a", "inverse_edit": "b", "input": "c", "output": "d"}
    write_parquet(tmp_path / "train.parquet", [row])
    found = message(f"omniedit:{tmp_path}")
    assert all(words in found for words in ["edited_prompt_list", "inverse_edit", "sigma sources hq_edit"])
    write_parquet(tmp_path / "train.parquet", [{"x": 1}])
    assert "sigma sources" not in message(f"omniedit:{tmp_path}")


def test_every_shipped_map_is_a_layout() -> None:
    assert {"omniedit", "x2edit", "subjects200k", "map"} <= set(names())


def test_a_map_that_names_a_part_there_is_not_is_told_so(tmp_path: Path) -> None:
    spec = corpus(tmp_path)
    (tmp_path / "mine.yaml").write_text(MAP.replace("{part}", "{prt}"))
    with pytest.raises(ConfigError, match=r"\{prt\}.*part, folder"):
        list(open_source(spec).survey())


def test_a_file_that_is_no_parquet_counts_as_one_rejection(tmp_path: Path) -> None:
    (tmp_path / "train.parquet").write_bytes(b"PAR1 nothing of the kind PAR1")
    assert [told(record) for record in records(f"omniedit:{tmp_path}")] == ["unreadable_file"]
    with pytest.raises(SourceError):
        open_source(f"omniedit:{tmp_path / 'x'}").fragments()
