"""What tests do in a page, in words: wait until it shows something, click, upload."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from support.places import BENCHMARKS

sys.path.insert(0, str(BENCHMARKS))

from browser import Browser, find_chromium  # lies beside the measurement that uses it as well

NEEDS_CHROMIUM = [
    pytest.mark.slow,
    pytest.mark.skipif(find_chromium() is None and "CI" not in os.environ, reason="no Chromium on this machine"),
]
"""Skipped where there is no browser, but in CI it must be there."""


def open_browser() -> Browser:
    program = find_chromium()
    assert program is not None, "CI runs these tests: .ci/run installs Chromium"
    return Browser(program)


def until(page: Browser, condition: str) -> Any:
    """The value of a condition once it holds: looked at whenever the page has drawn."""
    return page.run(f"""new Promise((done, fail) => {{ const start = Date.now(); (function look() {{
        const value = {condition};
        if (value) done(value); else if (Date.now() - start > 60000) fail({json.dumps(condition)});
        else setTimeout(look, 40); }})(); }})""")


def after_navigation(page: Browser, condition: str) -> None:
    """Wait for a condition on the page that a click or a key leads to."""
    for _ in range(2000):
        with contextlib.suppress(RuntimeError):  # the page has just gone
            if page.run(f"new Promise((done) => setTimeout(() => done(!!({condition})), 30))"):
                return
    raise AssertionError(condition)


def click(page: Browser, selector: str) -> None:
    page.run(f"document.querySelector({json.dumps(selector)}).click()")


def text(page: Browser, selector: str) -> str:
    return str(page.run(f"document.querySelector({json.dumps(selector)}).innerText"))


def upload(page: Browser, selector: str, files: Sequence[Path]) -> None:
    root = page.call("DOM.getDocument")["root"]["nodeId"]
    node = page.call("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
    page.call("DOM.setFileInputFiles", nodeId=node, files=[str(path) for path in files])


def type_into(page: Browser, selector: str, words: str) -> None:
    """Replace what a field holds, as somebody who types does."""
    page.run(f"{{ const box = document.querySelector({json.dumps(selector)}); box.focus(); box.select(); }}")
    page.call("Input.insertText", text=words)


def hosts(page: Browser) -> set[str]:
    """Where the page's requests went, without what it holds itself."""
    return {place.split("/")[2] for place in page.requests if not place.startswith(("data:", "blob:", "about:"))}


UNLABELLED = """[...document.querySelectorAll('button, input, select, textarea, a[href], img, progress')].filter((one) =>
    one.offsetParent && !one.hasAttribute('alt') && !(one.getAttribute('aria-label') || one.title || one.innerText.trim() || one.querySelector('img[alt]')
        || [...one.labels || []].some((label) => label.innerText.trim())
        || (one.getAttribute('aria-labelledby') || '').split(' ').some((id) => document.getElementById(id)))
    ).map((one) => one.outerHTML.slice(0, 160))"""
"""Whatever a screen reader could not name."""
