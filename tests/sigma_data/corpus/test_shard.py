"""Shards: every tar reader takes what we write, and our reader takes nothing else."""

from __future__ import annotations

import io
import pickle
import tarfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sigma_data.corpus.shard import (
    BLOCK,
    END,
    Member,
    ShardFault,
    block,
    group_members,
    header,
    member_size,
    padded,
    read_members,
    read_range,
)
from sigma_data.errors import ShardError

SUFFIXES = ("json", "ref_01.jpg", "ref_02.png", "ref_100.webp", "target.jpg", "target_02.tif")

keys = st.text(alphabet="abcXYZ019_-", min_size=1, max_size=64)
samples = st.dictionaries(
    keys, st.dictionaries(st.sampled_from(SUFFIXES), st.binary(max_size=1100), min_size=1), max_size=5
)


def shard(content: dict[str, dict[str, bytes]]) -> bytes:
    return b"".join(block(key, list(members.items())) for key, members in content.items()) + END


def members_of(data: bytes) -> list[Member]:
    return list(read_members(io.BytesIO(data)))


def fault_of(data: bytes) -> ShardFault:
    with pytest.raises(ShardFault) as caught:
        members_of(data)
    return caught.value


SMALL = shard({"a": {"json": b"{}\n", "target.png": bytes(600)}, "b": {"json": b"{}\n", "ref_01.jpg": b"\xff" * 512}})


# Writing --------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=80)
@given(samples)
def test_tarfile_reads_the_same_members_that_were_written(content: dict[str, dict[str, bytes]]) -> None:
    wanted = [(f"{key}.{suffix}", data) for key, parts in content.items() for suffix, data in parts.items()]
    with tarfile.open(fileobj=io.BytesIO(shard(content)), mode="r:") as tar:
        found = []
        for info in tar:
            stream = tar.extractfile(info)
            assert stream is not None
            found.append((info.name, stream.read()))
            assert info.isreg()
            assert (info.mode, info.uid, info.gid, info.mtime, info.uname, info.gname) == (0o644, 0, 0, 0, "", "")
    assert found == wanted


@settings(deadline=None, max_examples=80)
@given(samples)
def test_our_reader_sees_what_tarfile_sees(content: dict[str, dict[str, bytes]]) -> None:
    data = shard(content)
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as tar:
        theirs = [(info.name, info.offset_data, info.size) for info in tar]
    ours = members_of(data)
    assert [(member.name, member.offset, member.size) for member in ours] == theirs
    for member in ours:
        assert read_range(io.BytesIO(data), member.offset, member.size) == content[member.key][member.suffix]


@settings(deadline=None, max_examples=80)
@given(samples)
def test_sizes_are_known_before_a_byte_is_written(content: dict[str, dict[str, bytes]]) -> None:
    for key, parts in content.items():
        assert len(block(key, list(parts.items()))) == sum(member_size(len(data)) for data in parts.values())
    assert len(shard(content)) % BLOCK == 0


def written_out(name: bytes, size: int) -> bytes:
    """A ustar header field by field, as POSIX has it: shards of every version begin their members so."""
    fields = name.ljust(100, b"\0") + b"0000644\0" + b"0000000\0" * 2 + b"%011o\0" % size + b"00000000000\0"
    fields += b" " * 8 + b"0" + bytes(100) + b"ustar\x0000" + bytes(247)
    return fields[:148] + b"%06o\0 " % sum(fields) + fields[156:]


@settings(deadline=None, max_examples=200)
@given(keys, st.sampled_from(SUFFIXES), st.integers(0, 8**11 - 1) | st.sampled_from([0, 511, 512, 8**10, 8**11 - 1]))
def test_a_header_is_the_same_512_bytes_whatever_wrote_it(key: str, suffix: str, size: int) -> None:
    ours = header(f"{key}.{suffix}", size)
    assert ours == written_out(f"{key}.{suffix}".encode(), size)
    assert len(ours) == BLOCK


@pytest.mark.parametrize("size", range(0, 1600, 64))
def test_padding_is_to_whole_blocks(size: int) -> None:
    assert padded(size) % BLOCK == 0
    assert 0 <= padded(size) - size < BLOCK
    assert member_size(size) == padded(size) + BLOCK


def test_what_a_header_cannot_say_is_refused() -> None:
    assert len(header("a" * 95 + ".json", 1)) == BLOCK
    with pytest.raises(ValueError, match="too long"):
        header("a" * 96 + ".json", 1)
    with pytest.raises(ValueError, match="overflow"):
        header("a.json", 8**11)
    with pytest.raises(ValueError, match="ascii|ordinal"):
        header("ä.json", 1)


def test_equal_content_gives_equal_bytes() -> None:
    content = {"k": {"json": b"{}", "target.jpg": b"x" * 700}}
    assert shard(content) == shard(content)


# Reading --------------------------------------------------------------------------------------------


def test_an_empty_shard_has_no_members() -> None:
    assert members_of(END) == []


@pytest.mark.parametrize("record", [10_240, 4_096, 1_024])
def test_a_tar_padded_to_whole_records_is_read(record: int) -> None:
    data = SMALL + bytes(-len(SMALL) % record)
    assert members_of(data) == members_of(SMALL)


def test_a_tar_that_tarfile_wrote_is_read() -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in (("k1.json", b"{}"), ("k1.ref_01.jpg", b"x" * 900), ("k2.json", b"")):
            info = tarfile.TarInfo(name)
            info.size, info.mtime, info.uname = len(data), 1_700_000_000, "me"
            tar.addfile(info, io.BytesIO(data))
    assert [(m.key, m.suffix, m.size) for m in members_of(buffer.getvalue())] == [
        ("k1", "json", 2), ("k1", "ref_01.jpg", 900), ("k2", "json", 0),
    ]  # fmt: skip


def test_members_of_one_key_side_by_side_are_a_group() -> None:
    data = shard({"a": {"json": b"", "target.png": b""}, "b": {"json": b""}}).removesuffix(END)
    data += block("a", [("ref_01.jpg", b"")]) + END
    groups = list(group_members(read_members(io.BytesIO(data))))
    assert [(group[0].key, len(group)) for group in groups] == [("a", 2), ("b", 1), ("a", 1)]


def test_a_range_beyond_the_end_is_a_cut() -> None:
    assert read_range(io.BytesIO(b"abcdef"), 2, 3) == b"cde"
    assert read_range(io.BytesIO(b"abcdef"), 6, 0) == b""
    for offset, size in ((2, 5), (6, 1), (100, 1)):
        with pytest.raises(ShardFault) as caught:
            read_range(io.BytesIO(b"abcdef"), offset, size)
        assert caught.value.code == "cut"


# Faults ---------------------------------------------------------------------------------------------


def test_a_shard_cut_anywhere_is_found() -> None:
    for cut in range(len(SMALL)):
        assert fault_of(SMALL[:cut]).code in ("cut", "bad_header"), cut
    for boundary in range(0, len(SMALL), BLOCK):
        assert fault_of(SMALL[:boundary]).code == "cut"


def test_what_stands_before_a_fault_is_read() -> None:
    walk = read_members(io.BytesIO(SMALL[:-1600]))
    assert [next(walk).name, next(walk).name] == ["a.json", "a.target.png"]


def test_something_behind_the_end_is_found() -> None:
    assert fault_of(SMALL + SMALL).code == "bad_header"
    assert fault_of(SMALL + bytes(2048) + b"x").code == "bad_header"
    assert fault_of(SMALL + bytes(100_000)).code == "bad_header"
    assert fault_of(END + block("k", [("json", b"{}")]) + END).code == "bad_header"


def test_one_flipped_bit_of_a_header_is_found_or_harmless() -> None:
    """The checksum covers the header; of the checksum itself, padding may vary."""
    whole = members_of(SMALL)
    for place in range(BLOCK):
        for bit in range(8):
            data = bytearray(SMALL)
            data[place] ^= 1 << bit
            if 148 <= place < 156:
                try:
                    assert members_of(bytes(data)) == whole
                except ShardFault as fault:
                    assert fault.code == "bad_header"
            else:
                fault = fault_of(bytes(data))
                assert (fault.code, fault.offset) == ("bad_header", 0), (place, bit)


def tar_of(*members: tarfile.TarInfo, form: int = tarfile.USTAR_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as tar:
        for info in members:
            tar.addfile(info, io.BytesIO(bytes(info.size)))
    return buffer.getvalue()


def info(name: str, kind: bytes = tarfile.REGTYPE, link: str = "", size: int = 0) -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    made.type, made.linkname, made.size = kind, link, size
    return made


@pytest.mark.parametrize(
    "name", ["/etc/k.json", "../k.json", "a/../../k.json", "..", "a\\..\\k.json", "\\k.json", "a/../k.json"]
)
def test_a_name_that_points_outside_is_unsafe(name: str) -> None:
    assert fault_of(tar_of(info("ok.json"), info(name))).code == "unsafe_name"


def test_a_prefix_that_points_outside_is_unsafe() -> None:
    head = bytearray(header("k.json", 0))
    head[257:265] = b"ustar\x0000"
    head[345:347] = b".."
    head[148:156] = b" " * 8
    head[148:156] = b"%06o\0 " % sum(head)
    assert fault_of(bytes(head) + END).code == "unsafe_name"


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE]
)
def test_links_folders_and_devices_are_no_files(kind: bytes) -> None:
    fault = fault_of(tar_of(info("k.json"), info("k.target.jpg", kind, "/etc/passwd")))
    assert (fault.code, fault.offset) == ("not_a_file", BLOCK)


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_extended_headers_are_no_files(form: int) -> None:
    assert fault_of(tar_of(info("k" * 150 + ".json"), form=form)).code == "not_a_file"


@pytest.mark.parametrize(
    "name",
    ["json", ".json", "k", "k.", "k.txt", "k.jpg", "k.ref_1.jpg", "k.ref_01.jpeg", "k.ref_01.exe", "k.target.JPG",
     "k.x.json", "a.b.json", "k k.json", "folder/k.json", "k.json.gz", "k" * 65 + ".json", "k.target_1.jpg", "é.json"],
)  # fmt: skip
def test_a_name_that_is_no_member_of_a_sample_is_bad(name: str) -> None:
    fault = fault_of(tar_of(info("ok.json"), info(name)))
    assert (fault.code, fault.offset) == ("bad_name", BLOCK)


@pytest.mark.parametrize("field", [b"\x80" + b"\0" * 10 + b"\1", b"-0000000001\0", b"zzzzzzzzzzz\0", b"\0" * 12])
def test_a_size_that_is_no_octal_number_is_a_bad_header(field: bytes) -> None:
    head = bytearray(header("k.json", 0))
    head[124:136] = field
    head[148:156] = b" " * 8
    head[148:156] = b"%06o\0 " % sum(head)
    assert fault_of(bytes(head) + END).code == "bad_header"


def test_a_member_larger_than_the_file_is_a_cut() -> None:
    assert fault_of(header("k.json", 8**11 - 1) + END).code == "cut"


@pytest.mark.slow
@settings(deadline=None, max_examples=300)
@given(st.lists(st.tuples(st.integers(0), st.integers(0, 255)), min_size=1, max_size=5), st.integers(0, 3000))
def test_any_bytes_are_members_or_a_fault(changes: list[tuple[int, int]], cut: int) -> None:
    data = bytearray(SMALL)
    for place, value in changes:
        data[place % len(data)] = value
    data = data[: len(data) - cut] if cut % 2 else data
    try:
        for member in members_of(bytes(data)):
            assert member.offset + member.size <= len(data)
    except ShardFault as fault:
        assert fault.code in ("cut", "bad_header", "unsafe_name", "not_a_file", "bad_name")


@settings(deadline=None, max_examples=100)
@given(st.binary(max_size=2000))
def test_what_is_no_tar_is_a_fault(data: bytes) -> None:
    assert isinstance(fault_of(data + b"x"), ShardError)


def test_faults_travel_between_processes_and_say_where() -> None:
    fault = fault_of(SMALL[: 3 * BLOCK])
    again = pickle.loads(pickle.dumps(fault))
    assert (again.code, again.offset, str(again)) == (fault.code, fault.offset, str(fault))
    assert f"byte {fault.offset:,}" in str(fault)
