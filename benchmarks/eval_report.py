"""A report of many samples: its size, and how fast it opens: python benchmarks/eval_report.py [--samples N].

The samples are synthetic and heavy on purpose: three references, a reference answer and two outputs each, all of
them stored apart and as costly as photographs (`--side` pixels), two runs, four metrics. Aims for 5,000 samples: the
file stays under 60 MB and opens in under 2 s. Opening is measured in headless Chromium, from the request until the
page is loaded and painted with its first samples, the median of three; without Chromium only the size is measured.
The exit code is 1 where an aim is missed. `--shots PREFIX` also saves what the page looks like.
"""

from __future__ import annotations

import argparse
import io
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from browser import Browser, find_chromium
from PIL import Image

from pipelines.evaluate.aggregate import MetricInfo, RunScores
from pipelines.evaluate.item import Item, Result, Score
from pipelines.evaluate.report.report import REPORT, write_report

LARGEST_BYTES = 60_000_000
LONGEST_SECONDS = 2.0

_FAMILIES = ("compositional", "selective", "stylization", "relation", "editing", "layout")
_METRICS = tuple(
    MetricInfo(name, "1", "up", f"Synthetic stand-in for {name}.") for name in ("CLIP", "CLIP-I", "DINO", "DreamSim")
)
_SETTINGS = {"seed": 42, "layout": "interleaved", "guidance": {"text": 4.0, "image": 2.0}}


class Pictures:
    """Pictures with structure at every scale, as costly to compress as photographs.

    There are few, since drawing them takes long; each is given out with bytes of its own, so none is kept once for
    all and every one is shrunk and stored.
    """

    def __init__(self, side: int) -> None:
        self._originals = [_draw(np.random.default_rng(number), side) for number in range(48)]
        self._given = 0

    def next(self) -> bytes:
        """Another picture, as JPEG."""
        self._given += 1
        return self._originals[self._given % len(self._originals)] + self._given.to_bytes(4)


def _draw(random: np.random.Generator, side: int) -> bytes:
    total = np.zeros((side, side, 3), dtype=np.float32)
    for cells, weight in ((4, 1.0), (12, 0.6), (40, 0.3), (side // 2, 0.12)):
        small = Image.fromarray(random.integers(0, 256, (cells, cells, 3), dtype=np.uint8))
        total += weight * np.asarray(small.resize((side, side), Image.Resampling.BICUBIC), dtype=np.float32)
    total = (total - total.min()) / (total.max() - total.min()) * 255
    buffer = io.BytesIO()
    Image.fromarray(total.astype(np.uint8)).save(buffer, "JPEG", quality=88)
    return buffer.getvalue()


def make_runs(samples: int, side: int) -> list[RunScores]:
    """Two runs over the same synthetic items; one sample in a hundred fails."""
    random, pictures = np.random.default_rng(1), Pictures(side)
    runs: list[tuple[list[Result], list[Score]]] = [([], []), ([], [])]
    for number in range(samples):
        item = Item(
            id=f"sample-{number:05d}",
            family=_FAMILIES[number % len(_FAMILIES)],
            instruction=f"Draw the <subject>thing {number} from <image_1> in the <style>style of <image_2>, "
            "with the <lighting>light of <image_3> falling from the upper left, in front of a quiet wall.",
            references=tuple(pictures.next() for _ in range(3)),
            answer=pictures.next(),
        )
        for level, (results, scores) in enumerate(runs):
            if random.random() < 0.01:
                results.append(Result(item, failure="the sampler gave numbers that are not finite"))
                continue
            results.append(Result(item, image=pictures.next()))
            scores += [
                Score(item.id, metric.name, float(random.normal(60 + 3 * level, 12))) for metric in _METRICS
            ]  # fmt: skip
    main = dict.fromkeys(_FAMILIES, "CLIP-I")
    return [
        RunScores(name, "sigma", _SETTINGS | {"steps": steps}, _METRICS, {"AES": "no weights"}, *made, main=main)
        for name, steps, made in zip(("untrained", "trained"), (25, 50), runs, strict=True)
    ]


def main() -> int:
    """Measure, print a table, and say by the exit code whether the aims are met."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=5000)
    parser.add_argument("--side", type=int, default=256, help="pixels of a side of every picture")
    parser.add_argument("--shots", help="save screenshots as PREFIX_desktop.png, PREFIX_phone.png, ...")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        runs = make_runs(options.samples, options.side)
        start = time.perf_counter()
        write_report(runs, Path(folder))
        seconds = time.perf_counter() - start
        size = (Path(folder) / REPORT).stat().st_size
        print(f"samples            {options.samples:>10,}   (six pictures each, {options.side} pixels)")
        print(f"written in         {seconds:>10.1f} s")
        print(f"report.html        {size / 1e6:>10.1f} MB  (aim: under {LARGEST_BYTES / 1e6:.0f})")
        good = size < LARGEST_BYTES
        program = find_chromium()
        if program is None:
            print("opens in             not measured: no Chromium here")
            return 0 if good else 1
        address = (Path(folder) / REPORT).as_uri()
        with Browser(program) as browser:
            browser.view(1280, 900)
            opened = statistics.median(browser.open(address) for _ in range(3))
            shown = browser.run("document.querySelectorAll('.card img').length")
            page = browser.run("performance.getEntriesByType('navigation')[0].loadEventEnd")
            print(f"opens in           {opened:>10.2f} s   (aim: under {LONGEST_SECONDS:.0f}; {shown} pictures drawn;")
            print(f"                                the page's own clock at load: {page / 1000:.2f} s)")
            if options.shots:
                shoot(browser, address, options.shots)
    return 0 if good and opened < LONGEST_SECONDS else 1


def shoot(browser: Browser, address: str, prefix: str) -> None:
    """Save how the page looks: top and samples, on a desktop and on a phone, light and dark."""
    looks = (("desktop", 1280, 1000, False, False), ("desktop_dark", 1280, 1000, True, False),
             ("phone", 390, 844, False, True), ("phone_dark", 390, 844, True, True))  # fmt: skip
    for name, width, height, dark, phone in looks:
        browser.view(width, height, dark=dark, phone=phone)
        browser.open(address)
        for part in ("top", "results", "comparison", "samples", "settings"):
            browser.run(
                f"scrollTo(0, 0); document.getElementById('{part}')?.scrollIntoView({{behavior: 'instant'}}); 0"
            )
            browser.run("new Promise((done) => setTimeout(done, 400))")
            browser.screenshot(Path(f"{prefix}_{name}_{part}.png"))


if __name__ == "__main__":
    sys.exit(main())
