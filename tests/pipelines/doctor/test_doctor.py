"""The command: a line a check, what to do, JSON, the exit code; processes that meet for real."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.commands import sigma

from pipelines.doctor import run
from pipelines.doctor.finding import Finding, Status, fail, ok, show, warn
from pipelines.doctor.ranks import check_ranks
from pipelines.doctor.run import doctor
from pipelines.doctor.training import look_run


def test_findings_are_shown_with_what_to_do_below() -> None:
    text = show([ok("Python", "3.11"), warn("disk speed", "slow", "use another"), fail("torch", "old", "upgrade")])
    assert text == (
        "ok    Python      3.11\n"
        "warn  disk speed  slow\n      -> use another\n"
        "fail  torch       old\n      -> upgrade\n\n"
        "1 ok, 1 warning, 1 failed"
    )


def test_a_finding_that_is_not_well_says_what_to_do() -> None:
    with pytest.raises(AssertionError):
        Finding("disk", Status.WARN, "slow")


@pytest.mark.slow
def test_two_processes_meet() -> None:
    assert check_ranks("gloo", 2).status is Status.OK


@pytest.mark.slow
@pytest.mark.parametrize(("backend", "seconds", "said"), [("nccl", 60.0, ""), ("gloo", 0.05, "did not answer")])
def test_processes_that_do_not_meet_are_one_line_and_end(backend: str, seconds: float, said: str) -> None:
    import torch

    if backend == "nccl" and torch.cuda.is_available():
        pytest.skip("here it works")
    found = check_ranks(backend, 2, seconds=seconds)
    assert found.status is Status.FAIL
    assert said in found.found
    assert "\n" not in found.found


def test_a_check_that_fails_itself_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> list[Finding]:
        raise ValueError("no such thing\nsecond line")

    monkeypatch.setattr(run, "look_machine", broken)
    (found,) = [one for one in doctor(None, quick=True) if one.check == "machine"]
    assert found.status is Status.FAIL
    assert "ValueError: no such thing" in found.found
    assert "\n" not in found.found


def test_a_run_that_is_possible(small_corpus: Path, tmp_path: Path) -> None:
    settings = [f"out={tmp_path / 'run'}", f"data.corpora=[{{path: {small_corpus}}}]", "data.budget=6000"]
    found = look_run(Path("quickstart"), settings, [], 2**34)
    assert not [one for one in found.findings if one.status is Status.FAIL], found.findings
    assert [one.check for one in found.findings if one.status is Status.OK] == ["model", "corpus", "memory"]
    assert found.out == tmp_path / "run"
    assert found.checkpoints
    assert not (tmp_path / "run").exists()
    (small,) = [one for one in look_run(Path("quickstart"), settings, [2**20], 0).findings if one.check == "memory"]
    assert small.status is Status.FAIL
    assert "the GPU has 1.0 MiB" in small.found


@pytest.mark.parametrize(
    ("config", "settings", "checks"),
    [
        ("sigma-bagel-7b", [], {"model", "corpus"}),
        ("quickstart", ["data.corpora=[{path: nowhere}, {path: never}]"], {"corpus"}),
        ("quickstart", ["data.budgte=3"], {"config"}),
        ("no-such.yaml", [], {"config"}),
    ],
)
def test_a_run_that_is_not_possible_says_all_that_is_missing(
    config: str, settings: list[str], checks: set[str]
) -> None:
    found = look_run(Path(config), settings, [], 2**34).findings
    assert {one.check for one in found} == checks
    assert all(one.status is Status.FAIL for one in found)
    assert len(found) == (2 if config == "sigma-bagel-7b" or "never" in str(settings) else 1)


@pytest.mark.slow
def test_the_command_in_words_and_as_json(tmp_path: Path) -> None:
    words = sigma("doctor", "--quick")
    assert words.returncode == 0, words.stdout + words.stderr
    assert words.stderr == ""
    assert words.stdout.startswith("ok")
    machine = sigma("doctor", "quickstart", f"data.corpora=[{{path: {tmp_path / 'none'}}}]", "--quick", "--json")
    assert machine.returncode == 1, machine.stderr
    said = json.loads(machine.stdout)
    assert said["fail"] == 1
    assert [one["check"] for one in said["findings"] if one["status"] == "fail"] == ["corpus"]
