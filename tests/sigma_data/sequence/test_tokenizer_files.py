"""Attribute tokens keep the ids that the weights have learnt, and other programs read the same ones from an export."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from support.small_tokenizers import QWEN_ADDED, qwen_directory

from sigma_data.errors import ConfigError
from sigma_data.instruction import ATTRIBUTES, Attribute, Text
from sigma_data.sequence.tokenizer import Tokenizer
from sigma_data.sequence.tokenizer_files import write_tokenizer
from sigma_data.sequence.tokenizer_reader import QWEN25_ADDED
from sigma_model.config import ModelConfig, preset_directory
from sigma_model.loading import describe_model

TOKENS = [f"<{name}>" for name in ATTRIBUTES]
FILES = [
    ["tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt"],
    ["tokenizer.json", "tokenizer_config.json"],
    ["tokenizer.json"],
    ["vocab.json", "merges.txt", "tokenizer_config.json"],
    ["vocab.json", "merges.txt"],
]


def auto(folder: Path, **options: Any) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(str(folder), local_files_only=True, **options)


def written(folder: Path, out: Path) -> Tokenizer:
    out.mkdir()
    encoder = Tokenizer.load(folder)
    write_tokenizer(folder, out, encoder)
    return encoder


def test_plain_transformers_cuts_an_attribute_token_of_a_release_into_pieces(tmp_path: Path) -> None:
    folder = qwen_directory(tmp_path / "in", files=FILES[0])
    assert len(auto(folder).encode("<style>")) > 1, "or this file is about nothing"


@pytest.mark.parametrize("files", FILES, ids=" ".join)
def test_an_exported_tokenizer_gives_every_reader_our_ids(files: list[str], tmp_path: Path) -> None:
    import tokenizers

    folder, out = qwen_directory(tmp_path / "in", files=files), tmp_path / "out"
    encoder = written(folder, out)
    wanted = [encoder.attribute_ids[name] for name in ATTRIBUTES]
    readers: list[Any] = [auto(out), auto(out, use_fast=False)]
    if {"vocab.json", "merges.txt"} <= set(files):  # a reader of the slow class opens these
        slow = Path(shutil.copytree(out, tmp_path / "slow"))
        (slow / "tokenizer.json").unlink()
        readers.append(auto(slow))
    text = "the <style>style of a <subject> <select><id>hat, é 漢字"
    parts = [
        Text("the "), Attribute("style"), Text("style of a "), Attribute("subject"), Text(" "), Attribute("select"),
        Attribute("id"), Text("hat, é 漢字"),
    ]  # fmt: skip
    for reader in readers:
        assert reader.convert_tokens_to_ids(TOKENS) == wanted
        assert [reader.encode(token, add_special_tokens=False) for token in TOKENS] == [[one] for one in wanted]
        assert tuple(reader.encode(text, add_special_tokens=False)) == encoder.encode_parts(parts).ids
        assert len(reader) == max(wanted) + 1
    bare = tokenizers.Tokenizer.from_file(str(out / "tokenizer.json"))
    assert [bare.encode(token).ids for token in TOKENS] == [[one] for one in wanted]
    assert Tokenizer.load(out).digest == encoder.digest, "runs go on, and plans stay valid"


def test_an_exported_tokenizer_can_be_exported_again_to_the_same_bytes(tmp_path: Path) -> None:
    written(qwen_directory(tmp_path / "in", files=FILES[0]), tmp_path / "a")
    written(tmp_path / "a", tmp_path / "b")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_a_list_of_added_tokens_is_kept_up_to_date(tmp_path: Path) -> None:
    folder = qwen_directory(tmp_path / "in", files=FILES[0])
    (folder / "added_tokens.json").write_text(json.dumps({token: 400 + n for n, token in enumerate(QWEN_ADDED)}))
    encoder = written(folder, tmp_path / "out")
    listed = json.loads((tmp_path / "out" / "added_tokens.json").read_text())
    assert {name: listed[f"<{name}>"] for name in ATTRIBUTES} == dict(encoder.attribute_ids)


def test_a_tokenizer_without_control_tokens_is_exported_with_them(tmp_path: Path) -> None:
    encoder = written(qwen_directory(tmp_path / "in", files=["tokenizer.json"], added=()), tmp_path / "out")
    assert auto(tmp_path / "out").convert_tokens_to_ids(["<|im_start|>", "<|vision_end|>"]) == [
        encoder.bos,
        encoder.image_end,
    ]


def test_rows_with_a_gap_before_them_are_read_right_too(tmp_path: Path) -> None:
    folder, out = qwen_directory(tmp_path / "in", files=FILES[1]), tmp_path / "out"
    out.mkdir()
    rows = {name: 420 + place for place, name in enumerate(ATTRIBUTES)}
    encoder = Tokenizer.load(folder, rows=rows)
    assert dict(encoder.attribute_ids) == rows
    write_tokenizer(folder, out, encoder)
    assert auto(out).convert_tokens_to_ids(TOKENS) == list(rows.values())
    assert Tokenizer.load(out).attribute_ids == rows


# What the weights have learnt


def like_qwen25(folder: Path, extra: Sequence[str], monkeypatch: pytest.MonkeyPatch) -> Path:
    """Qwen2.5's tokenizer with 400 words instead of 151,643, and tokens added behind its own."""
    for module in ("tokenizer", "tokenizer_reader"):
        monkeypatch.setattr(f"sigma_data.sequence.{module}.QWEN25_WORDS", 400)
    return qwen_directory(folder, files=FILES[0], added=(*QWEN25_ADDED, *extra))


@pytest.mark.parametrize("extra", [(), tuple(TOKENS), (*TOKENS, "<mine>")])
def test_the_tokens_of_a_release_are_behind_qwen25s(
    extra: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = Tokenizer.load(like_qwen25(tmp_path, extra, monkeypatch))
    assert dict(encoder.attribute_ids) == {name: 422 + place for place, name in enumerate(ATTRIBUTES)}


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        (("<mine>",), "gives '<mine>' the id 422, the row of <style>"),
        (("<mine>", *TOKENS), "gives <style> the id 423, but its row in the weights is 422"),
        (tuple(reversed(TOKENS)), "gives <style> the id 436"),
        (("<subject>", "<style>"), "gives <style> the id 423"),
    ],
)
def test_a_tokenizer_that_would_shift_or_permute_the_rows_of_a_release_is_refused(
    extra: tuple[str, ...], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError) as caught:
        Tokenizer.load(like_qwen25(tmp_path, extra, monkeypatch))
    assert words in str(caught.value)
    assert "attribute_rows" in str(caught.value)


def test_rows_that_are_stated_are_believed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = like_qwen25(tmp_path, ("<mine>", *TOKENS), monkeypatch)
    rows = {name: 423 + place for place, name in enumerate(ATTRIBUTES)}
    assert dict(Tokenizer.load(folder, rows=rows).attribute_ids) == rows


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return Path(shutil.copytree(preset_directory("tiny"), tmp_path / "tiny"))


def retokenized(tiny: Path, order: Sequence[str]) -> str:
    """The model with a tokenizer to which these tokens were added with transformers."""
    tokenizer = auto(tiny)
    tokenizer.add_tokens(list(order))
    tokenizer.save_pretrained(str(tiny))
    return str(tiny)


@pytest.mark.parametrize("order", [["<mine>"], ["<mine>", *TOKENS], TOKENS[::-1], ["<select>"]])
def test_a_model_says_its_rows_and_another_tokenizer_is_refused(tiny: Path, order: list[str]) -> None:
    with pytest.raises(ConfigError, match="row"):
        describe_model(retokenized(tiny, order))


@pytest.mark.parametrize("order", [TOKENS, [*TOKENS, "<mine>", "<yours>"]])
def test_tokens_added_behind_ours_shift_nothing(tiny: Path, order: list[str]) -> None:
    found = describe_model(retokenized(tiny, order)).tokenizer
    assert found.attribute_ids == describe_model("tiny").tokenizer.attribute_ids


def say(tiny: Path, rows: Any) -> Path:
    path = tiny / "sigma.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "attribute_rows": rows}))
    return tiny


def test_one_number_states_fifteen_rows_in_turn(tiny: Path) -> None:
    assert ModelConfig.from_directory(say(tiny, 1005)) == ModelConfig.from_directory(preset_directory("tiny"))
    moved = describe_model(str(say(tiny, 1006))).tokenizer
    assert list(moved.attribute_ids.values()) == list(range(1006, 1021))


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ({"style": 1005}, "attribute_rows"),
        (dict.fromkeys(ATTRIBUTES, 1005), "two attribute tokens have one row"),
        (1010, "1024 rows"),
        (-3, "attribute_rows"),
        ("1005", "attribute_rows"),
    ],
)
def test_rows_that_cannot_be_are_refused(tiny: Path, rows: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        describe_model(str(say(tiny, rows)))
