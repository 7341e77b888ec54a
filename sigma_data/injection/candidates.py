"""Nouns of a caption that may take an attribute token, and the guards that most of them do not pass.

The guards (G1 to G7 below) are the point: a token on a thing that is not in any image teaches the model to look for it
there. Where no image is named near a noun, only what is definite, the head of its phrase and neither a place nor an
owner is taken.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from sigma_data.injection.anchors import Anchor
from sigma_data.injection.caption import Caption, is_participle
from sigma_data.injection.guards import (
    REACH,
    Left,
    becomes,
    is_followed_by_verb,
    is_head,
    is_own_style,
    is_part,
    look_left,
)
from sigma_data.injection.lexicon import lexicon
from sigma_data.injection.request import Reference, Request

_TIE = 8
"""Words that may stand between a noun and the image that is named behind it."""
_MOST_OF_ONE = 2
"""Tokens of an instruction with a single reference (G5)."""
PLACES = frozenset(("in", "on", "at", "against"))


@dataclass(frozen=True)
class Candidate:
    """A noun phrase [start, end) of the caption, its head the token at `index`, and the image it is bound to."""

    start: int
    end: int
    token: str
    index: int
    image: int


def candidates(caption: Caption, request: Request, anchors: Sequence[Anchor]) -> list[Candidate]:
    """The phrases that take a token, in order, each bound to an image; see the module's text."""
    single = len(request.references) == 1
    found = []
    for index in _nouns(caption):
        one = _named_person(caption, request, anchors, index)
        if one is None and _name_start(caption, index) is None:
            one = _of_one(caption, request, index) if single else _of_several(caption, request, anchors, index)
        if one is not None and not any(one.start < anchor.end and anchor.start < one.end for anchor in anchors):
            found.append(one)
    found = _without_overlaps(found)
    return _first_mentions(caption, found)[:_MOST_OF_ONE] if single else found


def _nouns(caption: Caption) -> Iterator[int]:
    """Indices of words that could be named: none in quotation marks, no owner (G3)."""
    for index, token in enumerate(caption.tokens):
        behind = caption.text[token.end : token.end + 3].lower()
        plural = behind.startswith(("(", " (s", "'", "’", "/"))  # person(s), girls'
        if token.image or token.quoted or token.possessive or plural:
            continue
        if not _is_verb(caption, index):
            yield index


def _is_verb(caption: Caption, index: int) -> bool:
    """Whether a word that may be a noun is a verb: Render the photo, Light the candle, Make the dog smile."""
    words, low = lexicon(), caption.tokens[index].low
    if low in words["verbs_too"] and caption.first_verb() in words["causing"]:
        previous = caption.tokens[index - 1] if index else None
        return previous is not None and not previous.possessive and previous.low not in words["definite"]
    if not caption.clause_starts(index):
        return False
    following = _next(caption, index)
    return (
        low in words["edit_verbs"]
        or low in words["making_verbs"]
        or following in words["definite"]
        or following in words["indefinite"]
        or following == "it"
    )


def _of_one(caption: Caption, request: Request, index: int) -> Candidate | None:
    """A noun of a caption with a single reference: everything definite was in the image before the edit."""
    token = _attribute(caption, request, index)
    if token is None:
        return None
    left = look_left(caption, index)
    if not left.definite or not is_head(caption, index):
        return None
    modifiers = {one.low for one in caption.tokens[max(index - REACH, 0) : index] if one.start >= left.start}
    if modifiers & lexicon()["photo"] and token not in ("background", "lighting", "style"):
        return None  # a picture's frame
    word = caption.tokens[index].low
    if token == "background" and word in ("background", "backdrop") and left.before in (*PLACES, "from", "into"):
        return None  # G4: in the background is a place
    if token == "style" and not is_own_style(caption, index, left):
        return None
    if word in ("camera", "viewer") and left.before in ("at", "to", "toward", "towards", "into", "for"):
        return None  # looks at the camera, which no image shows
    if is_part(caption, index, left):
        return None
    if becomes(caption, index, left):
        return None
    return Candidate(left.start, caption.tokens[index].end, token, index, request.references[0].image)


def _of_several(caption: Caption, request: Request, anchors: Sequence[Anchor], index: int) -> Candidate | None:
    """A noun of a caption with several references: taken where the text ties it to one of them."""
    anchor = _tied(caption, index, anchors)
    left = look_left(caption, index)
    owner = next((a for a in anchors if a.possessive and _begins_behind(caption, left, a)), None)
    image = owner.image if owner is not None else None if anchor is None else anchor.image
    token = _attribute(caption, request, index)
    if image is None:
        image = _labelled(caption, request, index)
        if image is None or not (is_head(caption, index) or is_followed_by_verb(caption, index)) or left.new:
            return None
        token = token or "subject"
    elif token is None:
        if (
            caption.text[caption.tokens[index].start].isupper()
            or not _is_thing(caption, index, left)
            or not _directly(caption, index, anchor)
        ):
            return None
        token = "subject"
    elif not is_head(caption, index) and not is_followed_by_verb(caption, index):
        return None
    return Candidate(left.start, caption.tokens[index].end, token, index, image)


def _named_person(caption: Caption, request: Request, anchors: Sequence[Anchor], index: int) -> Candidate | None:
    """A name in capitals behind "photo of", "hair of" ..., where a reference is known to show a person."""
    start = _name_start(caption, index)
    if start is None:
        return None
    name = caption.text[caption.tokens[start].start : caption.tokens[index].end]
    people = [one for one in request.references if _shows_person(one, name)]
    tied = None if len(request.references) == 1 else _tied(caption, index, anchors)
    if tied is not None:
        people = [one for one in people if one.image == tied.image]
    if len(people) != 1:
        return None
    words, tokens, head = lexicon(), caption.tokens, start - 2
    attribute = words.attribute(tokens[head].low)
    if attribute not in ("clothing", "pose", "emotion") and tokens[head].low not in words["of_persons"]:
        return None  # the streets of Paris; and in "the portrait of Ann" the portrait has the token
    if len(request.references) == 1 and look_left(caption, head).new:
        return None
    return Candidate(tokens[start].start, tokens[index].end, "id", index, people[0].image)


def _name_start(caption: Caption, index: int) -> int | None:
    """The first of the words in capitals behind `of` whose last is at an index; None if that is not the end of such."""
    tokens, text = caption.tokens, caption.text

    def is_capital(at: int) -> bool:
        return at < len(tokens) and not tokens[at].image and text[tokens[at].start].isupper()

    if not is_capital(index) or text.isupper():
        return None
    if is_capital(index + 1) and not tokens[index + 1].breaks:
        return None
    start = index
    while start and is_capital(start) and not tokens[start].breaks and index - start < REACH:
        start -= 1
    behind_of = start >= 1 and start < index and tokens[start].low == "of" and not tokens[start].breaks
    return start + 1 if behind_of and not tokens[start + 1].breaks else None


def _shows_person(reference: Reference, name: str) -> bool:
    """Whether the kind or the label of a reference says that it shows a person, or this one."""
    words = lexicon()
    label = (reference.label or "").lower()
    if reference.kind in ("person", "id", "face", "portrait") or label == name.lower():
        return True
    return any(words.attribute(word) == "id" for word in label.split())


def _attribute(caption: Caption, request: Request, index: int) -> str | None:
    """The attribute that the noun stands for; a room or a street is a background only where it is a place (in, on)."""
    words = lexicon()
    word = caption.tokens[index].low
    token = None
    if index and not caption.tokens[index].breaks:  # two words that are one noun: oil painting
        token = words.attribute(f"{caption.tokens[index - 1].low}-{word}")
    token = token or words.attribute(word)
    if token != "place":
        return token
    placed = look_left(caption, index).before in PLACES
    return "background" if placed or any(one.kind == "background" for one in request.references) else None


def _tied(caption: Caption, index: int, anchors: Sequence[Anchor]) -> Anchor | None:
    """The image that is named behind a noun in its clause, with nothing between them that is another thing."""
    words = lexicon()
    tokens = caption.tokens
    anchor = next((one for one in anchors if one.start >= tokens[index].end), None)
    if anchor is None or anchor.possessive or anchor.kind == "style":
        return None
    between = [token for token in tokens[index + 1 : index + _TIE + 5] if token.start < anchor.start]
    last = next((token for token in tokens[index + 1 : index + _TIE + 5] if token.start >= anchor.start), None)
    if len(between) > _TIE + 2 or any(token.breaks or token.quoted for token in between):
        return None
    if last is None or last.breaks:
        return None
    lows = [token.low for token in between]
    if lows and lows[-1] in words["photo"] | {"reference"}:
        lows.pop()
    if lows and lows[-1] == "the":
        lows.pop()
    if not lows:
        return anchor
    if lows[0] not in words["tie_begins"] and not is_participle(lows[0]):
        return None
    if len(lows) == 1:
        return anchor if lows[0] in ("from", "of", "in", "on", "with") or is_participle(lows[0]) else None
    inner = [low for number, low in enumerate(lows) if not (low == "on" and number == len(lows) - 1)]
    if len(lows) > _TIE or any(low in words["tie_breaks"] or low == "on" for low in inner):
        return None
    return anchor if lows[-1] in ("from", "of", "in", "on", "by", "at") else None


def _directly(caption: Caption, index: int, anchor: Anchor | None) -> bool:
    """Whether only `of`, `from` or `in` is between a noun and its image; a possessive has nothing between."""
    if anchor is None:
        return True
    between = caption.text[caption.tokens[index].end : anchor.start].split()
    return [word.lower() for word in between if word.lower() != "the"] in (["of"], ["from"], ["in"], [])


def _is_thing(caption: Caption, index: int, left: Left) -> bool:
    """Whether an unlisted word is the noun of a definite phrase: the fallback of what is bound to an image."""
    words, word = lexicon(), caption.tokens[index].low
    small = ("function", "stop", "definite", "indefinite", "no_things", "edit_verbs", "making_verbs", "verbs")
    if (
        word.removesuffix("s") in words["verbs"]
        or any(word in words[name] for name in small)
        or words.attribute(word)
        or word.isdigit()
        or is_participle(word)
    ):
        return False
    return left.definite and word.removesuffix("s") not in words["no_things"]


def _labelled(caption: Caption, request: Request, index: int) -> int | None:
    """The only reference whose label is this noun."""
    word = lexicon().singular(caption.tokens[index].low)
    found = [
        one.image
        for one in request.references
        if (label := (one.label or "").lower().split()) and lexicon().singular(label[-1]) == word
    ]
    return found[0] if len(found) == 1 else None


def _begins_behind(caption: Caption, left: Left, anchor: Anchor) -> bool:
    return caption.text[anchor.end : left.start].strip() == "" and left.start >= anchor.end


def _next(caption: Caption, index: int) -> str:
    after = caption.followed_by(index)
    return after.low if after is not None else ""


def _without_overlaps(found: Sequence[Candidate]) -> list[Candidate]:
    """Phrases in order, none inside another (G5): of two that share words the first is taken."""
    taken: list[Candidate] = []
    for one in sorted(found, key=lambda one: (one.start, one.end)):
        if not taken or one.start >= taken[-1].end:
            taken.append(one)
    return taken


def _first_mentions(caption: Caption, found: Sequence[Candidate]) -> list[Candidate]:
    """Without a noun's second mention: the same thing once more."""
    first: dict[tuple[str, str], Candidate] = {}
    for one in found:
        first.setdefault((one.token, caption.tokens[one.index].low), one)
    return list(first.values())
