"""What stands before the page's server: nothing may be loaded from elsewhere, and nothing asked for in its name."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any
from urllib.parse import unquote

from pipelines.common.loopback import host_of

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

POLICY = (
    "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; connect-src 'self'; form-action 'self'; "
    "frame-ancestors 'none'; base-uri 'self'; object-src 'none'"
)
"""Gradio's page needs inline scripts and `eval`; of other hosts it gets nothing."""

_HEADERS = (
    (b"content-security-policy", POLICY.encode()),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
)

_OVER = b'data: {"msg": "done"}\n\n'
"""What gradio's page is told when it asks how far an upload is that has ended meanwhile; it would log an error."""


class Guard:
    """ASGI middleware: a policy on every answer; other names for this host and fetching by URL are refused.

    A page elsewhere can point a name of its own at 127.0.0.1 (DNS rebinding): on a loopback address requests must name
    one of `hosts`.
    """

    def __init__(self, app: Callable[..., Awaitable[None]], hosts: Iterable[str] | None) -> None:
        self._app = app
        self._hosts = None if hosts is None else frozenset(hosts)

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if (reason := self._refusal(scope)) is not None:
            headers = [(b"content-type", b"text/plain; charset=utf-8"), *_HEADERS]
            await send({"type": "http.response.start", "status": 403, "headers": headers})
            await send({"type": "http.response.body", "body": reason.encode()})
            return

        late = False

        async def guarded(message: Message) -> None:
            nonlocal late
            if message["type"] == "http.response.start":
                late = message["status"] == 404 and scope["path"].endswith("/upload_progress")
                if late:
                    message = {**message, "status": 200, "headers": [(b"content-type", b"text/event-stream")]}
                message = {**message, "headers": [*message.get("headers", ()), *_HEADERS]}
            elif late:
                message = {"type": "http.response.body", "body": _OVER}
            await send(message)

        await self._app(scope, receive, guarded)

    def _refusal(self, scope: Message) -> str | None:
        host = host_of(dict(scope["headers"]).get(b"host", b"").decode("latin-1"))
        if self._hosts is not None and host not in self._hosts:
            return "sigma app listens on loopback alone: open it as http://127.0.0.1"
        if "file=http" in unquote(scope["path"]).lower():
            return "nothing is fetched from other hosts"
        return None
