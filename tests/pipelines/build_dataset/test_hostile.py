"""Hostile input ends in a commit whose sums add up, or in one sentence: never a crash, a hang, or a stray file."""

from __future__ import annotations

import faulthandler
import io
import json
import os
import resource
import shutil
import signal
import struct
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support import corpora, image_files

from pipelines.inspect.run import inspect_corpus, inspect_sample
from pipelines.shard.run import Selection, export_release, reshard
from pipelines.validate.run import validate_corpus
from sigma_data.corpus.corpus import COMMIT, MANIFEST, open_corpus
from sigma_data.corpus.shard import BLOCK, END, header
from sigma_data.errors import CorpusError, SigmaError
from sigma_data.images.decode import ImageFault, load, probe, thumbnail

_PATIENCE = 60  # seconds a test may take before it counts as a hang


@pytest.fixture(autouse=True)
def no_hang() -> Iterator[None]:
    """Python code that hangs gets an exception, native code that hangs a traceback and the end."""

    def give_up(*_: object) -> None:
        raise TimeoutError(f"more than {_PATIENCE} s: a hang")

    old = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(_PATIENCE)
    faulthandler.dump_traceback_later(_PATIENCE + 30, exit=True)
    yield
    faulthandler.cancel_dump_traceback_later()
    signal.alarm(0)
    signal.signal(signal.SIGALRM, old)


@pytest.fixture
def arena(tmp_path: Path) -> Iterator[Path]:
    """A folder deep enough for `../..`, in which only `out` may change."""
    folder = tmp_path / "a" / "b" / "c"
    folder.mkdir(parents=True)
    yield folder
    names = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")}
    stray = {name for name in names if "evil" in Path(name).name and not name.startswith("a/b/c/in")}
    assert not stray
    assert not Path("/sigma_evil.json").exists()


def build_safely(out: Path, source: str, *, watch: Path) -> dict[str, Any] | None:
    """The sums of a build from a hostile source, None where it ended in a sentence; only `out` may change."""
    before = corpora.files_below(watch)
    sums: dict[str, Any] | None
    sentence = ""
    try:
        sums = dict(corpora.build(out, source).corpus.sums)
    except SigmaError as error:
        sums, sentence = None, str(error)
    inside = out.relative_to(watch).as_posix() + "/"
    after = {name: entry for name, entry in corpora.files_below(watch).items() if not name.startswith(inside)}
    assert after == before
    assert (out / COMMIT).exists() == (sums is not None)
    assert "\n" not in sentence
    if sums is not None:
        assert corpora.adds_up(sums)
        assert validate_corpus(out, deep=True, workers=0).problems == []
    return sums


def codes_by_location(corpus: Path) -> dict[str, set[str]]:
    rows = open_corpus(corpus).quarantine.select("location", "code").iter_rows()
    result: dict[str, set[str]] = {}
    for location, code in rows:
        result.setdefault(location, set()).add(code)
    return result


# --- tars ------------------------------------------------------------------------------------------


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


def lying_footers(data: bytes, rows: int) -> Iterator[bytes]:
    """The file with each of its row counts, and all of them, raised a lot or lowered."""
    size = struct.unpack("<I", data[-8:-4])[0]
    start = len(data) - 8 - size
    count = struct.pack("BB", (2 * rows) & 0x7F | 0x80, (2 * rows) >> 7)  # zigzag varint
    places = [place for place in range(start, len(data) - 8) if data[place : place + 2] == count]
    assert len(places) >= 2
    for lie in (b"\xfe\x7f", b"\x80\x01", b"\x81\x01"):  # 8191, 64, a negative number
        for chosen in (*([place] for place in places), places):
            told = bytearray(data)
            for place in chosen:
                told[place : place + 2] = lie
            yield bytes(told)


def parquet_bytes(table: pa.Table) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    return buffer.getvalue()


@pytest.mark.slow
def test_files_that_are_no_release_parquet_are_rejected_each_by_name(arena: Path) -> None:
    folder = corpora.make_release(arena / "in", 6, seed=3)
    rows = [corpora.release_row(seed) for seed in range(3)]
    good = pa.Table.from_pylist(rows, schema=corpora.RELEASE_SCHEMA)
    bad: dict[str, tuple[bytes, str]] = {
        "empty": (b"", "unreadable_file"),
        "text": (b"not a parquet file", "unreadable_file"),
        "magic_only": (b"PAR1PAR1", "unreadable_file"),
        "long_footer": (b"PAR1" + bytes(100) + b"\xff\xff\xff\x7fPAR1", "unreadable_file"),
        "cut": (parquet_bytes(good)[:-100], "unreadable_file"),
        "picture": (image_files.image_bytes("jpeg"), "unreadable_file"),
        "other_columns": (parquet_bytes(pa.table({"a": [1], "b": ["x"]})), "wrong_columns"),
        "one_column": (parquet_bytes(good.select(["image_list"])), "wrong_columns"),
        "text_pictures": (parquet_bytes(good.set_column(0, "image_list", pa.array([["a"]] * 3))), "wrong_columns"),
        "numbers": (parquet_bytes(good.set_column(1, "instruction_list", pa.array([1, 2, 3]))), "wrong_columns"),
        "column_twice": (parquet_bytes(good.append_column("image_list", good.column(0))), "wrong_columns"),
    }
    for name, (data, _) in bad.items():
        (folder / f"{name}.parquet").write_bytes(data)
    sums = build_safely(arena / "out", f"release:{folder}", watch=arena.parents[2])
    assert sums is not None
    assert sums["written"] == 6
    found = codes_by_location(arena / "out")
    assert found == {f"{name}.parquet": {code} for name, (_, code) in bad.items()}


@pytest.mark.slow
def test_footers_that_lie_about_row_counts_lose_no_row_silently(arena: Path) -> None:
    folder = corpora.make_release(arena / "in", 6, seed=3)
    rows = [corpora.release_row(seed) for seed in range(70)]
    data = corpora.write_parquet(arena / "in" / "whole.parquet", rows, group=70).read_bytes()
    (arena / "in" / "whole.parquet").unlink()
    for index, lie in enumerate(lying_footers(data, 70)):
        (folder / f"lie_{index}.parquet").write_bytes(lie)
    sums = build_safely(arena / "out", f"release:{folder}", watch=arena.parents[2])
    assert sums is not None
    assert sums["quarantined"] > 0


@pytest.mark.slow
def test_mutated_parquet_files_end_in_a_commit_whose_sums_add_up(arena: Path) -> None:
    folder = corpora.make_release(arena / "in", 6, seed=3)
    generator = np.random.default_rng(3)
    for index in range(60):
        rows = [corpora.release_row(500 + 3 * index + row, kind="png" if index % 3 else "jpeg") for row in range(3)]
        path = corpora.write_parquet(folder / f"chunk_{index}.parquet", rows, group=2)
        data = path.read_bytes()
        if index % 2:  # the footer decides most
            path.write_bytes(data[:-1500] + image_files.mutated(data[-1500:], generator, times=1 + index % 3))
        else:
            path.write_bytes(image_files.mutated(data, generator, times=1 + index % 3))
    sums = build_safely(arena / "out", f"release:{folder}", watch=arena.parents[2])
    assert sums is not None
    assert sums["written"] >= 6
    assert sums["quarantined"] > 20


@pytest.mark.slow
def test_rows_with_mutated_pictures_and_texts_are_written_or_quarantined(arena: Path) -> None:
    generator = np.random.default_rng(4)
    rows = []
    for index in range(120):
        row = corpora.release_row(index, kind=image_files.KINDS[index % 6])
        row["image_list"][index % 2] = image_files.mutated(row["image_list"][index % 2], generator, times=1 + index % 3)
        rows.append(row)
    odd: list[dict[str, Any]] = [
        {"image_list": None, "instruction_list": None, "data_prep_method": None},
        {"image_list": [], "instruction_list": [], "data_prep_method": ""},
        {"image_list": [None, b""], "instruction_list": [None], "data_prep_method": "editing"},
        {"image_list": [b"x"] * 500, "instruction_list": [["a"]], "data_prep_method": "\0"},
        {"image_list": [b"x"], "instruction_list": [["a"]] * 500, "data_prep_method": None},
        {"instruction_list": [["<image>" * 20_000]]},
        {"instruction_list": [["Paint \0 \x1b[2J <image_1>", None, "Paint <image_1>"]]},
        {"instruction_list": [["<" * 50_000]]},
        {"instruction_list": [["Paint <image_000001> <image_0> <image_99999999999>"]]},
        {"data_prep_method": "x" * 1_000_000},
    ]
    rows += [corpora.release_row(900 + index) | row for index, row in enumerate(odd)]
    corpora.write_parquet(arena / "in" / "rows.parquet", rows)
    sums = build_safely(arena / "out", f"release:{arena / 'in'}", watch=arena.parents[2])
    assert sums is not None
    assert sums["read"] == len(rows)
    assert sums["quarantined"] > 60


@pytest.mark.parametrize("kind", ["pipe", "dangling link", "name that is no text", "link to itself"])
def test_a_source_with_something_that_is_no_file_ends_in_a_sentence(arena: Path, kind: str) -> None:
    folder = corpora.make_release(arena / "in", 2, seed=3)
    if kind == "pipe":
        os.mkfifo(folder / "pipe.parquet")
    elif kind == "dangling link":
        (folder / "link.parquet").symlink_to(arena / "nothing")
    elif kind == "link to itself":
        (folder / "loop.parquet").symlink_to(folder / "loop.parquet")
    else:
        shutil.copy(folder / "seedxedit_multi/chunk_0.parquet", folder / os.fsdecode(b"caf\xe9.parquet"))
    with pytest.raises(SigmaError) as raised:
        corpora.build(arena / "out", f"release:{folder}")
    assert ".parquet" in str(raised.value)
    str(raised.value).encode()  # it must be possible to print it
    assert not (arena / "out" / COMMIT).exists()


# --- pictures --------------------------------------------------------------------------------------


def huge_headers() -> Iterator[tuple[str, bytes]]:
    """Small files of every format whose headers announce pictures of hundreds of millions of pixels."""
    yield "png", image_files.huge_png(30_000, 30_000)
    png = bytearray(image_files.huge_png(64, 64))
    png[8:33] = image_files.png_chunk(b"IHDR", struct.pack(">IIBBBBB", 2**31 - 1, 2**31 - 1, 16, 6, 0, 0, 0))
    yield "png_of_the_largest_size", bytes(png)
    jpeg = bytearray(image_files.image_bytes("jpeg"))
    place = jpeg.index(b"\xff\xc0") + 5
    jpeg[place : place + 4] = struct.pack(">HH", 65_500, 65_500)
    yield "jpeg", bytes(jpeg)
    gif = bytearray(image_files.image_bytes("gif"))
    gif[6:10] = struct.pack("<HH", 65_535, 65_535)
    yield "gif_screen", bytes(gif)
    gif = bytearray(image_files.image_bytes("gif"))
    place = gif.index(b",\0\0\0\0", 13) + 5
    gif[place : place + 4] = struct.pack("<HH", 65_535, 65_535)
    yield "gif_frame", bytes(gif)
    bmp = bytearray(image_files.image_bytes("bmp"))
    bmp[18:26] = struct.pack("<ii", 60_000, 60_000)
    yield "bmp", bytes(bmp)
    bmp[18:26] = struct.pack("<ii", 60_000, -60_000)
    yield "bmp_top_down", bytes(bmp)
    for compression in ("raw", "tiff_lzw", "jpeg"):
        tiff = bytearray(image_files.image_bytes("tiff", compression=compression))
        start = struct.unpack("<I", tiff[4:8])[0]
        for entry in range(struct.unpack("<H", tiff[start : start + 2])[0]):
            place = start + 2 + 12 * entry
            if struct.unpack("<H", tiff[place : place + 2])[0] in (256, 257, 278):  # width, height, rows a strip
                tiff[place + 2 : place + 12] = struct.pack("<HII", 4, 1, 60_000)
        yield f"tiff_{compression}", bytes(tiff)
    size = (16_383).to_bytes(3, "little")
    webp = image_files.image_bytes("webp", lossless=True)
    extended = b"VP8X" + struct.pack("<I", 10) + b"\x10\0\0\0" + size + size
    yield "webp_extended", b"RIFF" + struct.pack("<I", len(webp) - 8 + len(extended)) + b"WEBP" + extended + webp[12:]
    lossless = bytearray(webp)
    place = lossless.index(b"VP8L") + 9
    lossless[place : place + 4] = struct.pack("<I", 16_383 | 16_383 << 14)
    yield "webp_lossless", bytes(lossless)
    lossy = bytearray(image_files.image_bytes("webp"))
    place = lossy.index(b"\x9d\x01\x2a") + 3
    lossy[place : place + 4] = struct.pack("<HH", 16_383, 16_383)
    yield "webp_lossy", bytes(lossy)


@pytest.mark.parametrize(
    ("name", "data"), list(huge_headers()), ids=lambda value: value if isinstance(value, str) else ""
)
def test_a_header_that_announces_a_huge_picture_is_refused_before_memory_is_taken(name: str, data: bytes) -> None:
    assert len(data) < 2_000_000
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ImageFault) as raised:
        probe(data)
    assert raised.value.code in ("bomb", "truncated", "undecodable")
    if name == "png":
        assert raised.value.code == "bomb"
        assert "178,956,970 pixels" in raised.value.message
    with pytest.raises(ImageFault):
        load(data)
    assert thumbnail(data, 64) is None
    taken = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert taken < 150 * 1024, f"{taken / 1024:.0f} MB for a picture that is refused"


@pytest.mark.slow
def test_bombs_are_quarantined_and_the_rest_is_built(arena: Path) -> None:
    rows = [corpora.release_row(seed) for seed in range(3)]
    for seed, (_, data) in enumerate(huge_headers(), 100):
        rows.append(corpora.release_row(seed) | {"image_list": [image_files.image_bytes(seed=seed), data]})
    corpora.write_parquet(arena / "in" / "rows.parquet", rows)
    sums = build_safely(arena / "out", f"release:{arena / 'in'}", watch=arena.parents[2])
    assert sums is not None
    assert (sums["written"], sums["quarantined"]) == (3, len(rows) - 3)
    assert sums["codes"]["bomb"] >= 8


def attempt(read: Callable[[bytes], Any], data: bytes) -> tuple[Any, ImageFault | None]:
    """What `read` makes of the data, or its fault; any other exception passes through."""
    try:
        return read(data), None
    except ImageFault as fault:
        return None, fault


@pytest.mark.parametrize("kind", image_files.KINDS)
def test_a_mutated_picture_gives_facts_or_a_fault(kind: str) -> None:
    generator = np.random.default_rng(5)
    save: list[dict[str, Any]] = {
        "jpeg": [{}, {"progressive": True}, {"mode": "CMYK"}, {"mode": "L"}],
        "png": [{}, {"mode": "P"}, {"mode": "RGBA"}, {"mode": "LA"}],
        "webp": [{}, {"lossless": True}, {"mode": "RGBA"}],
        "gif": [{}, {"mode": "L"}],
        "bmp": [{}, {"mode": "P"}, {"mode": "1"}],
        "tiff": [{}, {"compression": "tiff_lzw"}, {"compression": "jpeg"}, {"mode": "CMYK"}],
    }[kind]  # fmt: skip
    sound = [image_files.image_bytes(kind, index, **options) for index, options in enumerate(save)]
    for data in sound:
        probe(data)
    faults = 0
    for index in range(100):
        data = image_files.mutated(sound[index % len(sound)], generator, times=1 + index % 3)
        facts, fault = attempt(probe, data)
        shown, _ = attempt(load, data)
        if fault is not None:
            faults += 1
            assert fault.code in ("empty", "wrong_type", "bomb", "truncated", "undecodable")
            assert "0x" not in fault.message  # an address would make two builds differ
        small = thumbnail(data, 32)
        assert (small is None) == (shown is None)
        # What passed the check must be readable for good.
        assert facts is None or (shown is not None and shown.size == (facts.width, facts.height)), (kind, index)
    assert faults > 10


# --- commit and manifest ---------------------------------------------------------------------------


def touch_everything(corpus: Path, out: Path) -> bool:
    """Every command on a corpus: True where validate --deep calls it sound. Only SigmaErrors are caught."""
    before = corpora.files_below(corpus)
    result = validate_corpus(corpus, deep=True, workers=0)
    json.dumps(result.as_dict()).encode()
    fast = validate_corpus(corpus, deep=False, workers=0)
    assert not (fast.problems and not result.problems)
    options: dict[str, Any] = {"shard_bytes": 10**6, "shard_samples": 10, "workers": 0}
    calls: list[Callable[[], Any]] = [
        lambda: inspect_corpus(corpus).show(),
        lambda: inspect_sample(corpus, "0").as_dict(),
        lambda: inspect_sample(corpus, "11").as_dict(),
        lambda: reshard(corpus, out / "again", Selection(), **options),
        lambda: export_release(corpus, out / "release", Selection(limit=4)),
    ]
    for call in calls:
        try:
            call()
        except SigmaError as error:
            str(error).encode()
    assert corpora.files_below(corpus) == before
    for path in (out / "again", out / "release"):
        shutil.rmtree(path, ignore_errors=True)
    assert list(out.iterdir()) == []
    return not result.problems


@pytest.fixture
def hostile_corpus(twelve_samples: Path, arena: Path) -> Path:
    (arena / "out").mkdir()
    return Path(shutil.copytree(twelve_samples, arena / "in" / "corpus"))


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path to every value inside JSON, containers included."""
    if path:
        yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from leaves(inner, (*path, key))


HOSTILE_VALUES = [None, -1, 2**70, 1.5, float("nan"), "../../evil", "", [], {}, "\ud800", [[]], True, "9" * 5000]


@pytest.mark.slow
def test_any_value_in_the_commit_may_be_wrong(hostile_corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    generator = np.random.default_rng(6)
    original = corpora.read_commit(hostile_corpus)
    places = [place for place in leaves(original) if place != ("digest",)]
    top = [place for place in places if len(place) <= 2]
    for index in range(70):
        pool = top if index % 2 else places
        *path, last = pool[generator.integers(len(pool))]
        commit = json.loads(json.dumps(original))
        inner = commit
        for key in path:
            inner = inner[key]
        inner[last] = HOSTILE_VALUES[generator.integers(len(HOSTILE_VALUES))]
        corpora.write_commit(hostile_corpus, commit)
        touch_everything(hostile_corpus, hostile_corpus.parents[1] / "out")


@pytest.mark.slow
def test_any_byte_of_the_commit_may_be_wrong(hostile_corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    generator = np.random.default_rng(7)
    sound = (hostile_corpus / COMMIT).read_bytes()
    for index in range(60):
        broken = image_files.mutated(sound, generator, times=1 + index % 3)
        (hostile_corpus / COMMIT).write_bytes(broken)
        assert touch_everything(hostile_corpus, hostile_corpus.parents[1] / "out") == (broken == sound)


@pytest.mark.slow
def test_any_byte_of_the_manifest_may_be_wrong(hostile_corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    generator = np.random.default_rng(8)
    sound = (hostile_corpus / MANIFEST).read_bytes()
    for index in range(60):
        tail = max(0, len(sound) - 6000) if index % 2 else 0
        broken = sound[:tail] + image_files.mutated(sound[tail:], generator, times=1 + index % 3)
        (hostile_corpus / MANIFEST).write_bytes(broken)
        if index % 4:
            corpora.forge_commit(hostile_corpus)  # so that the broken table is really read
        touch_everything(hostile_corpus, hostile_corpus.parents[1] / "out")


@pytest.mark.slow
def test_any_value_in_the_manifest_may_be_wrong(hostile_corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    generator = np.random.default_rng(9)
    original = corpora.read_manifest(hostile_corpus)
    for index in range(30):
        rows = json_like(original)
        row = rows[generator.integers(len(rows))]
        holder = row["images"][0] if index % 3 == 0 else row["turns"][0] if index % 7 == 1 else row
        name = list(holder)[generator.integers(len(holder))]
        value = holder[name]
        if isinstance(value, bool):
            choices: list[Any] = [not value, None]
        elif isinstance(value, int):
            choices = [None, -1, 0, 2**15 - 1, value + 1] + ([2**62] if abs(value) > 2**15 or name == "row" else [])
        elif isinstance(value, list):
            choices = [None, [], value + value] + ([[None]] if name in ("images", "turns", "attributes") else [])
        elif isinstance(value, bytes):
            choices = [None, b"", b"x" * 86, b"x" * 90]
        elif name == "value_range":  # a struct of its own
            choices = [{"rule": "min_max", "low": 0.0, "high": 4000.0}, {"rule": "", "low": None, "high": 1e300}]
        else:
            choices = [None, "", "../../evil.tar", "train/../../evil-00000.tar", "\0", "x" * 100_000, "val"]
        new = choices[generator.integers(len(choices))]
        holder[name] = new
        corpora.write_manifest(hostile_corpus, rows)
        corpora.forge_commit(hostile_corpus)
        sound = touch_everything(hostile_corpus, hostile_corpus.parents[1] / "out")
        # Nothing but these may be made up, for nothing that is stored speaks against it.
        assert not sound or new == value or name in ("content", "component", "warnings", "reencoded"), (name, new)


def json_like(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A deep copy."""
    return [
        {name: [dict(v) if isinstance(v, dict) else v for v in value] if isinstance(value, list) else value
         for name, value in row.items()}
        for row in rows
    ]  # fmt: skip


OUTSIDE = ["../../evil.tar", "/sigma_evil.tar", "train/../../evil-00000.tar", "a/b/editing-00000.tar",
           "train/editing-00000.tar/../evil", "..", "", "train\\editing-00000.tar",
           "train/editing-00000.tar\n"]  # fmt: skip


@pytest.mark.parametrize("name", OUTSIDE, ids=repr)
def test_a_commit_that_names_a_shard_outside_is_refused(
    hostile_corpus: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    def add(commit: dict[str, Any]) -> None:
        commit["shards"][name] = commit["shards"].pop("train/editing-00000.tar")

    corpora.forge_commit(hostile_corpus, add)
    with pytest.raises(CorpusError):
        open_corpus(hostile_corpus)
    problems = validate_corpus(hostile_corpus, deep=True, workers=0).problems
    assert [problem.code for problem in problems] == ["bad_commit"]
    touch_everything(hostile_corpus, hostile_corpus.parents[1] / "out")


@pytest.mark.parametrize("name", OUTSIDE, ids=repr)
def test_a_commit_that_names_a_file_outside_is_refused(hostile_corpus: Path, name: str) -> None:
    corpora.forge_commit(hostile_corpus, lambda commit: commit["files"].update({name: {"bytes": 1, "sha256": ""}}))
    with pytest.raises(CorpusError):
        open_corpus(hostile_corpus)


@pytest.mark.parametrize("name", OUTSIDE, ids=repr)
def test_a_manifest_that_names_a_shard_outside_is_refused(
    hostile_corpus: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    rows = corpora.read_manifest(hostile_corpus)
    for row in rows[:2]:
        row["shard"] = name
    corpora.write_manifest(hostile_corpus, rows)
    corpora.forge_commit(hostile_corpus)
    with pytest.raises(CorpusError, match="names the shard"):
        _ = open_corpus(hostile_corpus).manifest
    options: dict[str, Any] = {"shard_bytes": 10**6, "shard_samples": 10, "workers": 0}
    with pytest.raises(CorpusError):
        reshard(hostile_corpus, hostile_corpus.parents[1] / "out" / "again", Selection(), **options)
    with pytest.raises(CorpusError):
        inspect_corpus(hostile_corpus)
    touch_everything(hostile_corpus, hostile_corpus.parents[1] / "out")


@pytest.mark.parametrize("split", ["../..", "a/b", "/tmp", "", "a.b", "train\n"], ids=repr)
def test_a_split_that_is_no_folder_name_is_refused(
    hostile_corpus: Path, capsys: pytest.CaptureFixture[str], split: str
) -> None:
    rows = corpora.read_manifest(hostile_corpus)
    for row in rows:
        if row["split"] == "val":
            row["split"] = split
            row["shard"] = row["shard"].replace("val/", f"{split}/")
    corpora.write_manifest(hostile_corpus, rows)
    corpora.forge_commit(hostile_corpus)
    with pytest.raises(CorpusError):
        _ = open_corpus(hostile_corpus).manifest
    corpora.forge_commit(hostile_corpus, lambda commit: commit["sums"]["splits"].update({split: 1}))
    with pytest.raises(CorpusError):
        open_corpus(hostile_corpus)
    touch_everything(hostile_corpus, hostile_corpus.parents[1] / "out")


def test_sizes_in_the_manifest_cannot_make_reshard_fill_the_disk(hostile_corpus: Path) -> None:
    rows = corpora.read_manifest(hostile_corpus)
    rows[0]["size"] = 2**45
    corpora.write_manifest(hostile_corpus, rows)
    corpora.forge_commit(hostile_corpus)
    options: dict[str, Any] = {"shard_bytes": 2**48, "shard_samples": 10, "workers": 0}
    with pytest.raises(CorpusError, match="run sigma validate"):
        reshard(hostile_corpus, hostile_corpus.parents[1] / "out" / "again", Selection(), **options)


def test_a_shard_that_is_a_link_out_of_the_corpus_does_not_pass_as_another_file(hostile_corpus: Path) -> None:
    path = hostile_corpus / "train/editing-00000.tar"
    path.unlink()
    path.symlink_to("/etc/passwd")
    problems = validate_corpus(hostile_corpus, deep=True, workers=0).problems
    assert any(problem.where == "train/editing-00000.tar" for problem in problems)


def test_no_manifest_is_read_that_is_not_the_committed_one(hostile_corpus: Path) -> None:
    frame = pl.read_parquet(hostile_corpus / MANIFEST)
    frame.write_parquet(hostile_corpus / MANIFEST)
    with pytest.raises(CorpusError, match="not the file that was committed"):
        _ = open_corpus(hostile_corpus).manifest
