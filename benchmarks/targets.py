"""What a benchmark aims at: said on the terminal, and kept for the table of `make bench` (benchmarks/all.py)."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

LINES = "SIGMA_BENCHMARK_LINES"
"""The environment variable that names a file to which every target is appended, a JSON object a line."""


@dataclass(frozen=True)
class Target:
    """A figure and what it should be: at least `least`, or at most `most`."""

    what: str
    against: str
    """What it is a ratio to; empty for a figure that stands alone."""
    figure: float | None
    """None where it could not be measured, which misses the target."""
    least: float | None = None
    most: float | None = None
    unit: str = ""

    @property
    def met(self) -> bool:
        """Whether the figure is measured, and on the right side."""
        if self.figure is None:
            return False
        return (self.least is None or self.figure >= self.least) and (self.most is None or self.figure <= self.most)

    def goal(self) -> str:
        """The target in words."""
        parts = [f"at least {shown(self.least, self.unit)}"] if self.least is not None else []
        parts += [f"at most {shown(self.most, self.unit)}"] if self.most is not None else []
        return ", ".join(parts)


def shown(figure: float | None, unit: str) -> str:
    """A figure for people: three digits that say something, whole from a hundred on."""
    if figure is None:
        return "not measured"
    size = abs(figure)
    digits = 0 if size >= 100 or size == 0 else 1 if size >= 20 else 2 if size >= 0.1 else 4
    space = "" if unit in {"", "%"} else " "
    return f"{figure:,.{digits}f}{space}{unit}"


def check(
    what: str, against: str, figure: float | None, *, least: float | None = None, most: float | None = None,
    unit: str = "",
) -> bool:  # fmt: skip
    """Say a target and whether it is met, keep it for the table, and return whether it is met."""
    target = Target(what, against, figure, least, most, unit)
    beside = f" against {against}" if against else ""
    verdict = "met" if target.met else "MISSED"
    print(f"  {what}{beside}: {shown(figure, unit)} (target {target.goal()}): {verdict}", flush=True)
    path = os.environ.get(LINES)
    if path:
        with Path(path).open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(target)) + "\n")
    return target.met
