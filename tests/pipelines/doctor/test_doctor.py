"""The command: a line a check, what to do, JSON, the exit code; processes that meet for real."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from support.commands import sigma

from pipelines.common.bundled_configs import config_file
from pipelines.common.settings import load_settings
from pipelines.doctor import run
from pipelines.doctor.finding import Finding, Status, fail, ok, show, warn
from pipelines.doctor.ranks import check_ranks
from pipelines.doctor.run import doctor
from pipelines.doctor.training import Run, look_run
from pipelines.train.config import TrainConfig
from pipelines.train.estimate.dry_run import dry_run


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
        ("sigma-bagel-7b", [], ["model", "corpus", "memory"]),
        ("sgt-omnigen2", [], ["model", "corpus", "memory"]),
        ("quickstart", ["data.corpora=[{path: nowhere}, {path: never}]"], ["corpus", "corpus"]),
        ("quickstart", ["data.budgte=3"], ["config"]),
        ("no-such.yaml", [], ["config"]),
    ],
)
def test_a_run_that_is_not_possible_says_all_that_is_missing(
    config: str, settings: list[str], checks: list[str]
) -> None:
    found = look_run(Path(config), settings, [], 2**34).findings
    assert [one.check for one in found if one.status is Status.FAIL] == checks


def one_of(run: Run, check: str) -> Finding:
    (found,) = [one for one in run.findings if one.check == check]
    return found


def test_before_the_released_weights_are_there_one_is_told_how_to_get_them_and_what_the_run_takes() -> None:
    found = look_run(Path("sigma-bagel-7b"), [], [80 * 2**30] * 8, 2**34)
    assert one_of(found, "model").advice.startswith("`sigma download bagel` fetches")
    memory = one_of(found, "memory")
    assert memory.status is Status.OK
    assert re.match(r"54\.\d GiB estimated for each of 8 ranks, of 80\.0 GiB; packs assumed", memory.found)
    assert found.checkpoints is not None
    assert 600 < found.checkpoints / 2**30 < 650, "three of 211 GiB, as docs/training.md has them"
    small = one_of(look_run(Path("sigma-bagel-7b"), [], [80 * 2**30] * 4, 2**34), "memory")
    assert small.status is Status.FAIL
    assert re.match(r"87\.\d GiB estimated for each of 4 ranks, and the GPU has 80.0 GiB", small.found)


@pytest.mark.parametrize(
    ("config", "settings", "ranks", "memory", "checkpoints"),
    [
        ("omnigen2-lora", [], 1, r"19\.\d GiB estimated for one rank", (0.15, 0.2)),
        ("sgt-omnigen2", [], 8, r"2[5-7]\.\d GiB estimated for each of 8 ranks", (255, 262)),
        ("sgt-omnigen2", ["model.path=models/SGT-Gen2"], 8, r"2[5-7]\.\d GiB", (255, 262)),
    ],
)
def test_the_same_is_known_of_omnigen2_before_its_files_are_there(
    config: str, settings: list[str], ranks: int, memory: str, checkpoints: tuple[float, float]
) -> None:
    found = look_run(Path(config), settings, [80 * 2**30] * ranks, 2**34)
    assert re.match(memory, one_of(found, "memory").found), "docs/training.md has dry runs of the released shapes"
    assert found.checkpoints is not None
    assert checkpoints[0] < found.checkpoints / 2**30 < checkpoints[1], "three of 86.3 GiB, or of 58 MiB"


@pytest.mark.parametrize(
    ("path", "advice"),
    [
        ("/data/BAGEL-7B-MoT", "`sigma download bagel --out /data/BAGEL-7B-MoT`"),
        ("models/SGT-BAGEL", "`sigma download sgt-bagel`"),
        ("mine", "`sigma download` lists"),
    ],
)
def test_the_download_is_named_by_the_folder(path: str, advice: str) -> None:
    found = look_run(Path("sigma-lora"), [f"model.path={path}"], [], 2**34)
    assert advice in one_of(found, "model").advice
    memory = one_of(found, "memory")
    assert ("not known without the model" in memory.found) is (path == "mine")
    assert (found.checkpoints is None) is (path == "mine")


def test_without_a_corpus_the_memory_is_what_it_is_with_one(small_corpus: Path, tmp_path: Path) -> None:
    settings = [f"out={tmp_path / 'run'}", "data.budget=6000"]
    real = look_run(Path("quickstart"), [*settings, f"data.corpora=[{{path: {small_corpus}}}]"], [], 2**34)
    assumed = look_run(Path("quickstart"), [*settings, "data.corpora=[{path: nowhere}]"], [], 2**34)
    assert assumed.checkpoints == real.checkpoints
    assert [one.status for one in assumed.findings] == [Status.OK, Status.FAIL, Status.OK]
    before, after = (
        float(re.match(r"([\d.]+) MiB estimated for one rank", one_of(run, "memory").found)[1])  # type: ignore[index]
        for run in (assumed, real)
    )
    assert before == pytest.approx(after, rel=0.1)
    assert one_of(assumed, "memory").found.endswith("the largest of 4,096 pixels"), "what is assumed is said"


def test_memory_that_is_almost_all_there_is_settings_that_are_hardly_meant_and_a_run_that_would_not_start(
    small_corpus: Path, tmp_path: Path
) -> None:
    settings = [f"out={tmp_path / 'run'}", f"data.corpora=[{{path: {small_corpus}}}]", "data.budget=6000"]
    peak = memory_peak(Path("quickstart"), settings)
    tight = look_run(Path("quickstart"), settings, [int(peak / 0.95)], 0)
    assert one_of(tight, "memory").status is Status.WARN
    assert "CUDA and fragments need the rest" in one_of(tight, "memory").found
    assert one_of(look_run(Path("quickstart"), settings, [int(peak / 0.85)], 0), "memory").status is Status.OK
    odd = one_of(
        look_run(Path("quickstart"), [*settings, "model.vision=false", "freeze.vit=true"], [], 2**34), "settings"
    )
    assert odd.status is Status.WARN
    assert odd.found.startswith("freeze.vit: the run has no vision encoder")
    (tmp_path / "file").touch()
    stopped = look_run(Path("quickstart"), [*settings, f"out={tmp_path / 'file'}"], [], 2**34)
    assert [one.check for one in stopped.findings] == ["model", "corpus", "run", "memory"]
    assert one_of(stopped, "run").status is Status.FAIL
    assert "is a file, and the run would write a folder there" in one_of(stopped, "run").found


@pytest.mark.parametrize(
    ("text", "said", "advice"),
    [(None, "no such file", "name one that is there"), ("a: [", "not valid YAML", "mend it")],
)
def test_a_configuration_that_is_not_there_need_not_be_mended(
    tmp_path: Path, text: str | None, said: str, advice: str
) -> None:
    path = tmp_path / "mine.yaml"
    if text is not None:
        path.write_text(text, "utf-8")
    [finding] = look_run(path, (), [], 0).findings
    assert said in finding.found and finding.advice.startswith(advice)


def memory_peak(config: Path, settings: list[str]) -> float:
    chosen = load_settings(TrainConfig, config_file(config), settings)
    return dry_run(chosen).estimate.memory_peak


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
