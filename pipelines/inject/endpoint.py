"""An OpenAI-compatible server: one request at a time a thread, transport errors tried again, secrets never shown.

The key stands in a header and nowhere else. Errors name the server and what happened; what a server answers to a
refused request is not repeated, for some repeat the key in it.
"""

from __future__ import annotations

import json
import os
import random
import threading
import time
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from pipelines.inject.budget import Budget, estimated_tokens
from pipelines.inject.config import TEMPERATURE, EndpointSettings, ModelSettings
from sigma_data.errors import ConfigError, SigmaError
from sigma_data.injection.prompt import RESPONSE_FORMATS

if TYPE_CHECKING:
    import httpx2

_TRIES = 6
"""The first request and at most five more after transport errors."""
_AGAIN = frozenset((408, 409, 425, 429, 500, 502, 503, 504, 529))
_STOP = {401: "refuses the API key", 403: "does not allow this", 404: "knows no such address or model"}
_FORMAT_REFUSED = frozenset((400, 422))
_MOST_BYTES = 4 * 2**20
_LONGEST_WAIT = 600.0


class EndpointError(SigmaError):
    """The endpoint will not answer any request: the run stops."""


@dataclass(frozen=True)
class Answer:
    """What a server said to one question. `code` is empty, or says why there is no content to read."""

    content: str = ""
    code: str = ""
    message: str = ""
    prompt_tokens: int = 0
    reply_tokens: int = 0


BUDGET, STOPPED = "budget", "stopped"


class Endpoint:
    """A server and a model. A context manager; `ask` is called from many threads.

    Raises ConfigError where a setting is missing, or the library of the extra `inject`.
    """

    def __init__(
        self, model: ModelSettings, settings: EndpointSettings, budget: Budget, *, first_wait: float = 1.0
    ) -> None:
        if not settings.base_url or not model.name:
            raise ConfigError(
                "injection by a model needs endpoint.base_url and model.name, "
                "e.g. endpoint.base_url=http://127.0.0.1:8000/v1 model.name=qwen2.5-7b-instruct"
            )
        self._model = model
        self._settings = settings
        self._budget = budget
        self._first_wait = first_wait
        self._headers = {"Content-Type": "application/json", **_authorization(settings.api_key_env)}
        self._lock = threading.Lock()
        self._format = 0
        self._next = 0.0
        self._stop = threading.Event()

    def __enter__(self) -> Self:
        try:
            import httpx2
        except ImportError:
            raise ConfigError("injection by a model needs httpx2: pip install 'sigma-multimodal[inject]'") from None
        self._errors, self._timeout = httpx2.HTTPError, httpx2.TimeoutException
        limits = httpx2.Limits(max_connections=self._settings.concurrency)
        self._client: httpx2.Client = httpx2.Client(timeout=self._settings.timeout, limits=limits)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.stop()
        self._client.close()

    def stop(self) -> None:
        """Let waiting threads end, and those that ask begin no further request."""
        self._stop.set()

    def ask(self, messages: list[dict[str, str]]) -> Answer:
        """One answer. Raises EndpointError where the server refuses the key, the model or the address."""
        wait, last = self._first_wait, "no answer"
        for attempt in range(_TRIES):
            if attempt:
                self._stop.wait(wait * (1 + 0.25 * random.random()))  # noqa: S311 (spreads retries)
                wait = min(2 * wait, 60.0)
            body, used = self._body(messages)
            if self._stop.is_set() or not self._slot():
                return Answer(code=STOPPED, message="the run was stopped")
            worst = (estimated_tokens(body), self._model.max_tokens)
            if not self._budget.reserve(*worst):
                return Answer(code=BUDGET, message=f"{self._budget.reached} is reached")
            spent = (0, 0)
            try:
                status, retry_after, data = self._post(body)
                if status == 200:
                    answer = _read(data, body)
                    spent = (answer.prompt_tokens, answer.reply_tokens)
                    return answer
            except (self._errors, OSError, RuntimeError) as error:  # RuntimeError: the client was closed
                last = type(error).__name__
                if isinstance(error, self._timeout):  # the server may have answered, and count it
                    spent = worst
                continue
            finally:
                self._budget.settle(worst, spent)
            if status in _STOP:
                raise EndpointError(self._refused(status))
            if status in _FORMAT_REFUSED and self._next_format(used):
                return self.ask(messages)
            last = f"status {status}"
            if status not in _AGAIN:
                return Answer(code="http_error", message=last)
            if retry_after is not None:
                wait = retry_after
        return Answer(code="no_answer", message=f"{last}, {_TRIES} times")

    def _post(self, body: str) -> tuple[int, float | None, bytes]:
        """(status, seconds to wait before the next try, if told, the body up to a limit)."""
        url = f"{self._settings.base_url}/chat/completions"
        with self._client.stream("POST", url, content=body.encode("utf-8", "replace"), headers=self._headers) as reply:
            data = bytearray()
            if reply.status_code == 200:
                for chunk in reply.iter_bytes():
                    data += chunk
                    if len(data) > _MOST_BYTES:
                        break
            return reply.status_code, _seconds(reply.headers.get("retry-after")), bytes(data)

    def _body(self, messages: list[dict[str, str]]) -> tuple[str, int]:
        with self._lock:
            used = self._format
        body: dict[str, Any] = {
            "model": self._model.name,
            "messages": messages,
            "temperature": TEMPERATURE,
            "seed": self._model.seed,
            "max_tokens": self._model.max_tokens,
        }
        if (form := RESPONSE_FORMATS[used]) is not None:
            body["response_format"] = form
        return json.dumps(body, ensure_ascii=False), used

    def _next_format(self, used: int) -> bool:
        """Ask for replies in the next form, which every later request does too; False if there is none left."""
        with self._lock:
            if self._format == used and used + 1 < len(RESPONSE_FORMATS):
                self._format = used + 1
            return self._format != used

    def _slot(self) -> bool:
        """Wait for this request's turn within the minute; False if the run was stopped meanwhile."""
        if self._settings.requests_per_minute is None:
            return True
        with self._lock:
            now = time.monotonic()
            mine = max(now, self._next)
            self._next = mine + 60.0 / self._settings.requests_per_minute
        return not self._stop.wait(mine - now)

    def _refused(self, status: int) -> str:
        key = self._settings.api_key_env
        advice = {
            401: f"check the key in {key}" if key else "name the variable that holds a key with endpoint.api_key_env",
            403: "check what the key may do",
            404: f"check endpoint.base_url and model.name ({self._model.name})",
        }[status]
        return f"{self._settings.base_url}: the server {_STOP[status]} (status {status}): {advice}"


def _authorization(variable: str | None) -> dict[str, str]:
    if variable is None:
        return {}
    key = os.environ.get(variable, "").strip()
    if not key:
        raise ConfigError(f"endpoint.api_key_env: the environment variable {variable} is not set")
    if not key.isascii() or not key.isprintable():
        raise ConfigError(f"endpoint.api_key_env: {variable} holds characters that no key has")
    return {"Authorization": f"Bearer {key}"}


def _read(data: bytes, body: str) -> Answer:
    """A server's answer of status 200, whatever it holds."""
    try:
        found = json.loads(data.decode("utf-8"))
        choice = found["choices"][0]
        message = choice["message"]
        content, refusal = message.get("content"), message.get("refusal")
        if content is not None and not isinstance(content, str):
            raise TypeError
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
        prompt, reply = estimated_tokens(body), len(data) // 4
        return Answer(code="not_json", message="the server's answer is not a completion", prompt_tokens=prompt,
                      reply_tokens=reply)  # fmt: skip
    usage = found.get("usage")
    prompt = _count(usage, "prompt_tokens", estimated_tokens(body))
    reply = _count(usage, "completion_tokens", estimated_tokens(content or ""))
    if choice.get("finish_reason") == "length":
        code, text = "cut_off", "the reply ends before its end"
    elif not (content or "").strip():
        code, text = ("refused", "the model refuses") if refusal else ("not_json", "the reply is empty")
    else:
        code, text = "", ""
    return Answer(content or "", code, text, prompt, reply)


def _count(usage: Any, name: str, estimate: int) -> int:
    value = usage.get(name) if isinstance(usage, dict) else None
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**40 else estimate


def _seconds(header: str | None) -> float | None:
    """What Retry-After says, as a number or a date."""
    if header is None:
        return None
    try:
        seconds = float(header)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(header).timestamp() - time.time()
        except (ValueError, TypeError, OverflowError):
            return None
    return min(max(seconds, 0.0), _LONGEST_WAIT) if seconds == seconds else None
