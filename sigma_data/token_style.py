"""How samples are shown everywhere (terminal, image, HTML): the colours of tokens and targets, and printable text."""

from __future__ import annotations

import re
from collections.abc import Mapping

TOKEN_COLOURS: Mapping[str, str] = {
    "style": "#a93ae8", "subject": "#0463bf", "id": "#ca4604", "icon": "#0d8096", "text": "#ba004f",
    "pose": "#dc149c", "layout": "#5941f2", "perspective": "#7a65c5", "lighting": "#857427",
    "background": "#0d851d", "environment": "#32654a", "emotion": "#a45c85", "clothing": "#9f2398",
    "texture": "#874c38", "select": "#60597e",
}  # fmt: skip
"""A colour for each attribute token, as far apart as OKLab allows at this lightness.

Contrast with white is 4.5 : 1 or better, with black 3 : 1. `select`, an operation rather than an attribute, is nearly
grey.
"""

TARGET_COLOUR = "#e8960c"
"""The colour of targets, distinct from the token colours."""

_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    """The text with control and direction characters replaced by U+FFFD, safe for a terminal."""
    return _CONTROL.sub("\ufffd", text.replace("\r\n", "\n").replace("\r", "\n"))
