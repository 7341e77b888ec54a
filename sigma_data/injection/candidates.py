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
from sigma_data.injection.lexicon import lexicon
from sigma_data.injection.request import Request

_REACH = 5
"""Words that are walked left of a noun, in search of what says whether it is there (G1)."""
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


@dataclass(frozen=True)
class _Left:
    """What stands left of a noun: where its phrase begins, whether it is definite, and the word before the article."""

    start: int
    definite: bool
    new: bool
    before: str


def candidates(caption: Caption, request: Request, anchors: Sequence[Anchor]) -> list[Candidate]:
    """The phrases that take a token, in order, each bound to an image; see the module's text."""
    single = len(request.references) == 1
    found = []
    for index in _nouns(caption):
        one = _of_one(caption, request, index) if single else _of_several(caption, request, anchors, index)
        if one is not None and not any(one.start < anchor.end and anchor.start < one.end for anchor in anchors):
            found.append(one)
    found = _without_overlaps(found)
    return _first_mentions(caption, found)[:_MOST_OF_ONE] if single else found


def _nouns(caption: Caption) -> Iterator[int]:
    """Indices of words that could be named: none in quotation marks, no owner (G3)."""
    for index, token in enumerate(caption.tokens):
        behind = caption.text[token.end : token.end + 3].lower()
        if token.image or token.quoted or token.possessive or behind.startswith(("(", "'", "’", "/")):
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
    left = _look_left(caption, index)
    if not left.definite or not _is_head(caption, index):
        return None
    modifiers = {one.low for one in caption.tokens[max(index - _REACH, 0) : index] if one.start >= left.start}
    if modifiers & lexicon()["photo"] and token not in ("background", "lighting", "style"):
        return None  # a picture's frame
    word = caption.tokens[index].low
    if token == "background" and word in ("background", "backdrop") and left.before in (*PLACES, "from", "into"):
        return None  # G4: in the background is a place
    if token == "style" and (word != "style" or left.before == "in" or _of_somebody(caption, index)):
        return None
    if _becomes(caption, index, left):
        return None
    return Candidate(left.start, caption.tokens[index].end, token, index, request.references[0].image)


def _of_several(caption: Caption, request: Request, anchors: Sequence[Anchor], index: int) -> Candidate | None:
    """A noun of a caption with several references: taken where the text ties it to one of them."""
    anchor = _tied(caption, index, anchors)
    left = _look_left(caption, index)
    owner = next((a for a in anchors if a.possessive and _begins_behind(caption, left, a)), None)
    image = owner.image if owner is not None else None if anchor is None else anchor.image
    token = _attribute(caption, request, index)
    if image is None:
        image = _labelled(caption, request, index)
        if image is None or not _is_head(caption, index) or left.new:
            return None
        token = token or "subject"
    elif token is None:
        if not _is_thing(caption, index, left) or not _directly(caption, index, anchor):
            return None
        token = "subject"
    elif not _is_head(caption, index):
        return None
    return Candidate(left.start, caption.tokens[index].end, token, index, image)


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
    placed = _look_left(caption, index).before in PLACES
    return "background" if placed or any(one.kind == "background" for one in request.references) else None


def _look_left(caption: Caption, index: int) -> _Left:
    """G1: walk left over at most five words of the phrase, to what says that the thing is there, or that it is new."""
    words, tokens = lexicon(), caption.tokens
    at, owned = index, 0  # `owned`: the first token behind an owner (the woman's red jacket)
    while at > 0 and index - at < _REACH and not tokens[at].breaks:
        previous = tokens[at - 1]
        if previous.image or previous.quoted:
            break
        low, start = previous.low, tokens[owned or at].start
        if previous.possessive:
            owned = owned or at
        elif low in words["definite"]:
            before = tokens[at - 2].low if at >= 2 and not previous.breaks else ""
            return _Left(start, definite=True, new=False, before=before)
        elif low in words["indefinite"]:
            return _Left(start, definite=False, new=True, before="")
        elif low in words["stop"] or (low in words["verbs"] and not caption.clause_starts(at - 1)):
            return _Left(start, definite=False, new=False, before=low)
        elif caption.clause_starts(at - 1) and (low in words["edit_verbs"] or low in words["making_verbs"]):
            # An imperative verb: what it changes is there, what it makes is not.
            return _Left(start, definite=low in words["edit_verbs"], new=False, before=low)
        at -= 1
    # Nothing says what it is; a phrase that begins the clause is taken whole, of others only the noun.
    whole = index - at < _REACH
    return _Left(tokens[(owned or at) if whole else index].start, definite=False, new=False, before="")


def _is_head(caption: Caption, index: int) -> bool:
    """G2: the noun is the head of its compound. A car window and a flower vase are none of cars and flowers."""
    words = lexicon()
    after = caption.followed_by(index)
    if after is None or after.image or after.quoted:
        return True
    if after.low in words["function"] or is_participle(after.low):
        return True
    if caption.first_verb() not in words["causing"]:
        return False
    if after.low in words["verbs"]:
        return True
    if words.attribute(after.low) is not None and after.low not in words["verbs_too"]:
        return False
    # Make the dog smile: a verb or an adjective, behind which nothing more of a noun follows.
    behind = caption.followed_by(index + 1)
    return behind is None or (behind.low in words["function"] and behind.low != "of") or bool(behind.image)


def _becomes(caption: Caption, index: int, left: _Left) -> bool:
    """Whether the noun is what a thing is exchanged for: replace the dog with the cat."""
    words = lexicon()
    if left.before not in words["becoming"]:
        return False
    at = index
    while at > 0 and not caption.tokens[at].breaks:
        at -= 1
        if caption.clause_starts(at):
            break
    return caption.tokens[at].low in words["exchange_verbs"]


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


def _is_thing(caption: Caption, index: int, left: _Left) -> bool:
    """Whether an unlisted word is the noun of a definite phrase: the fallback of what is bound to an image."""
    words, word = lexicon(), caption.tokens[index].low
    small = ("function", "stop", "definite", "indefinite", "no_things", "edit_verbs", "making_verbs")
    if any(word in words[name] for name in small) or words.attribute(word) or word.isdigit() or is_participle(word):
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


def _begins_behind(caption: Caption, left: _Left, anchor: Anchor) -> bool:
    return caption.text[anchor.end : left.start].strip() == "" and left.start >= anchor.end


def _of_somebody(caption: Caption, index: int) -> bool:
    """Whether a style is that of an artist, say, and not that of the image."""
    behind = [token.low for token in caption.tokens[index + 1 : index + 4]]
    return behind[:1] == ["of"] and not (behind[1:2] == ["the"] and behind[-1] in lexicon()["photo"])


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
