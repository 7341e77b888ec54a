"""source_truth.py finds each kind of difference between what sources read and what is right, and none where none is."""

from __future__ import annotations

import copy
import hashlib
import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from support.layouts import lines, picture, put, put_tar
from support.places import ROOT

Json = dict[str, Any]


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    monkeypatch.setenv("SIGMA_CACHE", str(tmp_path / "cache"))
    import source_truth

    return source_truth


def image(path: str, data: bytes) -> Json:
    return {"path": path, "sha256": hashlib.sha256(data).hexdigest()}


def counts(rows: list[Json], samples: int, unfiltered: int) -> Json:
    statuses = {
        name: sum(row["status"] == name for row in rows) for name in ("legal", "filtered", "quarantine", "skipped")
    }
    reasons: dict[str, int] = {}
    for row in rows:
        for reason in row.get("reasons", []):
            reasons[reason] = reasons.get(reason, 0) + 1
    return {
        "rows_total": len(rows), "rows_by_status": statuses, "reasons": reasons, "samples_with_filters": samples,
        "samples_without_filters": unfiltered, "rows": rows,
    }  # fmt: skip


def omniedit(data: Path) -> Json:
    scores = [9.0, 3.0, None]
    pq.write_table(pa.Table.from_pylist([
        {"src_img": {"bytes": picture(2 * n), "path": "x"}, "edited_img": {"bytes": picture(2 * n + 1), "path": "x"},
         "edited_prompt_list": [f"Do {n}", f"Do it {n}"], "o_score": score, "task": "style" if n else "env"}
        for n, score in enumerate(scores)
    ]), put(data / "omniedit/data/train-0.parquet", b""))  # fmt: skip
    rows: list[Json] = [
        {"file": "data/train-0.parquet", "row": n, "status": "filtered" if n else "legal",
         "family": "stylization" if n else "editing", "references": [image("src", picture(2 * n))],
         "target": image("edited", picture(2 * n + 1)), "instruction": f"Do {n}", "alternatives": [f"Do it {n}"]}
        for n in range(3)
    ]  # fmt: skip
    rows[1]["reasons"], rows[2]["reasons"] = ["low_score"], ["no_score"]
    return counts(rows, 1, 3)


def seed_edit(data: Path) -> Json:
    place = data / "seed_edit/P/multi_turn_editing"
    put_tar(place / "images/multi_turn.tar.gz", {f"d/{n}.jpg": picture(n) for n in range(3)}, ".part-{:02}", 2)
    row = {"source_image": "d/0.jpg", "instruction_1": "One", "edit_image_1": "d/1.jpg", "instruction_2": "Two"}
    put(place / "annotations/a.jsonl", lines([row | {"edit_image_2": "d/2.jpg"}, row]))
    turns = [{"instruction": word, "target": image("t", picture(n))} for n, word in ((1, "One"), (2, "Two"))]
    file = "P/multi_turn_editing/annotations/a.jsonl"
    return counts([
        {"file": file, "row": 0, "status": "legal", "family": "editing", "references": [image("s", picture(0))],
         "target": turns[1]["target"], "instruction": "One", "turns": turns},
        {"file": file, "row": 1, "status": "quarantine", "reasons": ["turns_mismatch"], "why": "no second image"},
    ], 1, 1)  # fmt: skip


def subjects200k(data: Path) -> Json:
    whole = Image.fromarray(np.random.default_rng(0).integers(0, 255, (5, 10, 3), np.uint8)).resize((96, 48), 0)
    out = io.BytesIO()
    whole.save(out, "PNG")
    pq.write_table(pa.Table.from_pylist([{
        "image": {"bytes": out.getvalue(), "path": None}, "collection": "collection_2",
        "quality_assessment": {"compositeStructure": 5, "objectConsistency": 5, "imageQuality": 5},
        "description": {"item": "Cup", "description_0": "A cup left", "description_1": "A cup right",
                        "category": "x", "description_valid": True},
    }]), put(data / "subjects200k/data/train-00000-of-00001.parquet", b""))  # fmt: skip
    boxes = [[8, 8, 40, 40], [56 - 8, 8, 88 - 8, 40]]
    sides = [{"box": box, "size": [32, 32], "rgb_mean": np.asarray(whole.crop(box)).reshape(-1, 3).mean(0).tolist()}
             for box in boxes]  # fmt: skip
    directions = [
        {"target_side": side, "target": sides[side], "reference": sides[1 - side], "instruction": f"A cup {name}"}
        for side, name in enumerate(("left", "right"))
    ]
    row = {"file": "data/train-00000-of-00001.parquet", "row": 0, "status": "legal", "family": "compositional",
           "references": [sides[0]], "target": sides[1], "instruction": "A cup right", "directions": directions}  # fmt: skip
    return counts([row], 2, 2)


def echo4o(data: Path) -> Json:
    put_tar(data / "echo4o/S/images/0-5000.tar.gz", {"00000.jpg": picture(1)})
    put(
        data / "echo4o/S/a.jsonl",
        lines([{"task_type": "t2i", "instruction": "A thing", "output_image": "/x/00000.jpg"}]),
    )
    row = {"file": "S/a.jsonl", "row": 0, "status": "skipped", "reasons": ["no_reference"],
           "target": image("t", picture(1)), "instruction": "A thing"}  # fmt: skip
    return counts([row], 0, 0)


def injection(data: Path) -> Json:
    put(data / "injection/cases.jsonl", lines([
        {"id": "a", "family": "editing", "references": [{"image": 1, "kind": None}], "caption": "Make the dog smile"},
        {"id": "b", "family": "compositional", "references": [{"image": 1}, {"image": 2}], "caption": "A dream of two"},
    ]))  # fmt: skip
    phrase = {"text": "dog", "token": "subject", "image": 1, "in_frame": False}
    return {"rows": [
        {"id": "a", "phrases": [phrase], "example": "Make the <subject>dog <image_1> smile", "decline": False},
        {"id": "b", "phrases": [], "example": None, "decline": True},
    ]}  # fmt: skip


LAYOUTS: dict[str, Callable[[Path], Json]] = {
    "omniedit": omniedit, "seed_edit": seed_edit, "subjects200k": subjects200k, "echo4o": echo4o, "injection": injection,
}  # fmt: skip


def run(bench: ModuleType, folder: Path, truths: dict[str, Json], monkeypatch: pytest.MonkeyPatch) -> int:
    for layout, truth in truths.items():
        put(folder / "truth" / layout / "TRUTH.json", json.dumps(truth))
    monkeypatch.setattr(sys, "argv", ["source_truth.py", str(folder / "data"), str(folder / "truth")])
    return int(bench.main())


@pytest.mark.slow
def test_what_is_right_has_no_differences_and_every_wrong_statement_has_some(
    bench: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    truths = {name: make(tmp_path / "data") for name, make in LAYOUTS.items()}
    assert run(bench, tmp_path, truths, monkeypatch) == 0, capsys.readouterr().out
    assert capsys.readouterr().out.count("as it should be") == len(LAYOUTS)
    other = image("x", b"other")
    wrong: list[tuple[str, list[Any], Any]] = [
        ("omniedit", ["rows", 0, "family"], "layout"),
        ("omniedit", ["rows", 0, "references", 0], other),
        ("omniedit", ["rows", 0, "target"], other),
        ("omniedit", ["rows", 0, "instruction"], "Do 1"),
        ("omniedit", ["rows", 0, "alternatives"], []),
        ("omniedit", ["rows", 0, "references"], []),
        ("omniedit", ["rows", 1, "reasons"], ["no_score"]),
        ("omniedit", ["rows", 1, "status"], "legal"),
        ("omniedit", ["rows", 1, "target"], other),  # seen without filters
        ("omniedit", ["rows", 2, "row"], 7),
        ("omniedit", ["samples_with_filters"], 2),
        ("omniedit", ["samples_without_filters"], 2),
        ("omniedit", ["rows_total"], 4),
        ("omniedit", ["rows_by_status", "legal"], 2),
        ("omniedit", ["reasons", "low_score"], 2),
        ("seed_edit", ["rows", 0, "turns", 0, "instruction"], "Three"),
        ("seed_edit", ["rows", 0, "turns", 1, "target"], other),
        ("seed_edit", ["rows", 0, "turns"], []),
        ("seed_edit", ["rows", 1, "reasons"], ["missing_picture"]),
        ("subjects200k", ["rows", 0, "directions", 0, "target", "box"], [8, 8, 41, 40]),
        ("subjects200k", ["rows", 0, "directions", 0, "target", "box"], [10, 8, 42, 40]),
        ("subjects200k", ["rows", 0, "directions", 1, "reference", "rgb_mean"], [0, 0, 0]),
        ("subjects200k", ["rows", 0, "directions", 1, "instruction"], "A cup left"),
        ("echo4o", ["rows", 0, "target"], other),
        ("echo4o", ["rows", 0, "status"], "quarantine"),
        ("echo4o", ["rows", 0, "instruction"], "Another thing"),
        ("injection", ["rows", 0, "phrases", 0, "token"], "id"),
        ("injection", ["rows", 0, "decline"], True),
        ("injection", ["rows", 1, "decline"], False),
    ]  # fmt: skip
    for layout, place, value in wrong:
        changed = copy.deepcopy(truths[layout])
        inner: Any = changed
        for step in place[:-1]:
            inner = inner[step]
        inner[place[-1]] = value
        code = run(bench, tmp_path, {layout: changed}, monkeypatch)
        told = capsys.readouterr().out
        assert code == 1, (layout, place, told)
        assert "DIFFERENCES" in told
        put(tmp_path / "truth" / layout / "TRUTH.json", json.dumps(truths[layout]))


def test_a_layout_that_cannot_be_read_counts_as_a_difference(
    bench: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    truths = {"omniedit": counts([], 0, 0), "nobody_knows": counts([], 0, 0)}
    (tmp_path / "data/omniedit").mkdir(parents=True)
    assert run(bench, tmp_path, truths, monkeypatch) == 1
    assert capsys.readouterr().out.count("cannot be compared") == 2
