"""The example of docs/sources.md works as the page says."""

from __future__ import annotations

import json
import re
from pathlib import Path

from support.foreign_layouts import records, told, write_lines
from support.image_files import image_bytes
from support.places import ROOT

from sigma_data.sample import Sample
from sigma_data.sources.field_map import schema

PAGE = (ROOT / "docs" / "sources.md").read_text()


def block(language: str) -> str:
    found = re.search(rf"^```{language}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    assert found is not None
    return found[1]


def test_the_example_gives_the_sample_that_the_page_describes(tmp_path: Path) -> None:
    (tmp_path / "my_edits.yaml").write_text(block("yaml"))
    row = json.loads(block("json"))
    for seed, name in enumerate(["1.jpg", "1_edit.jpg"]):
        (tmp_path / "images" / "faces").mkdir(parents=True, exist_ok=True)
        (tmp_path / "images" / "faces" / name).write_bytes(image_bytes(seed=seed))
    second = {**row, "output": "/mnt/theirs/images/faces/1.jpg", "inputs": "1_edit.jpg"}
    others = [{**row, "score": None}, {**row, "score": 6, "output": "a"}, {**row, "task": "watermark", "output": "b"}]
    write_lines(tmp_path / "rows" / "faces.jsonl", [row, second])
    write_lines(tmp_path / "rows" / "more.jsonl", others)
    write_lines(tmp_path / "rows" / "test.jsonl", [row])
    found = records(f"map:{tmp_path / 'my_edits.yaml'}?root={tmp_path}")
    assert [told(record) for record in found] == [
        "stylization", "stylization", "(no_score)", "(low_score)", "(task_excluded)"
    ]  # fmt: skip
    first, second_sample = found[:2]
    assert isinstance(first, Sample)
    assert isinstance(second_sample, Sample)
    assert (first.turns[0].instruction, first.turns[0].alternatives) == ("Make her look older", ("older",))
    assert [image.data for image in first.images] == [image_bytes(seed=0), image_bytes(seed=1)]
    assert [image.data for image in second_sample.images] == [image_bytes(seed=1), image_bytes(seed=0)]


def test_the_page_names_every_key() -> None:
    models = [one for one in vars(schema).values() if isinstance(one, type) and issubclass(one, schema.StrictModel)]
    keys = {info.alias or name for model in models for name, info in model.model_fields.items()} - {"name"}
    table = PAGE.split("### All keys")[1]
    assert [key for key in sorted(keys) if not re.search(rf"\b{key}\b", table)] == []
