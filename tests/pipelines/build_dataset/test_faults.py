"""Every fault put into a finished corpus is found: by `validate --deep`, the structural ones by `--fast` too.

`plain` faults damage files. `forged` ones come from somebody who also makes corpus.json fit what lies
there, so that no digest of a whole file gives them away; `retold` ones rewrite the manifest as well.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import corpora, image_files

import cli
from pipelines.validate.run import Validation, validate_corpus
from sigma_data.corpus.corpus import COMMIT, MANIFEST, QUARANTINE
from sigma_data.corpus.shard import BLOCK, END, block, header, member_size, padded

Members = list[tuple[str, bytes]]
members = corpora.members
SHARD = "train/editing-00000.tar"
"""Where the faults go: at least three samples, a JSON, a reference and a BMP target each."""


@pytest.fixture
def corpus(small_corpus: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(small_corpus, tmp_path / "corpus"))


@pytest.fixture(scope="module")
def other_corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("other")
    release = corpora.make_release(folder / "release", 12, seed=8)
    corpora.build(folder / "corpus", f"release:{release}")
    return folder / "corpus"


def check(corpus: Path, *, deep: bool) -> Validation:
    return validate_corpus(corpus, deep=deep, workers=0)


def samples(corpus: Path, shard: str = SHARD) -> list[dict[str, Any]]:
    """The manifest's rows of a shard, in its order."""
    return sorted((row for row in corpora.read_manifest(corpus) if row["shard"] == shard), key=lambda row: row["index"])


def pack(path: Path, content: Members) -> None:
    """Write a well-formed tar of any members, `header` names included that no corpus would have."""
    parts = [header(name, len(data)) + data + bytes(padded(len(data)) - len(data)) for name, data in content]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"".join(parts) + END)


def patch(path: Path, place: int, data: bytes) -> None:
    content = bytearray(path.read_bytes())
    content[place : place + len(data)] = data
    path.write_bytes(bytes(content))


def flip(path: Path, place: int, bit: int = 0) -> None:
    patch(path, place, bytes([path.read_bytes()[place] ^ 1 << bit]))


def target_of(row: dict[str, Any]) -> dict[str, Any]:
    return next(image for image in row["images"] if image["role"] == "target")


# --- faults: each changes the files of a corpus and returns what a problem must name -------------


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


def assert_found(result: Validation, code: str, named: str) -> None:
    found = [f"{problem.code} {problem.where}: {problem.message}" for problem in result.problems]
    assert any(line.startswith(f"{code} ") and named in line for line in found), (code, named, found)


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


def manifest_flipped_bit(corpus: Path, other: Path) -> tuple[str, str]:
    flip(corpus / MANIFEST, (corpus / MANIFEST).stat().st_size // 2)
    return "changed_file", MANIFEST


def manifest_of_another_corpus(corpus: Path, other: Path) -> tuple[str, str]:
    shutil.copy(other / MANIFEST, corpus / MANIFEST)
    return "changed_file", MANIFEST


def manifest_of_another_corpus_forged(corpus: Path, other: Path) -> tuple[str, str]:
    shutil.copy(other / MANIFEST, corpus / MANIFEST)
    corpora.forge_commit(corpus, lambda commit: commit["sums"].update(read=15, written=12, quarantined=2, duplicates=1))
    return "extra_member", SHARD


def manifest_without_a_row(corpus: Path, other: Path) -> tuple[str, str]:
    rows = corpora.read_manifest(corpus)
    corpora.write_manifest(corpus, [row for row in rows if row["id"] != samples(corpus)[1]["id"]])
    corpora.forge_commit(corpus)
    return "bad_sums", MANIFEST


def manifest_with_a_row_twice(corpus: Path, other: Path) -> tuple[str, str]:
    rows = corpora.read_manifest(corpus)
    corpora.write_manifest(corpus, [*rows, rows[0]])
    corpora.forge_commit(corpus, lambda commit: commit["sums"].update(read=41, written=38))
    return "duplicate_id", rows[0]["id"]


def manifest_removed(corpus: Path, other: Path) -> tuple[str, str]:
    (corpus / MANIFEST).unlink()
    return "missing_file", MANIFEST


def quarantine_removed(corpus: Path, other: Path) -> tuple[str, str]:
    (corpus / QUARANTINE).unlink()
    return "missing_file", QUARANTINE


def quarantine_emptied(corpus: Path, other: Path) -> tuple[str, str]:
    corpora.write_quarantine(corpus, [])
    corpora.forge_commit(corpus)
    return "bad_sums", QUARANTINE


def card_edited(corpus: Path, other: Path) -> tuple[str, str]:
    with (corpus / "README.md").open("a") as file:
        file.write("mine\n")
    return "changed_file", "README.md"


def report_removed(corpus: Path, other: Path) -> tuple[str, str]:
    (corpus / "report.html").unlink()
    return "missing_file", "report.html"


def commit_edited_by_hand(corpus: Path, other: Path) -> tuple[str, str]:
    commit = corpora.read_commit(corpus)
    commit["config"]["title"] = "mine"
    (corpus / COMMIT).write_text(json.dumps(commit))
    return "bad_commit", COMMIT


def commit_with_other_sums(corpus: Path, other: Path) -> tuple[str, str]:
    corpora.forge_commit(corpus, lambda commit: commit["sums"].update(read=99))
    return "bad_sums", COMMIT


def commit_without_a_shard(corpus: Path, other: Path) -> tuple[str, str]:
    corpora.forge_commit(corpus, lambda commit: commit["shards"].pop(SHARD))
    return "missing_shard", SHARD


def commit_with_another_count(corpus: Path, other: Path) -> tuple[str, str]:
    corpora.forge_commit(corpus, lambda commit: commit["shards"][SHARD].update(samples=2))
    return "bad_sums", SHARD


def commit_removed(corpus: Path, other: Path) -> tuple[str, str]:
    (corpus / COMMIT).unlink()
    return "not_committed", COMMIT


def commit_cut(corpus: Path, other: Path) -> tuple[str, str]:
    (corpus / COMMIT).write_bytes((corpus / COMMIT).read_bytes()[:500])
    return "bad_commit", COMMIT


def commit_of_another_corpus(corpus: Path, other: Path) -> tuple[str, str]:
    shutil.copy(other / COMMIT, corpus / COMMIT)
    return "changed_file", MANIFEST


def commit_without_a_table(corpus: Path, other: Path) -> tuple[str, str]:
    corpora.forge_commit(corpus, lambda commit: commit["files"].pop(QUARANTINE))
    return "bad_commit", QUARANTINE


def picture_leaks_by_component(corpus: Path, other: Path) -> tuple[str, str]:
    rows = corpora.read_manifest(corpus)
    train = next(row for row in rows if row["split"] == "train")
    test = next(row for row in rows if row["split"] == "test")
    test["component"] = train["component"]
    corpora.write_manifest(corpus, rows)
    corpora.forge_commit(corpus)
    return "leak", train["component"]


TABLES = [
    manifest_flipped_bit, manifest_of_another_corpus, manifest_of_another_corpus_forged, manifest_without_a_row,
    manifest_with_a_row_twice, manifest_removed, quarantine_removed, quarantine_emptied, card_edited, report_removed,
    commit_edited_by_hand, commit_with_other_sums, commit_without_a_shard, commit_with_another_count, commit_removed,
    commit_cut, commit_of_another_corpus, commit_without_a_table, picture_leaks_by_component,
]  # fmt: skip


@pytest.mark.parametrize("fault", TABLES, ids=lambda fault: fault.__name__)
def test_a_fault_of_commit_or_tables_is_found_fast_and_deep(
    corpus: Path, other_corpus: Path, fault: Callable[[Path, Path], tuple[str, str]]
) -> None:
    code, named = fault(corpus, other_corpus)
    for deep in (False, True):
        assert_found(check(corpus, deep=deep), code, named)


# --- shard, manifest and commit retold together ---------------------------------------------------


def retell(
    corpus: Path, shard: str, change: Callable[[list[tuple[dict[str, Any], Members]]], None]
) -> list[dict[str, Any]]:
    """Let `change` edit the (row, members) of a shard, then make tar, manifest and commit fit each other."""
    rows = corpora.read_manifest(corpus)
    mine = sorted((row for row in rows if row["shard"] == shard), key=lambda row: row["index"])
    content = dict(members(corpus / shard))
    told = [
        (row, [(name, content[f"{row['id']}.{name}"]) for name in ("json", *(i["member"] for i in row["images"]))])
        for row in mine
    ]
    change(told)
    parts, position = [], 0
    for row, named in told:
        row["offset"] = position
        row["json_offset"], row["json_size"] = position + BLOCK, len(named[0][1])
        row["json_sha256"] = hashlib.sha256(named[0][1]).hexdigest()
        position += member_size(row["json_size"])
        for image, (name, data) in zip(row["images"], named[1:], strict=True):
            image |= {"member": name, "offset": position + BLOCK, "size": len(data)}
            image["sha256"] = hashlib.sha256(data).hexdigest()
            position += member_size(len(data))
        row["size"] = position - row["offset"]
        parts.append(block(row["id"], named))
    (corpus / shard).write_bytes(b"".join(parts) + END)
    corpora.write_manifest(corpus, rows)
    corpora.forge_commit(corpus)
    return mine


def edit_json(named: Members, change: Callable[[dict[str, Any]], None]) -> None:
    record = json.loads(named[0][1])
    change(record)
    text = json.dumps(record, sort_keys=True, ensure_ascii=False, separators=(",", ":")) + "\n"
    named[0] = ("json", text.encode())


def jpeg_in_a_png_member(row: dict[str, Any], named: Members) -> None:
    data = image_files.image_bytes("jpeg", 6)
    named[2] = ("target.png", data)
    edit_json(named, lambda record: record["images"][1].update(member="target.png"))
    row["images"][1]["format"] = "PNG"


def jpeg_in_a_png_member_that_the_manifest_admits(row: dict[str, Any], named: Members) -> None:
    from sigma_data.images.decode import probe

    jpeg_in_a_png_member(row, named)
    facts = probe(named[2][1])
    row["images"][1] |= {"format": facts.format, "signature": facts.signature}


def another_picture(row: dict[str, Any], named: Members) -> None:
    named[2] = (named[2][0], image_files.image_bytes("bmp", 6))


def truncated_picture(row: dict[str, Any], named: Members) -> None:
    named[2] = (named[2][0], named[2][1][:5000])


def bytes_that_are_no_picture(row: dict[str, Any], named: Members) -> None:
    named[2] = (named[2][0], b"<html>not here</html>")


def target_that_is_the_reference(row: dict[str, Any], named: Members) -> None:
    named[2] = (f"target.{named[1][0].rsplit('.')[-1]}", named[1][1])
    edit_json(named, lambda record: record["images"][1].update(member=named[2][0]))


def decompression_bomb(row: dict[str, Any], named: Members) -> None:
    named[2] = ("target.png", image_files.huge_png(9000, 9000))
    edit_json(named, lambda record: record["images"][1].update(member="target.png"))


def instruction_in_the_json(row: dict[str, Any], named: Members) -> None:
    edit_json(named, lambda record: record["turns"][0].update(instruction="Remove <image_1>"))


def instruction_in_the_manifest(row: dict[str, Any], named: Members) -> None:
    row["instruction"] = "Remove <image_1>"


def turn_in_the_manifest(row: dict[str, Any], named: Members) -> None:
    row["turns"][0]["instruction"] = "Remove <image_1>"


def misspelt_token(row: dict[str, Any], named: Members) -> None:
    edit_json(named, lambda record: record["turns"][0].update(instruction="Paint the <subjct>thing in <image_1>"))


def tokens_in_the_manifest(row: dict[str, Any], named: Members) -> None:
    row["tokens"] += 1


def references_in_the_manifest(row: dict[str, Any], named: Members) -> None:
    row["references"] += 1


def role_in_the_manifest(row: dict[str, Any], named: Members) -> None:
    row["images"][0]["role"] = "target"


def number_in_the_manifest(row: dict[str, Any], named: Members) -> None:
    row["images"][0]["number"], row["images"][1]["number"] = 2, 1


def width_in_the_manifest(row: dict[str, Any], named: Members) -> None:
    row["images"][0]["width"] += 1


def license_in_the_manifest(row: dict[str, Any], named: Members) -> None:
    row["license"] = "cc0"


def attributes_in_the_manifest(row: dict[str, Any], named: Members) -> None:
    row["attributes"] = ["style"]


def width_in_the_json(row: dict[str, Any], named: Members) -> None:
    edit_json(named, lambda record: record["images"][0].update(width=999))


def role_in_the_json(row: dict[str, Any], named: Members) -> None:
    edit_json(named, lambda record: record["images"][0].update(role="target"))


def family_in_the_json(row: dict[str, Any], named: Members) -> None:
    edit_json(named, lambda record: record.update(family="stylization"))


def id_in_the_json(row: dict[str, Any], named: Members) -> None:
    edit_json(named, lambda record: record.update(id="0" * 20))


def source_in_the_json(row: dict[str, Any], named: Members) -> None:
    edit_json(named, lambda record: record["source"].update(row=999))


def extra_field_in_the_json(row: dict[str, Any], named: Members) -> None:
    edit_json(named, lambda record: record.update(more=1))


def pretty_printed_json(row: dict[str, Any], named: Members) -> None:
    named[0] = ("json", json.dumps(json.loads(named[0][1]), indent=1).encode())


def json_that_is_none(row: dict[str, Any], named: Members) -> None:
    named[0] = ("json", b"\xff{")


RETOLD: dict[Callable[[dict[str, Any], Members], None], str] = {
    jpeg_in_a_png_member: "wrong_extension",
    jpeg_in_a_png_member_that_the_manifest_admits: "wrong_extension",
    another_picture: "manifest_differs",
    truncated_picture: "truncated",
    bytes_that_are_no_picture: "wrong_type",
    target_that_is_the_reference: "target_equals_reference",
    decompression_bomb: "bomb",
    instruction_in_the_json: "manifest_differs",
    instruction_in_the_manifest: "manifest_differs",
    turn_in_the_manifest: "manifest_differs",
    misspelt_token: "unknown_token",
    tokens_in_the_manifest: "manifest_differs",
    references_in_the_manifest: "manifest_differs",
    role_in_the_manifest: "manifest_differs",
    number_in_the_manifest: "manifest_differs",
    width_in_the_manifest: "manifest_differs",
    license_in_the_manifest: "manifest_differs",
    attributes_in_the_manifest: "manifest_differs",
    width_in_the_json: "bad_record",
    role_in_the_json: "bad_record",
    family_in_the_json: "manifest_differs",
    id_in_the_json: "manifest_differs",
    source_in_the_json: "manifest_differs",
    extra_field_in_the_json: "bad_record",
    pretty_printed_json: "bad_record",
    json_that_is_none: "bad_record",
}


def test_retelling_a_shard_without_a_change_leaves_it_sound(corpus: Path) -> None:
    before = (corpus / SHARD).read_bytes()
    retell(corpus, SHARD, lambda told: None)
    assert (corpus / SHARD).read_bytes() == before
    assert check(corpus, deep=True).problems == []


@pytest.mark.parametrize("fault", RETOLD, ids=lambda fault: fault.__name__)
def test_a_sample_retold_in_shard_manifest_and_commit_is_found_deep(
    corpus: Path, fault: Callable[[dict[str, Any], Members], None]
) -> None:
    rows = retell(corpus, SHARD, lambda told: fault(*told[1]))
    assert_found(check(corpus, deep=True), RETOLD[fault], rows[1]["id"])


def test_a_picture_that_the_manifest_has_twice_is_found(corpus: Path) -> None:
    rows = corpora.read_manifest(corpus)
    row = next(row for row in rows if row["shard"] == SHARD)
    row["images"].append(row["images"][0])
    corpora.write_manifest(corpus, rows)
    corpora.forge_commit(corpus)
    assert_found(check(corpus, deep=False), "misplaced_member", SHARD)
    assert_found(check(corpus, deep=True), "manifest_differs", row["id"])


def _leak(corpus: Path, picture: Callable[[bytes], bytes]) -> None:
    """Put a picture of a training sample into a test sample, with facts that are all true."""
    from sigma_data.images.decode import probe

    test = next(row for row in corpora.read_manifest(corpus) if row["split"] == "test")
    donor = next(data for name, data in members(corpus / SHARD) if name.endswith(".target.bmp"))

    def change(told: list[tuple[dict[str, Any], Members]]) -> None:
        row, named = told[0]
        index = next(i for i, image in enumerate(row["images"]) if image["role"] == "target")
        data = picture(donor)
        facts = probe(data)
        name = f"target.{facts.extension}"
        named[index + 1] = (name, data)
        row["images"][index] |= {"width": facts.width, "height": facts.height, "format": facts.format,
                                 "mode": facts.mode, "signature": facts.signature}  # fmt: skip
        edit_json(named, lambda record: record["images"][index].update(
            member=name, width=facts.width, height=facts.height))  # fmt: skip

    retell(corpus, test["shard"], change)


@pytest.mark.parametrize("deep", [True, False], ids=["deep", "fast"])
def test_a_picture_in_two_splits_is_found_though_everything_was_made_to_fit(corpus: Path, deep: bool) -> None:
    _leak(corpus, lambda donor: donor)
    assert_found(check(corpus, deep=deep), "leak", "in more than one split")


def test_a_nearly_identical_picture_in_two_splits_is_found_deep(corpus: Path) -> None:
    import io

    from PIL import Image

    _leak(corpus, lambda donor: image_files.encoded(Image.open(io.BytesIO(donor)), "jpeg", quality=90))
    assert_found(check(corpus, deep=True), "leak", "in more than one split")


# --- the command -----------------------------------------------------------------------------------


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
