"""An S3 of this machine (moto) that can be told to fail."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from werkzeug.serving import make_server

Answer = tuple[str, bytes]
Rule = Callable[[dict[str, Any]], Answer | None]
"""WSGI environment of a request -> what to answer instead of S3, None to let it pass."""


def error(status: str, code: str) -> Answer:
    """S3's answer to a request that fails."""
    return status, f"<Error><Code>{code}</Code><Message>{code} on purpose</Message></Error>".encode()


class S3Server:
    """moto's server; `rules` are asked first, in their order."""

    def __init__(self) -> None:
        # `moto.server` first: it is what declares flask.
        import moto.server  # noqa: F401
        from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app

        self.rules: list[Rule] = []
        self.requests: list[str] = []
        self._app = DomainDispatcherApplication(create_backend_app)
        self._server = make_server("127.0.0.1", 0, self._answer, threaded=True)
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._server.shutdown()
        self._thread.join()

    def fail(self, method: str, words: str, answer: Answer, times: int = 10**9) -> None:
        """Answer so the next `times` requests of a method with these words in path or query."""
        left = [times]

        def rule(environ: dict[str, Any]) -> Answer | None:
            where = f"{environ['PATH_INFO']}?{environ.get('QUERY_STRING', '')}"
            if environ["REQUEST_METHOD"] != method or words not in where or left[0] == 0:
                return None
            left[0] -= 1
            return answer

        self.rules.append(rule)

    def _answer(self, environ: dict[str, Any], start: Any) -> Iterable[bytes]:
        self.requests.append(f"{environ['REQUEST_METHOD']} {environ['PATH_INFO']}?{environ.get('QUERY_STRING', '')}")
        for rule in self.rules:
            if (answer := rule(environ)) is not None:
                environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
                if not answer[0]:
                    environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
                    raise ConnectionError
                start(answer[0], [("Content-Type", "application/xml"), ("Content-Length", str(len(answer[1])))])
                return [answer[1]]
        found: Iterable[bytes] = self._app(environ, start)
        return found


HANG_UP: Answer = ("", b"")


@contextmanager
def s3_server() -> Iterator[S3Server]:
    server = S3Server()
    try:
        yield server
    finally:
        server.stop()


def settings(server: S3Server) -> dict[str, str]:
    """Environment by which clients find the server."""
    return {
        "AWS_ENDPOINT_URL": server.endpoint, "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1", "AWS_MAX_ATTEMPTS": "1", "AWS_EC2_METADATA_DISABLED": "true",
    }  # fmt: skip


@contextmanager
def s3_bucket(monkeypatch: pytest.MonkeyPatch, cache: Path) -> Iterator[tuple[S3Server, Any]]:
    """A server with an empty bucket, known to this process's environment, and its file system."""
    import s3fs

    with s3_server() as server:
        for name, value in {**settings(server), "SIGMA_CACHE": str(cache)}.items():
            monkeypatch.setenv(name, value)
        s3fs.S3FileSystem.clear_instance_cache()
        system = s3fs.S3FileSystem()
        system.mkdir("bucket")
        yield server, system
        server.rules.clear()
        system.rm("bucket", recursive=True)  # moto's buckets are the process', not the server's
        s3fs.S3FileSystem.clear_instance_cache()
