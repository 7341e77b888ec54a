"""Tokens and placeholders into a caption: our own rendering, so that its words cannot change.

A token stands directly before its phrase. A placeholder stands behind the words that name its image, else behind the
last phrase of that image before another image is named.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from sigma_data.injection.anchors import Anchor
from sigma_data.injection.caption import Caption, sentence_end
from sigma_data.instruction import parse

_OF = ("background", "lighting", "style", "environment")
"""Tokens whose phrase may be followed by `of <image_1>` (G7)."""
_OF_BEFORE = re.compile(r"\s*($|[.,;:!?)。，！？]|(?:to|with|into|and|while)\b)", re.IGNORECASE)


@dataclass(frozen=True)
class Placed:
    """A phrase [start, end) of a caption with its token and image."""

    start: int
    end: int
    token: str
    image: int


@dataclass
class Edits:
    """Insertions by place, and stretches of the caption that a placeholder stands for."""

    text: str
    inserted: dict[int, list[str]] = field(default_factory=dict)
    removed: dict[int, int] = field(default_factory=dict)

    def insert(self, place: int, text: str) -> None:
        """Put text at a place of the caption, behind what was put there before."""
        self.inserted.setdefault(place, []).append(text)

    def replace(self, start: int, end: int, text: str) -> str:
        """Put text in place of [start, end); returns what stood there."""
        self.removed[start] = end
        self.insert(start, text)
        return self.text[start:end]

    def result(self) -> str:
        """The caption with all of it."""
        out, position = [], 0
        for place in sorted({*self.inserted, *self.removed}):
            out.append(self.text[position:place])
            out += self.inserted.get(place, [])
            position = self.removed.get(place, place)
        out.append(self.text[position:])
        return "".join(out)


def placeholder(image: int) -> str:
    """The canonical spelling of an image's place."""
    return f"<image_{image}>"


def write(caption: Caption, phrases: Sequence[Placed], anchors: Sequence[Anchor]) -> Edits:
    """Tokens before the phrases, a placeholder behind every anchor, and behind phrases that no anchor binds.

    References that neither names are the caller's to place.
    """
    edits = Edits(caption.text)
    places: list[tuple[int, int]] = []  # (place, image) of every placeholder, in order
    for anchor in anchors:
        if anchor.kind == "placeholder":
            places.append((anchor.start, anchor.image))
        elif not anchor.possessive:
            edits.insert(anchor.end, f" {placeholder(anchor.image)}")
            places.append((anchor.end, anchor.image))
    for phrase in sorted(phrases, key=lambda one: one.start, reverse=True):
        following = next((image for place, image in sorted(places) if place >= phrase.end), None)
        if following != phrase.image:
            edits.insert(phrase.end, f"{_joint(caption.text, phrase)}{placeholder(phrase.image)}")
            places.append((phrase.end, phrase.image))
    for phrase in phrases:
        edits.insert(phrase.start, f"<{phrase.token}>")
    return edits


def append(edits: Edits, image: int, *, joint: str = " ") -> None:
    """A placeholder at the end of the caption, before its final full stop."""
    edits.insert(sentence_end(edits.text), f"{joint}{placeholder(image)}")


def bindings_of(instruction: str, images: Sequence[int]) -> tuple[tuple[int, int], ...]:
    """Bindings for the tokens that the wording alone would bind to another image than the one meant."""
    groups = parse(instruction).groups()
    return tuple((index, image) for index, (image, bound) in enumerate(zip(images, groups, strict=True))
                 if image != bound)  # fmt: skip


def _joint(text: str, phrase: Placed) -> str:
    return " of " if phrase.token in _OF and _OF_BEFORE.match(text[phrase.end :]) else " "
