"""The table of targets that `make bench` writes."""

from __future__ import annotations

import importlib
import json
import os
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def benches(monkeypatch: pytest.MonkeyPatch) -> tuple[ModuleType, ModuleType]:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("targets"), importlib.import_module("all")


def said(**fields: Any) -> str:
    return json.dumps(
        {"what": "a", "against": "b", "figure": 1.0, "least": 2.0, "most": None, "unit": "times", **fields}
    )


def test_a_target_is_told_and_kept(
    benches: tuple[ModuleType, ModuleType],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    targets, _ = benches
    monkeypatch.setenv(targets.LINES, str(tmp_path / "lines"))
    assert targets.check("loader", "bare decoding", 0.85, least=0.8, unit="times")
    assert not targets.check("memory", "", 1.2, most=1.0, unit="GB")
    assert not targets.check("a peer", "", None, least=1.0)
    told = capsys.readouterr().out.splitlines()
    assert told == [
        "  loader against bare decoding: 0.85 times (target at least 0.80 times): met",
        "  memory: 1.20 GB (target at most 1.00 GB): MISSED",
        "  a peer: not measured (target at least 1.00): MISSED",
    ]
    kept = [json.loads(line) for line in (tmp_path / "lines").read_text().splitlines()]
    assert [line["figure"] for line in kept] == [0.85, 1.2, None]


def test_the_median_of_several_runs_decides(benches: tuple[ModuleType, ModuleType]) -> None:
    _, everything = benches
    (target,) = everything.medians([said(figure=1.0), said(figure=4.0), said(figure=2.5)])
    assert (target.figure, target.met) == (2.5, True)
    missing, other = everything.medians([said(figure=None), said(what="c", figure=1.0)])
    assert (missing.figure, missing.met, other.met) == (None, False, False)


def test_the_table_replaces_what_stands_between_the_markers(benches: tuple[ModuleType, ModuleType]) -> None:
    _, everything = benches
    table = everything.table(everything.medians([said(figure=3.0)]))
    assert table.splitlines()[-1] == "| a | b | at least 2.00 times | 3.00 times | met |"
    text = f"before\n{everything.BEGIN}\nold\n{everything.END}\nafter\n"
    assert everything.written(text, "new") == f"before\n{everything.BEGIN}\nnew\n{everything.END}\nafter\n"
    with pytest.raises(ValueError, match="once each"):
        everything.written("no markers", "new")


def test_the_document_has_the_markers_and_every_benchmark_exists(benches: tuple[ModuleType, ModuleType]) -> None:
    _, everything = benches
    everything.written((ROOT / "docs" / "performance.md").read_text("utf-8"), "")
    assert all((ROOT / "benchmarks" / script).is_file() for script, *_ in everything.COMMANDS.values())


def test_options_whose_place_is_not_given_are_left_out(benches: tuple[ModuleType, ModuleType]) -> None:
    _, everything = benches
    script, *rest = everything.words_of("loader", {})
    assert script.endswith("benchmarks/loader.py") and "--source" not in rest and "--rounds" in rest
    assert everything.words_of("loader", {"RELEASE": "/there"})[1:3] == ["--source", "release:/there"]
    assert "RELEASE" not in everything.words_of("build", {}) and "/there" in everything.words_of(
        "build", {"RELEASE": "/there"}
    )
    assert everything.words_of("sampling_cache", {"CORPUS": "c"})[1] == "c"


def test_every_benchmark_of_the_table_is_there_and_knows_its_options(benches: tuple[ModuleType, ModuleType]) -> None:
    _, everything = benches
    for name in everything.COMMANDS:
        script, *words = everything.words_of(name, {"CORPUS": "c", "OLD": "o", "RELEASE": "r"})
        text = Path(script).read_text("utf-8")
        assert all(f'"{word}"' in text for word in words if word.startswith("--")), name


@pytest.mark.slow
def test_a_program_that_takes_too_long_ends_with_all_that_it_started(
    benches: tuple[ModuleType, ModuleType], tmp_path: Path
) -> None:
    processes = importlib.import_module("processes")
    pids = tmp_path / "pids"
    program = f"sleep 600 & echo $! > {pids}; wait"
    assert processes.run_within(2.0, ["sh", "-c", program], dict(os.environ)) is None
    child = int(pids.read_text())
    for _ in range(100):
        status = Path(f"/proc/{child}/status")
        if not status.exists() or "State:\tZ" in status.read_text():
            break
        time.sleep(0.05)
    else:
        pytest.fail("its child is still running")


def test_a_program_that_ends_tells_how(benches: tuple[ModuleType, ModuleType]) -> None:
    processes = importlib.import_module("processes")
    done = processes.run_within(60.0, ["sh", "-c", "echo out; echo err >&2; exit 3"], {"PATH": os.environ["PATH"]})
    assert (done.returncode, done.stdout, done.stderr) == (3, "out\n", "err\n")
