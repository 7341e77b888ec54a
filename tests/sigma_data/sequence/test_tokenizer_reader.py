"""Reading a tokenizer without transformers, and only where transformers would read the same."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.places import ROOT
from support.small_tokenizers import qwen_directory

from sigma_data.sequence import tokenizer_reader
from sigma_data.sequence.tokenizer_reader import open_tokenizer

FILES = ("tokenizer.json", "tokenizer_config.json")
TINY = ROOT / "sigma_model" / "presets" / "tiny"
Change = Callable[[dict[str, Any], dict[str, Any]], None]


def changed(folder: Path, change: Change) -> Path:
    """A directory as Qwen2's after a change of `tokenizer.json` and `tokenizer_config.json`."""
    qwen_directory(folder, files=FILES)
    contents = [json.loads((folder / name).read_text("utf-8")) for name in FILES]
    change(*contents)
    for name, content in zip(FILES, contents, strict=True):
        (folder / name).write_text(json.dumps(content), "utf-8")
    return folder


def by_transformers(folder: Path) -> Any:
    return tokenizer_reader._by_transformers(folder, named=True)


def same(folder: Path) -> bool:
    """Whether both ways give one tokenizer: all ids, merges, and how text is cut."""
    ours, theirs = open_tokenizer(folder), by_transformers(folder)
    return bool(ours.get_vocab() == theirs.get_vocab()) and rules(ours) == rules(theirs)


def rules(tokenizer: Any) -> list[Any]:
    content = json.loads(tokenizer.to_str())
    cuts = [{**part, "trim_offsets": None} for part in content["pre_tokenizer"]["pretokenizers"]]
    words = [content["model"].get(name) or None for name in ("merges", "ignore_merges", "byte_fallback", "unk_token")]
    return [content["normalizer"], cuts, *words]


def test_a_tiny_model_and_the_file_of_an_export_are_read_without_transformers(tmp_path: Path) -> None:
    script = (
        "import sys; from sigma_data.sequence.tokenizer import Tokenizer\n"
        "for place in sys.argv[1:]: Tokenizer.load(place)\n"
        "print('transformers' in sys.modules)"
    )
    places = [str(TINY), str(qwen_directory(tmp_path / "qwen", files=FILES))]
    done = subprocess.run(
        [sys.executable, "-c", script, *places], capture_output=True, text=True, cwd=ROOT, check=True
    )  # fmt: skip
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize("place", ["tiny", "tiny-base"])
def test_the_presets_are_read_as_transformers_reads_them(place: str) -> None:
    assert same(TINY.parent / place)


def _cut_otherwise(content: dict[str, Any], settings: dict[str, Any]) -> None:
    content["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = r"\\d"


def _prefix_space(content: dict[str, Any], settings: dict[str, Any]) -> None:
    settings["add_prefix_space"] = True


def _no_normalizer(content: dict[str, Any], settings: dict[str, Any]) -> None:
    content["normalizer"] = None


def _one_more_special_token(content: dict[str, Any], settings: dict[str, Any]) -> None:
    settings["pad_token"] = "<|another|>"


def _one_more_described(content: dict[str, Any], settings: dict[str, Any]) -> None:
    settings["extra_special_tokens"] = ["<|more|>"]


def _ignoring_merges(content: dict[str, Any], settings: dict[str, Any]) -> None:
    content["model"]["ignore_merges"] = True


def _another_class(content: dict[str, Any], settings: dict[str, Any]) -> None:
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    content["normalizer"] = None


CHANGES = (
    _cut_otherwise, _prefix_space, _no_normalizer, _one_more_special_token, _one_more_described, _ignoring_merges,
    _another_class,
)  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_where_transformers_would_make_something_else_of_the_file_it_reads_it(change: Change, tmp_path: Path) -> None:
    assert same(changed(tmp_path, change))


def test_an_unchanged_directory_is_read_as_transformers_reads_it(tmp_path: Path) -> None:
    assert same(qwen_directory(tmp_path, files=FILES))
