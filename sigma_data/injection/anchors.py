"""Words of a caption that point at an image: placeholders, "the second picture", "image 2", "the reference image"."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from sigma_data.injection.caption import Caption, is_participle, quoted_spans
from sigma_data.injection.lexicon import lexicon
from sigma_data.injection.request import Reference, Request

_NUMBERS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth")
_CARDINALS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_ORDINAL = rf"(?:{'|'.join(_NUMBERS)}|\d{{1,2}}(?:st|nd|rd|th)|last)"
_GIVEN = r"(?:reference|input|source|given|provided|original|uploaded|supplied|attached)"
_IMAGE = r"(?:picture|image|photo|photograph|pic|reference)"
_ORDINALS = re.compile(
    rf"\b(?P<list>{_ORDINAL}(?:(?:\s*,\s*(?:and\s+)?|\s+and\s+|\s*&\s*)(?:the\s+)?{_ORDINAL}){{0,9}})"
    rf"(?:\s+{_GIVEN})?\s+(?P<noun>{_IMAGE}s?|one)\b(?P<possessive>['’]s\b)?",
    re.IGNORECASE,
)
_ONE_ORDINAL = re.compile(rf"\b{_ORDINAL}\b", re.IGNORECASE)
_NUMBERED = re.compile(
    rf"\b{_IMAGE}\s*(?:#|no\.?|number)?\s*(?P<number>\d{{1,2}}|{'|'.join(_CARDINALS[:5])})\b(?![:.]\d|\s*[x×%]|\w)"
    r"(?P<possessive>['’]s\b)?",
    re.IGNORECASE,
)
_NUMBERED_LIST = re.compile(
    rf"\b{_IMAGE}s?\s*(?P<list>#?\d{{1,2}}(?:(?:\s*,\s*(?:and\s+)?|\s+and\s+|\s*&\s*)#?\d{{1,2}}){{1,9}})\b"
    r"(?=\s*(?:$|[,;:!?)]|\.(?!\d))|\s+(?:and|to|with|on|onto|into|in|together|as|is|are|wears?|next|by|while)\b)",
    re.IGNORECASE,
)
"""Images 1 and 2: but not image 1 and 2 dogs."""
_ONE_NUMBER = re.compile(r"#?\d{1,2}")
_ELLIPSIS = re.compile(
    rf"\b(?:of|from|in)\s+(?P<list>the\s+{_ORDINAL}(?:(?:\s*,\s*(?:and\s+)?|\s+and\s+|\s*&\s*)(?:the\s+)?{_ORDINAL})*)"
    r"(?=\s*(?:$|[.,;:!?)])|\s+(?:and|to|with|on|onto|into|in|next)\b)",
    re.IGNORECASE,
)
"""The man of the second: no noun, which stands elsewhere in the caption."""
_SIDES = re.compile(rf"\bthe\s+(?P<side>other|left|right)\s+{_IMAGE}\b(?P<possessive>['’]s\b)?", re.IGNORECASE)
_REFERENCE = re.compile(
    rf"\bthe\s+(?:reference|given|provided|supplied|attached)\s+{_IMAGE}\b(?P<possessive>['’]s\b)?", re.IGNORECASE
)
_STYLE = re.compile(
    r"\b(?:(?<=the )(?:reference|given|provided|supplied|attached)\s+style|style\s+(?:reference|image))\b(?!['’])",
    re.IGNORECASE,
)
_AS = re.compile(r"\bas\s+(?:(?:the|a|its)\s+)?$", re.IGNORECASE)
"""The first image as the style reference: it speaks of the image before."""
_PHOTO = re.compile(
    r"\b(?:the|this|that|my)\s+(?:(?:whole|entire|original|input|source|given|provided|uploaded|reference|current)\s+)?"
    r"(?:photo|image|picture|photograph|pic)\b(?!['’]s|\()",
    re.IGNORECASE,
)
_SPACE = re.compile(r"\s*")


@dataclass(frozen=True)
class Anchor:
    """Text [start, end) that points at `image`. `kind` is placeholder, ordinal, reference, style or photo.

    Of kind style it names what is taken, too (the given style), and takes the token `<style>`.

    A possessive one (the first picture's dog) takes no placeholder itself: the noun behind it does.
    """

    start: int
    end: int
    image: int
    kind: str
    possessive: bool = False


class ImageRangeError(ValueError):
    """An ordinal beyond the references; the text is the message."""


def find_anchors(caption: Caption, request: Request) -> list[Anchor]:
    """The anchors in order, without "the image" of a single reference (`photo_anchors`).

    Raises ImageRangeError if one of several references is named by a number that none has.
    """
    images = [one.image for one in request.references]
    found = [Anchor(token.start, token.end, token.image, "placeholder") for token in caption.tokens if token.image]
    placeholders = {anchor.start: anchor for anchor in found}
    taken = quoted_spans(caption.text)

    def add(anchors: Sequence[Anchor]) -> None:
        span = (anchors[0].start, anchors[-1].end)
        if not any(start < span[1] and span[0] < end for start, end in taken):
            taken.append(span)
            found.extend(anchors)

    for match in _ORDINALS.finditer(caption.text):
        if anchors := _ordinals(match, caption.text, images):
            add(anchors)
    for match in _NUMBERED_LIST.finditer(caption.text):
        if anchors := _numbers(match, images):
            add(anchors)
    for match in _NUMBERED.finditer(caption.text):
        word = match["number"].lower()
        number = int(word) if word.isdigit() else _CARDINALS.index(word) + 1
        if _is_ours(number, images):
            add([Anchor(*match.span(), images[number - 1], "ordinal", bool(match["possessive"]))])
    if len(images) > 1:
        for match in _REFERENCE.finditer(caption.text):
            add([Anchor(*match.span(), meant(request.references).image, "reference", bool(match["possessive"]))])
        for match in _STYLE.finditer(caption.text):
            if not _placeholder_at(caption, match.end(), placeholders) and not _AS.search(
                caption.text[: match.start()]
            ):
                add([Anchor(*match.span(), meant(request.references).image, "style")])
        if any(anchor.kind == "ordinal" for anchor in found):
            for match in _ELLIPSIS.finditer(caption.text):
                if anchors := _ordinals(match, caption.text, images):
                    add(anchors)
    if len(images) == 2:
        for match in _SIDES.finditer(caption.text):
            image = images[_side(match["side"].lower(), found, match.start(), images)]
            add([Anchor(*match.span(), image, "ordinal", bool(match["possessive"]))])
    # A placeholder right behind an ordinal is the ordinal's own.
    return sorted(
        (anchor for anchor in found if anchor.kind == "placeholder" or not _has_own(anchor, placeholders, caption)),
        key=lambda anchor: anchor.start,
    )


def meant(references: Sequence[Reference], kind: str = "style") -> Reference:
    """The reference that "the reference image" means: the only one of that kind, else the last."""
    of_kind = [one for one in references if one.kind == kind]
    return of_kind[0] if len(of_kind) == 1 else references[-1]


def photo_anchors(caption: Caption, image: int, anchors: Sequence[Anchor]) -> list[Anchor]:
    """The places where a caption says "the image", as a thing of its own and not of another one."""
    quoted = quoted_spans(caption.text)
    spans = [(anchor.start, anchor.end) for anchor in anchors] + quoted
    found = []
    for match in _PHOTO.finditer(caption.text):
        if any(start < match.end() and match.start() < end for start, end in spans):
            continue
        index = next(i for i, token in enumerate(caption.tokens) if token.end >= match.end())
        if not _stands_alone(caption, index):
            continue
        found.append(Anchor(*match.span(), image, "photo"))
    return found


def subject_pronoun(caption: Caption) -> tuple[int, int] | None:
    """(start, end) of an `it` that is the object of the first verb (Turn it into ..), and so is the image."""
    tokens = caption.tokens
    for index, token in enumerate(tokens[:6]):
        if token.low == "it" and index and not token.quoted:
            verb = tokens[index - 1]
            if token.gap != " " or verb.low != caption.first_verb() or verb.low == "let":
                return None
            after = caption.followed_by(index)
            if after is not None and after.low in ("rain", "snow", "so", "that"):  # the weather's `it`
                return None
            return None if token.possessive else (token.start, token.end)
    return None


def _stands_alone(caption: Caption, index: int) -> bool:
    after = caption.followed_by(index)
    if after is None or after.image or after.quoted:
        return True
    return after.low in lexicon()["function"] or after.low in lexicon()["looks"] or is_participle(after.low)


def _ordinals(match: re.Match[str], text: str, images: Sequence[int]) -> list[Anchor]:
    singles = list(_ONE_ORDINAL.finditer(match["list"]))
    numbers = [_number(one[0].lower(), len(images)) for one in singles]
    noun = match.groupdict().get("noun") or ""
    if noun.lower() == "one" and (
        len(images) < 2 or text[match.end() : match.end() + 20].lstrip().startswith("from the")
    ):
        return []
    if noun.lower().endswith("s") and len(singles) == 1:  # the first images
        return []
    if not all(_is_ours(number, images) for number in numbers):
        return []
    offset = match.start("list")
    possessive = bool(match.groupdict().get("possessive"))
    return [
        Anchor(
            offset + one.start(),
            match.end() if one is singles[-1] else offset + one.end(),
            images[number - 1],
            "ordinal",
            possessive and one is singles[-1],
        )
        for one, number in zip(singles, numbers, strict=True)
    ]


def _numbers(match: re.Match[str], images: Sequence[int]) -> list[Anchor]:
    """The anchors of "images 1 and 2": a number each, the first with its noun."""
    singles = list(_ONE_NUMBER.finditer(match["list"]))
    numbers = [int(one[0].lstrip("#")) for one in singles]
    if not all(_is_ours(number, images) for number in numbers):
        return []
    offset = match.start("list")
    return [
        Anchor(match.start() if place == 0 else offset + one.start(), offset + one.end(), images[number - 1], "ordinal")
        for place, (one, number) in enumerate(zip(singles, numbers, strict=True))
    ]


def _is_ours(number: int, images: Sequence[int]) -> bool:
    if 1 <= number <= len(images):
        return True
    if len(images) > 1:
        raise ImageRangeError(f"the caption speaks of image {number}, and there are {len(images)} references")
    return False  # a picture that the only one shows


def _number(word: str, count: int) -> int:
    if word == "last":
        return count
    return int(re.sub(r"\D", "", word)) if word[0].isdigit() else _NUMBERS.index(word) + 1


def _side(side: str, found: Sequence[Anchor], start: int, images: Sequence[int]) -> int:
    """0 or 1: `other` is the one that the text before does not speak of."""
    if side != "other":
        return int(side == "right")
    before = [anchor.image for anchor in found if anchor.start < start]
    return 0 if before and before[-1] == images[1] else 1


def _has_own(anchor: Anchor, placeholders: dict[int, Anchor], caption: Caption) -> bool:
    own = _placeholder_at(caption, anchor.end, placeholders)
    return own is not None and own.image == anchor.image


def _placeholder_at(caption: Caption, end: int, placeholders: dict[int, Anchor]) -> Anchor | None:
    """The placeholder right behind a place."""
    return placeholders.get(_SPACE.match(caption.text, end).end())  # type: ignore[union-attr]  # always matches
