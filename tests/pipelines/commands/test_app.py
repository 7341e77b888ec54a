"""The command as a whole: its help, groups, version, completion in a shell."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml
from support.commands import sigma
from support.places import ROOT

from pipelines.commands.app import SUMMARY_LENGTH, app

NAMES = [command.name for command in app.registered_commands]


def test_help_groups_the_commands_and_fits_into_80_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    shown = sigma("--help").stdout
    assert max(map(len, shown.splitlines())) <= 80
    groups = [line for line in shown.splitlines() if line in ("Data:", "Model:", "Evaluation:", "Tools:")]
    assert groups == ["Data:", "Model:", "Evaluation:", "Tools:"]
    for name in NAMES:
        row = next(line for line in shown.splitlines() if line.split()[:1] == [name])
        summary = row.strip().removeprefix(str(name)).strip()
        assert summary and len(summary) <= SUMMARY_LENGTH
        assert not summary.endswith("..."), "cut off"


@pytest.mark.parametrize("name", NAMES)
def test_help_of_a_command_fits_into_80_columns(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    shown = sigma(name, "--help")
    assert shown.returncode == 0
    assert max(map(len, shown.stdout.splitlines())) <= 80


def test_the_version_is_the_package_s() -> None:
    shown = sigma("--version")
    assert (shown.returncode, shown.stdout) == (0, f"sigma {version('sigma-multimodal')}\n")


def test_eval_has_every_option_of_generate_that_says_how_to_sample() -> None:
    options = {
        command.name: {option for word in sigma(str(command.name), "--help").stdout.split() if (option := word.strip("[],.")).startswith("--")}
        for command in app.registered_commands if command.name in ("generate", "eval")
    }  # fmt: skip
    assert options["generate"] - options["eval"] == {
        "--image",
        "--count",
        "--text",
        "--chat",
        "--from",
        "--start",
        "--example",
    }, "what is asked, not how"


def test_settings_of_an_evaluation_come_from_a_file_and_what_is_typed_wins(tmp_path: Path) -> None:
    config = tmp_path / "eval.yaml"
    config.write_text(
        f"benchmark: world:x\nout: {tmp_path / 'out'}\nmodel: tiny\nsteps: 9\nsize: 64x32\nrescale: global\n"
    )
    printed = sigma("eval", "--config", config, "--text-scale", "3", "--interval", "0.2,0.9", "--metrics", "CLIP, AES",
                    "--metric-model", "clip=DIR", "--print-config")  # fmt: skip
    assert printed.returncode == 0, printed.stderr
    settings = yaml.safe_load(printed.stdout)
    assert (settings["steps"], settings["text_scale"], settings["image_scale"]) == (9, 3.0, 2.0)
    assert (settings["size"], settings["rescale"], settings["interval"]) == ([64, 32], "global", [0.2, 0.9])
    assert (settings["metrics"], settings["metric_model"]) == (["CLIP", "AES"], {"clip": "DIR"})
    config.write_text(printed.stdout)
    assert sigma("eval", "--config", config, "--print-config").stdout == printed.stdout
    config.write_text("benchmark: world:x\nout: x\nstpes: 9\n")
    wrong = sigma("eval", "--config", config)
    assert wrong.returncode == 2
    assert f"{config}:3: stpes: there is no such setting: did you mean steps?" in wrong.stderr


@pytest.fixture
def shell(tmp_path: Path) -> dict[str, str]:
    """The environment of a shell with a home folder of its own, where `sigma` is this checkout's."""
    if shutil.which("bash") is None:
        pytest.skip("needs bash")
    (tmp_path / "bin").mkdir()
    script = tmp_path / "bin" / "sigma"
    script.write_text(f'#!/bin/sh\nexec {sys.executable} -m cli "$@"\n')
    script.chmod(0o755)
    return {
        **os.environ,
        "HOME": str(tmp_path),
        "PATH": f"{script.parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
    }


@pytest.mark.slow
def test_completion_works_in_a_shell(shell: dict[str, str]) -> None:
    """Installed and sourced as a shell does; what the Tab key asks for is then asked for."""
    script = """
sigma --show-completion > shown && grep -q _SIGMA_COMPLETE=complete_bash shown || exit 3
sigma --install-completion > /dev/null || exit 4
. "$HOME/.bashrc"
complete -p sigma > /dev/null || exit 5
COMP_WORDS=(sigma build-); COMP_CWORD=1
_sigma_completion sigma
echo "${COMPREPLY[@]}"
COMP_WORDS=(sigma eval --image-sc); COMP_CWORD=2
_sigma_completion sigma
echo "${COMPREPLY[@]}"
true
"""
    done = subprocess.run(
        ["bash", "-c", script], env=shell, cwd=shell["HOME"], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["build-dataset", "--image-scale"]
