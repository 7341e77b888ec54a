"""The pages of a training run: losses by noise level, token and family, images over steps, answers, settings."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from pipelines.browse.site import Answer, NotFoundError, image_answer, own_file, page_of, render
from sigma_data.errors import ConfigError
from sigma_data.token_style import TOKEN_COLOURS, printable

METRICS, IMAGES, TEXTS, CONFIG = "metrics.jsonl", "images", "texts.jsonl", "config.yaml"
_POINTS, _POINTS_OF_MANY = 300, 40
"""Of a line; where many cross, each point is the mean of a longer stretch."""
_MANY = 4
_STEPS = 12
_STEP = re.compile(r"[0-9]{8}")
_IMAGE = re.compile(r"[A-Za-z0-9_.-]{1,200}\.png")
_COLOURS = (
    "#1d6fd6",
    "#ca4604",
    "#0d851d",
    "#a93ae8",
    "#ba004f",
    "#0d8096",
    "#857427",
    "#5941f2",
    "#874c38",
    "#60597e",
)
_CHARTS = (
    ("Loss", re.compile(r"(?:loss|image|text|(?:val|val_ema)/(?:image|text))")),
    ("Image loss by noise level (0.9: nearly noise)", re.compile(r"image/level_(.+)")),
    ("Image loss by attribute token", re.compile(r"image/token_(.+)")),
    ("Image loss by family", re.compile(r"image/(?!level_|token_)(.+)")),
    ("Held-out image loss by noise level", re.compile(r"val/image/level_(.+)")),
    ("Held-out image loss by attribute token", re.compile(r"val/image/token_(.+)")),
    ("Held-out image loss by family", re.compile(r"val/image/(?!level_|token_)(.+)")),
    ("Text loss by family", re.compile(r"text/(.+)")),
    ("Gradient norm", re.compile(r"norm")),
    ("Tokens a second", re.compile(r"tokens_per_second")),
)  # fmt: skip


@dataclass(frozen=True)
class Line:
    """A figure over the steps, as points of an SVG; `value` is its last."""

    name: str
    colour: str
    points: str
    value: str


class RunSite:
    """A run's folder, read anew for every page: it may still be training."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def answer(self, path: Sequence[str], query: Mapping[str, str]) -> Answer:
        """See `Site`."""
        match path:
            case []:
                return self._page(query)
            case ["step", step, name] if _STEP.fullmatch(step) and _IMAGE.fullmatch(name):
                return self._image(step, name)
            case _:
                raise NotFoundError

    def _image(self, step: str, name: str) -> Answer:
        try:
            return image_answer(own_file(self._folder, f"{IMAGES}/{step}/{name}"))
        except OSError:
            raise NotFoundError from None

    def _page(self, query: Mapping[str, str]) -> Answer:
        lines = list(_lines(self._folder / METRICS))
        series = _series(lines)
        folders = sorted(
            (one.name for one in _listed(self._folder / IMAGES) if _STEP.fullmatch(one.name)), reverse=True
        )
        at = page_of(len(folders), query, "/", _STEPS)
        steps = []
        for step in folders[at.first : at.first + _STEPS]:
            names = {one.name for one in _listed(self._folder / IMAGES / step) if _IMAGE.fullmatch(one.name)}
            steps.append({"step": step, "files": names})
        texts = [
            {"step": one.get("step"), "name": printable(str(one.get("name"))), "text": printable(str(one.get("text")))}
            for one in list(_lines(self._folder / TEXTS))[-30:]
        ]
        last = lines[-1]["step"] if lines else 0
        return render(
            "run.html.j2",
            title=f"Run {printable(self._folder.resolve().name)}",
            links=[("Run", "/")],
            said=f"{last:,} steps are written down; this page is read anew when it is loaded",
            charts=[chart for title, names in _CHARTS if (chart := _chart(title, names, series)) is not None],
            steps=steps,
            names=sorted({name for step in steps for name in step["files"]}),
            at=at,
            texts=texts[::-1],
            config=_text(self._folder / CONFIG),
        )


def _listed(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError:
        return []


def _text(path: Path) -> str:
    try:
        return printable(path.read_text("utf-8", "replace")[:40_000])
    except OSError:
        return ""


def _lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a JSON lines file that are whole. Raises ConfigError where it cannot be read."""
    found = []
    try:
        with path.open("rb") as file:
            for line in file:
                try:
                    value = json.loads(line)
                except (ValueError, RecursionError):  # half a line of a run at work, or of a killed one
                    continue
                if isinstance(value, dict) and isinstance(value.get("step"), int):
                    found.append(value)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror or error})") from None
    return found


def _series(lines: Sequence[Mapping[str, Any]]) -> dict[str, list[tuple[int, float]]]:
    """Figure -> its (step, value), without those that there are not."""
    series: dict[str, list[tuple[int, float]]] = {}
    for line in lines:
        for name, value in line.items():
            if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
                series.setdefault(name, []).append((line["step"], float(value)))
    return series


def _chart(title: str, names: re.Pattern[str], series: Mapping[str, list[tuple[int, float]]]) -> dict[str, Any] | None:
    chosen: dict[str, list[tuple[int, float]]] = {}
    for name, points in series.items():
        if (found := names.fullmatch(name)) is not None:
            chosen[found[1] if found.re.groups else name] = points
    if not chosen:
        return None
    last = max(points[-1][0] for points in chosen.values())
    width = max(1, -(-last // (_POINTS if len(chosen) <= _MANY else _POINTS_OF_MANY)))
    chosen = {name: _thinned(points, width) for name, points in chosen.items()}
    every = [point for points in chosen.values() for point in points]
    first, last = min(step for step, _ in every), max(step for step, _ in every)
    low, high = min(value for _, value in every), max(value for _, value in every)
    low = min(0.0, low)
    high = high if high > low else low + 1

    def place(step: int, value: float) -> str:
        across = (step - first) / (last - first) if last > first else 0.5
        return f"{50 + 840 * across:.1f},{200 - 190 * (value - low) / (high - low):.1f}"

    lines = [
        Line(
            printable(name),
            TOKEN_COLOURS.get(name) or _COLOURS[index % len(_COLOURS)],
            " ".join(place(*point) for point in points),
            f"{points[-1][1]:.4g}",
        )
        for index, (name, points) in enumerate(sorted(chosen.items()))
    ]
    ticks = [{"y": 200 - 95 * part, "text": f"{low + (high - low) * part / 2:.3g}"} for part in range(3)]
    return {"title": title, "lines": lines, "ticks": ticks, "first": first, "last": last}


def _thinned(points: Sequence[tuple[int, float]], width: int) -> list[tuple[int, float]]:
    """A point for each stretch of `width` steps: the mean of what is there, at the last step of it."""
    stretches = (list(stretch) for _, stretch in groupby(points, lambda point: point[0] // width))
    return [(one[-1][0], sum(value for _, value in one) / len(one)) for one in stretches]
