"""The tokenizer of the tiny preset: made again bit for bit, small enough for its model, read by transformers."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from support.places import ROOT

from sigma_data.instruction import Placeholder, parse
from sigma_data.sample import Family
from sigma_data.sequence.tokenizer import CONTROL, Tokenizer
from sigma_data.synthetic import draw_sample
from sigma_data.synthetic.families import RECIPES
from sigma_model.config import preset, preset_directory
from tools.train_tiny_tokenizer import END_OF_TEXT, WORDS, instructions, main, measure

FILES = ("tokenizer.json", "tokenizer_config.json")


@pytest.mark.slow
def test_another_process_writes_the_very_bytes_of_the_preset(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tools.train_tiny_tokenizer", "--out", str(tmp_path / "new")]
    environment = {**os.environ, "PYTHONHASHSEED": "17", "PYTHONPATH": str(ROOT)}
    subprocess.run(command, check=True, cwd=tmp_path, env=environment, capture_output=True)
    for name in FILES:
        assert (tmp_path / "new" / name).read_bytes() == (preset_directory("tiny") / name).read_bytes()
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == sorted(FILES)


def test_the_preset_leaves_attribute_tokens_to_be_added_as_a_release_does_and_all_ids_fit_its_model() -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(preset_directory("tiny")), local_files_only=True)
    assert len(tokenizer) == WORDS + 1 + len(CONTROL)
    assert tokenizer.convert_tokens_to_ids([END_OF_TEXT, *CONTROL]) == list(range(WORDS, WORDS + 5))
    encoder = Tokenizer.load(preset_directory("tiny"), preset("tiny").language.vocab_size)
    assert max(encoder.attribute_ids.values()) < preset("tiny").language.vocab_size


def test_the_instructions_learnt_from_are_those_of_the_world_but_for_the_numbers() -> None:
    parts = iter(instructions(3, 5))
    for index in (3, 4):
        for family in RECIPES:
            drawn = draw_sample(seed=0, size=64, format="jpg", family=Family(family), index=index)
            expected = [
                Placeholder(1) if isinstance(part, Placeholder) else part for part in parse(drawn.instruction).parts
            ]
            assert list(next(parts)) == expected
    assert next(parts, None) is None


def test_the_words_of_the_world_are_mostly_single_tokens() -> None:
    figures = measure(preset_directory("tiny"))
    assert figures.tokens < 26
    assert figures.bytes_per_token > 3.5


def test_the_command_tells_its_figures_and_where_it_may_not_write(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tools.train_tiny_tokenizer.TRAINING_SAMPLES", 5)
    monkeypatch.setattr("tools.train_tiny_tokenizer.MEASURED_SAMPLES", 2)
    assert main(["--out", str(tmp_path / "made")]) == 0
    assert re.search(r"\d+ ids .* [\d.]+ tokens an instruction, [\d.]+ bytes a token\n$", capsys.readouterr().out)
    (tmp_path / "file").write_text("in the way")
    assert main(["--out", str(tmp_path / "file")]) == 2
    told = io.StringIO(capsys.readouterr().err).readlines()
    assert len(told) == 1
    assert told[0].startswith(f"cannot write {tmp_path / 'file'}")
