"""How samples are shown everywhere (terminal, image, HTML): the colours of tokens and targets, and printable text."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Literal

from sigma_data.instruction import Attribute, Placeholder, Text, parse

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


PartKind = Literal["text", "attribute", "image"]


def instruction_parts(
    text: str | None, references: int | None = None, limit: int | None = None
) -> list[tuple[PartKind, str]]:
    """An instruction in printable parts for HTML of every kind: words, names of attribute tokens, numbers of images.

    `references` is how many the sample has, as for `parse`. Words are cut after `limit` characters in all, with an
    ellipsis. None is an instruction without parts.
    """
    left = len(text or "") if limit is None else limit
    found: list[tuple[PartKind, str]] = []
    for part in parse(printable(text or ""), references=references).parts:
        match part:
            case Attribute(name):
                found.append(("attribute", name))
            case Placeholder(image):
                found.append(("image", str(image)))
            case Text(words):
                found.append(("text", words if len(words) <= left else words[:left].rstrip() + "…"))
                left -= len(words)
        if limit is not None and left <= 0:
            break
    return found
