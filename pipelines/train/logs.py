"""What a run tells: figures of every step in a file, on TensorBoard and W&B where asked, and a line to watch.

The JSON lines are the record, and hold each step once, however often the run was resumed; the rest is a view of it.
Every line of figures has the same columns of the same types, so that whatever reads JSON lines reads them: null stands
for a figure that there is not, and for one that is not finite, which `non_finite` then names.
"""

from __future__ import annotations

import importlib
import importlib.util
import io
import json
import logging
import math
import re
import secrets
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pipelines.common.console import shows_progress
from pipelines.train.config import LogSettings
from pipelines.train.estimate.flops import Work
from pipelines.train.tensorboard_log import TensorBoardLog
from sigma_data.errors import ConfigError
from sigma_data.storage.files import append, disk_error, dump_line, write_atomic
from sigma_data.text_format import format_duration

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.live import Live

logger = logging.getLogger(__name__)

METRICS, TEXTS, IMAGES, TENSORBOARD, WANDB = "metrics.jsonl", "texts.jsonl", "images", "tensorboard", "wandb_id"
"""Files and folders in the folder of a run."""
NON_FINITE = "non_finite"
"""The column of metrics.jsonl that names the non-finite figures of a line, e.g. `loss nan, norm inf`; mostly empty."""

_WHOLE = frozenset({"step", "skipped", "epoch", "pack", "memory"})
"""Figures that are integers; all others are written with a decimal point, also where they happen to be whole."""

_PLAIN_INTERVAL = 10.0  # seconds between plain lines
_KINDS = ("text", "patch", "latent", "target")


class Meter:
    """Adds up what steps took on this rank; `figures` are rates over all ranks.

    `peak` is the device's most operations a second, None where it is not known.
    """

    _NAMES = ("seconds", "wait", "stall", "samples", "skipped_samples", "flops", *_KINDS)

    def __init__(self, peak: float | None) -> None:
        self._peak = peak
        self.clear()

    def clear(self) -> None:
        """Start anew."""
        self._totals = dict.fromkeys(self._NAMES, 0.0)

    def add(
        self,
        work: Work,
        *,
        seconds: float,
        wait: float = 0.0,
        stall: float = 0.0,
        samples: int = 0,
        skipped_samples: int = 0,
        flops: float = 0.0,
    ) -> None:
        """Count a step in: its seconds, and of them those spent waiting for data and for a checkpoint.

        `flops` are the model's, as `flops.training_flops` gives them first.
        """
        added = (seconds, wait, stall, samples, skipped_samples, flops, *(getattr(work, kind) for kind in _KINDS))
        for name, value in zip(self._NAMES, added, strict=True):
            self._totals[name] += value

    @property
    def names(self) -> list[str]:
        """The names of all figures that there are on this device."""
        return [
            name for name, value in self.figures(torch.zeros_like(self.totals), ranks=1).items() if value is not None
        ]

    @property
    def totals(self) -> Tensor:
        """[n] float64 on the CPU: to be summed over the ranks."""
        return torch.tensor(list(self._totals.values()), dtype=torch.float64)

    def figures(self, totals: Tensor, *, ranks: int) -> dict[str, float | None]:
        """Rates from `totals` summed over `ranks`.

        `tokens_per_second`, the same by kind, and `samples_per_second` are of all ranks together; `data_wait` and
        `checkpoint_stall` are shares of the time; `tflops` is 10^12 operations a second of a device, `mfu` its share
        of the peak, None where that is not known.
        """
        sums = dict(zip(self._NAMES, totals.tolist(), strict=True))
        seconds = max(sums["seconds"], 1e-9)
        each = ranks / seconds  # a step lasts as long on every rank
        rate = sums["flops"] / seconds
        return {
            "tokens_per_second": sum(sums[kind] for kind in _KINDS) * each,
            **{f"tokens_per_second/{kind}": sums[kind] * each for kind in _KINDS},
            "samples_per_second": sums["samples"] * each,
            "skipped_samples": sums["skipped_samples"],
            "data_wait": sums["wait"] / seconds,
            "checkpoint_stall": sums["stall"] / seconds,
            "tflops": rate / 1e12,
            "mfu": None if self._peak is None else rate / self._peak,
        }


class RunLog:
    """Writes down a run in `folder`; only rank 0 writes, the others may call it all the same.

    `total` steps are to be done, `resumed` of them are; what a run before this one wrote of later steps is removed.
    `columns` are the figures that there may be, so that the first line has them all; lines that an earlier run wrote
    are brought to the same. Raises ConfigError where W&B is asked for and not installed,
    BuildError here and in all methods where the disk refuses.
    """

    def __init__(
        self,
        folder: Path,
        settings: LogSettings,
        *,
        total: int,
        resumed: int = 0,
        rank: int = 0,
        columns: Sequence[str] = (),
    ) -> None:
        if settings.wandb is not None and importlib.util.find_spec("wandb") is None:
            raise ConfigError(
                "log.wandb: the wandb package is not installed: run `pip install wandb`, or set it to null"
            )
        self._folder = folder
        self._writes = rank == 0
        self._board: TensorBoardLog | None = None
        self._wandb: Any = None
        self._progress: TrainingProgress | None = None
        if not self._writes:
            return
        self._metrics, self._texts = folder / METRICS, folder / TEXTS
        with _disk(folder):
            folder.mkdir(parents=True, exist_ok=True)
            _rewrite(self._texts, _kept(self._texts, resumed))
            before = [{_today(name): value for name, value in line.items()} for line in _kept(self._metrics, resumed)]
            self._columns = list(dict.fromkeys([*columns, *(name for line in before for name in line)]))
            self._columns = [name for name in self._columns if name not in ("step", NON_FINITE)]
            _rewrite(self._metrics, [self._line(line) for line in before])
        if settings.tensorboard:
            self._board = TensorBoardLog(folder / TENSORBOARD, resumed)
        if settings.wandb is not None:
            self._wandb = _start_wandb(folder, settings.wandb)
        if shows_progress():
            self._progress = TrainingProgress(total, max(0, resumed))

    def step(self, step: int, figures: Mapping[str, float | None]) -> None:
        """Write the figures of a step; None is a figure that there is not. See `TrainingProgress` for names."""
        if not self._writes:
            return
        there = {name: value for name, value in figures.items() if value is not None}
        self._columns += [name for name in there if name not in self._columns]
        with _disk(self._metrics):
            append(self._metrics, dump_line(self._line({"step": step, **there})))
        if self._board is not None:
            for name, value in there.items():
                self._board.scalar(name, value, step)
        if self._wandb is not None:
            self._wandb.log(there, step=step)
        if self._progress is not None:
            self._progress.show(step, there)

    def images(self, step: int, name: str, images: Sequence[bytes]) -> None:
        """Keep images, PNG files, as images/STEP/NAME-1.png and so on."""
        if not self._writes:
            return
        folder = self._folder / IMAGES / f"{step:08d}"
        for number, data in enumerate(images, 1):
            with _disk(folder):
                folder.mkdir(parents=True, exist_ok=True)
                write_atomic(folder / f"{name}-{number}.png", data)
            if self._board is not None:
                self._board.image(f"{name}/{number}", _pixels(data), step)
        if self._wandb is not None:
            wandb = importlib.import_module("wandb")
            self._wandb.log({name: [wandb.Image(_pixels(data)) for data in images]}, step=step)

    def text(self, step: int, name: str, text: str) -> None:
        """Keep a text, as a line of texts.jsonl."""
        if not self._writes:
            return
        with _disk(self._texts):
            append(self._texts, dump_line({"step": step, "name": name, "text": text}))
        if self._board is not None:
            self._board.text(name, text, step)
        if self._wandb is not None:
            self._wandb.log({name: text}, step=step)

    def close(self) -> None:
        """Finish all files, and leave the last progress on the screen."""
        if not self._writes:
            return
        if self._board is not None:
            self._board.close()
        if self._wandb is not None:
            self._wandb.finish()
        if self._progress is not None:
            self._progress.close()

    def _line(self, figures: Mapping[str, Any]) -> dict[str, Any]:
        """A line of metrics.jsonl, with all columns. `figures` may be such a line, or one of an older version."""
        line: dict[str, Any] = {"step": int(figures["step"]), NON_FINITE: figures.get(NON_FINITE, "")}
        none = []
        for name in self._columns:
            number = _number(figures.get(name))
            if number is not None and not math.isfinite(number):
                none.append(f"{name} {number}")
                number = None
            line[name] = int(number) if number is not None and name in _WHOLE else number
        if none:
            line[NON_FINITE] = ", ".join(none)
        return line


class TrainingProgress:
    """Where a run is: two lines that change on a terminal, a plain line now and then elsewhere; on standard error.

    Of the figures it shows, if given, the losses `image` and `text`, `norm` (the gradient's),
    `tokens_per_second`, `mfu`, `data_wait`, `memory` (bytes), and `skipped` (steps).
    """

    def __init__(self, total: int, resumed: int) -> None:
        self._total = total
        self._step = resumed
        self._figures: Mapping[str, float] = {}
        self._last = self._said = time.monotonic()
        self._pace = 0.0  # seconds a step, of late
        self._live: Live | None = None
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.live import Live

            self._live = Live(console=Console(stderr=True), get_renderable=self._render, refresh_per_second=4)
            self._live.start()

    def show(self, step: int, figures: Mapping[str, float]) -> None:
        """Take note of a step; drawing is another thread's work."""
        now = time.monotonic()
        if step > self._step:
            took = (now - self._last) / (step - self._step)
            self._pace = took if not self._pace else 0.95 * self._pace + 0.05 * took
        self._step, self._last = step, now
        self._figures = {**self._figures, **figures}  # figures of a validation stand beside those of the step
        if self._live is None and now - self._said >= _PLAIN_INTERVAL:
            self._said = now
            self._line()

    def close(self) -> None:
        """Show the last step, and stop."""
        if self._live is not None:
            self._live.stop()
        else:
            self._line()

    def _line(self) -> None:
        logger.info(f"train: {' · '.join([self._where(), *self._parts()])}")

    def _where(self) -> str:
        left = self._pace * (self._total - self._step)
        return f"step {self._step:,} of {self._total:,}" + (f", {format_duration(left)} left" if left else "")

    def _parts(self) -> list[str]:
        formats = {
            "image": "image {:.4f}",
            "text": "text {:.4f}",
            "norm": "norm {:.3g}",
            "tokens_per_second": "{:,.0f} tokens/s",
            "mfu": "MFU {:.1%}",
            "data_wait": "waits {:.1%} for data",
        }
        parts = [form.format(self._figures[name]) for name, form in formats.items() if name in self._figures]
        if memory := self._figures.get("memory"):
            parts.append(f"{memory / 2**30:.1f} GiB")
        if skipped := self._figures.get("skipped"):
            parts.append(f"{skipped:.0f} skipped")
        return parts

    def _render(self) -> RenderableType:
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        head = Table.grid(padding=(0, 1))
        head.add_row("train", ProgressBar(self._total, self._step, width=40), Text(self._where(), style="bold"))
        return Group(head, Text(" · ".join(self._parts()), style="dim", no_wrap=True, overflow="ellipsis"))


def _number(value: Any) -> float | None:
    """A figure; older versions wrote those that are not finite as text."""
    try:
        return None if value is None else float(value)
    except (TypeError, ValueError):
        return None


def _kept(path: Path, resumed: int) -> list[dict[str, Any]]:
    """The lines of a file, without those of steps behind `resumed` and half a line of a killed run."""
    found = []
    for line in path.read_bytes().splitlines(keepends=True) if path.exists() else ():
        try:
            values = json.loads(line)
            if line.endswith(b"\n") and int(values["step"]) <= resumed:
                found.append(values)
        except (ValueError, LookupError, TypeError):
            continue
    return found


def _today(name: str) -> str:
    """The name that a figure of an older version has now: the image loss was called `picture`."""
    return re.sub(r"^(|val/|val_ema/)picture(?=/|$)", r"\1image", name)


def _rewrite(path: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    """Leave these lines in a file, and the file alone where it has them already."""
    text = "".join(map(dump_line, lines)).encode()
    if not path.exists() or path.read_bytes() != text:
        write_atomic(path, text)


@contextmanager
def _disk(path: Path) -> Iterator[None]:
    """What the disk refuses, as a BuildError."""
    try:
        yield
    except OSError as error:
        raise disk_error(error, path, option="out=") from None


def _start_wandb(folder: Path, project: str) -> Any:
    wandb = importlib.import_module("wandb")
    kept = folder / WANDB
    if not kept.exists():  # a resumed run goes on under the same name
        with _disk(kept):
            write_atomic(kept, secrets.token_hex(4))  # 8 characters, as theirs
    return wandb.init(project=project, name=folder.name, dir=str(folder), id=kept.read_text().strip(), resume="allow")


def _pixels(data: bytes) -> Any:
    """[h, w, 3] bytes of a PNG file."""
    import numpy as np
    from PIL import Image

    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB"))
