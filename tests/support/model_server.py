"""An OpenAI-compatible server on loopback whose replies are scripted."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Reply:
    """What the server sends: status, headers and body, after a pause."""

    body: bytes = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    pause: float = 0.0


def completion(content: str | None, *, finish: str = "stop", refusal: str | None = None, usage: Any = ...) -> Reply:
    """A completion that holds a text."""
    message = {"role": "assistant", "content": content, "refusal": refusal}
    body: dict[str, Any] = {"choices": [{"message": message, "finish_reason": finish}]}
    body["usage"] = {"prompt_tokens": 100, "completion_tokens": 20} if usage is ... else usage
    return Reply(json.dumps(body).encode())


Script = Callable[[dict[str, Any], int], Reply]
"""(the request's JSON, how many came before) -> the reply."""


@dataclass
class ModelServer:
    """A running server: its address, and the requests that came, with their headers."""

    base_url: str
    requests: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)

    def captions(self) -> list[str]:
        """The captions that were asked, in the order of the requests."""
        return [caption_of(one) for one in self.requests]


def caption_of(request: dict[str, Any]) -> str:
    """The caption of a request."""
    return str(json.loads(request["messages"][1]["content"])["caption"])


@contextmanager
def model_server(script: Script) -> Iterator[ModelServer]:
    """Serve a script."""
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            data = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                number = len(served.requests)
                served.requests.append(data)
                served.headers.append(dict(self.headers.items()))
            reply = script(data, number)
            time.sleep(reply.pause)
            try:
                self.send_response(reply.status)
                for name, value in reply.headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(reply.body)))
                self.end_headers()
                self.wfile.write(reply.body)
            except OSError:  # the client has gone
                self.close_connection = True

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    served = ModelServer(f"http://127.0.0.1:{server.server_address[1]}/v1")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield served
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
