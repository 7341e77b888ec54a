"""Messages and progress go to standard error where a command asks for them, and only there."""

from __future__ import annotations

import io
import logging
import sys

import pytest

from pipelines.common import console
from pipelines.common.console import message_level, show_messages, shows_progress, warnings_only
from pipelines.common.progress import ProgressBar


@pytest.fixture(autouse=True)
def _as_before() -> None:
    """No command has taken the loggers yet; conftest gives them back."""
    for logger in console._LOGGERS:
        logger.setLevel(logging.NOTSET)
        logger.handlers.clear()
        logger.propagate = True


def _work() -> None:
    with ProgressBar("scan", 3, "samples") as progress:
        progress.add(3)
    logging.getLogger("sigma_data.corpus").info("a message")
    logging.getLogger("sigma_model").warning("a warning")


def test_a_library_says_nothing_below_a_warning_by_itself(capsys: pytest.CaptureFixture[str]) -> None:
    _work()
    assert "samples" not in capsys.readouterr().err
    assert message_level() == logging.WARNING


def test_messages_and_progress_are_shown_as_they_are_and_once(capsys: pytest.CaptureFixture[str]) -> None:
    show_messages(logging.INFO)
    show_messages(logging.INFO)
    _work()
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition(" in ")[0] for line in lines] == ["scan: 3 samples", "a message", "a warning"]
    assert message_level() == logging.INFO


@pytest.mark.parametrize("first", [True, False])
def test_a_handler_that_a_library_adds_to_the_root_logger_prints_nothing_again(
    capsys: pytest.CaptureFixture[str], first: bool
) -> None:
    added = logging.StreamHandler(sys.stderr)  # wandb adds one when it begins, in the middle of a run
    root = logging.getLogger()
    if not first:
        show_messages(logging.INFO)
    root.addHandler(added)
    try:
        show_messages(logging.INFO)
        _work()
    finally:
        root.removeHandler(added)
    assert len(capsys.readouterr().err.splitlines()) == 3


def test_in_a_program_of_ones_own_the_root_logger_gets_what_is_said() -> None:
    told = io.StringIO()
    added = logging.StreamHandler(told)
    logging.getLogger().addHandler(added)
    try:
        logging.getLogger("sigma_model").warning("a warning")
    finally:
        logging.getLogger().removeHandler(added)
    assert told.getvalue() == "a warning\n"


def test_at_the_level_of_warnings_progress_is_hidden(capsys: pytest.CaptureFixture[str]) -> None:
    show_messages(logging.WARNING)
    _work()
    assert capsys.readouterr().err == "a warning\n"


def test_a_pipeline_within_another_shows_warnings_only(capsys: pytest.CaptureFixture[str]) -> None:
    show_messages(logging.INFO)
    with warnings_only():
        assert not shows_progress()
        _work()
    assert shows_progress()
    assert capsys.readouterr().err == "a warning\n"


def test_messages_go_where_standard_error_is_at_that_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    show_messages(logging.INFO)
    elsewhere = io.StringIO()
    monkeypatch.setattr(sys, "stderr", elsewhere)
    logging.getLogger("pipelines").info("above the bar")
    assert elsewhere.getvalue() == "above the bar\n"
