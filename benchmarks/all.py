"""All targets in one table: python benchmarks/all.py [NAME ...] [--release DIR] [--times 2] [--write FILE].

Runs the benchmarks one after the other, all of them `--times` times over (but those of `ONCE`), and prints a table of
every target with the median of its figures. `--release` is a folder in the release's layout: loading and building are
then measured on its images, which are photographs, otherwise on drawn ones. With --write the table also replaces the
one between the markers in FILE (docs/performance.md), with date and machine. The exit code is 1 where a target is
missed or a benchmark fails. All of it takes some 25 minutes on two quiet cores.
"""

from __future__ import annotations

import argparse
import datetime
import io
import json
import os
import platform
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from processes import run_within
from targets import LINES, Target, shown

ROOT = Path(__file__).parent.parent
BEGIN, END = "<!-- targets: written by benchmarks/all.py -->", "<!-- /targets -->"
COMMANDS: dict[str, tuple[str, ...]] = {
    "build": ("build.py", "RELEASE", "--samples", "1500"),
    "corpus_plan": ("corpus_plan.py",),
    "packing": ("packing.py",),
    "loader": ("loader.py", "--source", "release:RELEASE", "--rounds", "2"),
    "sources": ("sources.py", "--repeats", "3"),
    "model": ("model.py", "--rounds", "5"),
    "omnigen2": ("omnigen2.py", "--steps", "4"),
    "train": ("train.py", "--rounds", "5"),
    "eval": ("eval.py",),
    "sampling_cache": ("sampling_cache.py", "CORPUS", "--arms", "taylor,tea"),
    "train_builds": ("train_builds.py", "OLD", "--steps", "120", "--rounds", "1"),
}
"""Benchmarks with targets. CORPUS stands for a corpus of the world that is built first, OLD for a working tree of
`OLD_COMMIT`, RELEASE for what `--release` names, without which its options are left out."""
ONCE = frozenset({"eval", "sampling_cache", "train_builds"})
"""Long ones, which take turns batch by batch, or whose figures do not vary."""
OLD_COMMIT = "a6f572d"
"""The build that `train_builds` compares with."""
LIMIT = 15 * 60
"""Seconds that a benchmark may take."""


def words_of(name: str, places: Mapping[str, str]) -> list[str]:
    """A benchmark's command with places for the words that stand for them; an option whose place is missing goes."""
    found: list[str] = []
    for word in COMMANDS[name][1:]:
        place = next((place for place in ("CORPUS", "OLD", "RELEASE") if place in word), None)
        if place is None:
            found.append(word)
        elif place in places:
            found.append(word.replace(place, places[place]))
        elif found and found[-1].startswith("--"):
            found.pop()
    return [str(ROOT / "benchmarks" / COMMANDS[name][0]), *found]


def run(name: str, lines: Path, places: Mapping[str, str]) -> str | None:
    """Run a benchmark, its targets appended to `lines`; why it did not end well, a missed target being no failure."""
    print(f"--- {name}", flush=True)
    begin = time.monotonic()
    env = {**os.environ, LINES: str(lines), "PYTHONPATH": str(ROOT)}
    done = run_within(LIMIT, [sys.executable, *words_of(name, places)], env, shown=True)
    if done is None:
        return f"not done after {LIMIT // 60} minutes"
    print(f"    {time.monotonic() - begin:.0f} s", flush=True)
    if done.returncode in (0, 1) and "Traceback" not in done.stderr:
        return None
    lines_said = done.stderr.strip().splitlines()
    return lines_said[-1] if lines_said else f"exit code {done.returncode}"


def medians(lines: Sequence[str]) -> list[Target]:
    """A target each, in the order in which they were first said, with the median of its figures."""
    found: dict[tuple[str, str], list[Target]] = {}
    for line in lines:
        target = Target(**json.loads(line))
        found.setdefault((target.what, target.against), []).append(target)
    targets = []
    for same in found.values():
        figures = [target.figure for target in same if target.figure is not None]
        last = same[-1]
        middle = statistics.median(figures) if figures else None
        targets.append(Target(last.what, last.against, middle, last.least, last.most, last.unit))
    return targets


def table(targets: Sequence[Target]) -> str:
    """The targets as Markdown."""
    rows = ["| what | against | target | figure | |", "|---|---|---|---:|---|"]
    rows += [
        f"| {t.what} | {t.against} | {t.goal()} | {shown(t.figure, t.unit)} | {'met' if t.met else 'MISSED'} |"
        for t in targets
    ]
    return "\n".join(rows)


def written(text: str, content: str) -> str:
    """A document with `content` between the markers. Raises ValueError where it has none."""
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise ValueError(f"has not the lines {BEGIN} and {END}, once each and in this order")
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}\n{content}\n{END}{rest.split(END)[1]}"


def machine() -> str:
    """The processor, its cores, and the versions that figures depend on."""
    try:
        names = [line.split(":", 1)[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()
                 if line.startswith("model name")]  # fmt: skip
    except OSError:
        names = []
    name = names[0] if names else platform.processor() or platform.machine()
    return f"{os.cpu_count()} cores of {name}, Python {platform.python_version()}, torch {torch.__version__}"


def prepared(folder: Path, names: Sequence[str], release: Path | None) -> dict[str, str]:
    """The places that commands name; OLD is missing where the history does not reach back so far."""
    places = {} if release is None else {"RELEASE": str(release)}
    wanted = {word for name in names for word in COMMANDS[name]}
    if "CORPUS" in wanted:
        places["CORPUS"] = str(folder / "corpus")
        build = ["build-dataset", "world:2000?size=64", "--out", places["CORPUS"]]
        subprocess.run([sys.executable, str(ROOT / "cli.py"), *build], check=True, capture_output=True)
    if "OLD" in wanted:
        archive = subprocess.run(["git", "-C", str(ROOT), "archive", OLD_COMMIT], capture_output=True)
        if not archive.returncode:
            with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as tree:
                tree.extraction_filter = getattr(tarfile, "data_filter", None)  # Python 3.11.4 and newer have it
                tree.extractall(folder / OLD_COMMIT)
            places["OLD"] = str(folder / OLD_COMMIT)
    return places


def main() -> int:
    """Run, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", choices=[[], *COMMANDS], default=[], help="default: all")
    parser.add_argument("--release", type=Path, help="photographs in the release's layout")
    parser.add_argument("--times", type=int, default=2)
    parser.add_argument("--write", type=Path)
    options = parser.parse_args()
    if options.write:
        try:
            written(options.write.read_text("utf-8"), "")
        except (OSError, ValueError) as error:
            parser.error(f"{options.write}: {error}")
    if options.release and not options.release.is_dir():
        parser.error(f"{options.release} is no folder")
    names = options.names or [*COMMANDS]
    failed: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        lines = Path(folder) / "lines"
        lines.touch()
        places = prepared(Path(folder), names, options.release)
        if "train_builds" in names and "OLD" not in places:
            names.remove("train_builds")
            failed["train_builds"] = f"this clone has no commit {OLD_COMMIT}: git fetch --unshallow"
        for number in range(options.times):
            for name in names:
                if number == 0 or name not in ONCE:
                    reason = run(name, lines, places)
                    failed |= {name: reason} if reason else {}
        targets = medians(lines.read_text("utf-8").splitlines())
    said = table(targets)
    print(f"\n{said}")
    for name, reason in failed.items():
        print(f"{name}: failed ({reason})")
    if options.write:
        today = datetime.datetime.now(tz=datetime.UTC).date().isoformat()
        runs = f"medians of {options.times} runs" if options.times > 1 else "one run"
        once = ", ".join(sorted(ONCE & set(names)))
        if options.times > 1 and once:
            runs += f" (one of {once}, which take turns batch by batch)"
        command = f"python benchmarks/all.py {' '.join(names)}" if options.names else "make bench"
        if options.release:
            command += " --release DIR" if options.names else " RELEASE=DIR"
        head = f"`{command}` on {today}, {runs}; {machine()}:"
        options.write.write_text(written(options.write.read_text("utf-8"), f"{head}\n\n{said}"), "utf-8")
    return int(bool(failed) or not all(target.met for target in targets))


if __name__ == "__main__":
    sys.exit(main())
