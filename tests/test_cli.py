"""The command: fast to answer, one sentence for a mistake, JSON that says the same as the words."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from support import corpora
from support.commands import sigma

HEAVY = (
    "numpy",
    "polars",
    "pyarrow",
    "PIL",
    "torch",
    "transformers",
    "diffusers",
    "pydantic",
    "rich",
    "jinja2",
    "fsspec",
)


def test_help_imports_nothing_heavy() -> None:
    code = f"import cli, sys; sys.exit(', '.join(name for name in {HEAVY} if name in sys.modules) or 0)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


@pytest.mark.slow
def test_an_image_of_a_tiny_model_takes_neither_transformers_nor_torchs_compiler(tmp_path: Path) -> None:
    words = ["generate", "a red star", "--model", "tiny-base", "--steps", "2", "--out", str(tmp_path / "star.png")]
    code = (
        "import sys\nfrom pipelines.commands.app import app\n"
        f"app({words}, standalone_mode=False)\n"
        "sys.exit(', '.join({'transformers', 'torch._dynamo'} & set(sys.modules)) or 0)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "star.png").exists()


@pytest.mark.slow
def test_build_prints_the_sums_and_where_the_report_lies(tmp_path: Path) -> None:
    corpora.make_release(tmp_path / "release", 12)
    result = sigma("build-dataset", f"release:{tmp_path / 'release'}", "--out", str(tmp_path / "out"), "--workers", "1")
    assert result.returncode == 0, result.stderr
    assert "read                 12" in result.stdout
    assert "= written            12" in result.stdout
    assert str(tmp_path / "out" / "report.html") in result.stdout
    for name in ("scan", "write", "finish"):
        assert f"{name}: " in result.stderr, "a line a pass where there is no terminal"
    machine = sigma("build-dataset", f"release:{tmp_path / 'release'}", "--out", str(tmp_path / "out"), "--json")
    sums = json.loads(machine.stdout)
    assert (sums["read"], sums["written"], sums["quarantined"], sums["duplicates"], sums["fresh"]) == (
        12,
        12,
        0,
        0,
        False,
    )
    assert machine.stderr == ""


def test_validate_says_sound_or_exits_with_one_and_a_table(small_corpus: Path, tmp_path: Path) -> None:
    import shutil

    sound = sigma("validate", str(small_corpus), "--workers", "1")
    assert (sound.returncode, "sound" in sound.stdout) == (0, True)
    copy = shutil.copytree(small_corpus, tmp_path / "copy")
    next(copy.rglob("*.tar")).unlink()
    broken = sigma("validate", str(copy), "--json", "--workers", "1")
    assert broken.returncode == 1
    assert json.loads(broken.stdout)["problems"][0]["code"] == "missing_shard"
    assert sigma("validate", str(tmp_path / "nowhere")).returncode == 2


@pytest.mark.slow
def test_inspect_shows_the_corpus_and_a_sample_in_words_and_as_a_picture(small_corpus: Path, tmp_path: Path) -> None:
    table = sigma("inspect", str(small_corpus))
    assert "editing" in table.stdout
    assert "37 samples" in table.stdout
    result = sigma("inspect", str(small_corpus), "0", "--out", str(tmp_path / "sample.png"))
    assert result.returncode == 0, result.stderr
    seen = json.loads(sigma("inspect", str(small_corpus), "0", "--json").stdout)
    assert seen["id"] in result.stdout
    assert "<image_1>" in result.stdout
    with Image.open(tmp_path / "sample.png") as picture:
        assert picture.size[0] == 1280
    assert json.loads(sigma("inspect", str(small_corpus), seen["id"][:12], "--json").stdout)["id"] == seen["id"]


@pytest.mark.slow
def test_inspect_draws_a_sample_of_each_family(small_corpus: Path, tmp_path: Path) -> None:
    seen = sigma("inspect", str(small_corpus), "--out", str(tmp_path / "sheet.png"))
    assert seen.returncode == 0, seen.stderr
    assert "drawn into" in seen.stdout
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.width == 1280
        assert sheet.height > 300
    wrong = sigma("inspect", str(small_corpus), "--out", str(tmp_path / "sheet.jpg"))
    assert wrong.returncode == 2


@pytest.mark.slow
def test_shard_and_export_say_what_they_wrote(small_corpus: Path, tmp_path: Path) -> None:
    part = sigma(
        "shard", str(small_corpus), "--out", str(tmp_path / "part"), "--family", "editing", "--workers", "1", "--json"
    )
    assert json.loads(part.stdout)["samples"] == 7
    export = sigma("shard", str(small_corpus), "--out", str(tmp_path / "parquet"), "--to", "release")
    assert "37 samples, 0 left out" in export.stdout
    assert "a folder a split: train/ " in export.stdout


def test_printed_settings_are_read_back_as_a_config(tmp_path: Path) -> None:
    corpora.make_release(tmp_path / "release", 6)
    options = ("--seed", "9", "--quota", "editing=1", "--check", "too_small=warning", "limits.min_side=16")
    printed = sigma("build-dataset", f"release:{tmp_path / 'release'}", *options, "--print-config")
    (tmp_path / "config.yaml").write_text(printed.stdout)
    again = sigma("build-dataset", "--config", str(tmp_path / "config.yaml"), "--print-config")
    assert again.stdout == printed.stdout
    assert "seed: 9" in printed.stdout
    assert "min_side: 16" in printed.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["build-dataset"], "name at least one source"),
        (["build-dataset", "mine.yaml"], "mine.yaml is a configuration: write --config mine.yaml"),
        (["build-dataset", "corpus-sgt"], "corpus-sgt is a configuration: write --config corpus-sgt"),
        (["sources", "OMNIEDIT"], "there is no corpus OMNIEDIT; did you mean omniedit?"),
        (["build-dataset", "elsewhere:x"], "write release:, webdataset:, world: or one of the layouts"),
        (["build-dataset", "release:x?colour=red"], "options: "),
        (["build-dataset", "release:x", "limits.min_sid=3"], "there is no such setting"),
        (["build-dataset", "release:x", "--quota", "painting=3"], "quotas"),
        (["build-dataset", "release:x", "--check", "bomb=off"], "cannot be relaxed"),
        (["build-dataset", "release:x", "--check", "nonsense=off"], "there is no check"),
        (["build-dataset", "--config", "nowhere.yaml"], "no such file"),
        (["inspect", "nowhere"], "no such folder"),
        (["inspect", "n" * 300], "n: File name too long: give another path"),
        (["shard", "nowhere", "--out", "x"], "no such folder"),
    ],
)
def test_a_mistake_ends_with_one_sentence_and_exit_code_two(
    arguments: list[str], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = sigma(*arguments)
    assert result.returncode == 2, result.stderr
    assert words in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert "Traceback" in sigma("--debug", *arguments).stderr
