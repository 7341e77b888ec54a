"""Injection without a model: the family's frame, or tokens on what the caption surely says of an image.

Each caption ends as injected, kept as it is, or refused with a reason; nothing is guessed. Every result has passed the
contract (`contract.check`), and injecting it again changes nothing.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from sigma_data.injection import contract
from sigma_data.injection.anchors import (
    Anchor,
    ImageRangeError,
    find_anchors,
    photo_anchors,
    subject_pronoun,
)
from sigma_data.injection.candidates import candidates
from sigma_data.injection.caption import Caption, is_eastern, quoted_spans
from sigma_data.injection.frames import Frame, draw_frame, framed_phrases, frames, variants
from sigma_data.injection.lexicon import lexicon
from sigma_data.injection.request import INJECTED, KEPT, Injection, Phrase, Reference, Request, refusal
from sigma_data.injection.selective import is_selective, takes_out, write_selective
from sigma_data.injection.writing import Edits, Placed, append, bindings_of, write
from sigma_data.instruction import canonical, parse
from sigma_data.sample import Family

UNTOUCHED = frozenset((Family.SEGMENTATION, Family.UNDERSTANDING))
"""Families whose instructions have no attribute tokens."""
MOST_CHARACTERS = 8_000
"""A longer caption is no instruction; reading it would take long."""
_ROUTED = frozenset((Family.EDITING, Family.STYLIZATION, Family.COMPOSITIONAL))
_REPLACE = re.compile(
    r"\s*replace\s+(?P<article>(?:the|all|both|his|her|its|their)\s+)?(?P<thing>[^.,;<>\"“]{1,80}?)\s+with\s+the\s+"
    r"(?P<reference>(?:reference|given|provided)\s+(?:image|picture|photo|photograph|object|one))\s*[.!]?\s*",
    re.IGNORECASE,
)


def routed(request: Request) -> Request:
    """The request with the family that its wording shows: what begins with Extract or Isolate is selective."""
    if request.family in _ROUTED and len(request.references) == 1 and is_selective(request.caption):
        return replace(request, family=Family.SELECTIVE)
    return request


def inject(request: Request) -> Injection:
    """Turn a caption into an interleaved instruction, by rules alone."""
    request = routed(request)
    return settled(request) or _by_rules(request)


def settled(request: Request) -> Injection | None:
    """The outcome of a caption that is not open to tokens: of no such family, injected already, or hostile."""
    if request.family in UNTOUCHED or not request.references:
        return Injection(request.caption, request.family, KEPT)
    if len(request.caption) > MOST_CHARACTERS:
        return refusal(request, "too_long", f"the caption has {len(request.caption):,} characters")
    parsed = parse(request.caption, references=len(request.references))
    if not any(character.isalnum() for character in parsed.plain):
        return refusal(request, "no_words", "the caption has no words")
    if problem := contract.tags(parsed, request):
        code = "token_in_text" if problem.code == "unknown_token" else problem.code
        return refusal(request, code, problem.message)
    if not parsed.attributes:
        return None
    if contract.is_complete(request.caption, request) or (request.injected and not contract.unnamed(parsed, request)):
        text = canonical(request.caption, references=len(request.references))
        return Injection(text, request.family, KEPT)
    if request.injected:
        return _with_missing(request)
    return refusal(request, "token_in_text", f"the caption holds <{parsed.attributes[0]}>, which reads as a token")


def frame_of(request: Request) -> Frame | None:
    """The frame of a request whose family says its references by a frame alone, None for others."""
    kind, variant = _frame_kind(request)
    return None if not kind else draw_frame(kind, request.references, request.key, variant)


def all_frames(request: Request) -> list[Frame]:
    """The frames that an instruction of this request may stand in."""
    kind, _ = _frame_kind(request)
    if not kind and request.family is Family.SELECTIVE:
        kind = "selective"
    return [frame for one in variants(kind) for frame in frames(kind, request.references, one)] if kind else []


def _frame_kind(request: Request) -> tuple[str, str]:
    """(kind, variant) of the frame, empty without one; it takes exactly the references of the request."""
    count = len(request.references)
    if request.family is Family.LAYOUT and count == 1:
        kind = request.references[0].kind or "other"
        return "layout", kind if kind in variants("layout") else "other"
    if request.family is Family.RELATION and count == 3:
        return "relation", "any"
    if request.family is Family.COMPOSITIONAL and count == 1 and _label(request.references[0]):
        return "subjects", "any"
    return "", ""


def _label(reference: Reference) -> str:
    """The label, if it is plain text."""
    label = " ".join((reference.label or "").split())
    parsed = parse(label)
    return "" if parsed.attributes or parsed.placeholders or parsed.unknown or parsed.control else label


def _by_rules(request: Request) -> Injection:
    text = canonical(request.caption.strip(), references=len(request.references))
    caption = Caption(text)
    missing = contract.unnamed(parse(text), request)
    frame = frame_of(request) if len(missing) == len(request.references) else None
    if frame is not None:
        return _verified(request, frame.around(text), framed_phrases(frame))
    selective = request.family is Family.SELECTIVE and len(request.references) == 1
    if selective and not is_eastern(text) and takes_out(caption):
        out, phrase = write_selective(caption, request)
        return _verified(request, out, () if phrase is None else (phrase,))
    if is_eastern(text):
        return _named(request, text, missing)
    try:
        anchors = find_anchors(caption, request)
    except ImageRangeError as error:
        return refusal(request, "image_range", str(error))
    if len(request.references) == 2 and (found := _replace_frame(caption, request, anchors)):
        return found
    anchors = _with_left_over(caption, request, anchors)
    placed = [Placed(one.start, one.end, one.token, one.image) for one in candidates(caption, request, anchors)]
    placed += [Placed(one.start, one.end, "style", one.image) for one in anchors if one.kind == "style"]
    return _placed(caption, request, [one for one in anchors if one.kind != "style"], placed)


def inject_phrases(request: Request, phrases: Sequence[tuple[int, int, str, int]]) -> Injection:
    """Render phrases that a model found: (start, end, token, image) in the caption in canonical spelling."""
    caption = Caption(canonical(request.caption.strip(), references=len(request.references)))
    try:
        anchors = find_anchors(caption, request)
    except ImageRangeError as error:
        return refusal(request, "image_range", str(error))
    placed = [Placed(*one) for one in phrases]
    named = _with_left_over(caption, request, anchors, also=[one.image for one in placed])
    free = [a for a in named if not any(one.start < a.end and a.start < one.end for one in placed)]
    return _placed(caption, request, [one for one in free if one.kind != "style"], placed)


def _placed(caption: Caption, request: Request, anchors: Sequence[Anchor], placed: Sequence[Placed]) -> Injection:
    """The instruction with these phrases and anchors; refused if neither names one of several references."""
    if len(request.references) == 1:
        return _of_one(caption, request, anchors, placed)
    named = {anchor.image for anchor in anchors if not anchor.possessive} | {one.image for one in placed}
    if unbound := [one.image for one in request.references if one.image not in named]:
        return refusal(
            request, "unbound_reference", f"no words of the caption name image {', '.join(map(str, unbound))}"
        )
    return _finished(request, caption, write(caption, placed, anchors), placed)


def _of_one(caption: Caption, request: Request, anchors: Sequence[Anchor], placed: Sequence[Placed]) -> Injection:
    """A caption with a single reference, which can always be named: behind a phrase, `the image`, or at the end."""
    found = _of_one_in_place(caption, request, anchors, placed)
    if found.code not in ("words_changed", "binding", "not_idempotent"):
        return found
    edits = Edits(caption.text)  # its words run into each other: `the car.Make it blue`
    for one in placed:
        edits.insert(one.start, f"<{one.token}>")
    if contract.unnamed(parse(caption.text), request):
        append(edits, request.references[0].image)
    at_end = _finished(request, caption, edits, placed)
    return found if at_end.refused else at_end


def _of_one_in_place(
    caption: Caption, request: Request, anchors: Sequence[Anchor], placed: Sequence[Placed]
) -> Injection:
    image = request.references[0].image
    photos = photo_anchors(caption, image, anchors)
    if placed and not anchors:
        # Remove the dog from the photo: the placeholder stands behind what ties the last phrase to the image.
        last = max(one.end for one in placed)
        behind = next((one for one in photos if one.start >= last), None)
        between = "" if behind is None else caption.text[last : behind.start].strip().lower()
        used = [behind] if behind is not None and between in ("of", "in", "from", "on") else []
        return _finished(request, caption, write(caption, placed, used), placed)
    edits = write(caption, placed, anchors)
    replaced: tuple[str, ...] = ()
    if not any(anchor.image == image and not anchor.possessive for anchor in anchors) and not placed:
        if (span := subject_pronoun(caption)) is not None:
            replaced = (edits.replace(*span, f"<image_{image}>"),)
        elif photos:
            edits.insert(photos[0].end, f" <image_{image}>")
        else:
            append(edits, image)
    return _finished(request, caption, edits, placed, replaced)


def _with_left_over(
    caption: Caption, request: Request, anchors: list[Anchor], also: Sequence[int] = ()
) -> list[Anchor]:
    """Anchors, and for the only reference of several that none names the place where the caption says "the photo".

    In editing and stylization `it`, as the object of the first verb, says so too. A noun is never taken for it.
    """
    named = {*(anchor.image for anchor in anchors), *also}
    left = [one.image for one in request.references if one.image not in named]
    if len(request.references) < 2 or len(left) != 1:
        return anchors
    photos = photo_anchors(caption, left[0], anchors)
    found = photos[:1]
    if not found and request.family in (Family.EDITING, Family.STYLIZATION):
        span = subject_pronoun(caption)
        found = [] if span is None else [Anchor(*span, left[0], "photo")]
    return sorted([*anchors, *found], key=lambda anchor: anchor.start)


def _replace_frame(caption: Caption, request: Request, anchors: Sequence[Anchor]) -> Injection | None:
    """`Replace X with the reference image`: X is in the first image, whatever it is."""
    match = _REPLACE.fullmatch(caption.text)
    if match is None or any(anchor.kind != "reference" for anchor in anchors):
        return None
    first, second = (one.image for one in request.references)
    thing = match["thing"]
    token = lexicon().attribute(thing.lower().split()[-1]) or "subject"
    token = "background" if token == "place" else token
    if thing.lower().endswith(("'s", "’s")) or any(start < match.end("thing") for start, _ in quoted_spans(thing)):
        return None
    placed = [Placed(*match.span("thing"), token, first), Placed(*match.span("reference"), token, second)]
    return _finished(request, caption, write(caption, placed, ()), placed)


def _named(request: Request, text: str, missing: Sequence[int]) -> Injection:
    """A caption whose words no list knows: it keeps its placeholders, or names its only reference at the end."""
    if not missing:
        return Injection(text, request.family, KEPT)
    if len(request.references) > 1:
        return refusal(request, "unbound_reference", "the rules know no words of this language")
    edits = Edits(text)
    append(edits, missing[0])
    return _verified(request, edits.result(), ())


def _with_missing(request: Request) -> Injection:
    """An injected text that lacks the placeholder of its only reference."""
    text = canonical(request.caption, references=len(request.references))
    missing = contract.unnamed(parse(text), request)
    if len(request.references) > 1:
        return refusal(request, "unbound_reference", f"no placeholder names image {', '.join(map(str, missing))}")
    edits = Edits(text)
    append(edits, missing[0])
    return Injection(edits.result(), request.family, INJECTED)


def _finished(
    request: Request, caption: Caption, edits: Edits, placed: Sequence[Placed], replaced: tuple[str, ...] = ()
) -> Injection:
    ordered = sorted(placed, key=lambda one: one.start)
    phrases = tuple(Phrase(caption.text[one.start : one.end], one.token, one.image) for one in ordered)
    return _verified(request, edits.result(), phrases, replaced)


def _verified(request: Request, out: str, phrases: tuple[Phrase, ...], replaced: tuple[str, ...] = ()) -> Injection:
    """The result, if it keeps the contract and stays the same when it is injected again; else a refusal."""
    try:
        bindings = bindings_of(out, [phrase.image for phrase in phrases])
    except ValueError:  # another number of tokens than phrases
        return refusal(request, "binding", "the caption's own text reads as a token once tokens stand in it")
    problem = contract.check(out, request, frames=all_frames(request), phrases=phrases, bindings=bindings)
    if problem is not None:
        return refusal(request, problem.code, problem.message)
    same = out == canonical(request.caption, references=len(request.references))
    found = Injection(out, request.family, KEPT if same else INJECTED, phrases, bindings, replaced)
    if same:
        return found
    again = inject(replace(request, caption=out, injected=False))
    if again.instruction == out and not again.refused:
        return found
    return refusal(request, "not_idempotent", "injecting the result again would change it")
