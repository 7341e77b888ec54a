"""Faults of somebody who rewrites shard, manifest and commit to fit are found by `validate --deep`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support import corpora, image_files
from support.faults import SHARD, Members, assert_found, check, members

from sigma_data.corpus.shard import BLOCK, END, block, member_size


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
