"""Placeholders and attribute tokens as others spell them: `&lt;image_1&gt;`, `[image_1]`, `<img><|image_1|></img>`.

`sigma_data.instruction` reads the spellings of the release. `settle` turns others into those where the sample
leaves no doubt, `leftovers` finds what looks like one and stays text, so that it is never passed over silently.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass

from sigma_data.instruction import ALIASES, ATTRIBUTES, Instruction, Text, parse

# Angle brackets as such, escaped for HTML, Markdown, JSON or a URL, and their relatives in other scripts.
_ANGLE_OPEN = r"(?:\\?<|&(?:amp;)*(?:lt|\#0*60|\#x0*3c);|\\u003c|%3c|[＜﹤〈⟨‹《〈])"
_ANGLE_CLOSE = r"(?:\\?>|&(?:amp;)*(?:gt|\#0*62|\#x0*3e);|\\u003e|%3e|[＞﹥〉⟩›》〉])"
# Other brackets; [image 1](address) and ![image 1] are links of Markdown.
_OTHER_OPEN = r"(?<![!\]])(?:\\?\[\[?|\{\{?|[［【〔｛])"
_OTHER_CLOSE = r"(?:\\?\]\]?|\}\}?|[］】〕｝])(?!\()"
_BODY = rf"(?:(?!{_ANGLE_OPEN}|{_ANGLE_CLOSE}|[\[\]{{}}［］【】〔〕｛｝]|\\[\[\]])[^\n]){{1,40}}"
_BRACKETED = re.compile(
    rf"{_ANGLE_OPEN}(?P<angle>{_BODY}){_ANGLE_CLOSE}|{_OTHER_OPEN}(?P<other>{_BODY}){_OTHER_CLOSE}", re.IGNORECASE
)
_OPENS = re.compile(r"[<\[{&%\\＜﹤〈⟨‹《〈［【〔｛]")
"""What every bracketed word begins with."""
_NUMBERED = re.compile(
    r"(?:(?:input|reference|ref|source)[ _-]?)?(?:image|img|picture|pic|photo|图片|图像|图)[ _:.#-]*0*([0-9]{1,6})"
)
_REFERENCE = re.compile(r"(?:reference|ref)[ _:.#-]*0*([0-9]{1,6})")
"""With angle brackets only: [ref 1] cites something."""
_WRAPPED = re.compile(
    rf"{_ANGLE_OPEN}img{_ANGLE_CLOSE}\s*(<image_[0-9]+>)\s*{_ANGLE_OPEN}/img{_ANGLE_CLOSE}", re.IGNORECASE
)
"""OmniGen's way, after the inner placeholder has been settled."""
_LOOSE = re.compile(
    r"@(?:image|img)[ _]?[0-9]{1,3}(?!\w)|(?<![\w/@.-])(?:image|img)_[0-9]{1,3}(?![\w/]|\.\w)", re.IGNORECASE | re.ASCII
)
"""Without brackets: @image1, image_1; `image 1` is ordinary text, image_1.jpg a file."""


@dataclass(frozen=True)
class _Found:
    """A bracketed word: the `number` of an image (None: no number), an attribute's name, or a closing tag of either."""

    start: int
    end: int
    angle: bool
    number: int | None = None
    bare: bool = False
    attribute: str | None = None


def settle(text: str, images: int) -> str:
    """The text with foreign spellings of placeholders and attribute tokens in ours, where that is unambiguous.

    `images` is how many images the text may name. Placeholders are settled where every foreign one of the text
    has a number from 1 to `images` (so counting from 0 is never taken for counting from 1); those in other than
    angle brackets only in a text without angle ones, where they are not what an image is to show. Attribute
    tokens are settled in angle brackets. All other text stays to the letter.
    """
    if not _OPENS.search(text):  # most texts
        return text
    while (settled := _settle_once(text, images)) != text:  # an escape before what was settled belongs to it
        text = settled
    return text


def _settle_once(text: str, images: int) -> str:
    found = [item for item in _find(text) if not _is_ours(text[item.start : item.end])]
    numbers = [item.number for item in found if item.number is not None]
    sure = all(1 <= number <= images for number in numbers)
    angle = bool(parse(text).placeholders) or any(item.angle and item.number is not None for item in found)
    out, position = "", 0
    for item in found:
        spelled = None
        if item.number is not None and sure and (item.angle or not angle):
            spelled = f"<image_{item.number}>"
        elif item.bare and item.angle and images:
            spelled = "<image>"
        elif item.attribute and item.angle and not parse(text[item.start : item.end]).unknown:
            spelled = f"<{item.attribute}>"
        if spelled is not None:
            out += text[position : item.start] + spelled
            position = item.end
    return _WRAPPED.sub(r"\1", out + text[position:])


def leftovers(instruction: Instruction) -> tuple[str, ...]:
    """What looks like a placeholder or attribute token, is read as text, and is not reported by `parse`."""
    reported = {*instruction.unknown, *instruction.control}
    found: list[str] = []
    for part in instruction.parts:
        if not isinstance(part, Text):
            continue
        spans = [(item.start, item.end) for item in _find(part.text)]
        spans += [
            match.span()
            for match in _LOOSE.finditer(part.text)
            if not any(start <= match.start() < end for start, end in spans)
        ]
        found += [part.text[start:end] for start, end in sorted(spans)]
    return tuple(word for word in found if word not in reported)


def _find(text: str) -> list[_Found]:
    """Every bracketed word that is, or looks like, a placeholder or an attribute token."""
    found = []
    for match in _BRACKETED.finditer(text):
        angle = match["angle"] is not None
        word = _plain(match["angle"] if angle else match["other"])
        closing, word = word.startswith("/"), word.strip("/ ")
        name = ALIASES.get(word, word)
        number = _NUMBERED.fullmatch(word) or (_REFERENCE.fullmatch(word) if angle else None)
        place = (match.start(), match.end(), angle)
        if closing and (number or word == "image" or name in ATTRIBUTES):
            found.append(_Found(*place))
        elif number:
            found.append(_Found(*place, number=int(number[1])))
        elif word == "image":
            found.append(_Found(*place, bare=True))
        elif name in ATTRIBUTES:
            found.append(_Found(*place, attribute=name))
    return found


def _plain(body: str) -> str:
    """A word as it is meant: full-width letters narrow, invisible characters and escapes gone, in lower case."""
    word = unicodedata.normalize("NFKC", body.replace("\\", ""))
    word = "".join(letter for letter in word if unicodedata.category(letter) != "Cf")
    return " ".join(word.split()).lower().strip("|").strip()


def _is_ours(token: str) -> bool:
    """Whether `parse` reads the token as it stands."""
    parts = parse(token).parts
    return len(parts) == 1 and not isinstance(parts[0], Text)


def closest_token(token: str) -> str:
    """What is said of a misspelled attribute token: the one it is closest to, if any."""
    import difflib

    close = difflib.get_close_matches(token.strip("</ >").lower(), ATTRIBUTES, n=1)
    return f" (did you mean <{close[0]}>?)" if close else ""
