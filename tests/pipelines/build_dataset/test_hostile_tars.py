"""Hostile tars: evil members, records that lie, any bit changed: a commit whose sums add up, or one sentence."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import corpora, image_files
from support.hostile import build_safely, codes_by_location

from pipelines.validate.run import validate_corpus
from sigma_data.corpus.shard import BLOCK, END, header

pytestmark = pytest.mark.usefixtures("no_hang")


def raw_header(name: bytes, size: int = 0, kind: bytes = b"0", link: bytes = b"", **fields: bytes) -> bytes:
    """A tar header with whatever in it, its checksum right."""
    head = bytearray(header("x.json", 0))
    head[0:100] = name.ljust(100, b"\0")[:100]
    head[124:136] = fields.get("digits", b"%011o\0" % size)
    head[156:157] = kind
    head[157:257] = link.ljust(100, b"\0")
    if prefix := fields.get("prefix"):
        head[345:500] = prefix.ljust(155, b"\0")
    head[148:156] = b" " * 8
    head[148:156] = b"%06o\0 " % sum(head)
    return bytes(head)


def long_name(format_: int) -> bytes:
    """A member whose name needs an extension header, as Python's tarfile writes it."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=format_) as tar:
        info = tarfile.TarInfo("evil" * 60 + "/" + "x" * 120 + ".json")
        info.size = 2
        tar.addfile(info, io.BytesIO(b"{}"))
    return buffer.getvalue()


CONTENT = b"{}".ljust(BLOCK, b"\0")
EVIL_TARS: dict[str, tuple[bytes, str]] = {
    "absolute": (raw_header(b"/sigma_evil.json", 2) + CONTENT, "unsafe_name"),
    "parent": (raw_header(b"../../evil.json", 2) + CONTENT, "unsafe_name"),
    "parent_inside": (raw_header(b"a/../../../evil.json", 2) + CONTENT, "unsafe_name"),
    "prefix": (raw_header(b"evil.json", 2, prefix=b"../..") + CONTENT, "unsafe_name"),
    "absolute_prefix": (raw_header(b"sigma_evil.json", 2, prefix=b"/tmp") + CONTENT, "unsafe_name"),
    "backslashes": (raw_header(b"..\\..\\evil.json", 2) + CONTENT, "unsafe_name"),
    "symbolic_link": (raw_header(b"evil.json", kind=b"2", link=b"/etc/passwd"), "not_a_file"),
    "hard_link": (raw_header(b"evil.json", kind=b"1", link=b"../../../canary"), "not_a_file"),
    "folder": (raw_header(b"evil.json", kind=b"5"), "not_a_file"),
    "pipe": (raw_header(b"evil.json", kind=b"6"), "not_a_file"),
    "device": (raw_header(b"evil.json", kind=b"3"), "not_a_file"),
    "sparse": (raw_header(b"evil.json", kind=b"S"), "not_a_file"),
    "gnu_long_name": (long_name(tarfile.GNU_FORMAT), "unsafe_or_not_a_file"),
    "pax_long_name": (long_name(tarfile.PAX_FORMAT), "unsafe_or_not_a_file"),
    "subfolder": (raw_header(b"folder/evil.json", 2) + CONTENT, "bad_name"),
    "dotted": (raw_header(b"evil.a.json", 2) + CONTENT, "bad_name"),
    "hidden": (raw_header(b".evil.json", 2) + CONTENT, "bad_name"),
    "no_text": (raw_header(b"caf\xe9.json", 2) + CONTENT, "bad_name"),
    "line_feed": (raw_header(b"evil\n.json", 2) + CONTENT, "bad_name"),
    "no_name": (raw_header(b"", 2) + CONTENT, "bad_name"),
    "script": (raw_header(b"evil.py", 2) + CONTENT, "bad_name"),
    "size_beyond_the_end": (raw_header(b"evil.json", 2**33 - 1), "cut"),
    "negative_size": (raw_header(b"evil.json", digits=b"-0000000001\0"), "bad_header"),
    "binary_size": (raw_header(b"evil.json", digits=b"\x80" + bytes(7) + b"\0\0\0\2"), "bad_header"),
    "wrong_checksum": (raw_header(b"evil.json", 2)[:-1] + b"\1" + CONTENT, "bad_header"),
    "noise": (bytes(range(256)) * 8, "bad_header"),
}


def sample_blocks(corpus: Path, count: int, salt: str) -> list[bytes]:
    """Blocks of `count` good samples, each under an id of its own."""
    blocks = []
    shards = sorted(corpus.glob("*/*.tar"))
    groups: dict[str, list[tuple[str, bytes]]] = {}
    for shard in shards:
        for name, data in corpora.members(shard):
            groups.setdefault(name.split(".", 1)[0], []).append((name.split(".", 1)[1], data))
    chosen = list(groups.items())
    for index in range(count):
        key, named = chosen[index % len(chosen)]
        new = f"{salt}{index:06d}"
        parts = [
            (suffix, data.replace(key.encode(), new.encode()) if suffix == "json" else data) for suffix, data in named
        ]
        blocks.append(
            b"".join(header(f"{new}.{suffix}", len(data)) + data + bytes(-len(data) % BLOCK) for suffix, data in parts)
        )
    return blocks


@pytest.mark.slow
def test_evil_members_end_their_tar_and_nothing_else(small_corpus: Path, arena: Path) -> None:
    folder = arena / "in"
    folder.mkdir()
    blocks = sample_blocks(small_corpus, len(EVIL_TARS) + 1, "good")
    for index, (name, (evil, _)) in enumerate(EVIL_TARS.items()):
        (folder / f"{name}.tar").write_bytes(blocks[index] + evil + END)
    (folder / "sound.tar").write_bytes(blocks[-1] + END)
    sums = build_safely(arena / "out", f"webdataset:{folder}", watch=arena.parents[2])
    assert sums is not None
    assert sums["written"] + sums["duplicates"] == len(blocks)  # what stands before the damage is kept
    found = codes_by_location(arena / "out")
    for name, (_, code) in EVIL_TARS.items():
        expected = {"shard_not_a_file", "shard_unsafe_name"} if code == "unsafe_or_not_a_file" else {f"shard_{code}"}
        assert found[f"{name}.tar"] & expected, (name, found[f"{name}.tar"])


@pytest.mark.parametrize("name", EVIL_TARS)
def test_validate_names_an_evil_member(twelve_samples: Path, arena: Path, name: str) -> None:
    corpus = Path(shutil.copytree(twelve_samples, arena / "in" / "corpus"))
    shard = "train/editing-00000.tar"
    evil, code = EVIL_TARS[name]
    path = corpus / shard
    path.write_bytes(path.read_bytes()[: -len(END)] + evil + END)
    corpora.forge_commit(corpus)
    before = corpora.files_below(arena.parents[2])
    expected = {"not_a_file", "unsafe_name"} if code == "unsafe_or_not_a_file" else {code}
    for deep in (False, True):
        problems = validate_corpus(corpus, deep=deep, workers=0).problems
        assert expected & {problem.code for problem in problems if problem.where == shard}
    assert corpora.files_below(arena.parents[2]) == before


def hostile_records(named: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Records that a reader must refuse or survive, each from a good one."""

    def with_(**changes: Any) -> dict[str, Any]:
        return {**named, **changes}

    image, turn = named["images"][0], named["turns"][0]
    yield "row_beyond_64_bits", with_(source={**named["source"], "row": 2**70})
    yield "row_below_64_bits", with_(source={**named["source"], "row": -(2**63) - 1})
    yield "number_beyond_16_bits", with_(images=[{**image, "number": 2**40}, *named["images"][1:]])
    yield "width_beyond_64_bits", with_(images=[{**image, "width": 10**30}, *named["images"][1:]])
    yield "target_beyond_16_bits", with_(turns=[{**turn, "target": 2**40}])
    yield "negative_target", with_(turns=[{**turn, "target": -1}])
    yield "binding_beyond_64_bits", with_(turns=[{**turn, "bindings": [{"token": 2**70, "image": 2**70}]}])
    yield "member_outside", with_(images=[{**image, "member": "../../evil.jpg"}, *named["images"][1:]])
    yield "id_outside", with_(id="../../evil")
    yield "unknown_family", with_(family="../evil")
    yield "no_turns", with_(turns=[])
    yield "many_turns", with_(turns=[turn] * 1000)
    yield "empty_instruction", with_(turns=[{**turn, "instruction": ""}])
    yield "null_bytes", with_(turns=[{**turn, "instruction": "Paint \0 <image_1>"}])
    yield "terminal_codes", with_(turns=[{**turn, "instruction": "\x1b[2J Paint <image_1>\x07"}])
    yield "markup", with_(source={**named["source"], "license": "</td><script>alert(1)</script>|\n# evil"})
    yield "many_placeholders", with_(turns=[{**turn, "instruction": "<image>" * 20_000}])
    yield (
        "many_brackets",
        with_(turns=[{**turn, "instruction": "<" * 50_000 + " " * 50_000 + "<image" + " " * 50_000}]),
    )
    yield "long_location", with_(source={**named["source"], "location": "x" * 1_000_000})
    yield "schema_of_the_future", with_(schema_version=99)
    yield "not_an_object", [named]
    yield "deep", json.loads("[" * 900 + "]" * 900)


@pytest.mark.slow
def test_hostile_records_are_refused_or_survived(small_corpus: Path, arena: Path) -> None:
    folder = arena / "in"
    folder.mkdir()
    named = corpora.members(small_corpus / "train/editing-00000.tar")[:3]
    record = json.loads(named[0][1])
    cases: dict[str, bytes] = {name: json.dumps(value).encode() for name, value in hostile_records(record)}
    cases |= {
        "lone_surrogate": json.dumps({**record, "truth": "\ud800"}).encode(),
        "not_utf8": named[0][1].replace(b"Paint", b"Pa\xffnt"),
        "bare_nan": named[0][1].replace(b'"truth":null', b'"truth":NaN'),
        "empty": b"",
        "very_deep": b'{"truth":' * 100_000,
        "long_number": named[0][1].replace(b'"row":', b'"row":' + b"9" * 10_000),
    }
    for index, (name, data) in enumerate(cases.items()):
        key = f"{index:020d}"
        data = data.replace(record["id"].encode(), key.encode())
        parts = [(f"{key}.json", data), *((f"{key}.{n.split('.', 1)[1]}", content) for n, content in named[1:])]
        tar = b"".join(header(n, len(content)) + content + bytes(-len(content) % BLOCK) for n, content in parts)
        (folder / f"{name}.tar").write_bytes(tar + END)
    (folder / "sound.tar").write_bytes(sample_blocks(small_corpus, 1, "good")[0] + END)
    sums = build_safely(arena / "out", f"webdataset:{folder}", watch=arena.parents[2])
    assert sums is not None
    assert sums["read"] == len(cases) + 1
    assert sums["codes"]["bad_record"] >= 14
    page = (arena / "out" / "report.html").read_text() + (arena / "out" / "README.md").read_text()
    assert "<script>alert" not in page


@pytest.mark.slow
def test_mutated_tars_end_in_a_commit_whose_sums_add_up(small_corpus: Path, arena: Path) -> None:
    folder = arena / "in"
    folder.mkdir()
    generator = np.random.default_rng(1)
    blocks = sample_blocks(small_corpus, 120, "good")
    for index in range(60):
        sound = blocks[2 * index] + blocks[2 * index + 1] + END
        (folder / f"{index}.tar").write_bytes(image_files.mutated(sound, generator, times=1 + index % 4))
    sums = build_safely(arena / "out", f"webdataset:{folder}", watch=arena.parents[2])
    assert sums is not None
    assert sums["quarantined"] > 20
    assert sums["written"] > 0


@pytest.mark.slow
def test_mutated_shards_never_crash_validate_and_never_pass_it(twelve_samples: Path, arena: Path) -> None:
    corpus = Path(shutil.copytree(twelve_samples, arena / "in" / "corpus"))
    generator = np.random.default_rng(2)
    shards = sorted(corpus.glob("*/*.tar"))
    for index in range(60):
        path = shards[generator.integers(len(shards))]
        sound = path.read_bytes()
        broken = image_files.mutated(sound, generator, times=1 + index % 4)
        path.write_bytes(broken)
        if index % 2:
            corpora.forge_commit(corpus)
        result = validate_corpus(corpus, deep=True, workers=0)
        assert bool(result.problems) == (broken != sound), (path, index)
        path.write_bytes(sound)
        corpora.forge_commit(corpus)


# --- parquet ---------------------------------------------------------------------------------------
