"""Interleaved instructions: text <-> parts (text, attribute tokens, image placeholders).

`parse` reads every spelling found in public data, `render` writes the canonical one, and
`parse(render(parts)) == parts`. What looks like a token but is not one is reported and kept as text.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

ATTRIBUTES: tuple[str, ...] = (
    "style", "subject", "id", "icon", "text", "pose", "layout", "perspective", "lighting",
    "background", "environment", "emotion", "clothing", "texture", "select",
)  # fmt: skip
"""The fifteen attribute tokens; their order fixes their ids in the tokenizer."""

ALIASES: Mapping[str, str] = {"identity": "id"}

_MAX_NUMBER_DIGITS = 6

_TAG = re.compile(
    # an image placeholder, numbered or bare: <image_1> <image 1> <Image1> <IMAGE>
    rf"<\s*(?P<image>image)(?:[\s_]*(?P<number>\d{{1,{_MAX_NUMBER_DIGITS}}}))?\s*>"
    # anything else that starts like one: <image #1> <image_99999999>
    r"|(?P<odd><\s*image[^<>\n]{0,40}>)"
    # control tokens of the tokenizer, which must never arrive as text: <|im_start|>
    r"|(?P<control><\|[A-Za-z0-9_]{1,40}\|>)"
    # one word in angle brackets: an attribute token, or something that looks like one
    r"|<(?P<word>[A-Za-z][A-Za-z0-9_-]{0,39})>"
    # the same with a stray space or slash, as in < style > or </style>
    r"|<[ /]*(?P<loose>[A-Za-z][A-Za-z0-9_-]{0,39})[ /]*>",
    re.IGNORECASE | re.ASCII,
)


@dataclass(frozen=True)
class Text:
    """Ordinary text, unchanged."""

    text: str


@dataclass(frozen=True)
class Attribute:
    """An attribute token, by its canonical name without brackets."""

    name: str


@dataclass(frozen=True)
class Placeholder:
    """The position of image `number`; 0 is a placeholder without a number."""

    number: int


Part = Text | Attribute | Placeholder


@dataclass(frozen=True)
class Instruction:
    """A parsed instruction: its parts, and what looked like a token but is not one.

    `unknown` holds misspelt or foreign tokens (`<subjct>`), `control` the tokenizer's control tokens
    (`<|im_end|>`); both stay in the parts as text.
    """

    parts: tuple[Part, ...]
    unknown: tuple[str, ...] = ()
    control: tuple[str, ...] = ()

    @property
    def placeholders(self) -> tuple[int, ...]:
        """Image numbers in the order of the text, repeats included."""
        return tuple(part.number for part in self.parts if isinstance(part, Placeholder))

    @property
    def attributes(self) -> tuple[str, ...]:
        """Attribute tokens in the order of the text, repeats included."""
        return tuple(part.name for part in self.parts if isinstance(part, Attribute))

    @property
    def plain(self) -> str:
        """The text without tokens and placeholders, white space normalized."""
        words = " ".join(part.text for part in self.parts if isinstance(part, Text))
        return " ".join(words.split())

    def groups(
        self, *, before: Sequence[int] = (), bindings: Mapping[int, int] | None = None
    ) -> tuple[int | None, ...]:
        """The image each attribute token refers to, aligned with `attributes`; None for no image at all.

        A token refers to the next placeholder after it, else to the last one before it. `before` are the numbers of the
        images laid out before the text because no placeholder names them. `bindings` (token index -> image number)
        overrides the rule.
        """
        following: list[int | None] = []
        number: int | None = None
        for part in reversed(self.parts):
            if isinstance(part, Placeholder):
                number = part.number
            elif isinstance(part, Attribute):
                following.append(number)
        following.reverse()
        stands_before = (*before, *self.placeholders)
        last = stands_before[-1] if stands_before else None
        rule = [last if number is None else number for number in following]
        for index, bound in (bindings or {}).items():
            if 0 <= index < len(rule):
                rule[index] = bound
        return tuple(rule)


def parse(text: str, *, references: int | None = None) -> Instruction:
    """Read an instruction in any known spelling.

    `references` is how many references the sample has. A bare `<image>` means image 1 if there is just one; otherwise
    (or if None) the k-th bare placeholder is image k, as in visual question answering corpora.
    """
    return _parse(text, references)


@lru_cache(maxsize=128)  # the checks of a sample read its text many times
def _parse(text: str, references: int | None) -> Instruction:
    parts: list[Part] = []
    unknown: list[str] = []
    control: list[str] = []
    pending = ""  # text not yet closed by a tag
    position = 0
    bare = 0

    for match in _TAG.finditer(text):
        pending += text[position : match.start()]
        position = match.end()
        part: Part | None = None
        word = match["word"]
        if match["image"]:
            if match["number"] is None:
                bare += 1
                part = Placeholder(1 if references == 1 else bare)
            else:
                part = Placeholder(int(match["number"]))
        elif word and (name := _attribute(word)):
            part = Attribute(name)
        elif match["control"]:
            control.append(match[0])
        elif word or match["odd"] or _attribute(match["loose"]):
            unknown.append(match[0])
        if part is None:
            pending += match[0]
            continue
        if pending:
            parts.append(Text(pending))
            pending = ""
        parts.append(part)

    pending += text[position:]
    if pending:
        parts.append(Text(pending))
    return Instruction(tuple(parts), tuple(unknown), tuple(control))


def render(instruction: Instruction | Sequence[Part]) -> str:
    """Write parts in the canonical spelling: `<id>` for tokens, `<image_1>` for placeholders.

    Raises ValueError if text would be parsed as a tag, so that rendering always round-trips.
    """
    parts = tuple(instruction.parts if isinstance(instruction, Instruction) else instruction)
    text = "".join(_spell(part) for part in parts)
    if parse(text).parts != parts:
        raise ValueError(f"these parts do not round-trip: {text!r}")
    return text


def canonical(text: str, *, references: int | None = None) -> str:
    """The same instruction in the canonical spelling, ordinary text untouched."""
    if "<" not in text:
        return text
    # Parts that come from `parse` always round-trip, so the check of `render` is not needed.
    return "".join(_spell(part) for part in parse(text, references=references).parts)


def renumber(text: str, numbers: Mapping[int, int]) -> str:
    """The canonical instruction with its placeholders renumbered; unlisted numbers stay."""
    return render([
        Placeholder(numbers.get(part.number, part.number)) if isinstance(part, Placeholder) else part
        for part in parse(text).parts
    ])  # fmt: skip


def _attribute(word: str | None) -> str | None:
    name = (word or "").lower()
    name = ALIASES.get(name, name)
    return name if name in ATTRIBUTES else None


def _spell(part: Part) -> str:
    match part:
        case Text(text):
            return text
        case Attribute(name):
            return f"<{name}>"
        case Placeholder(number):
            return f"<image_{number}>"
