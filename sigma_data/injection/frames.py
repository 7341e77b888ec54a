"""The families' frames, from `frames.yaml`: words around a caption that name its references."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from sigma_data.injection.lexicon import data_file
from sigma_data.injection.request import Phrase, Reference
from sigma_data.instruction import Attribute, Placeholder, Text, parse, renumber

CAPTION, ITEM = "{caption}", "{item}"


@dataclass(frozen=True)
class Frame:
    """The text before the caption and behind it, with the references' own numbers."""

    before: str
    after: str

    def around(self, caption: str) -> str:
        """The whole instruction."""
        return f"{self.before}{caption}{self.after}"


@cache
def templates(kind: str, variant: str = "any") -> tuple[str, ...]:
    """The templates of a kind of frame: layout, relation, selective, subjects."""
    return tuple(data_file("frames.yaml")[kind][variant])


@cache
def variants(kind: str) -> tuple[str, ...]:
    """The sets of templates of a kind."""
    return tuple(data_file("frames.yaml")[kind])


def frames(kind: str, references: Sequence[Reference], variant: str = "any") -> list[Frame]:
    """All frames of a kind for these references."""
    return [_filled(template, references) for template in templates(kind, variant)]


def draw_frame(kind: str, references: Sequence[Reference], key: str, variant: str = "any") -> Frame:
    """The frame that a hash of the key draws."""
    found = templates(kind, variant)
    number = int.from_bytes(hashlib.sha256(f"frame\x1f{key}".encode("utf-8", "replace")).digest()[:8], "big")
    return _filled(found[number % len(found)], references)


def framed_phrases(frame: Frame) -> tuple[Phrase, ...]:
    """The phrases with a token in the frame's own words."""
    parts = parse(frame.before).parts
    found = []
    for index, part in enumerate(parts):
        if isinstance(part, Attribute) and index + 1 < len(parts) and isinstance(text := parts[index + 1], Text):
            image = next((p.number for p in parts[index:] if isinstance(p, Placeholder)), None)
            words = text.text.strip()
            for connector in (" of", " in", " from"):
                words = words.removesuffix(connector)
            if image is not None and words:
                found.append(Phrase(words, part.name, image, in_frame=True))
    return tuple(found)


def _filled(template: str, references: Sequence[Reference]) -> Frame:
    numbers = {place: one.image for place, one in enumerate(references, start=1)}
    before, _, after = template.partition(CAPTION)
    before, after = renumber(before, numbers), renumber(after, numbers)
    item = references[0].label or "" if references else ""
    return Frame(before.replace(ITEM, " ".join(item.split())), after)
