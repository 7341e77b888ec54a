"""Members of archives by name, of good and of hostile ones: clear reasons, bounded memory, nothing outside the cache."""

from __future__ import annotations

import gzip
import io
import multiprocessing
import os
import random
import signal
import tarfile
import time
import tracemalloc
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from sigma_data.errors import SourceError
from sigma_data.storage.archive import Archive, ArchiveError, ArchiveSet
from sigma_data.storage.archive_cache import ArchiveCache, Room
from sigma_data.storage.data_folder import data_folder
from sigma_data.storage.split_files import find_split_files
from sigma_data.storage.tar_members import MemberKind

LIMIT = 2**20


def tar(*members: tuple[str, bytes] | tarfile.TarInfo, format: int = tarfile.PAX_FORMAT) -> bytes:
    """A tar of (name, content), or of headers without content."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=format) as file:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                file.addfile(member)
            else:
                info = tarfile.TarInfo(member[0])
                info.size = len(member[1])
                file.addfile(info, io.BytesIO(member[1]))
    return out.getvalue()


def info(name: str, kind: bytes, **fields: Any) -> tarfile.TarInfo:
    found = tarfile.TarInfo(name)
    found.type = kind
    for key, value in fields.items():
        setattr(found, key, value)
    return found


def claiming(name: str, size: int) -> bytes:
    header = tarfile.TarInfo(name)
    header.size = size
    return header.tobuf(tarfile.GNU_FORMAT)


class Place:
    """A folder with archives, and a cache beside it."""

    def __init__(self, folder: Path) -> None:
        self.source, self.cache = folder / "source", folder / "cache"
        self.source.mkdir()

    def put(self, name: str, content: bytes, parts: int = 1) -> None:
        step = -(-len(content) // parts)
        for number in range(parts):
            path = self.source / (f"{name}.part{number}" if parts > 1 else name)
            path.write_bytes(content[number * step : (number + 1) * step])

    def archives(self, limit: int = 10**9) -> list[Archive]:
        folder = data_folder(str(self.source))
        cache = ArchiveCache(self.cache, limit)
        return [Archive(folder, file, cache) for file in find_split_files(folder.files(""))]

    def archive(self, limit: int = 10**9) -> Archive:
        (found,) = self.archives(limit)
        return found

    def read(self, name: str, tail: int | None = None) -> bytes:
        places = ArchiveSet(self.archives())
        archive, member = places.find(name, tail=tail)
        return places.read(archive, member, LIMIT)

    def code(self, name: str, tail: int | None = None) -> str:
        with pytest.raises(ArchiveError) as caught:
            self.read(name, tail)
        assert "\n" not in str(caught.value)
        return caught.value.code


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


PACKED: list[Callable[[bytes], bytes]] = [bytes, gzip.compress]


@pytest.mark.parametrize("pack", PACKED)
@pytest.mark.parametrize("parts", [1, 3, 12])
def test_members_are_read_by_name_out_of_whole_and_cut_archives(
    place: Place, pack: Callable[[bytes], bytes], parts: int
) -> None:
    content = {f"top/{n}/original.png": random.Random(n).randbytes(700 * n) for n in range(20)}
    place.put("a.tar", pack(tar(*content.items())), parts)
    places = ArchiveSet(place.archives())
    for name, data in content.items():
        assert places.read(*places.find(name), LIMIT) == data
        assert places.read(*places.find(f"/elsewhere/{name}", tail=2), LIMIT) == data
    assert place.archive().fault is None
    assert [member.name for member in place.archive().members()] == list(content)


@pytest.mark.parametrize("pack", PACKED)
def test_names_long_and_foreign_come_from_extended_headers(place: Place, pack: Callable[[bytes], bytes]) -> None:
    for kind in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        name = "/".join(["folder" * 9] * 9) + "/画像.png"
        place.put("a.tar", pack(tar(("./before", b"1"), (name, b"2"), ("after", b"3"), format=kind)))
        assert [place.read(one) for one in ("before", name, "after")] == [b"1", b"2", b"3"]


@pytest.mark.parametrize("pack", PACKED)
def test_tars_one_after_the_other_are_one_archive(place: Place, pack: Callable[[bytes], bytes]) -> None:
    place.put("a.tar", pack(tar(("a", b"1"), ("both", b"2")) + tar(("b", b"3"), ("both", b"4"))))
    assert (place.read("a"), place.read("b")) == (b"1", b"3")
    assert place.code("both") == "ambiguous_name"


def test_several_gzips_one_after_the_other_are_one_stream(place: Place) -> None:
    whole = tar(("a", b"1" * 5000), ("b", b"2"))
    place.put("a.tar.gz", gzip.compress(whole[:3000]) + gzip.compress(whole[3000:]), 2)
    assert place.read("b") == b"2"


def test_a_name_is_never_guessed(place: Place) -> None:
    place.put("a.tar", tar(("one/0.png", b"1"), ("two/0.png", b"2"), ("two/1.png", b"3")))
    place.put("b.tar.gz", gzip.compress(tar(("1.png", b"4"))))
    assert place.code("0.png", 1) == "ambiguous_name"
    assert place.code("1.png", 1) == "ambiguous_name"
    assert place.read("else/two/0.png", 2) == b"2"
    assert place.code("nothing.png", 1) == "missing_picture"
    assert place.code("o/0.png", 2) == "missing_picture"  # the end of a name is no name


@pytest.mark.parametrize("pack", PACKED)
def test_members_that_leave_the_archive_or_are_no_files_are_never_read(
    place: Place, pack: Callable[[bytes], bytes], tmp_path: Path
) -> None:
    hostile = [
        ("../up.png", b"x"), ("/abs.png", b"x"), ("a/../../b.png", b"x"), ("c:\\w.png", b"x"),
        info("link.png", tarfile.SYMTYPE, linkname="/etc/passwd"), info("hard.png", tarfile.LNKTYPE, linkname="good.png"),
        info("device.png", tarfile.CHRTYPE, devmajor=1, devminor=5), info("pipe.png", tarfile.FIFOTYPE),
        info("folder", tarfile.DIRTYPE), info("odd.png", b"Z"),
    ]  # fmt: skip
    place.put("a.tar", pack(tar(*hostile, ("good.png", b"good"), ("sub/up.png", b"up"))))
    assert place.read("good.png") == b"good"
    assert place.read("up.png", 1) == b"up"  # the unsafe one is no candidate
    for name in ("../up.png", "abs.png", "b.png", "link.png", "hard.png", "device.png", "pipe.png", "odd.png"):
        assert place.code(name, 1 if name in ("abs.png", "b.png") else None) == "unsafe_path"
    places = {path.relative_to(tmp_path).parts[0] for path in tmp_path.rglob("*")}
    assert places == {"source", "cache"}
    assert {path.name for path in place.cache.rglob("*") if path.is_file() and path.suffix != ".lock"} <= {
        "data", "index.sqlite",
    }  # fmt: skip


@pytest.mark.parametrize("pack", PACKED)
def test_a_header_that_claims_ten_gigabytes_takes_no_memory(place: Place, pack: Callable[[bytes], bytes]) -> None:
    whole = tar(("good.png", b"good"))[:1024]
    for kind in (tarfile.REGTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE):
        header = info("huge", kind, size=10 * 2**30).tobuf(tarfile.GNU_FORMAT)
        place.put("a.tar", pack(whole + header + b"0" * 3000))
        tracemalloc.start()
        assert place.read("good.png") == b"good"
        assert place.archive().fault is not None
        assert tracemalloc.get_traced_memory()[1] < 2**24
        tracemalloc.stop()
    place.put("a.tar", pack(whole + claiming("huge", 10 * 2**30) + b"0" * 3000))
    assert place.code("huge") in ("truncated", "too_large")


@pytest.mark.slow
def test_a_gzip_bomb_is_stopped_early_and_leaves_nothing_large(place: Place) -> None:
    bomb = io.BytesIO()
    with gzip.GzipFile(fileobj=bomb, mode="wb") as file:
        file.write(tar(("good.png", random.Random(0).randbytes(2000)))[:2560] + claiming("zeros.png", 900 * 2**20))
        for _ in range(120):
            file.write(bytes(2**20))
    place.put("a.tar.gz", bomb.getvalue())
    archive = place.archive()
    tracemalloc.start()
    assert archive.fault is not None
    assert "200 times" in archive.fault[1]
    assert tracemalloc.get_traced_memory()[1] < 2**24
    tracemalloc.stop()
    assert len(place.read("good.png")) == 2000
    assert sum(path.stat().st_size for path in place.cache.rglob("*") if path.is_file()) < 2**18


@pytest.mark.parametrize("pack", PACKED)
def test_a_truncated_archive_gives_what_stands_before(place: Place, pack: Callable[[bytes], bytes]) -> None:
    content = {f"{n}.png": random.Random(n).randbytes(4000) for n in range(10)}
    whole = pack(tar(*content.items()))
    place.put("a.tar", whole[: len(whole) // 2])
    assert place.read("0.png") == content["0.png"]
    assert place.code("9.png") == "missing_picture"
    fault = place.archive().fault
    assert fault is not None
    assert fault[0] == "truncated"
    assert [member.kind for member in place.archive().members()][-1] is MemberKind.CUT
    assert place.code(list(place.archive().members())[-1].name) == "truncated"


def test_a_tar_without_its_closing_blocks_is_told(place: Place) -> None:
    place.put("a.tar", tar(("a.png", b"1"))[:1024])
    assert place.read("a.png") == b"1"
    assert (place.archive().fault or ("",))[0] == "truncated"


def test_a_hole_in_the_parts_stops_the_archive_before_it_is_read(place: Place) -> None:
    place.put("a.tar.gz", gzip.compress(tar(("a.png", random.Random(0).randbytes(5000)))), 5)
    (place.source / "a.tar.gz.part2").unlink()
    assert place.code("a.png") == "part_missing"
    assert not place.cache.exists()
    place.put("b.tar", tar(("b.png", b"1"), ("c.png", b"2")))
    assert place.read("b.png") == b"1"  # the other archive is read
    assert place.code("a.png") == "part_missing"


def test_parts_that_begin_at_one_must_begin_an_archive(place: Place) -> None:
    whole = tar(*((f"{n}.png", random.Random(n).randbytes(4000)) for n in range(5)))
    place.put("a.tar", whole, 3)
    (place.source / "a.tar.part0").unlink()
    assert place.code("1.png") == "part_missing"
    (place.source / "a.tar.part2").unlink()
    assert place.code("1.png") == "part_missing"  # one part alone is no file either
    for number in (1,):
        (place.source / f"a.tar.part{number}").unlink()
    for number in range(3):
        (place.source / f"a.tar.part{number + 1}").write_bytes(whole[number * 9000 :][:9000])
    assert len(place.read("1.png")) == 4000


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"<!DOCTYPE html><html>" + bytes(600), "web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "git lfs pull"),
        (b"\x28\xb5\x2f\xfd" + bytes(600), "zstd"),
        (b"no tar at all" * 100, "not a tar"),
        (b"", "empty"),
    ],
)
def test_what_is_no_archive_is_told_in_one_line(place: Place, content: bytes, words: str) -> None:
    place.put("a.tar", content)
    with pytest.raises(ArchiveError, match=words) as caught:
        place.read("a.png")
    assert caught.value.code == "missing_picture"
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_random_damage_never_raises_another_error(place: Place) -> None:
    whole = tar(*((f"{n}.png", random.Random(n).randbytes(600)) for n in range(12)), ("x" * 150, b"long"))
    for seed in range(150):
        draw = random.Random(seed)
        broken = bytearray(whole)
        for _ in range(draw.randrange(1, 30)):
            broken[draw.randrange(len(broken))] = draw.randrange(256)
        data = bytes(broken)
        place.put("a.tar", data if seed % 3 else gzip.compress(data))
        try:
            assert len(place.read(f"{draw.randrange(12)}.png")) < LIMIT
        except ArchiveError as error:
            assert "\n" not in str(error)


def test_a_member_is_opened_as_a_file_for_what_is_too_large_to_read_at_once(place: Place) -> None:
    lines = b"".join(b"%d\n" % n for n in range(9999))
    for pack in PACKED:
        place.put("a.tar", pack(tar(("before", b"0"), ("rows.jsonl", lines), ("after", b"1"))))
        archive = place.archive()
        with archive.open(archive.find("rows.jsonl")[0]) as file:
            assert list(file) == lines.splitlines(keepends=True)
            file.seek(-3, io.SEEK_END)
            assert file.read() == lines[-3:]
        assert archive.read(archive.find("after")[0], 10) == b"1"


def noise(size: int, seed: int = 0) -> bytes:
    return gzip.compress(tar(("a.png", random.Random(seed).randbytes(size))))


def test_the_cache_is_bounded_and_the_message_says_what_to_do(place: Place) -> None:
    place.put("a.tar.gz", noise(50_000))
    with pytest.raises(SourceError, match=r"a\.tar\.gz.*cache_gb"):
        place.archive(limit=30_000).find("a.png")
    assert not [path for path in place.cache.iterdir() if path.is_dir()]


def test_the_cache_removes_what_was_used_longest_ago_but_nothing_that_is_being_read(place: Place) -> None:
    cache = ArchiveCache(place.cache, 1000)

    def fill(folder: Path, room: Room) -> None:
        room.need(400)
        (folder / "data").write_bytes(bytes(400))

    first = cache.open("1", "one", fill)
    for key in ("2", "3", "4"):
        cache.open(key, key, fill).close()
    assert (first.folder / "data").exists()
    assert sum(path.is_dir() for path in place.cache.iterdir()) == 2
    second = cache.open("4", "four", fill)
    with pytest.raises(SourceError, match="being read"):
        cache.open("5", "five", fill)
    first.close()
    cache.open("5", "five", fill).close()
    assert not first.folder.exists()
    second.close()


def test_an_unpacked_archive_is_used_again_and_anew_after_a_change(place: Place) -> None:
    place.put("a.tar.gz", noise(5000))
    assert len(place.read("a.png")) == 5000
    before = {path: path.stat().st_ino for path in place.cache.rglob("*")}
    assert len(place.read("a.png")) == 5000
    assert {path: path.stat().st_ino for path in place.cache.rglob("*")} == before
    place.put("a.tar.gz", noise(6000, 1))
    assert len(place.read("a.png")) == 6000


def test_what_was_unpacked_may_go_while_the_index_stays(place: Place) -> None:
    place.put("a.tar.gz", noise(5000))
    archive = place.archive()
    member = archive.find("a.png")[0]
    first = archive.read(member, LIMIT)
    archive.close_data()
    for data in list(place.cache.rglob("data")):
        (data.parent / "index.sqlite").unlink()
        data.unlink()
        data.parent.rmdir()
    assert archive.read(member, LIMIT) == first


def test_a_full_disk_is_one_line(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.put("a.tar.gz", noise(5000))

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Room, "need", full)
    with pytest.raises(SourceError, match="disk of the cache is full"):
        place.archive().find("a.png")
    assert not list(place.cache.glob("*.partial"))


def _read(folder: Path, names: Sequence[str]) -> list[int]:
    place = object.__new__(Place)
    place.source, place.cache = folder / "source", folder / "cache"
    return [len(place.read(name)) for name in names]


@pytest.mark.slow
def test_processes_share_the_cache_and_one_of_them_unpacks(place: Place, tmp_path: Path) -> None:
    place.put("a.tar.gz", gzip.compress(tar(*((f"{n}.png", random.Random(n).randbytes(30_000)) for n in range(30)))), 3)
    names = [f"{n}.png" for n in range(30)]
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        assert pool.starmap(_read, [(tmp_path, names)] * 6) == [[30_000] * 30] * 6
    assert len(list(place.cache.rglob("data"))) == 1


def _unpack_slowly(folder: Path) -> None:
    def slow(room: Room, size: int) -> None:
        time.sleep(0.01)

    Room.need = slow  # type: ignore[method-assign]
    _read(folder, ["0.png"])


@pytest.mark.slow
def test_a_killed_process_leaves_nothing_that_counts(place: Place, tmp_path: Path) -> None:
    place.put("a.tar.gz", gzip.compress(tar(*((f"{n}.png", random.Random(n).randbytes(3000)) for n in range(1000)))))
    process = multiprocessing.get_context("spawn").Process(target=_unpack_slowly, args=(tmp_path,))
    process.start()
    deadline = time.monotonic() + 60
    while not (list(place.cache.glob("*.partial/data"))) and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(0.2)
    os.kill(process.pid or 0, signal.SIGKILL)
    process.join()
    assert list(place.cache.glob("*.partial"))
    assert _read(tmp_path, [f"{n}.png" for n in range(1000)]) == [3000] * 1000
    assert not list(place.cache.glob("*.partial/data"))
