"""Defaults of `sigma eval`. Imports nothing heavy, for the command's options."""

from __future__ import annotations

from enum import StrEnum

BATCH = 8
"""Items computed together."""
MAX_TOKENS = 128
"""Of an answer to a question that is answered with text."""


class Stage(StrEnum):
    """A part of an evaluation."""

    GENERATE = "generate"
    SCORE = "score"
    REPORT = "report"
