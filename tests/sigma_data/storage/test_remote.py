"""Remote places: whatever their clients raise is one sentence that says what to do, and a lost place spoils no row."""

from __future__ import annotations

import functools
import http.server
import pickle
import re
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from support import corpora

from sigma_data.corpus.corpus import open_corpus
from sigma_data.errors import ConfigError, CorpusError, SigmaError, SourceError
from sigma_data.planning.index import open_index
from sigma_data.sample import Sample
from sigma_data.sequence.tokenizer import Tokenizer
from sigma_data.sources import open_source
from sigma_data.storage import remote
from sigma_data.storage.data_folder import data_folder
from sigma_data.storage.paths import literal
from sigma_data.storage.remote import LostError, reaching, reason
from sigma_model.config import preset_directory


def raised(name: str, message: str, *bases: type[Exception], **fields: Any) -> Exception:
    """An error of a class of that name, as clients have them; none of their packages need be installed."""
    error = type(name, bases or (Exception,), {})(message)
    for field, value in fields.items():
        setattr(error, field, value)
    return error


def client_error(code: str, message: str = "An error occurred") -> Exception:
    return raised("ClientError", message, response={"Error": {"Code": code}})


def translated(error: Exception, cause: Exception) -> Exception:
    """As s3fs raises it: an error of Python's, from the client's."""
    error.__cause__ = cause
    return error


ERRORS = [
    (raised("NoCredentialsError", "Unable to locate credentials"), "no credentials.*AWS_ACCESS_KEY_ID"),
    (raised("ProfileNotFound", "The config profile (x) could not be found"), "no credentials.*AWS_PROFILE"),
    (raised("EndpointConnectionError", "Could not connect to the endpoint"), "cannot be reached.*AWS_ENDPOINT_URL"),
    (raised("ConnectTimeoutError", "Connect timeout"), "cannot be reached"),
    (raised("FSTimeoutError", "", TimeoutError), "cannot be reached"),
    (raised("ClientConnectorError", "Cannot connect to host", OSError), "cannot be reached"),
    (raised("ServerDisconnectedError", "Server disconnected"), "cannot be reached"),
    (raised("ClientPayloadError", "Response payload is not completed"), "cannot be reached"),
    (ConnectionResetError(104, "Connection reset by peer"), "cannot be reached.*reset"),
    (client_error("NoSuchBucket"), "no such bucket"),
    (FileNotFoundError("The specified bucket does not exist"), "no such bucket"),
    (translated(PermissionError("Forbidden"), client_error("403")), "may not be read.*account that may"),
    (translated(PermissionError("denied"), client_error("InvalidAccessKeyId")), "credentials are refused"),
    (client_error("ExpiredToken"), "credentials are refused"),
    (translated(OSError(22, "Bad Request"), client_error("400", "Bad Request")), "credentials have expired: set AWS"),
    (client_error("SlowDown", "Please\nreduce your\trequest rate"), "cannot be read.*Please reduce your request rate"),
    (OSError(5, "Input/output error"), "Input/output error"),
    (raised("Odd", ""), "cannot be read.*Odd"),
]  # fmt: skip


class Sick(MemoryFileSystem):
    """Works until `failing` is set; then everything raises it."""

    protocol = "sick"
    store: dict[str, Any] = {}
    pseudo_dirs = [""]
    failing: Exception | None = None
    reads_left = 10**9

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return "/" + path.removeprefix("sick://").strip("/")

    def find(self, *arguments: Any, **options: Any) -> Any:
        self.check()
        return super().find(*arguments, **options)

    def info(self, *arguments: Any, **options: Any) -> Any:
        self.check()
        return super().info(*arguments, **options)

    def _open(self, *arguments: Any, **options: Any) -> Any:
        self.check()
        return super()._open(*arguments, **options)

    @classmethod
    def check(cls) -> None:
        if cls.failing is not None:
            raise cls.failing


class SlowFile:
    """A file whose place fails after some reads."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def read(self, size: int = -1) -> bytes:
        Sick.reads_left -= 1
        if Sick.reads_left < 0:
            raise raised("ClientPayloadError", "Response payload is not completed")
        data: bytes = self._file.read(size)
        return data


@pytest.fixture
def sick() -> Iterator[type[Sick]]:
    fsspec.register_implementation("sick", Sick, clobber=True)
    Sick.failing, Sick.reads_left = None, 10**9
    yield Sick
    Sick.failing = None
    Sick.store.clear()


@pytest.mark.parametrize(("error", "words"), ERRORS, ids=[f"{type(e).__name__}-{n}" for n, (e, _) in enumerate(ERRORS)])
def test_whatever_a_client_raises_is_one_sentence_with_its_place_and_what_to_do(error: Exception, words: str) -> None:
    told = reason(error, "s3://bkt/data")
    assert re.search(words, told), told
    assert "\n" not in told


def test_a_place_that_does_not_answer_is_told_while_its_client_still_tries(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with reaching("s3://bkt/quick"):
        pass
    monkeypatch.setattr(remote, "_SILENT_SECONDS", 0.01)
    with reaching("s3://bkt/slow"):
        deadline = time.monotonic() + 30
        while not caplog.messages and time.monotonic() < deadline:
            time.sleep(0.01)
    assert [message[:33] for message in caplog.messages] == ["s3://bkt/slow: no answer for 0 s,"]


@pytest.mark.parametrize("error", [error for error, _ in ERRORS[:12]], ids=[type(e).__name__ for e, _ in ERRORS[:12]])
def test_every_way_to_a_place_that_fails_ends_in_that_sentence(
    error: Exception, sick: type[Sick], tmp_path: Path
) -> None:
    sick.failing = error
    for layout in ("release", "webdataset"):
        with pytest.raises(SourceError, match=r"^sick://bkt/data: "):
            open_source(f"{layout}:sick://bkt/data").fragments()
    with pytest.raises(SourceError, match=r"^sick://bkt/data"):
        data_folder("sick://bkt/data").open("x")
    if not isinstance(error, FileNotFoundError):
        with pytest.raises(SourceError, match=r"^sick://bkt/data: "):
            data_folder("sick://bkt/data").exists("x")
    encoder = Tokenizer.load(preset_directory("tiny"), vocab_size=4096)
    with pytest.raises(CorpusError, match="sick://bkt/data"):
        open_index("sick://bkt/data", encoder, cache=tmp_path)


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("nosuchprotocol://x", "nosuchprotocol"),
        ("s3://bkt/x", r"pip install 'sigma-multimodal\[s3\]'|credentials|reached"),
        ("gs://bkt/x", r"gcsfs, is not installed: pip install 'sigma-multimodal\[gcs\]'|credentials|reached"),
    ],
)
def test_a_protocol_that_nothing_here_reads_is_told_with_what_to_install(
    uri: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(SourceError, match=words) as caught:
        data_folder(uri).files(".parquet")
    assert uri in str(caught.value)


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_server_that_does_not_answer_is_not_taken_for_one_without_the_file(scheme: str) -> None:
    pytest.importorskip("aiohttp")
    uri = f"{scheme}://127.0.0.1:9/x"
    for ask in (
        lambda: data_folder(uri).exists("corpus.json"),
        lambda: data_folder(uri).files(".parquet"),
        lambda: open_source(f"release:{uri}").fragments(),
        lambda: open_corpus(uri),
    ):
        with pytest.raises(SourceError, match=rf"^{uri}: cannot be reached \(.*Connect call failed.*: check the net"):
            ask()


def test_a_server_that_refuses_or_fails_is_not_taken_for_one_without_the_file() -> None:
    pytest.importorskip("aiohttp")

    class Refusing(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(int(self.path.split("/")[1]))

        do_HEAD = do_GET

        def log_message(self, *_: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Refusing)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        for status, words in ((401, "may not be read"), (403, "may not be read"), (500, "cannot be read")):
            with pytest.raises(SourceError, match=words):
                data_folder(f"http://127.0.0.1:{server.server_port}/{status}").exists("corpus.json")
        assert not data_folder(f"http://127.0.0.1:{server.server_port}/404").exists("corpus.json")
    finally:
        server.shutdown()


def test_a_scheme_may_be_written_in_capitals(sick: type[Sick]) -> None:
    fsspec.filesystem("sick").pipe_file("/bkt/one/a.parquet", b"x")
    assert [name for name, _ in data_folder("SICK://bkt/one").files(".parquet")] == ["a.parquet"]
    assert data_folder("Sick://bkt/one").open("a.parquet").read() == b"x"


@pytest.mark.parametrize("value", ["nope", "[1]"])
def test_settings_of_a_store_that_cannot_be_read_are_one_sentence(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FSSPEC_S3", value)
    with pytest.raises(
        ConfigError, match="^FSSPEC_S3: must hold a JSON object: write e.g. FSSPEC_S3='{\"anon\": true}'"
    ):
        data_folder("s3://bkt/x")


def test_names_in_a_uri_are_names(sick: type[Sick], tmp_path: Path) -> None:
    file = corpora.make_release(tmp_path, 3) / "seedxedit_multi" / "chunk_0.parquet"
    for folder in ("a [v1]", "b*", "c::d", "e{1,2}", "f#1?g", "50%", "~h"):
        fsspec.filesystem("sick").pipe_file(f"/bkt/{folder}/chunk_0.parquet", file.read_bytes())
        reader = open_source(f"release:sick://bkt/{folder}")
        (fragment,) = reader.fragments()
        assert fragment.location == "chunk_0.parquet"
        assert len(list(reader.read(fragment))) == 3


# Lost in the middle ---------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["release", "webdataset"])
def test_a_place_lost_while_it_is_read_rejects_no_row(
    layout: str, sick: type[Sick], small_corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = corpora.make_release(tmp_path, 12) / "seedxedit_multi" if layout == "release" else small_corpus / "train"
    for path in source.iterdir():
        fsspec.filesystem("sick").pipe_file(f"/bkt/train/{path.name}", path.read_bytes())
    plain = Sick._open
    monkeypatch.setattr(Sick, "_open", lambda self, *a, **o: SlowFile(plain(self, *a, **o)))
    reader = open_source(f"{layout}:sick://bkt/train")
    fragment = reader.fragments()[0]
    whole = list(reader.read(fragment))
    assert all(isinstance(record, Sample) for record in whole)
    before = Sick.reads_left
    assert list(reader.read(fragment)) == whole
    needed = before - Sick.reads_left
    assert needed > 3
    for reads in range(needed):
        Sick.reads_left = reads
        found = []
        with pytest.raises(LostError, match=rf"^sick://bkt/train/{re.escape(fragment.location)}: cannot be reached"):
            found.extend(reader.read(fragment))
        assert all(isinstance(record, Sample) for record in found)


def test_a_file_with_wrong_numbers_is_still_the_files_own_fault(sick: type[Sick], tmp_path: Path) -> None:
    file = corpora.make_release(tmp_path, 12) / "seedxedit_multi" / "chunk_0.parquet"
    data = bytearray(file.read_bytes())
    data[4 : len(data) // 2] = bytes(len(data) // 2 - 4)
    fsspec.filesystem("sick").pipe_file("/bkt/bad/chunk_0.parquet", bytes(data))
    reader = open_source("release:sick://bkt/bad")
    codes = {getattr(record, "code", "") for fragment in reader.fragments() for record in reader.read(fragment)}
    assert "unreadable_rows" in codes


def test_the_error_of_a_lost_place_travels_between_processes() -> None:
    error = pickle.loads(pickle.dumps(LostError("s3://bkt/x: cannot be reached")))
    assert (type(error), str(error)) == (LostError, "s3://bkt/x: cannot be reached")
    assert issubclass(LostError, SigmaError)


class Listing(http.server.BaseHTTPRequestHandler):
    """Pages of links, by path."""

    pages: ClassVar[dict[str, Sequence[str]]] = {}

    def do_GET(self) -> None:
        links = self.pages.get(self.path.rstrip("/"))
        self.send_response(404 if links is None else 200)
        self.end_headers()
        self.wfile.write("".join(f'<a href="{link}">{link}</a>' for link in links or ()).encode())

    do_HEAD = do_GET

    def log_message(self, *_: Any) -> None:
        pass


def test_a_folder_behind_http_that_cannot_be_listed_is_an_error_and_no_loss_of_its_files() -> None:
    pytest.importorskip("aiohttp")
    Listing.pages = {"": ["/a/"], "/a": ["/a/one.json", "/a/deep/"], "/a/deep": ["/a/deep/two.json"]}
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Listing)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    uri = f"http://127.0.0.1:{server.server_port}/"
    try:
        assert [name for name, _ in data_folder(uri).files(".json")] == ["a/deep/two.json", "a/one.json"]
        Listing.pages = {name: links for name, links in Listing.pages.items() if name != "/a/deep"}
        with pytest.raises(SourceError, match="a/deep"):
            data_folder(uri).files(".json")
    finally:
        server.shutdown()


class Flaky(http.server.SimpleHTTPRequestHandler):
    """Serves a folder with ranges, and nothing at all once `left` requests have been answered."""

    left = 10**9

    def do_GET(self) -> None:
        type(self).left -= 1
        if self.left < 0:
            self.close_connection = True
            self.connection.close()
            return
        path = Path(self.translate_path(self.path))
        span = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if span is None or not path.is_file():
            super().do_GET()
            return
        data = path.read_bytes()[int(span[1]) : int(span[2]) + 1]
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {span[1]}-{int(span[1]) + len(data) - 1}/{path.stat().st_size}")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def end_headers(self) -> None:
        self.send_header("Accept-Ranges", "bytes")
        super().end_headers()

    def log_message(self, *_: Any) -> None:
        pass


@pytest.mark.slow
def test_a_build_whose_source_is_lost_ends_with_one_sentence_and_goes_on_when_it_is_back(tmp_path: Path) -> None:
    pytest.importorskip("aiohttp")
    corpora.make_release(tmp_path / "release", 80, files=4)
    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Flaky, directory=str(tmp_path / "release"))
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    source = f"release:http://127.0.0.1:{server.server_port}/"
    try:
        Flaky.left = 10**9
        fragments = open_source(source).fragments()
        Flaky.left = 10**9 - Flaky.left + 3  # enough to list it, and to read a little
        with pytest.raises(LostError, match="what is done is kept: run the same command again to continue$") as caught:
            corpora.build(tmp_path / "out", source)
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "out" / "corpus.json").exists()
        assert 0 < len(list((tmp_path / "out" / ".sigma" / "scan").glob("*.parquet"))) < len(fragments)
        Flaky.left = 10**9
        again = corpora.build(tmp_path / "out", source).corpus
    finally:
        server.shutdown()
    assert (again.sums["written"], again.sums["quarantined"]) == (80, 0)
    local = corpora.build(tmp_path / "local", f"release:{tmp_path / 'release'}").corpus
    assert again.shards == local.shards


def test_a_relative_path_with_a_colon_is_a_path_for_pyarrow_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    corpora.make_release(Path.cwd() / "a:b", 2)
    assert pq.ParquetFile(literal(Path("a:b/seedxedit_multi/chunk_0.parquet"))).metadata.num_rows == 2


def test_an_unknown_home_in_a_source_is_one_sentence() -> None:
    with pytest.raises(ConfigError, match="~nobody-here has no home folder"):
        open_source("release:~nobody-here/x")
