"""Which edits hold for any image, and by which words an instruction names the thing of one reference."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from sigma_data.injection.lexicon import data_file
from sigma_data.instruction import Attribute, Placeholder, Text, parse

_FILE = "operations.yaml"
_MOST_WORDS = 12
_STYLE_WORDS = r"(?:[a-z0-9'-]+ ){0,5}?"
_THINGS = frozenset(("subject", "id", "icon", "clothing"))
"""Attribute tokens of what can be taken out of an image."""
_DETERMINERS = "the|a|an|this|that|his|her|its|their|both|all"
_ENDS = frozenset((
    "from", "of", "in", "on", "at", "with", "wearing", "to", "into", "onto", "and", "or", "that", "which", "who", "by",
    "for", "under", "over", "next", "beside", "near", "behind", "against", "as", "so", "while", "is", "are", "stands",
))  # fmt: skip
_ORDINALS = {
    "first": 1, "second": 2, "third": 3, "fourth": 4, "fifth": 5, "sixth": 6, "seventh": 7, "eighth": 8, "ninth": 9,
    "tenth": 10, "1st": 1, "2nd": 2, "3rd": 3, "4th": 4, "5th": 5, "6th": 6,
}  # fmt: skip
_NAMED = re.compile(
    rf"\b(?P<thing>(?:{_DETERMINERS})\s+(?:(?!(?:{_DETERMINERS}|{'|'.join(sorted(_ENDS))})\b)[\w'-]+\s+){{1,8}})"
    r"(?:shown\s+|seen\s+)?(?:from|in|of)\s+(?:the\s+)?"
    rf"(?:(?P<ordinal>{'|'.join(_ORDINALS)}|last)\s+(?:reference\s+)?(?:image|picture|photo|photograph|reference|one)\b"
    r"|(?:image|picture|photo|reference)\s*\#?\s*(?P<number>\d{1,2})\b|<image_(?P<placeholder>\d+)>)",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Operation:
    """An edit that holds for any image: `key` is the same for the same edit, `token` that of the edited image or ""."""

    key: str
    kind: str
    token: str
    text: str


def operation_of(phrasings: Sequence[str]) -> Operation | None:
    """The operation of an edit from its plain phrasings, the first that is one; None if it speaks of its own image."""
    for text in phrasings:
        plain = normalized(text)
        for kind, token, forms in _forms():
            if forms.fullmatch(plain):
                return Operation(plain, kind, token, " ".join(text.split()))
    return None


def normalized(text: str) -> str:
    """An instruction as operations are compared: lower case, single spaces, no closing full stop."""
    return " ".join(text.lower().split()).removeprefix("please ").rstrip(" .!。")


def thing_of(text: str, image: int, references: int) -> str | None:
    """The words by which an instruction names the thing of one reference, e.g. "the red dog"; None if it does not.

    Backgrounds, styles, poses and the like are no things, and "the object" does not say which. A person whose look the
    instruction changes is none either, for what the target shows is then another.
    """
    found = parse(text, references=references)
    tokens = [name for name, group in zip(found.attributes, found.groups(), strict=True) if group == image]
    if tokens and not _THINGS & set(tokens):
        return None
    phrase = _by_token(text, image, references) or _by_name(text, image, references)
    return None if phrase is None else checked_thing(phrase, text)


def checked_thing(phrase: str, text: str) -> str | None:
    """A thing's name with its article, None where it cannot be asked for by it in the image that `text` made."""
    words = _words()
    parts = phrase.lower().split()
    if not parts:
        return None
    if not re.fullmatch(_DETERMINERS, parts[0]):
        phrase, parts = f"the {phrase}", ["the", *parts]
    elif parts[0] in ("a", "an"):
        phrase, parts = f"the {phrase.split(maxsplit=1)[-1]}", ["the", *parts[1:]]
    if len(parts) > _MOST_WORDS or parts[-1] in words["not_things"] or set(parts[1:]) <= set(words["vague"]):
        return None
    spoken = set(re.findall(r"[a-z]+", text.lower()))
    if set(parts) & set(words["people"]) and (spoken - set(parts)) & set(words["look"]):
        return None
    return phrase


def _by_token(text: str, image: int, references: int) -> str | None:
    """The phrase behind an attribute token that speaks of the image."""
    found = parse(text, references=references)
    groups = iter(found.groups())
    for place, part in enumerate(found.parts):
        if not isinstance(part, Attribute):
            continue
        if next(groups) != image or part.name not in _THINGS or place + 1 == len(found.parts):
            continue
        behind = found.parts[place + 1]
        if not isinstance(behind, Text) or not (words := _until_end(behind.text)):
            continue
        before = found.parts[place - 1] if place else None
        last = before.text.split()[-1:] if isinstance(before, Text) else []
        if not re.fullmatch(_DETERMINERS, words[0].lower()):
            article = last[0].lower() if last and re.fullmatch(_DETERMINERS, last[0].lower()) else "the"
            words = [article if article in ("both", "all") else "the", *words]
        elif words[0].lower() in ("a", "an"):
            words = ["the", *words[1:]]
        if len(words) > 1:
            return " ".join([words[0].lower(), *words[1:]])
    return None


def _by_name(text: str, image: int, references: int) -> str | None:
    """The phrase before "from the second image", "in image 2" or <image_2>, if exactly one is."""
    marked = "".join(
        part.text if isinstance(part, Text) else f"<image_{part.number}>" if isinstance(part, Placeholder) else ""
        for part in parse(text, references=references).parts
    )
    found = set()
    for match in _NAMED.finditer(marked):
        ordinal = (match["ordinal"] or "").lower()
        number = references if ordinal == "last" else _ORDINALS.get(ordinal, 0)
        number = number or int(match["number"] or match["placeholder"] or 0)
        if number == image:
            words = match["thing"].split()
            found.add(" ".join(["the", *words[1:]] if words[0].lower() in ("a", "an", "the") else words))
    return found.pop() if len(found) == 1 else None


def _until_end(text: str) -> list[str]:
    """The words up to the end of the noun phrase: punctuation, or a word that begins another part of the sentence."""
    words = []
    for word in re.split(r"[,.;:!?()\"“”\n]", text.lstrip(), maxsplit=1)[0].split():
        if word.lower() in _ENDS:
            break
        words.append(word)
    return words


@cache
def _words() -> dict[str, Any]:
    words: dict[str, Any] = data_file(_FILE)
    return words


@cache
def _forms() -> tuple[tuple[str, str, re.Pattern[str]], ...]:
    """(kind, token, all forms of the kind as one expression)."""
    words = _words()
    lists = {name: f"(?:{'|'.join(entries)})" for name, entries in words["lists"].items()}
    style = rf"{_STYLE_WORDS}(?:{lists['medium']}(?: style| drawing| painting| sketch| art| look)?|style)"
    lists["style"] = rf"(?:{style}(?: of [a-z' .-]{{3,30}})?)"
    found = []
    for kind, entry in words["kinds"].items():
        forms = [re.sub(r"\{([a-z]+)\}", lambda match: lists[match[1]], form) for form in entry["forms"]]
        found.append((kind, entry["token"], re.compile("|".join(f"(?:{form})" for form in forms))))
    return tuple(found)
