"""Every golden array of the reference is matched, and the command that checks them notices what is not."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from pathlib import Path
from types import ModuleType

import pytest
from safetensors.torch import load_file, save_file
from support.places import ROOT

GOLDEN = ROOT / "tests" / "golden"


@pytest.fixture(scope="module")
def parity() -> ModuleType:
    sys.path.insert(0, str(ROOT / "benchmarks"))  # where the script's own modules lie
    spec = importlib.util.spec_from_file_location("parity", ROOT / "benchmarks" / "parity.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["parity"] = module  # its dataclasses look themselves up
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("part", ["training", "inference", "vae", "resize"])
def test_every_array_of_the_reference_is_matched(parity: ModuleType, part: str) -> None:
    found = list(getattr(parity, f"compare_{part}")(GOLDEN))
    assert found
    assert not [difference for difference in found if not difference.passes]


@pytest.mark.slow
def test_every_array_of_the_fixtures_is_compared(parity: ModuleType) -> None:
    """But for the inputs, of which the rest follows, and noise and times, which are given."""
    names = {difference.name.split(" (")[0] for difference in parity.compare(GOLDEN)}
    given = {"in.noise", "in.padded_latent", "in.packed_timesteps", "in.init_noise"}
    for file in ("train", "inference"):
        for name in load_file(GOLDEN / f"{file}.safetensors"):
            given_here = name in given or name.startswith(("sample.", "in.text.", "in.img", "in.vit"))
            assert given_here or name in names, name


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return Path(shutil.copytree(GOLDEN, tmp_path / "golden"))


def run(parity: ModuleType, directory: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(sys, "argv", ["parity.py", str(directory)])
    return int(parity.main())


@pytest.mark.slow
def test_the_command_passes_on_the_fixtures(
    parity: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(parity, GOLDEN, monkeypatch) == 0
    assert ", 0 past tolerance" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize(
    ("tensor", "failing"),
    [("llm2vae.weight", "mse"), ("language_model.model.layers.2.self_attn.k_norm.weight", "ctx.full.k2")],
)
def test_the_command_fails_where_a_weight_differs(
    parity: ModuleType, copy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    tensor: str, failing: str,
) -> None:  # fmt: skip
    weights = load_file(copy / "model.safetensors")
    weights[tensor] = weights[tensor] + 0.01
    save_file(weights, copy / "model.safetensors")
    assert run(parity, copy, monkeypatch) == 1
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("FAIL") and line.endswith(failing) for line in lines)


@pytest.mark.parametrize("change", [{"first": float("nan")}, {"second": float("nan"), "first": 99.0}, None])
def test_a_norm_that_is_no_number_hides_nothing(
    parity: ModuleType, copy: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, float] | None
) -> None:
    facts = json.loads((copy / "train.json").read_text())
    names = dict(zip(("first", "second"), facts["grad_norms"], strict=False))
    if change is None:
        facts["grad_norms"] = {}
    for which, value in (change or {}).items():
        facts["grad_norms"][names[which]] = value
    (copy / "train.json").write_text(json.dumps(facts))
    assert run(parity, copy, monkeypatch) == 1


@pytest.mark.slow
def test_what_is_not_whole_is_one_sentence(
    parity: ModuleType, copy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (copy / "vae.json").unlink()
    assert run(parity, copy, monkeypatch) == 0
    assert "not compared, for they are not there: vae.json" in capsys.readouterr().out
    (copy / "train.json").write_text("{")
    assert run(parity, copy, monkeypatch) == 2
    assert capsys.readouterr().out.count("\n") == 1


@pytest.mark.slow
def test_layer_numbers_are_taken_from_the_names_of_the_arrays(
    parity: ModuleType, copy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arrays = load_file(copy / "inference.safetensors")
    arrays["ctx.full.k1"] = arrays.pop("ctx.full.k2")  # layer 2's keys are not layer 1's
    save_file(arrays, copy / "inference.safetensors")
    assert run(parity, copy, monkeypatch) == 1
    failed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("FAIL")]
    assert [line.split()[-1] for line in failed] == ["ctx.full.k1"]


def test_a_directory_with_nothing_to_compare_is_not_a_success(
    parity: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(parity, tmp_path, monkeypatch) == 1
    assert run(parity, tmp_path / "missing", monkeypatch) == 2
