"""Attribute-dense instructions: a person, the clothes and the place of one image, each with its own token.

The words come from a caption of the image, the instruction from the sample; one placeholder stands for all three.
"""

from __future__ import annotations

from dataclasses import dataclass

from sigma_data.injection.caption import Caption, is_eastern
from sigma_data.injection.frames import draw_frame
from sigma_data.injection.guards import is_followed_by_verb, is_head, look_left
from sigma_data.injection.lexicon import lexicon
from sigma_data.injection.request import Reference
from sigma_data.instruction import canonical

_PLACED = frozenset(("in", "on", "at", "against", "before"))


@dataclass(frozen=True)
class Parts:
    """The phrases of a caption, without articles: who, in which clothes, where."""

    person: str
    clothing: str
    background: str


def parts_of(text: str) -> Parts | None:
    """The parts that a caption of an image names, None unless it names all three, and one person alone."""
    if is_eastern(text):
        return None
    caption = Caption(canonical(text.strip(), references=1))
    words = lexicon()
    found: dict[str, list[str]] = {"id": [], "clothing": [], "background": []}
    for index, token in enumerate(caption.tokens):
        if token.image or token.quoted or token.possessive:
            continue
        attribute = words.attribute(token.low)
        if attribute not in (*found, "place") or not (is_head(caption, index) or is_followed_by_verb(caption, index)):
            continue
        left = look_left(caption, index)
        if attribute == "place":
            if left.before not in _PLACED and _before_article(caption, left.start) not in _PLACED:
                continue
            attribute = "background"
        found[attribute].append(caption.text[left.start : token.end])
    if len(found["id"]) != 1 or not found["clothing"] or not found["background"]:
        return None
    return Parts(found["id"][0], found["clothing"][0], found["background"][-1])


def dense_instruction(parts: Parts, caption: str, key: str) -> str:
    """The parts with their tokens and the placeholder of image 1, then the plain instruction."""
    frame = draw_frame("dense", [Reference(1)], key)
    before = frame.before
    for name, words in vars(parts).items():
        before = before.replace(f"{{{name}}}", words)
    return f"{before}{caption}{frame.after}"


def _before_article(caption: Caption, start: int) -> str:
    """The word before the article of a phrase that begins at a place of the text."""
    before = [token for token in caption.tokens if token.end <= start]
    return before[-2].low if len(before) > 1 and before[-1].low in ("a", "an", "the", "some") else ""
