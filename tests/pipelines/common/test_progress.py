"""Progress outside of a terminal: a plain line now and then, with the pace and the time that is left."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from support import image_files

from pipelines.common import progress, weights_progress
from pipelines.common.progress import ProgressBar
from pipelines.fingerprints.run import write_benchmark_fingerprints
from sigma_data.text_format import format_duration
from sigma_model.checkpoint_io import export_model, init_model, load_model
from sigma_model.config import preset


class Clock:
    """A clock that is put forward by hand."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr(progress.time, "monotonic", lambda: self.now)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> Clock:
    caplog.set_level(logging.INFO, logger="pipelines")
    return Clock(monkeypatch)


def test_a_line_every_ten_seconds_says_how_long_the_rest_takes(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    with ProgressBar("write", 1000, "samples", found=200) as shown:
        for _ in range(8):
            clock.now += 4
            shown.add(40)
    assert caplog.messages == [
        "write: 320 of 1,000 samples, 10 samples/s, 1 min 08 s left",
        "write: 440 of 1,000 samples, 10 samples/s, 56 s left",
        "write: 520 samples (200 of them by an earlier run) in 32.0 s, 10 samples/s",
    ]


def test_bytes_and_where_the_work_is_done_stand_in_the_line(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    with ProgressBar("scan", 100, "samples", at_work=lambda: "2 nodes, 5 tasks") as shown:
        clock.now += 10
        shown.moved(50 * 2**20)
        shown.add(50)
    assert caplog.messages == [
        "scan: 50 of 100 samples, 5 samples/s, 50.0 MiB at 5.0 MiB/s, 2 nodes, 5 tasks, 10 s left",
        "scan: 50 samples in 10.0 s, 5 samples/s, 50.0 MiB at 5.0 MiB/s",
    ]


def test_work_of_unknown_length_is_counted(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    with ProgressBar("read", None, "images") as shown:
        clock.now += 10
        shown.add(50)
    assert caplog.messages == ["read: 50 images, 5 images/s", "read: 50 images in 10.0 s, 5 images/s"]


@pytest.mark.parametrize(("unit", "told"), [("prompts", "1 prompt in"), ("MB", "1 MB in")])
def test_one_of_them_is_told_in_the_singular(
    unit: str, told: str, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    with ProgressBar("read", None, unit) as shown:
        shown.add()
    assert caplog.messages == [f"read: {told} 0.0 s"]


def test_a_terminal_gets_a_bar_with_the_time_that_is_left(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="pipelines")
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    for total in (10, None):
        with ProgressBar("write", total, "samples") as shown:
            shown.add(5)
    told = capsys.readouterr().err
    assert "5/10" in told and "samples" in told and "5/?" in told
    assert caplog.messages == []


@pytest.mark.parametrize(
    ("seconds", "said"), [(0.4, "0 s"), (59.6, "1 min 00 s"), (125, "2 min 05 s"), (7260, "2 h 01 min")]
)
def test_times(seconds: float, said: str) -> None:
    assert format_duration(seconds) == said


def test_large_weights_are_counted_to_the_byte_and_small_ones_are_not_told_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="pipelines")
    model = init_model(preset("tiny"), seed=0)
    size = sum(one.numel() for one in model.state_dict().values()) * 4
    with weights_progress.weights_progress("write", size):
        export_model(model, tmp_path, dtype=torch.float32)
    assert caplog.messages == []
    monkeypatch.setattr(weights_progress, "LARGE", 0)
    monkeypatch.setattr(weights_progress, "_MEGABYTE", 1)
    with weights_progress.weights_progress("read", size):
        load_model(tmp_path, dtype=torch.bfloat16)
    with weights_progress.weights_progress("write", size):
        export_model(model, tmp_path, dtype=torch.float32)
    assert [line.partition(" in ")[0] for line in caplog.messages] == [f"read: {size:,} MB", f"write: {size:,} MB"]


def test_fingerprints_count_images(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="pipelines")
    for number in range(3):
        (tmp_path / f"{number}.png").write_bytes(image_files.image_bytes("png", number))
    write_benchmark_fingerprints([str(tmp_path)], tmp_path / "prints.txt")
    assert caplog.messages[-1].startswith("read: 3 images in ")
