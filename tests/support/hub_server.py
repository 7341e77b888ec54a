"""A hub on loopback, in the protocol that `huggingface_hub` speaks: repositories, their trees, files by ranges.

It takes uploads, too (`hub_uploads`). It can be told to fail: with a status, by cutting a file off, by ignoring ranges,
by wrong bytes.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

from support.hub_uploads import Uploads

COMMIT = "c0ffee" + "0" * 34


def _set() -> threading.Event:
    event = threading.Event()
    event.set()
    return event


@dataclass
class FakeHub:
    """`repos`: "models/OWNER/NAME" or "datasets/..." -> path -> bytes. Files over `large` bytes are LFS files."""

    repos: dict[str, dict[str, bytes]]
    license: str | None = "apache-2.0"
    gated: bool = False
    large: int = 100
    page: int = 1000
    statuses: dict[str, list[int]] = field(default_factory=dict)
    """Path of a request (its end) -> statuses to answer with, one after the other, before it works."""
    cut: dict[str, list[int]] = field(default_factory=dict)
    """File -> after how many bytes the connection is closed, a request each."""
    wrong: dict[str, int] = field(default_factory=dict)
    """File -> how many times its first byte is another."""
    ranges: bool = True
    requests: list[tuple[str, str | None]] = field(default_factory=list)
    """Path and Range header of each request for a file's bytes."""
    tokens: list[str | None] = field(default_factory=list)
    refusal: str | None = None
    """What the hub says with a status that it was told, in its header."""
    hold: threading.Event = field(default_factory=_set)
    """Files' bytes are sent once this is set."""
    uploads: Uploads = field(default_factory=Uploads)
    endpoint: str = ""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: FakeHub

    def log_message(self, *_: object) -> None:
        """Silent."""

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.tokens.append(self.headers.get("Authorization"))
        for end, statuses in self.hub.statuses.items():
            if path.endswith(end) and statuses:
                said = {"X-Error-Message": self.hub.refusal} if self.hub.refusal else {}
                self._json({"error": "told to fail"}, statuses.pop(0), said)
                return
        if path.startswith("/api/"):
            self._api(path.removeprefix("/api/"))
        else:
            self._bytes(path)

    do_HEAD = do_GET

    def do_POST(self) -> None:
        path = unquote(urlsplit(self.path).path)
        answer = self.hub.uploads.answer(self.hub, self.command, path, self.headers, self.rfile)
        if answer is None:
            self.close_connection = True
        else:
            self._json(*answer)

    do_PUT = do_POST

    def _api(self, path: str) -> None:
        if path == "whoami-v2":
            self._json(*self.hub.uploads.account(self.headers))
            return
        repo = next((name for name in self.hub.repos if path == name or path.startswith(f"{name}/")), None)
        if repo is None or repo in self.hub.uploads.hidden:
            self._json({"error": "Repository not found"}, 404, {"X-Error-Code": "RepoNotFound"})
            return
        if self.hub.gated and "Authorization" not in self.headers:
            self._json({"error": "gated"}, 403, {"X-Error-Code": "GatedRepo"})
            return
        rest = path.removeprefix(repo).strip("/").split("/")
        head = self.hub.uploads.heads.get(repo, COMMIT)
        if rest[0] == "revision" and rest[1] not in ("main", head):
            self._json({"error": "no revision"}, 404, {"X-Error-Code": "RevisionNotFound"})
        elif rest[0] == "tree":
            self._tree(self.hub.repos[repo])
        else:
            card = {"license": self.hub.license} if self.hub.license else {}
            name = repo.partition("/")[2]
            about = {"id": name, "sha": head, "cardData": card, "gated": "auto" if self.hub.gated else False}
            self._json({**about, "private": repo in self.hub.uploads.private})

    def _tree(self, files: dict[str, bytes]) -> None:
        rows = []
        for name, data in sorted(files.items()):
            blob = hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()
            row: dict[str, object] = {"type": "file", "path": name, "size": len(data), "oid": blob}
            if len(data) > self.hub.large:
                row["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 134}
            rows.append(row)
        query = dict(part.split("=") for part in urlsplit(self.path).query.split("&") if "=" in part)
        start = int(query.get("cursor", "0"))
        after = start + self.hub.page
        url = f"{self.hub.endpoint}{urlsplit(self.path).path}?recursive=True&cursor={after}"
        self._json(rows[start:after], 200, {"Link": f'<{url}>; rel="next"'} if after < len(rows) else {})

    def _bytes(self, path: str) -> None:
        repo, _, rest = path.strip("/").partition("/resolve/")
        kind = "" if repo.startswith("datasets/") else "models/"
        name = rest.partition("/")[2]
        data = self.hub.repos.get(f"{kind}{repo}", {}).get(name)
        if data is None:
            self._json({"error": "no entry"}, 404, {"X-Error-Code": "EntryNotFound"})
            return
        asked = self.headers.get("Range")
        self.hub.requests.append((name, asked))
        self.hub.hold.wait(60)
        if self.hub.wrong.get(name, 0) > 0:
            self.hub.wrong[name] -= 1
            data = bytes([data[0] ^ 1]) + data[1:]
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and self.hub.ranges else 0
        self.send_response(206 if asked and self.hub.ranges else 200)
        body = data[start:]
        self.send_header("Content-Length", str(len(body)))
        if asked and self.hub.ranges:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.end_headers()
        cuts = self.hub.cut.get(name)
        if cuts:
            self.wfile.write(body[: cuts.pop(0)])
            self.close_connection = True
        else:
            self.wfile.write(body)

    def _json(self, value: object, status: int = 200, headers: dict[str, str] | None = None) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        for key, text in (headers or {}).items():
            self.send_header(key, text)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


class _Server(ThreadingHTTPServer):
    def handle_error(self, *_: object) -> None:
        """A client that went away is no news."""


@contextmanager
def serve(hub: FakeHub) -> Iterator[FakeHub]:
    """The hub answers at `hub.endpoint` until the block ends."""
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = _Server(("127.0.0.1", 0), handler)
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
