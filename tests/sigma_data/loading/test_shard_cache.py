"""The cache of remote shards: never above its limit, never a wrong byte, whatever other processes do."""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
import tempfile
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sigma_data.errors import ConfigError, CorpusError
from sigma_data.loading import shard_cache
from sigma_data.loading.shard_cache import ShardCache

FORK: Any = multiprocessing.get_context("fork")
SIZES = {"a": 1000, "b": 2000, "c": 3000, "d": 4000, "e": 2500}


def content(name: str) -> bytes:
    return name.encode() * SIZES[name]


@pytest.fixture(scope="module")
def origin(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("origin")
    for name in SIZES:
        (folder / name).write_bytes(content(name))
    return folder.as_uri()


def read(cache: ShardCache, uri: str, name: str) -> bytes:
    descriptor = cache.open(uri, name, SIZES[name])
    with os.fdopen(descriptor, "rb") as file:
        return file.read()


def promised(cache: ShardCache) -> int:
    """Bytes of all shards that are there or on their way."""
    names = [re.fullmatch(r"\w+-(\d+)\.(?:tar|part)", path.name) for path in cache.folder.iterdir()]
    return sum(int(name[1]) for name in names if name)


def kinds(cache: ShardCache) -> list[str]:
    return sorted(path.suffix for path in cache.folder.iterdir() if path.suffix in (".tar", ".part"))


def test_a_shard_is_fetched_once_and_then_read_from_here(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(content("a"))
    cache = ShardCache(tmp_path / "cache", 10_000)
    uri = tmp_path.as_uri()
    assert read(cache, uri, "a") == content("a")
    (tmp_path / "a").unlink()
    assert read(cache, uri, "a") == content("a")


@settings(max_examples=25, deadline=None)
@given(st.lists(st.sampled_from(list(SIZES)), max_size=15), st.integers(4000, 13_000))
def test_the_least_recently_used_go_first_and_the_limit_holds(origin: str, names: list[str], limit: int) -> None:
    kept: OrderedDict[str, int] = OrderedDict()  # what a cache of this size holds, the last used at the end
    with tempfile.TemporaryDirectory() as folder:
        cache = ShardCache(Path(folder), limit)
        for name in names:
            if name not in kept:
                while sum(kept.values()) + SIZES[name] > limit:
                    kept.popitem(last=False)
            kept[name] = SIZES[name]
            kept.move_to_end(name)
            assert read(cache, origin, name) == content(name)
            there = sorted(path.stat().st_size for path in Path(folder).glob("*.tar"))
            assert there == sorted(kept.values())


def test_another_version_of_a_corpus_at_the_same_place_is_another_shard(tmp_path: Path) -> None:
    cache = ShardCache(tmp_path / "cache", 10_000)
    for version in ("old", "new"):
        (tmp_path / "a").write_bytes(version.encode())
        with os.fdopen(cache.open(tmp_path.as_uri(), "a", 3, version=version), "rb") as file:
            assert file.read() == version.encode()


def test_a_shard_above_the_limit_is_refused_with_what_to_set(tmp_path: Path, origin: str) -> None:
    with pytest.raises(ConfigError, match="/d has 4,000 bytes, .* 3,999: set a larger cache_bytes"):
        ShardCache(tmp_path, 3999).open(origin, "d", 4000)


def test_a_shard_of_another_size_than_committed_is_refused_and_leaves_nothing(tmp_path: Path, origin: str) -> None:
    cache = ShardCache(tmp_path, 10_000)
    with pytest.raises(CorpusError, match="/a: has 1,000 bytes, and 1,001 were committed"):
        cache.open(origin, "a", 1001)
    assert kinds(cache) == []


def test_a_shard_that_is_not_there_is_told_from_one_that_cannot_be_fetched(
    tmp_path: Path, origin: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = ShardCache(tmp_path, 10_000)
    with pytest.raises(FileNotFoundError):
        cache.open(origin, "missing", 5)

    def break_off(*_: object) -> None:
        raise RuntimeError("connection lost")

    monkeypatch.setattr(shard_cache.shutil, "copyfileobj", break_off)
    with pytest.raises(CorpusError, match="/a: cannot be fetched .connection lost"):
        cache.open(origin, "a", 1000)
    assert kinds(cache) == []


def test_a_folder_that_cannot_be_written_is_an_error_that_names_it(tmp_path: Path, origin: str) -> None:
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(ConfigError, match=f"{folder}: .*set another cache"):
            ShardCache(folder, 10_000).open(origin, "a", 1000)


def test_other_files_in_the_folder_are_left_alone(tmp_path: Path, origin: str) -> None:
    for name in ("editing-00000.tar", "notes.txt", "x-5.part"):
        (tmp_path / name).write_bytes(b"mine" * 10_000)
    cache = ShardCache(tmp_path, 4000)
    for name in SIZES:
        read(cache, origin, name)
    assert all((tmp_path / name).exists() for name in ("editing-00000.tar", "notes.txt", "x-5.part"))


def test_a_shard_that_is_evicted_while_it_is_open_is_still_read(tmp_path: Path, origin: str) -> None:
    cache = ShardCache(tmp_path, 4000)
    descriptor = cache.open(origin, "a", 1000)
    read(cache, origin, "d")
    assert promised(cache) == 4000
    with os.fdopen(descriptor, "rb") as file:
        assert file.read() == content("a")
    assert read(cache, origin, "a") == content("a")


# Processes ------------------------------------------------------------------------------------------


def together(count: int, work: Callable[[int], None]) -> Iterator[None]:
    """Run `work` in processes; yields while they do, and sees that all of them end well."""
    processes = [FORK.Process(target=work, args=(number,)) for number in range(count)]
    for process in processes:
        process.start()
    deadline = time.monotonic() + 60
    while any(process.is_alive() for process in processes) and time.monotonic() < deadline:
        yield
        time.sleep(0.002)
    for process in processes:
        process.kill()
        process.join()
    assert [process.exitcode for process in processes] == [0] * count


def slow_download(log: Path, seconds: float) -> Callable[[str, str, Path], None]:
    """The download, half at a time; writes down that it was called."""

    def download(uri: str, name: str, part: Path) -> None:
        with log.open("a") as file:
            file.write(name)
        data = content(name)
        part.write_bytes(data[: len(data) // 2])
        time.sleep(seconds)
        part.write_bytes(data)

    return download


def test_processes_that_want_one_shard_fetch_it_once(
    tmp_path: Path, origin: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shard_cache, "_download", slow_download(tmp_path / "log", 0.2))
    cache = ShardCache(tmp_path / "cache", 10_000)

    def work(_: int) -> None:
        assert read(cache, origin, "d") == content("d")

    for _ in together(6, work):
        pass
    assert (tmp_path / "log").read_text() == "d"


@pytest.mark.slow
def test_processes_that_fight_for_too_little_space_read_right_bytes_and_keep_the_limit(
    tmp_path: Path, origin: str
) -> None:
    cache = ShardCache(tmp_path / "cache", 5000)
    cache.folder.mkdir()

    def work(seed: int) -> None:
        for step in range(60):
            name = "abcde"[(7 * seed + step * (seed + 1)) % 5]
            assert read(cache, origin, name) == content(name)

    most = max(held(cache) for _ in together(4, work))
    assert 0 < most <= 5000
    assert promised(cache) <= 5000 and ".part" not in kinds(cache)


def held(cache: ShardCache) -> int:
    """Bytes of shards that are there or on their way, at one moment: none may come or go meanwhile."""
    with shard_cache._locked(cache.folder / ".space"):
        return promised(cache)


@pytest.mark.parametrize("then", ["d", "e"], ids=["the same shard", "another shard"])
def test_what_a_killed_process_leaves_neither_blocks_nor_fills_the_cache(
    then: str, tmp_path: Path, origin: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = ShardCache(tmp_path / "cache", 5000)
    with monkeypatch.context() as patch:
        patch.setattr(shard_cache, "_download", slow_download(tmp_path / "log", 60))
        process = FORK.Process(target=read, args=(cache, origin, "d"))
        process.start()
        deadline = time.monotonic() + 30
        while not (tmp_path / "log").exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.05)
        os.kill(process.pid, signal.SIGKILL)
        process.join()
    assert kinds(cache) == [".part"]
    assert read(cache, origin, then) == content(then)
    assert kinds(cache) == [".tar"]
