"""`sigma eval` as it is typed: its words and exit codes, and what is left of it after kill -9."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support import eval_runs

FEW = ("--steps", "4", "--batch", "1")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return eval_runs.save_world(tmp_path_factory.mktemp("world") / "corpus", 12)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return eval_runs.save_model(tmp_path_factory.mktemp("model") / "mine")


@pytest.mark.slow
def test_a_metric_whose_weights_cannot_be_had_is_skipped_with_exit_code_0(
    world: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = eval_runs.sigma(f"world:{world}", "--model", model, "--out", tmp_path / "out", *FEW, "--limit", "3", "--name", "first",
                 "--metrics", "CLIP, DINO", "--metric-model", "clip=nobody/clip", "--metric-model", "dino=nobody/dino")  # fmt: skip
    shown = capsys.readouterr()
    assert code == 0, shown.err
    lines = shown.out.splitlines()
    assert lines[0] == "first on world: 3 items, 0 failed"
    assert lines[-1] == f"report: {tmp_path / 'out' / 'report.html'}"
    assert any(line.startswith("  skipped CLIP: nobody/clip: ") for line in lines)
    assert any(line.startswith("  skipped DINO: nobody/dino: ") for line in lines)
    assert any("world-error" in line for line in lines)
    assert "generate: 3 items" in shown.err


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("world:nowhere", "--model", "tiny"), "nowhere"),
        (("{world}", "--model", "nowhere/at/all"), "nowhere/at/all"),
        (("{world}", "--model", "tiny", "--metrics", "CLIP", "--metric-model", "clip=./nowhere"), "nowhere"),
        (("{world}", "--model", "tiny", "--compare", "nowhere"), "nowhere: holds no evaluation"),
        (("{world}", "--stage", "report"), "holds no evaluation"),
        (("{world}",), "--model"),
        (("{world}", "--model", "tiny", "--layout", "sideways"), "sideways"),
        (("{world}", "--model", "tiny", "--metric-model", "clip"), "MODEL=DIR"),
    ],
)
def test_a_wrong_path_or_word_ends_with_a_sentence_and_exit_code_2(
    arguments: tuple[str, ...], sentence: str, world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    typed = [argument.format(world=f"world:{world}") for argument in arguments]
    assert eval_runs.sigma(*typed, "--out", tmp_path / "out") == 2
    shown = capsys.readouterr()
    assert sentence in shown.err
    assert "Traceback" not in shown.err
    assert shown.out == ""
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_stages_one_by_one_compare_and_json(
    world: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, two, spec = tmp_path / "one", tmp_path / "two", f"world:{world}"
    typed = (spec, "--model", model, *FEW, "--limit", "2", "--json")
    assert eval_runs.sigma(*typed, "--out", one, "--stage", "generate") == 0
    assert json.loads(capsys.readouterr().out).keys() == {"out", "name", "benchmark", "items", "failed"}
    assert not (one / "scores").exists()
    assert eval_runs.sigma(spec, "--out", one, "--stage", "report") == 2, "there are no scores yet"
    assert "--stage score" in capsys.readouterr().err
    assert eval_runs.sigma(spec, "--out", one, "--stage", "score", "--json") == 0
    assert not (one / "report.html").exists()
    assert "summary" in json.loads(capsys.readouterr().out)
    assert eval_runs.sigma(*typed, "--out", two, "--layout", "text-first", "--no-group-mask", "--name", "two") == 0
    capsys.readouterr()
    assert eval_runs.sigma(spec, "--out", one, "--stage", "report", "--compare", two, "--json") == 0
    shown = capsys.readouterr()
    assert shown.err == ""
    assert json.loads(shown.out)["report"] == str(one / "report.html")
    runs = json.loads((one / "results.json").read_text())["runs"]
    assert [(run["settings"]["layout"], run["settings"]["group_mask"]) for run in runs] == [
        ("text-first", False), ("interleaved", True)
    ], "what is compared with comes first"  # fmt: skip
    assert eval_runs.sigma(*typed, "--out", one, "--seed", "1") == 2
    assert "seed (0 there, 1 now)" in capsys.readouterr().err


def ranks_of(process: subprocess.Popen[str]) -> list[int]:
    """The processes that generate, among the children of a command."""
    listed = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return [int(pid) for pid in listed if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]


@pytest.mark.slow
@pytest.mark.parametrize("later", [0.0, 0.3])
def test_ctrl_c_while_ranks_start_ends_with_130_and_no_traceback(
    later: float, world: Path, model: Path, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "cli", "eval", f"world:{world}", "--model", str(model), *FEW,
               "--out", str(tmp_path / "out"), "--nproc", "2"]  # fmt: skip
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    deadline = time.monotonic() + 120
    while not ranks_of(process):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.005)
    time.sleep(later)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "Traceback" not in errors


@pytest.mark.slow
def test_after_kill_9_the_ranks_end_and_a_rerun_makes_what_is_missing_and_nothing_twice(
    world: Path, model: Path, tmp_path: Path
) -> None:
    typed = (f"world:{world}", "--model", str(model), *FEW, "--stage", "generate")
    assert eval_runs.sigma(*typed, "--out", tmp_path / "whole", "--json") == 0
    out = tmp_path / "out"
    command = [sys.executable, "-m", "cli", "eval", *typed, "--out", str(out), "--nproc", "2"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, text=True)
    deadline = time.monotonic() + 120
    while not list((out / "generated").glob("batch-*")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.005)
    ranks = ranks_of(process)
    process.kill()
    process.communicate()
    assert len(ranks) == 2
    while any(Path(f"/proc/{pid}").exists() for pid in ranks):
        assert time.monotonic() < deadline, "ranks end with their parent"
        time.sleep(0.02)
    finished = {name: mark for name, mark in eval_runs.marks(out).items() if name.startswith("batch")}
    assert 0 < len([name for name in finished if name.endswith(".png")]) < 12

    assert eval_runs.sigma(*typed, "--out", out, "--json") == 0
    assert finished.items() <= eval_runs.marks(out).items(), "finished batches are not made again"
    assert eval_runs.generated(out) == eval_runs.generated(tmp_path / "whole")
