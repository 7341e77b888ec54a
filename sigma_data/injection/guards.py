"""Guards around a noun: what says that it is there already (G1), that it is the head of its phrase (G2), or not."""

from __future__ import annotations

from dataclasses import dataclass

from sigma_data.injection.caption import Caption, is_participle
from sigma_data.injection.lexicon import lexicon

REACH = 5
"""Words that are walked left of a noun, in search of what says whether it is there (G1)."""


@dataclass(frozen=True)
class Left:
    """What stands left of a noun: where its phrase begins, whether it is definite, and the word before the article."""

    start: int
    definite: bool
    new: bool
    before: str


def look_left(caption: Caption, index: int) -> Left:
    """G1: walk left over at most five words of the phrase, to what says that the thing is there, or that it is new."""
    words, tokens = lexicon(), caption.tokens
    at, owned = index, 0  # `owned`: the first token behind an owner (the woman's red jacket)
    while at > 0 and index - at < REACH and not tokens[at].breaks:
        previous = tokens[at - 1]
        if previous.image or previous.quoted:
            break
        low, start = previous.low, tokens[owned or at].start
        if previous.possessive:
            owned = owned or at
        elif low in words["definite"]:
            before = tokens[at - 2].low if at >= 2 and not previous.breaks else ""
            return Left(start, definite=True, new=False, before=before)
        elif low in words["indefinite"]:
            return Left(start, definite=False, new=True, before="")
        elif low in words["stop"] or (low in words["verbs"] and not caption.clause_starts(at - 1)):
            return Left(start, definite=False, new=False, before=low)
        elif caption.clause_starts(at - 1) and (low in words["edit_verbs"] or low in words["making_verbs"]):
            # An imperative verb: what it changes is there, what it makes is not.
            return Left(start, definite=low in words["edit_verbs"], new=False, before=low)
        at -= 1
    # Nothing says what it is; a phrase that begins the clause is taken whole, of others only the noun.
    whole = index - at < REACH
    return Left(tokens[(owned or at) if whole else index].start, definite=False, new=False, before="")


def is_head(caption: Caption, index: int) -> bool:
    """G2: the noun is the head of its compound. A car window and a flower vase are none of cars and flowers."""
    words = lexicon()
    after = caption.followed_by(index)
    if after is None or after.image or after.quoted:
        return True
    if after.low in words["function"] or is_participle(after.low):
        return True
    if _is_given(caption, index):
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


def is_followed_by_verb(caption: Caption, index: int) -> bool:
    """Whether a verb follows a noun, as in a sentence that is no command: The man wears the hat of ..."""
    words, after = lexicon(), caption.followed_by(index)
    if after is None or after.low in words["verbs_too"]:
        return False
    return after.low in words["verbs"] or _base(after.low) in words["verbs"]


def _base(verb: str) -> str:
    """A verb in -s without it."""
    if not verb.endswith("s"):
        return ""
    return verb[:-2] if verb[:-2] in lexicon()["verbs"] else verb[:-1]


def _is_given(caption: Caption, index: int) -> bool:
    """Whether a person gets what the next words name: Give the woman glasses."""
    words, tokens = lexicon(), caption.tokens
    if words.attribute(tokens[index].low) != "id":
        return False
    at = index
    while at and not caption.clause_starts(at) and index - at < REACH:
        at -= 1
    return tokens[at].low in ("give", "bring", "hand", "lend", "offer") and at < index


def is_part(caption: Caption, index: int, left: Left) -> bool:
    """Whether a noun is a part of the thing named before it (G2: a car window, a flower vase)."""
    words, tokens = lexicon(), caption.tokens
    if words.singular(tokens[index].low) not in words["parts"] or not index or tokens[index].breaks:
        return False
    return tokens[index - 1].start >= left.start and words.attribute(tokens[index - 1].low) is not None


def is_own_style(caption: Caption, index: int, left: Left) -> bool:
    """Whether a style is that of the only image: what is changed or kept, not what is applied, and nobody's else."""
    words, tokens = lexicon(), caption.tokens
    if tokens[index].low != "style" or left.before == "in" or _of_somebody(caption, index):
        return False
    if any(one.low not in words["own_styles"] for one in tokens[:index] if one.start >= left.start):
        return False
    at = index
    while at and not caption.clause_starts(at):
        at -= 1
    return tokens[at].low in words["edit_verbs"] and left.before not in words["becoming"]


def becomes(caption: Caption, index: int, left: Left) -> bool:
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


def _of_somebody(caption: Caption, index: int) -> bool:
    """Whether a style is that of an artist, say, and not that of the image."""
    behind = [token.low for token in caption.tokens[index + 1 : index + 4]]
    return behind[:1] == ["of"] and not (behind[1:2] == ["the"] and behind[-1] in lexicon()["photo"])
