"""Several processes are one run: they stop together, and what one of them met is said in one sentence."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import types
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.training_runs import lines, settings_of, steps_saved

from pipelines.train.config import TrainConfig
from pipelines.train.launch import Launch, _free_port, _rank_error, launch
from sigma_data.errors import ConfigError

MANY = 100_000


def configured(out: Path, corpus: Path, **changes: Any) -> Path:
    """A file with the settings of a run that will not end by itself."""
    values = settings_of(out, corpus, **{"steps": MANY, "schedule": {"kind": "constant"}, **changes})
    path = out.with_suffix(".yaml")
    path.write_text(yaml.safe_dump({**values, "out": str(out)}))
    return path


class Sigma:
    """`sigma train`, as a user starts it."""

    def __init__(self, config: Path, *words: str) -> None:
        command = [sys.executable, "-m", "cli", "train", str(config), *words]
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
        )

    def after_steps(self, out: Path, count: int) -> None:
        """Wait until so many steps are in the figures."""
        deadline = time.monotonic() + 120
        while not (out / "metrics.jsonl").exists() or len((out / "metrics.jsonl").read_bytes().splitlines()) < count:
            assert self.process.poll() is None, self.process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.05)

    def ends(self) -> tuple[int, str, str]:
        """Exit code, standard output and standard error."""
        out, error = self.process.communicate(timeout=120)
        return self.process.returncode, out, error

    def ranks(self) -> list[int]:
        """Processes of the ranks, in the order they were started."""
        return sorted(pid for pid in children(self.process.pid) if b"spawn_main" in command_of(pid))


def command_of(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def alive(pids: Sequence[int]) -> list[int]:
    """Those of the processes that are there and no zombies."""
    found = []
    for pid in pids:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            continue
        found += [pid] * (state != "Z")
    return found


@pytest.fixture
def started() -> Iterator[list[Sigma]]:
    """Commands of a test, of which nothing stays behind."""
    commands: list[Sigma] = []
    yield commands
    for command in commands:
        if command.process.poll() is None:
            os.killpg(command.process.pid, signal.SIGKILL)
            command.process.communicate()


def test_several_machines_need_a_place_to_meet(tmp_path: Path) -> None:
    config = TrainConfig.model_validate(settings_of(tmp_path, tmp_path))
    with pytest.raises(ConfigError, match=r"--nnodes 2: name a place where all machines meet with --rdzv HOST:PORT"):
        launch(config, Launch(nnodes=2))


def config_of(folder: Path) -> TrainConfig:
    return TrainConfig.model_validate(settings_of(folder, folder))


@pytest.mark.parametrize("place", ["node1", "node1:", ":29400", "node1:port", "node1:0", "node1:70000", "http://a:1x"])
def test_a_place_to_meet_is_host_and_port(place: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="write HOST:PORT"):
        launch(config_of(tmp_path), Launch(nnodes=2, rdzv=place))
    assert Launch(rdzv="[::1]:29400").place() == ("::1", 29400)


def test_a_machine_that_is_not_there_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"--rdzv nowhere\.invalid:29400: there is no machine nowhere\.invalid"):
        launch(config_of(tmp_path), Launch(nnodes=2, rdzv="nowhere.invalid:29400"))
    monkeypatch.setattr("pipelines.train.launch._is_here", lambda *_: False)
    with pytest.raises(ConfigError, match=r"cannot be reached \(Connection refused\), for 0 s: is the command running"):
        launch(config_of(tmp_path), Launch(nnodes=2, rdzv=f"127.0.0.1:{_free_port()}", wait_s=0.2))


@pytest.mark.slow
def test_machines_that_do_not_come_and_a_port_of_another_program_are_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.train.launch._ANSWER", 3.0)
    with pytest.raises(ConfigError, match=r"not all 2 machines came within 2 s: run the same command"):
        launch(config_of(tmp_path), Launch(nnodes=2, rdzv=f"127.0.0.1:{_free_port()}", wait_s=2))
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        place = f"127.0.0.1:{other.getsockname()[1]}"
        with pytest.raises(ConfigError, match=r"another program has that port") as error:
            launch(config_of(tmp_path), Launch(nnodes=2, rdzv=place, wait_s=2))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("exitcode", "message", "cause"),
    [
        (-signal.SIGSEGV, "Signal 11 received", "it was ended by SIGSEGV"),
        (3, "To enable traceback see: https://", "it ended without a word, with exit code 3"),
        (
            1,
            {"message": "RuntimeError: closed by peer\nException raised from\nframe #0"},
            "RuntimeError: closed by peer;",
        ),
    ],
)
def test_whatever_a_rank_dies_of_is_one_line(exitcode: int, message: Any, cause: str) -> None:
    failure = types.SimpleNamespace(exitcode=exitcode, message=message)
    error = _rank_error(types.SimpleNamespace(get_first_failure=lambda: (1, failure)))
    assert str(error).startswith(f"rank 1 failed: {cause}") and "\n" not in str(error)


@pytest.mark.slow
def test_ctrl_c_saves_leaves_with_130_and_the_same_command_goes_on(
    tmp_path: Path, training_corpus: Path, started: list[Sigma]
) -> None:
    out = tmp_path / "run"
    config = configured(out, training_corpus, loader={"workers": 1})
    started.append(first := Sigma(config))
    first.after_steps(out, 2)
    os.killpg(first.process.pid, signal.SIGINT)  # as a terminal does: the command and its loader's workers
    code, said, error = first.ends()
    (step,) = steps_saved(out)
    assert code == 130 and said.startswith(f"{out}: {step:,} of {MANY:,} steps")
    assert error.splitlines()[-1] == "interrupted; run the same command again to continue" and "Traceback" not in error
    started.append(again := Sigma(config, f"steps={step + 2}", "--json"))
    code, said, error = again.ends()
    assert (code, error) == (0, "")
    assert json.loads(said) | {"out": ""} == {
        "out": "", "steps": step + 2, "of": step + 2, "new": 2, "skipped": 0, "stopped": False, "checkpoint": step + 2,
    }  # fmt: skip
    assert [line["step"] for line in lines(out)] == list(range(1, step + 3))


@pytest.mark.slow
def test_two_processes_told_to_stop_save_together_and_a_mistake_on_them_is_one_sentence(
    tmp_path: Path, training_corpus: Path, started: list[Sigma]
) -> None:
    out = tmp_path / "run"
    config = configured(out, training_corpus)
    started.append(first := Sigma(config, "--nproc", "2"))
    first.after_steps(out, 2)
    ranks = first.ranks()
    assert len(ranks) == 2
    first.process.send_signal(signal.SIGTERM)
    code, said, error = first.ends()
    (step,) = steps_saved(out)
    assert code == 130 and f"{step:,} of {MANY:,} steps" in said and "Traceback" not in error
    assert error.splitlines()[-1] == "interrupted; run the same command again to continue"
    assert alive(ranks) == []
    started.append(wrong := Sigma(config, "--nproc", "2", "data.budget=500"))
    code, said, error = wrong.ends()
    start, sentence = error.splitlines()
    assert (code, said, start) == (2, "", "train: starting 2 processes")
    assert sentence.startswith("sigma: the data is not what the checkpoint was trained on: budget was 400 and is 500")


@pytest.mark.slow
def test_a_killed_rank_ends_the_run_with_a_sentence(
    tmp_path: Path, training_corpus: Path, started: list[Sigma]
) -> None:
    out = tmp_path / "run"
    config = configured(out, training_corpus)
    started.append(first := Sigma(config, "--nproc", "2", "--json"))
    first.after_steps(out, 2)
    ranks = first.ranks()
    os.kill(ranks[1], signal.SIGKILL)
    begin = time.monotonic()
    code, said, error = first.ends()
    assert (code, said) == (2, "") and time.monotonic() - begin < 60
    assert error == (
        "sigma: rank 1 failed: it was killed, most likely because memory ran out; run the same command again to "
        "continue from the last checkpoint\n"
    )
    assert alive(ranks) == []
