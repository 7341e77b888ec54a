"""What a run tells: each step once however often it was resumed, rates over all ranks, a line that costs nothing."""

from __future__ import annotations

import importlib.util
import io
import json
import logging
import re
import sys
import time
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from support.image_files import plain

from pipelines.train import logs
from pipelines.train.config import LogSettings
from pipelines.train.estimate.flops import Work
from pipelines.train.logs import IMAGES, METRICS, TENSORBOARD, TEXTS, Meter, RunLog, TrainingProgress
from sigma_data.errors import ConfigError

PLAIN = LogSettings(tensorboard=False)


def opened(folder: Path, settings: LogSettings = PLAIN, **given: Any) -> RunLog:
    return RunLog(folder, settings, **{"total": 100, **given})


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


# The record -----------------------------------------------------------------------------------------


def test_a_step_is_in_the_file_as_soon_as_it_is_logged(tmp_path: Path) -> None:
    log = opened(tmp_path)
    log.step(1, {"image": 0.5, "mfu": None})
    assert lines(tmp_path / METRICS) == [{"step": 1, "non_finite": "", "image": 0.5}]
    log.close()


def test_a_resumed_run_has_each_step_once_and_no_half_line(tmp_path: Path) -> None:
    log = opened(tmp_path)
    for step in range(1, 8):
        log.step(step, {"image": float(step)})
    log.text(2, "answer", "a cat")
    log.text(6, "answer", "a dög\u2028 on two lines")
    log.close()
    with (tmp_path / METRICS).open("a") as file:
        file.write('{"step": 3, "pic')  # killed while writing
    log = opened(tmp_path, resumed=4)
    log.step(5, {"image": 50.0})
    log.close()
    assert [line["step"] for line in lines(tmp_path / METRICS)] == [1, 2, 3, 4, 5]
    assert lines(tmp_path / METRICS)[-1]["image"] == 50.0
    assert [json.loads(line)["text"] for line in (tmp_path / TEXTS).read_text().splitlines() if line] == ["a cat"]


def test_lines_are_json_also_where_a_figure_is_no_number(tmp_path: Path) -> None:
    log = opened(tmp_path)
    log.step(1, {"norm": float("nan"), "loss": float("inf")})
    log.close()

    def refuse(name: str) -> None:
        raise AssertionError(name)

    found = json.loads((tmp_path / METRICS).read_text(), parse_constant=refuse)
    assert found == {"step": 1, "non_finite": "norm nan, loss inf", "norm": None, "loss": None}


def test_other_ranks_write_nothing(tmp_path: Path) -> None:
    log = opened(tmp_path / "run", rank=1)
    log.step(1, {"image": 1.0})
    log.text(1, "answer", "a")
    log.images(1, "sample", [plain(4, 3, "red")])
    log.close()
    assert not (tmp_path / "run").exists()


def test_pictures_are_kept_byte_for_byte(tmp_path: Path) -> None:
    log = opened(tmp_path)
    log.images(12, "sample", [plain(4, 3, "red"), plain(4, 3, "blue")])
    log.close()
    folder = tmp_path / IMAGES / "00000012"
    assert (folder / "sample-1.png").read_bytes() == plain(4, 3, "red")
    assert (folder / "sample-2.png").read_bytes() == plain(4, 3, "blue")


# TensorBoard and W&B --------------------------------------------------------------------------------


class TensorBoardLog:
    """Stands in for the writer of TensorBoard."""

    def __init__(self, folder: str, purge_step: int) -> None:
        self.folder, self.purge_step = folder, purge_step
        self.scalars: list[tuple[str, float, int]] = []
        self.pictures: list[tuple[str, tuple[int, ...]]] = []
        self.texts: list[str] = []
        self.closed = False

    def add_scalar(self, name: str, value: float, step: int) -> None:
        self.scalars.append((name, value, step))

    def add_image(self, name: str, pixels: Any, step: int, dataformats: str) -> None:
        assert dataformats == "HWC"
        self.pictures.append((name, pixels.shape))

    def add_text(self, name: str, text: str, step: int) -> None:
        self.texts.append(text)

    def close(self) -> None:
        self.closed = True


def test_tensorboard_gets_what_the_file_gets_and_drops_steps_behind_the_resumed_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[TensorBoardLog] = []

    def make(folder: str, purge_step: int) -> TensorBoardLog:
        made.append(TensorBoardLog(folder, purge_step))
        return made[0]

    module = types.ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = make  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    log = opened(tmp_path, LogSettings(tensorboard=True), resumed=7)
    log.step(8, {"image": 0.5, "mfu": None})
    log.images(8, "sample", [plain(4, 3, "red")])
    log.text(8, "answer", "a cat")
    log.close()
    board = made[0]
    assert (board.folder, board.purge_step) == (str(tmp_path / TENSORBOARD), 8)
    assert board.scalars == [("image", 0.5, 8)]
    assert board.pictures == [("sample/1", (3, 4, 3))]
    assert board.texts == ["a cat"]
    assert board.closed


@pytest.mark.skipif(importlib.util.find_spec("tensorboard") is None, reason="tensorboard is not installed")
def test_tensorboard_reads_what_was_written(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = opened(tmp_path, LogSettings(tensorboard=True))
    log.step(3, {"image": 0.25})
    row = [plain(4, 3, "red"), plain(5, 3, "blue")]
    log.images(3, "sample", row)
    log.text(3, "answer", "a cat")
    log.close()
    events = EventAccumulator(str(tmp_path / TENSORBOARD))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("image")] == [(3, 0.25)]
    assert sorted(events.Tags()["images"]) == ["sample/1", "sample/2"]
    for number, data in enumerate(row, 1):
        [event] = events.Images(f"sample/{number}")
        assert event.step == 3
        with Image.open(io.BytesIO(event.encoded_image_string)) as read, Image.open(io.BytesIO(data)) as wanted:
            assert read.size == wanted.size and read.convert("RGB").tobytes() == wanted.tobytes()


def test_without_tensorboard_one_line_says_how_to_get_it_and_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    log = opened(tmp_path, LogSettings(tensorboard=True))
    log.step(1, {"image": 1.0})
    log.step(2, {"image": 1.0})
    log.close()
    assert len(caplog.messages) == 1 and "pip install tensorboard" in caplog.text
    assert len(lines(tmp_path / METRICS)) == 2


@pytest.mark.parametrize("rank", [0, 1])
def test_w_and_b_asked_for_and_not_there_is_said_at_once_on_every_rank(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rank: int
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="pip install wandb"):
        opened(tmp_path / "run", LogSettings(tensorboard=False, wandb="project"), rank=rank)
    assert not (tmp_path / "run").exists()


def test_a_resumed_run_goes_on_in_the_same_w_and_b_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[dict[str, Any]] = []
    logged: list[tuple[Mapping[str, Any], int]] = []

    class Wandb(types.ModuleType):
        Image = staticmethod(lambda pixels: pixels.shape)

        @staticmethod
        def init(**given: Any) -> Any:
            started.append(given)
            return types.SimpleNamespace(
                log=lambda values, step: logged.append((dict(values), step)), finish=lambda: started.append({})
            )

    fake = Wandb("wandb")
    fake.__spec__ = importlib.util.spec_from_loader("wandb", loader=None)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    for resumed in (0, 1):
        log = opened(tmp_path, LogSettings(tensorboard=False, wandb="project"), resumed=resumed)
        log.step(resumed + 1, {"image": 1.0, "mfu": None})
        log.images(resumed + 1, "sample", [plain(4, 3, "red")])
        log.close()
    assert started[0]["id"] == started[2]["id"]
    assert re.fullmatch("[0-9a-f]{8}", started[0]["id"]), "wandb 0.31 has no public maker of ids, so it is ours"
    assert started[0]["project"] == "project"
    assert started[1] == {}
    assert logged[:2] == [({"image": 1.0}, 1), ({"sample": [(3, 4, 3)]}, 1)]


# Progress -------------------------------------------------------------------------------------------


FIGURES = {
    "image": 0.3125, "text": 1.5, "norm": 0.8, "tokens_per_second": 12345.0, "mfu": 0.41, "data_wait": 0.003,
    "memory": 61.5 * 2**30, "skipped": 2.0,
}  # fmt: skip


class Clock:
    """A clock that is put forward by hand."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr(logs.time, "monotonic", lambda: self.now)


def test_a_plain_line_comes_every_ten_seconds_and_at_the_end(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    clock = Clock(monkeypatch)
    progress = TrainingProgress(100, 0)
    for step in range(1, 26):
        clock.now += 1
        progress.show(step, FIGURES)
    progress.close()
    written = caplog.messages
    assert [line.split(" of ")[0] for line in written] == ["train: step 10", "train: step 20", "train: step 25"]
    assert written[0] == (
        "train: step 10 of 100, 1 min 30 s left · image 0.3125 · text 1.5000 · norm 0.8 · 12,345 tokens/s · "
        "MFU 41.0% · waits 0.3% for data · 61.5 GiB · 2 skipped"
    )


def test_what_is_not_known_is_not_shown(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    progress = TrainingProgress(5, 0)
    progress.show(5, {"image": 0.5, "skipped": 0.0})
    progress.close()
    written = caplog.text
    assert "image 0.5000" in written
    assert not any(word in written for word in ("MFU", "text", "GiB", "skipped", "left"))


def test_time_left_counts_from_where_the_run_was_resumed_and_leaves_validation_out(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    clock = Clock(monkeypatch)
    progress = TrainingProgress(1000, 900)
    clock.now += 2
    progress.show(901, FIGURES)
    clock.now += 500
    progress.show(901, {"val/image": 0.1})
    clock.now += 2
    progress.show(902, FIGURES)
    progress.close()
    assert "step 902 of 1,000, 3 min 16 s left" in caplog.text


def test_a_terminal_shows_two_lines_that_hold_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    from rich.console import Console

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("TERM", "xterm-256color")
    progress = TrainingProgress(1000, 0)
    progress.show(10, FIGURES)
    progress.close()
    console = Console(file=io.StringIO(), width=200, force_terminal=False)
    console.print(progress._render())
    shown = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert len(shown) == 2
    assert "step 10 of 1,000" in shown[0]
    assert "MFU 41.0%" in shown[1]
    assert "step 10 of 1,000" in screen.getvalue()


def test_a_run_shows_nothing_unless_messages_are_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = opened(tmp_path)
    log.step(1, FIGURES)
    log.close()
    assert capsys.readouterr().err == ""


def test_logging_a_step_takes_less_than_a_millisecond(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    log = opened(tmp_path)
    figures = FIGURES | {f"image/{number}": 0.5 for number in range(60)}
    took = []
    for step in range(1, 50):
        begin = time.perf_counter()
        log.step(step, figures)
        took.append(time.perf_counter() - begin)
    log.close()
    assert sorted(took)[len(took) // 2] < 1e-3


# Meter ----------------------------------------------------------------------------------------------


def test_rates_are_of_all_ranks_together_and_shares_of_the_time() -> None:
    meters = [Meter(peak=1e12), Meter(peak=1e12)]
    for meter, seconds in zip(meters, (2.0, 2.0), strict=True):
        work = Work(text=10, patch=20, latent=30, target=40)
        meter.add(work, seconds=seconds, wait=0.5, stall=0.25, samples=3, skipped_samples=1, flops=8e11)
        meter.add(work, seconds=seconds, samples=5)
    found = meters[0].figures(meters[0].totals + meters[1].totals, ranks=2)
    assert found["tokens_per_second"] == pytest.approx(100)  # 400 tokens in four seconds
    assert found["tokens_per_second/target"] == pytest.approx(40)
    assert found["samples_per_second"] == pytest.approx(4)
    assert found["skipped_samples"] == 2
    assert found["data_wait"] == pytest.approx(1 / 8)
    assert found["checkpoint_stall"] == pytest.approx(1 / 16)
    assert found["tflops"] == pytest.approx(0.2)
    assert found["mfu"] == pytest.approx(0.2)


def test_there_is_no_utilisation_of_an_unknown_device() -> None:
    meter = Meter(peak=None)
    meter.add(Work(text=1), seconds=1.0, flops=1e9)
    assert meter.figures(meter.totals, ranks=1)["mfu"] is None


def test_a_cleared_meter_starts_anew() -> None:
    meter = Meter(peak=None)
    meter.add(Work(text=5), seconds=1.0)
    meter.clear()
    meter.add(Work(text=7), seconds=1.0)
    assert meter.figures(meter.totals, ranks=1)["tokens_per_second"] == pytest.approx(7)
