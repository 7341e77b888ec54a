"""Somebody's page of `sigma app` without a browser: gradio's own protocol, as its script in the page speaks it."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Self

import httpx

FIELDS: dict[str, Any] = {
    "prompt": "a red cup", "held": None, "answer": "Image", "model": "tiny-base", "other": "(no comparison)", "seed": 0,
    "steps": 2, "text_scale": 1.0, "image_scale": 1.0, "size": "", "group_mask": True, "max_tokens": 64,
    "temperature": 0.0, "cache": "none",
}  # fmt: skip
"""What the page sends with "Generate", in order; the server itself keeps which images are `held`."""


class AppClient:
    """A page with a session of its own."""

    def __init__(self, address: str) -> None:
        self._http = httpx.Client(base_url=address, timeout=300, trust_env=False)
        self._session = secrets.token_hex(6)
        self._open = ExitStack()
        self._told: Iterator[str] | None = None
        found = self._http.get("config").json()["dependencies"]
        self._functions = {one["api_name"]: one for one in found}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Leave the page."""
        self._open.close()
        self._http.close()

    def add(self, *images: tuple[str, bytes]) -> str:
        """Upload images by name; what the page shows of them."""
        files = [("files", (name, data, "image/png")) for name, data in images]
        paths = self._http.post("gradio_api/upload", files=files).raise_for_status().json()
        uploaded = [
            {"path": path, "orig_name": name, "meta": {"_type": "gradio.FileData"}}
            for path, (name, _) in zip(paths, images, strict=True)
        ]
        body = self._body("add", [uploaded, None])
        answer = self._http.post("gradio_api/run/predict", json=body).raise_for_status().json()
        return str(answer["data"][2])

    def begin(self, **fields: Any) -> None:
        """Press "Generate", with these fields filled in otherwise."""
        assert fields.keys() <= FIELDS.keys()
        body = self._body("generate", list({**FIELDS, **fields}.values()))
        self._http.post("gradio_api/queue/join", json=body).raise_for_status()

    def until(self, words: str) -> str:
        """Listen until something that the page is told has these words; that message.

        It goes on listening: a page that no longer does has been left, and what it asked for is stopped.
        """
        if self._told is None:
            stream = self._http.stream("GET", "gradio_api/queue/data", params={"session_hash": self._session})
            self._told = self._open.enter_context(stream).iter_lines()
        for line in self._told:
            if words in line:
                return line
        raise AssertionError(f"the page was never told of {words}")

    def made(self, **fields: Any) -> tuple[str, str]:
        """Generate; what the page says at its end of the state, and shows as the result."""
        self.begin(**fields)
        line = self.until('"process_completed"')
        self._open.close()
        self._told = None
        data = json.loads(line.removeprefix("data: "))["output"]["data"]
        return str(data[0]), str(data[2])

    def _body(self, function: str, data: list[Any]) -> dict[str, Any]:
        found = self._functions[function]
        return {
            "fn_index": found["id"],
            "data": data,
            "session_hash": self._session,
            "trigger_id": found["targets"][0][0],
        }
