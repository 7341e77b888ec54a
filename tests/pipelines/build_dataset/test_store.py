"""A corpus in an object store: the bytes of a local one, whatever is killed or fails; whole or not a corpus."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support import corpora, image_files
from support.s3_server import HANG_UP, S3Server, error, s3_server, settings

from pipelines.build_dataset import run
from pipelines.build_dataset.config import BuildConfig
from pipelines.build_dataset.run import build
from pipelines.build_dataset.scan import ScanTask, scan_fragment
from pipelines.inspect.run import inspect_corpus
from pipelines.shard.run import Selection, reshard
from pipelines.validate.run import validate_corpus
from sigma_data.corpus.corpus import open_corpus
from sigma_data.errors import BuildError, ConfigError, CorpusError, SigmaError
from sigma_data.storage import store as store_module
from sigma_data.storage.store import Store

pytest.importorskip("s3fs")
pytest.importorskip("moto")

URI = "s3://bucket/corpora/one"
SETTINGS: dict[str, Any] = {"shard_samples": 8, "splits": {"train": 60.0, "test": 40.0}}


@pytest.fixture(scope="module")
def server() -> Iterator[S3Server]:
    with s3_server() as server:
        yield server


@pytest.fixture
def s3(server: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    """An empty bucket, as s3fs sees it."""
    import s3fs

    for name, value in {**settings(server), "SIGMA_CACHE": str(tmp_path / "cache")}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(store_module, "_PAUSE", 0.0)
    s3fs.S3FileSystem.clear_instance_cache()
    system = s3fs.S3FileSystem()
    system.mkdir("bucket")
    server.requests.clear()
    yield system
    server.rules.clear()
    system.rm("bucket", recursive=True)


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return corpora.make_release(tmp_path_factory.mktemp("store") / "release", 24, seed=3)


@pytest.fixture(scope="module")
def local(release: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("local") / "corpus"
    corpora.build(out, f"release:{release}", **SETTINGS)
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in out.rglob("*") if path.is_file()}


def build_there(release: Path, uri: str = URI, **more: Any) -> Any:
    config = BuildConfig.model_validate({"sources": [f"release:{release}"], **SETTINGS})
    return build(config, uri, workers=0, **more)


def objects(s3: Any, uri: str = URI) -> dict[str, bytes]:
    root = uri.removeprefix("s3://") + "/"
    s3.invalidate_cache()
    return {name.removeprefix(root): s3.cat_file(name) for name in s3.find(root)}


@pytest.mark.slow
def test_the_objects_are_the_files_of_a_local_build_and_every_reader_takes_them(
    s3: Any, server: S3Server, release: Path, local: dict[str, bytes], tmp_path: Path
) -> None:
    made = build_there(release)
    assert made.fresh
    assert objects(s3) == local
    assert [line for line in server.requests if line.startswith("PUT") and ".sigma" not in line][-1].startswith(
        "PUT /bucket/corpora/one/corpus.json"
    )
    assert not build_there(release).fresh
    assert not (tmp_path / "cache" / "builds").exists() or not any((tmp_path / "cache" / "builds").iterdir())
    for deep in (False, True):
        assert validate_corpus(URI, deep=deep, workers=0).problems == []
    corpus = open_corpus(URI)
    assert len(list(corpus)) == len(corpus) == 24
    assert inspect_corpus(URI).as_dict()["corpus"] == URI
    reshard(URI, tmp_path / "part", Selection(limit=5), shard_bytes=2**20, shard_samples=2, workers=0)
    assert validate_corpus(tmp_path / "part", deep=True, workers=0).problems == []
    with pytest.raises(ConfigError, match="another configuration"):
        build_there(release / "..", overwrite=False)
    s3.pipe_file("bucket/corpora/one/train/editing-00009.tar", b"x")
    s3.rm(next(name for name in s3.find("bucket") if name.endswith(".tar") and "/test/" in name))
    assert {problem.code for problem in validate_corpus(URI, deep=False, workers=0).problems} == {
        "extra_file", "missing_shard",
    }  # fmt: skip


@pytest.mark.slow
def test_a_build_that_is_killed_at_an_upload_is_no_corpus_and_goes_on_to_the_same_bytes(
    s3: Any, server: S3Server, release: Path, local: dict[str, bytes], tmp_path: Path
) -> None:
    for kill_at in ("/train/", "/corpus.json"):
        words = [
            f"{name}={value}" for name, value in (("shard_samples", 8), ("splits", '{"train": 60.0, "test": 40.0}'))
        ]
        process = subprocess.Popen(
            [sys.executable, "-m", "cli", "build-dataset", f"release:{release}", "--out", URI, "--workers", "1", *words],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip

        def kill(environ: dict[str, Any], words: str = kill_at, group: int = process.pid) -> None:
            if (
                environ["REQUEST_METHOD"] == "PUT"
                and words in environ["PATH_INFO"]
                and ".sigma" not in environ["PATH_INFO"]
            ):
                os.killpg(group, signal.SIGKILL)
                raise ConnectionError

        server.rules.append(kill)
        assert process.wait() == -signal.SIGKILL
        server.rules.clear()
        assert "corpus.json" not in objects(s3)
        with pytest.raises(CorpusError, match="has not finished"):
            open_corpus(URI)
        build_there(release)
        assert objects(s3) == local
        s3.rm("bucket/corpora", recursive=True)


@pytest.mark.slow
@pytest.mark.parametrize("kill_at", ["scan", "shard", "commit"])
def test_a_build_whose_machine_is_lost_goes_on_from_the_store(
    s3: Any, server: S3Server, tmp_path: Path, kill_at: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = corpora.make_release(tmp_path / "release", 24, seed=3, files=4)
    corpora.build(tmp_path / "local", f"release:{release}", **SETTINGS)
    kill_on_request(server, {"scan": ".sigma/scan/", "shard": ".tar", "commit": "/corpus.json"}[kill_at], release)
    there = objects(s3)
    scanned = [name for name in there if name.startswith(".sigma/scan/")]
    uploaded = [name.split("/")[2:4] for name in there if name.startswith(".sigma/uploaded/")]
    shards = len(list((tmp_path / "local").rglob("*.tar")))
    assert len(scanned) == (1 if kill_at == "scan" else 4)
    assert len(uploaded) == {"scan": 0, "shard": 1, "commit": shards}[kill_at]
    assert "corpus.json" not in there

    monkeypatch.setenv("SIGMA_CACHE", str(tmp_path / "another machine"))
    again: list[ScanTask] = []
    monkeypatch.setattr(run, "scan_fragment", lambda task: (again.append(task), scan_fragment(task))[1])
    server.requests.clear()
    build_there(release)
    assert len(again) == 4 - len(scanned), "what was scanned is not scanned again"
    sent = [line for line in server.requests if line.startswith("PUT") and line.split("?")[0].endswith(".tar")]
    assert not [line for line in sent if any(f"/{split}/{name}" in line for split, name in uploaded)]
    made = {path.relative_to(tmp_path / "local").as_posix(): path.read_bytes()
            for path in (tmp_path / "local").rglob("*") if path.is_file()}  # fmt: skip
    assert objects(s3) == made


@pytest.mark.slow
def test_what_a_killed_build_left_beside_a_finished_corpus_is_removed(
    s3: Any, server: S3Server, release: Path, local: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    build_there(release)
    s3.pipe_file("bucket/corpora/one/.sigma/scan/0/one.parquet", b"x")
    s3.pipe_file("bucket/corpora/one/.sigma/uploaded/train/one.tar/0", b"x")
    assert not build_there(release).fresh
    assert objects(s3) == local


@pytest.mark.slow
@pytest.mark.parametrize("kept", ["damaged", "by other image libraries"])
def test_scan_files_that_are_damaged_or_made_by_other_image_libraries_are_not_taken(
    s3: Any, server: S3Server, release: Path, local: dict[str, bytes], tmp_path: Path, kept: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    server.fail("PUT", "/corpus.json", error("403 Forbidden", "AccessDenied"))
    with pytest.raises(BuildError):
        build_there(release)
    server.rules.clear()
    (scan,) = [f"bucket/corpora/one/{name}" for name in objects(s3) if name.startswith(".sigma/scan/")]
    if kept == "damaged":
        s3.pipe_file(scan, b"cut")
    else:
        s3.mv(scan, "bucket/corpora/one/.sigma/scan/other/" + scan.rpartition("/")[2])
    monkeypatch.setenv("SIGMA_CACHE", str(tmp_path / "another machine"))
    again: list[ScanTask] = []
    monkeypatch.setattr(run, "scan_fragment", lambda task: (again.append(task), scan_fragment(task))[1])
    build_there(release)
    assert len(again) == 1
    assert objects(s3) == local


@pytest.mark.slow
def test_what_was_read_of_rows_without_any_image_is_not_kept(s3: Any, tmp_path: Path) -> None:
    names = ["add/input/0.png", "add/output/0.png"]
    row = {"image": names, "conversations": [{"from": "human", "value": "Add a cat"}]}
    (tmp_path / "g/training_json").mkdir(parents=True)
    (tmp_path / "g/training_json/omniedit_gpt.json").write_text(json.dumps([row]))
    config = BuildConfig(sources=(f"gpt_image_edit_json:{tmp_path}/g",))
    with pytest.raises(BuildError, match="no archive"):
        build(config, URI, workers=0)
    for number, name in enumerate(names):
        path = tmp_path / "g/omniedit" / name
        path.parent.mkdir(parents=True)
        path.write_bytes(image_files.image_bytes("png", number))
    assert build(config, URI, workers=0).corpus.sums["written"] == 1


def kill_on_request(server: S3Server, words: str, release: Path) -> None:
    """Build there in a process, which ends by SIGKILL at the second PUT with these words (a commit's: the first)."""
    settings = [
        f"{name}={value}" for name, value in (("shard_samples", 8), ("splits", '{"train": 60.0, "test": 40.0}'))
    ]
    process = subprocess.Popen(
        [sys.executable, "-m", "cli", "build-dataset", f"release:{release}", "--out", URI, "--workers", "1", *settings],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    seen: list[str] = []

    def kill(environ: dict[str, Any]) -> None:
        path = environ["PATH_INFO"]
        state = "/.sigma/" in path
        if environ["REQUEST_METHOD"] == "PUT" and words in path and state == words.startswith(".sigma"):
            seen.append(path)
            if len(seen) == (1 if words == "/corpus.json" else 2):
                os.killpg(process.pid, signal.SIGKILL)
                raise ConnectionError

    server.rules.append(kill)
    assert process.wait() == -signal.SIGKILL
    server.rules.clear()


SLOW = error("503 Slow Down", "SlowDown")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "words", "answer", "times", "message"),
    [
        ("PUT", ".tar", SLOW, 2, None),
        ("PUT", ".tar", HANG_UP, 2, None),
        ("PUT", ".tar", SLOW, 10**9, "fewer requests|SlowDown"),
        ("PUT", ".tar", HANG_UP, 10**9, "cannot be reached"),
        ("PUT", ".tar", error("400 Bad Request", "ExpiredToken"), 10**9, "credentials are refused.*AWS_ACCESS_KEY_ID"),
        ("PUT", "corpus.json", error("403 Forbidden", "AccessDenied"), 10**9, "may not be written"),
    ],
    ids=["throttled twice", "hung up twice", "throttled", "hung up", "expired", "denied"],
)
def test_faults_are_tried_again_or_one_sentence_and_nothing_is_half_committed(
    s3: Any, server: S3Server, release: Path, local: dict[str, bytes], method: str, words: str, answer: Any, times: int,
    message: str | None,
) -> None:  # fmt: skip
    server.fail(method, words, answer, times)
    if message is None:
        build_there(release)
    else:
        with pytest.raises(SigmaError, match=message) as caught:
            build_there(release)
        assert "\n" not in str(caught.value)
        assert "s3://bucket" in str(caught.value)
        assert "what is done is kept: run the same command again" in str(caught.value)
        server.rules.clear()
        assert "corpus.json" not in objects(s3)
        assert ".sigma/lock" not in objects(s3)
        build_there(release)
    assert objects(s3) == local


def test_a_part_that_fails_twice_is_sent_again_and_one_that_always_fails_leaves_no_object(
    s3: Any, server: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(store_module, "PART", 5 * 2**20)
    (tmp_path / "large").write_bytes(os.urandom(11 * 2**20))
    store = Store("s3://bucket/x", pause=0.0)
    server.fail("PUT", "partNumber=2", SLOW, 2)
    store.put(tmp_path / "large", "large.tar")
    assert s3.cat_file("bucket/x/large.tar") == (tmp_path / "large").read_bytes()
    server.rules.clear()
    server.fail("PUT", "partNumber=2", error("403 Forbidden", "AccessDenied"))
    with pytest.raises(BuildError, match="may not be written"):
        store.put(tmp_path / "large", "other.tar")
    server.rules.clear()
    assert set(store.sizes()) == {"large.tar"}
    uploads = s3.call_s3("list_multipart_uploads", Bucket="bucket").get("Uploads", [])
    assert uploads == [], "the parts are given up"


def test_a_missing_bucket_is_one_sentence(s3: Any, release: Path) -> None:
    with pytest.raises(BuildError, match="no such bucket") as caught:
        build_there(release, "s3://nowhere/corpus")
    assert "\n" not in str(caught.value)
    assert "is kept" not in str(caught.value), "nothing was done yet"


def test_a_server_that_only_hands_out_files_is_refused_before_anything_is_done(release: Path, tmp_path: Path) -> None:
    for place in ("https://127.0.0.1:9/corpus", "simplecache::HTTP://127.0.0.1:9/corpus"):
        with pytest.raises(BuildError, match=f"^{place}: can be read and not written to") as caught:
            build_there(release, place)
        assert "is kept" not in str(caught.value)


def test_of_two_builds_one_holds_the_place_and_a_dead_one_is_followed(s3: Any, release: Path) -> None:
    store = Store(URI)
    assert store.create(".sigma/lock", b'{"host": "elsewhere", "pid": 7, "time": 9e9}')
    assert not store.create(".sigma/lock", b"{}")
    with pytest.raises(ConfigError, match="another build is running there .process 7 on elsewhere"):
        build_there(release)
    store.write(".sigma/lock", b'{"host": "elsewhere", "pid": 7, "time": 1}')
    from pipelines.build_dataset.publication import Publication

    with Publication(URI, "digest"):
        assert b"token" in (store.read(".sigma/lock") or b"")
    assert store.read(".sigma/lock") is None
    s3.pipe_file("bucket/other/notes.txt", b"mine")
    with pytest.raises(ConfigError, match="is not empty and holds no corpus"):
        build_there(release, "s3://bucket/other")
