"""The screenshots of the docs, taken in headless Chromium: `python -m tools.screenshots app --out docs/app.png`.

Only drawn images are in them. `app` fills in an example of `sigma app` and generates it; `browse PLACE` opens a corpus,
a run or an evaluation. Each holds an `outline` of its page, which a test compares with the page as it is.
"""

from __future__ import annotations

import argparse
import io
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from PIL import Image, PngImagePlugin

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

from browser import Browser, find_chromium

LIMIT = 290_000
"""Bytes of a screenshot."""


def main() -> None:
    """Take one."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("app", "browse"))
    parser.add_argument("place", nargs="?", help="what browse opens")
    parser.add_argument("--page", default="", help="of browse, e.g. samples/0")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--example", type=int, default=1, help="which example of the app")
    parser.add_argument("--height", type=int, default=1060, help="of the picture, in pixels")
    options = parser.parse_args()
    program = find_chromium()
    if program is None:
        raise SystemExit("no Chromium here: apt-get install chromium")
    with tempfile.TemporaryDirectory() as folder, Browser(program) as page:
        words = ["app", "--out", f"{folder}/gallery"] if options.what == "app" else ["browse", options.place]
        server = subprocess.Popen(  # noqa: S603
            [sys.executable, "-m", "cli", *words, "--port", "0"], stderr=subprocess.PIPE, text=True
        )
        try:
            if options.what == "app":
                take_app(page, address(server), options.out, example=options.example, height=options.height)
            else:
                take_browse(page, address(server) + options.page, options.out, height=options.height)
        finally:
            server.terminate()
            server.wait()
    print(f"{options.out}: {options.out.stat().st_size:,} bytes")


OUTLINE = "outline"
"""The text chunk of a picture that says what the page shows."""
_OUTLINE = """[...document.querySelectorAll('h1, h2, button, label, figcaption, #state, #understood b')]
    .filter((one) => one.offsetParent && !one.closest('#sampling, [aria-hidden=true]'))
    .map((one) => one.innerText.replace(/[0-9.]+ s\\b/, 'N s').replace(/\\s+/g, ' ').trim())
    .filter((text) => text).join('\\n')"""


def take_app(page: Browser, where: str, out: Path, *, example: int = 1, height: int = 1060) -> str:
    """The app at an address with an example composed, as a picture; returns the page's outline, which is in it."""
    page.view(1200, height)
    page.open(where)
    compose(page, example)
    time.sleep(1)
    outline = str(page.run(_OUTLINE))
    page.screenshot(out)
    shrink(out, outline)
    return outline


_BROWSE_OUTLINE = """[...document.querySelectorAll('header.top a, label, form button, form a')]
    .map((one) => (one.firstChild?.nodeValue ?? one.innerText).replace(/\\s+/g, ' ').trim())
    .filter((text) => text).join('\\n')"""


def take_browse(page: Browser, where: str, out: Path, *, height: int = 900) -> str:
    """A page of `sigma browse` as a picture; returns its links and fields, which are in it."""
    page.view(1200, height)
    page.open(where)
    time.sleep(1)
    outline = str(page.run(_BROWSE_OUTLINE))
    page.screenshot(out)
    shrink(out, outline)
    return outline


def address(server: subprocess.Popen[str]) -> str:
    """Where the server says that it is."""
    assert server.stderr is not None
    for line in server.stderr:
        if found := re.search(r" is at (http://\S+)", line):
            return found[1]
    raise SystemExit("the server has ended")


def compose(page: Browser, example: int) -> None:
    """Fill in an example and generate it."""
    wait(page, "document.querySelector('#gallery .hint')")
    for _ in range(example):
        page.run("document.querySelector('#prompt textarea').value = ''")
        page.run("document.querySelector('#example button, button#example').click()")
        time.sleep(2)
    wait(page, "document.querySelectorAll('#references img').length > 0")
    page.run("document.querySelector('#generate').click()")
    wait(page, "document.querySelector('#result img')")
    page.run("window.scrollTo(0, 0)")


def wait(page: Browser, condition: str) -> None:
    """Until the page shows it, two minutes at most."""
    for _ in range(600):
        if page.run(f"!!({condition})"):
            return
        time.sleep(0.2)
    raise SystemExit(f"the page does not come to {condition}")


def shrink(path: Path, outline: str = "") -> None:
    """Fewer colours where it has too many bytes; the outline goes into it."""
    info = PngImagePlugin.PngInfo()
    if outline:
        info.add_itxt(OUTLINE, outline)
    with Image.open(path) as image:
        picture = image.convert("RGB")
    for colours in (None, 256, 128, 64):
        buffer = io.BytesIO()
        (picture if colours is None else picture.quantize(colours)).save(buffer, "PNG", optimize=True, pnginfo=info)
        if buffer.tell() <= LIMIT:
            break
    path.write_bytes(buffer.getvalue())


if __name__ == "__main__":
    main()
