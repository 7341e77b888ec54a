"""Every fault put into a finished corpus is found: by `validate --deep`, the structural ones by `--fast` too.

`plain` faults damage files. `forged` ones come from somebody who also makes corpus.json fit what lies
there, so that no digest of a whole file gives them away; `retold` ones rewrite the manifest as well.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from support import corpora, image_files
from support.faults import SHARD, assert_found, check, flip, members, pack, patch, samples, target_of

import cli
from pipelines.validate.run import validate_corpus
from sigma_data.corpus.shard import BLOCK, END, header


def cut_at_member_boundary(corpus: Path) -> str:
    second = samples(corpus)[1]
    path = corpus / SHARD
    path.write_bytes(path.read_bytes()[: target_of(second)["offset"] - BLOCK])
    return SHARD


def cut_at_sample_boundary_and_closed(corpus: Path) -> str:
    last = samples(corpus)[-1]
    path = corpus / SHARD
    path.write_bytes(path.read_bytes()[: last["offset"]] + END)
    return last["id"]


def cut_inside_a_sample_and_closed(corpus: Path) -> str:
    last = samples(corpus)[-1]
    pack(corpus / SHARD, members(corpus / SHARD)[:-1])
    return f"{last['id']}.{target_of(last)['member']}"


def cut_mid_member(corpus: Path) -> str:
    second = samples(corpus)[1]
    path = corpus / SHARD
    path.write_bytes(path.read_bytes()[: target_of(second)["offset"] + 1000])
    return SHARD


def cut_before_the_closing_blocks(corpus: Path) -> str:
    path = corpus / SHARD
    path.write_bytes(path.read_bytes()[: -len(END)])
    return SHARD


def emptied_shard(corpus: Path) -> str:
    (corpus / SHARD).write_bytes(b"")
    return SHARD


def bytes_behind_the_end(corpus: Path) -> str:
    path = corpus / SHARD
    path.write_bytes(path.read_bytes() + header("hidden.json", 0) + END)
    return SHARD


def flipped_bit_in_a_picture(corpus: Path) -> str:
    row = samples(corpus)[1]
    flip(corpus / SHARD, target_of(row)["offset"] + target_of(row)["size"] // 2)
    return row["id"]


def flipped_bit_in_the_json(corpus: Path) -> str:
    row = samples(corpus)[1]
    data = (corpus / SHARD).read_bytes()
    flip(corpus / SHARD, data.index(b"Paint the", row["json_offset"]))
    return row["id"]


def flipped_bit_in_a_header(corpus: Path) -> str:
    flip(corpus / SHARD, samples(corpus)[1]["offset"] + 3)
    return SHARD


def flipped_bit_in_the_padding(corpus: Path) -> str:
    row = samples(corpus)[1]
    flip(corpus / SHARD, row["json_offset"] + row["json_size"])
    return SHARD


def another_time_in_a_header(corpus: Path) -> str:
    """A well-formed header that this toolkit never writes."""
    row = samples(corpus)[1]
    path = corpus / SHARD
    head = bytearray(path.read_bytes()[row["offset"] : row["offset"] + BLOCK])
    head[136:148] = b"00000000001\0"
    head[148:156] = b" " * 8
    head[148:156] = b"%06o\0 " % sum(head)
    patch(path, row["offset"], bytes(head))
    return SHARD


def swapped_members_of_one_size(corpus: Path) -> str:
    first, second = samples(corpus)[:2]
    one, two = target_of(first), target_of(second)
    assert one["size"] == two["size"]
    data = (corpus / SHARD).read_bytes()
    for here, there in ((one, two), (two, one)):
        patch(corpus / SHARD, here["offset"], data[there["offset"] : there["offset"] + there["size"]])
    return first["id"]


def swapped_members_of_different_size(corpus: Path) -> str:
    content = members(corpus / SHARD)
    names = [name for name, _ in content]
    one, two = 1, next(i for i in range(3, len(content)) if len(content[i][1]) != len(content[1][1]))
    data = [data for _, data in content]
    data[one], data[two] = data[two], data[one]
    pack(corpus / SHARD, list(zip(names, data, strict=True)))
    return names[one]


def members_in_another_order(corpus: Path) -> str:
    content = members(corpus / SHARD)
    content[0], content[1] = content[1], content[0]
    pack(corpus / SHARD, content)
    return content[0][0]


def missing_part(corpus: Path) -> str:
    content = members(corpus / SHARD)
    name, _ = content.pop(4)
    pack(corpus / SHARD, content)
    return name


def missing_json(corpus: Path) -> str:
    content = members(corpus / SHARD)
    index = next(i for i, (name, _) in enumerate(content) if i and name.endswith(".json"))
    name, _ = content.pop(index)
    pack(corpus / SHARD, content)
    return name


def duplicate_key(corpus: Path) -> str:
    content = members(corpus / SHARD)
    pack(corpus / SHARD, content + content[:3])
    return content[0][0]


def duplicate_member(corpus: Path) -> str:
    content = members(corpus / SHARD)
    pack(corpus / SHARD, [*content[:2], *content[1:]])
    return content[1][0]


def dotted_key(corpus: Path) -> str:
    content = [(f"a.{name}" if i < 3 else name, data) for i, (name, data) in enumerate(members(corpus / SHARD))]
    pack(corpus / SHARD, content)
    return content[0][0]


def extra_member_in_a_sample(corpus: Path) -> str:
    content = members(corpus / SHARD)
    name = f"{content[0][0].split('.')[0]}.ref_09.png"
    pack(corpus / SHARD, [*content[:2], (name, image_files.image_bytes("png", 5)), *content[2:]])
    return name


def extra_sample(corpus: Path) -> str:
    pack(corpus / SHARD, [*members(corpus / SHARD), ("f" * 20 + ".json", b"{}\n")])
    return "f" * 20


def renamed_suffix(corpus: Path) -> str:
    content = members(corpus / SHARD)
    name = content[2][0]
    assert name.endswith(".target.bmp")
    content[2] = (name.removesuffix("bmp") + "png", content[2][1])
    pack(corpus / SHARD, content)
    return content[2][0]


def another_format_under_the_same_name(corpus: Path) -> str:
    content = members(corpus / SHARD)
    content[2] = (content[2][0], image_files.image_bytes("jpeg", 6))
    pack(corpus / SHARD, content)
    return content[2][0]


def renamed_key(corpus: Path) -> str:
    content = members(corpus / SHARD)
    old = content[0][0].split(".")[0]
    pack(corpus / SHARD, [(name.replace(old, "0" * 20), data) for name, data in content])
    return "0" * 20


def unsafe_name(corpus: Path) -> str:
    content = members(corpus / SHARD)
    pack(corpus / SHARD, [*content, ("../../evil.json", b"{}")])
    return "../../evil.json"


def shards_exchanged(corpus: Path) -> str:
    other = corpus / "train/layout-00000.tar"
    data = other.read_bytes()
    other.write_bytes((corpus / SHARD).read_bytes())
    (corpus / SHARD).write_bytes(data)
    return SHARD


def removed_shard(corpus: Path) -> str:
    (corpus / SHARD).unlink()
    return SHARD


def extra_shard(corpus: Path) -> str:
    shutil.copy(corpus / SHARD, corpus / "train/editing-00001.tar")
    return "train/editing-00001.tar"


def extra_file_beside_the_shards(corpus: Path) -> str:
    (corpus / "val/notes.txt").write_text("to do")
    return "val/notes.txt"


def extra_tar_at_the_top(corpus: Path) -> str:
    shutil.copy(corpus / SHARD, corpus / "more.tar")
    return "more.tar"


STRUCTURAL: dict[Callable[[Path], str], str] = {
    cut_at_member_boundary: "cut",
    cut_at_sample_boundary_and_closed: "missing_member",
    cut_inside_a_sample_and_closed: "missing_member",
    cut_mid_member: "cut",
    cut_before_the_closing_blocks: "cut",
    emptied_shard: "cut",
    bytes_behind_the_end: "bad_header",
    flipped_bit_in_a_header: "bad_header",
    swapped_members_of_different_size: "misplaced_member",
    members_in_another_order: "misplaced_member",
    missing_part: "missing_member",
    missing_json: "missing_member",
    duplicate_key: "duplicate_member",
    duplicate_member: "duplicate_member",
    dotted_key: "bad_name",
    extra_member_in_a_sample: "extra_member",
    extra_sample: "extra_member",
    renamed_suffix: "extra_member",
    another_format_under_the_same_name: "misplaced_member",
    renamed_key: "extra_member",
    unsafe_name: "unsafe_name",
    shards_exchanged: "extra_member",
    removed_shard: "missing_shard",
    extra_shard: "extra_file",
    extra_file_beside_the_shards: "extra_file",
    extra_tar_at_the_top: "extra_file",
}
"""Faults of names, places and sizes, and the code of the problem: headers alone tell."""

CONTENT: dict[Callable[[Path], str], str] = {
    flipped_bit_in_a_picture: "wrong_digest",
    flipped_bit_in_the_json: "wrong_digest",
    flipped_bit_in_the_padding: "wrong_padding",
    another_time_in_a_header: "wrong_padding",
    swapped_members_of_one_size: "wrong_digest",
}
"""Faults that only reading every byte can find, and the code where corpus.json was made to fit."""


@pytest.mark.slow
@pytest.mark.parametrize("deep", [True, False], ids=["deep", "fast"])
def test_a_sound_corpus_has_no_problems(small_corpus: Path, deep: bool) -> None:
    result = validate_corpus(small_corpus, deep=deep, workers=0)
    assert result.problems == []
    assert result.samples == len(corpora.read_manifest(small_corpus)) == 37


@pytest.mark.slow
@pytest.mark.parametrize("forged", [False, True], ids=["plain", "forged"])
@pytest.mark.parametrize("fault", STRUCTURAL, ids=lambda fault: fault.__name__)
def test_a_structural_fault_is_found_fast_and_deep(corpus: Path, fault: Callable[[Path], str], forged: bool) -> None:
    named = fault(corpus)
    if forged:
        corpora.forge_commit(corpus)
    for deep in (False, True):
        assert_found(check(corpus, deep=deep), STRUCTURAL[fault], named)


@pytest.mark.parametrize("fault", CONTENT, ids=lambda fault: fault.__name__)
def test_a_changed_byte_is_found_deep(corpus: Path, fault: Callable[[Path], str]) -> None:
    fault(corpus)
    assert_found(check(corpus, deep=True), "wrong_digest", SHARD)


@pytest.mark.parametrize("fault", CONTENT, ids=lambda fault: fault.__name__)
def test_a_changed_byte_is_found_deep_though_the_commit_was_made_to_fit(
    corpus: Path, fault: Callable[[Path], str]
) -> None:
    named = fault(corpus)
    corpora.forge_commit(corpus)
    assert_found(check(corpus, deep=True), CONTENT[fault], named)


@pytest.mark.slow
def test_any_flipped_bit_of_any_shard_is_found_deep(twelve_samples: Path, tmp_path: Path) -> None:
    corpus = Path(shutil.copytree(twelve_samples, tmp_path / "corpus"))
    generator = np.random.default_rng(20)
    shards = sorted(corpus.glob("*/*.tar"))
    for _ in range(40):
        path = shards[generator.integers(len(shards))]
        place, bit = int(generator.integers(path.stat().st_size)), int(generator.integers(8))
        flip(path, place, bit)
        problems = check(corpus, deep=True).problems
        assert any(path.relative_to(corpus).as_posix() in problem.where for problem in problems), (path, place, bit)
        flip(path, place, bit)
    assert check(corpus, deep=True).problems == []


@pytest.mark.slow
def test_a_cut_at_any_block_is_found_fast_though_the_commit_was_made_to_fit(corpus: Path) -> None:
    path = corpus / SHARD
    data = path.read_bytes()
    for size in range(0, len(data) - len(END), 17 * BLOCK):
        for ending in (b"", END):
            path.write_bytes(data[:size] + ending)
            corpora.forge_commit(corpus)
            assert any(SHARD in p.where for p in check(corpus, deep=False).problems), (size, ending)


# --- the commit and the tables -------------------------------------------------------------------


def run_validate(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
    monkeypatch.setattr(sys, "argv", ["sigma", "validate", "--workers", "1", *words])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return int(ended.value.code or 0), capsys.readouterr().out


@pytest.mark.slow
def test_the_command_ends_with_0_on_a_sound_corpus_and_with_1_and_a_table_on_a_damaged_one(
    corpus: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_validate(monkeypatch, capsys, str(corpus), "--fast")[0] == 0
    assert run_validate(monkeypatch, capsys, str(corpus), "--deep")[0] == 0
    name = missing_part(corpus)
    for depth in ("--fast", "--deep"):
        code, text = run_validate(monkeypatch, capsys, str(corpus), depth)
        assert code == 1
        assert "missing_member" in text
        assert SHARD in text
        assert name in text
    code, text = run_validate(monkeypatch, capsys, str(corpus), "--json")
    assert code == 1
    answer = json.loads(text)
    assert answer["sound"] is False
    assert {"missing_member", "wrong_size"} <= {problem["code"] for problem in answer["problems"]}


def test_a_file_name_that_is_no_text_is_reported_and_printed(
    corpus: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import os

    (corpus / os.fsdecode(b"train/caf\xe9.tar")).write_bytes(END)
    for form in ("--json", "--fast"):
        code, text = run_validate(monkeypatch, capsys, str(corpus), form)
        assert code == 1
        assert "extra_file" in text
        text.encode()  # must be printable
