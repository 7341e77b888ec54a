"""Every golden array of OmniGen2 is matched, and the command that checks them notices what is not."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from types import ModuleType

import pytest
from safetensors.torch import load_file, save_file
from support import omnigen2

PARTS = ("forward", "training", "sampling", "times", "images", "lora", "mllm", "prompts")


@pytest.fixture(scope="module")
def found() -> list[object]:
    return list(omnigen2.script("parity_omnigen2").compare_omnigen2(omnigen2.GOLDEN))


@pytest.mark.slow
def test_every_array_and_figure_of_the_reference_is_matched(found: list) -> None:
    assert [difference for difference in found if not difference.passes] == []


@pytest.mark.slow
def test_every_array_of_the_fixture_is_compared_and_nothing_else_is_left_out(found: list) -> None:
    names = {difference.name.split(" (")[0] for difference in found}
    assert load_file(omnigen2.GOLDEN / "outputs.safetensors").keys() <= names
    assert {"resize: wrong of 14 cases", "released names and shapes", "train gradient norms"} <= names


@pytest.fixture(scope="module")
def parity() -> ModuleType:
    return omnigen2.script("parity")


def run(parity: ModuleType, directory: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(sys, "argv", ["parity.py", str(directory)])
    return int(parity.main())


@pytest.mark.slow
def test_the_command_fails_where_a_weight_or_a_fact_differs(
    parity: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = Path(shutil.copytree(omnigen2.GOLDEN, tmp_path / "golden"))
    facts = json.loads((copy / "golden.json").read_text())
    facts["sample"] = {}
    facts["train"] = {}
    (copy / "golden.json").write_text(json.dumps(facts))
    weights = load_file(copy / "transformer" / "diffusion_pytorch_model.safetensors")
    weights["layers.1.attn.norm_k.weight"] += 0.05
    save_file(weights, copy / "transformer" / "diffusion_pytorch_model.safetensors")
    assert run(parity, copy, monkeypatch) == 1
    failed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("FAIL")]
    assert any(line.endswith("mixed.0.layers.1") for line in failed)
    assert not any(line.endswith("mixed.0.layers.0") for line in failed)
    assert any(line.endswith("train.loss: not compared") for line in failed)


def test_a_directory_that_is_not_whole_is_one_sentence(
    parity: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "golden.json").write_text("{}")
    assert run(parity, tmp_path, monkeypatch) == 2
    assert capsys.readouterr().out.count("\n") == 1
