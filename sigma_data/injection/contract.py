"""What every injected instruction must satisfy, whoever placed its tokens: rules, a model, or a source.

Words, not characters, are compared: an instruction has the caption's words in order; besides them only the family's
frame and the connectors before a placeholder, and a placeholder may stand for a pronoun or "the image".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sigma_data.injection.caption import quoted_spans, words
from sigma_data.injection.frames import Frame
from sigma_data.injection.request import Phrase, Request
from sigma_data.instruction import Attribute, Instruction, Placeholder, Text, parse

CONNECTORS = ("in", "of", "from")
PRONOUNS = ("it", "this", "that")
IMAGE_WORDS = ("photo", "image", "picture", "photograph", "pic")


@dataclass(frozen=True)
class Problem:
    """A broken rule of the contract, by code."""

    code: str
    message: str


@dataclass(frozen=True)
class Kept:
    """How the caption's words stand in an instruction; `changed` is the first word that is not where it must be."""

    replaced: tuple[str, ...] = ()
    changed: str | None = None


def check(
    instruction: str,
    request: Request,
    *,
    frames: Sequence[Frame] = (),
    phrases: Sequence[Phrase] | None = None,
    bindings: Sequence[tuple[int, int]] = (),
) -> Problem | None:
    """The first rule that an instruction breaks, None if it keeps all.

    `frames` are those that the family may add. `phrases`, if given, must be what the tokens bind, in order.
    """
    parsed = parse(instruction, references=len(request.references))
    if problem := tags(parsed, request):
        return problem
    if missing := unnamed(parsed, request):
        return Problem("unnamed_reference", f"no placeholder names image {', '.join(map(str, missing))}")
    kept = preserved(request, parsed, frames)
    if kept.changed is not None:
        return Problem("words_changed", f"the caption's words are not in place, from {kept.changed!r} on")
    if phrases is not None and (problem := binding(parsed, phrases, bindings)):
        return problem
    return None


def tags(parsed: Instruction, request: Request) -> Problem | None:
    """Tokens that are none, control tokens, and placeholders of images that are not there."""
    if parsed.unknown:
        return Problem("unknown_token", f"{parsed.unknown[0][:60]} is not an attribute token")
    if parsed.control:
        return Problem("control_token", f"{parsed.control[0][:60]} is a control token of the tokenizer")
    if wrong := [number for number in parsed.placeholders if number not in request.images]:
        known = ", ".join(f"<image_{number}>" for number in sorted(request.images)) or "none"
        return Problem("image_range", f"<image_{wrong[0]}> is not one of the images ({known})")
    return None


def unnamed(parsed: Instruction, request: Request) -> list[int]:
    """The references that no placeholder names."""
    named = set(parsed.placeholders)
    return [one.image for one in request.references if one.image not in named]


def binding(parsed: Instruction, phrases: Sequence[Phrase], bindings: Sequence[tuple[int, int]] = ()) -> Problem | None:
    """Whether each token is the one of its phrase, stands before it and is bound to its image."""
    if parsed.attributes != tuple(phrase.token for phrase in phrases):
        return Problem("binding", f"the tokens are {parsed.attributes}, not those of the phrases")
    for phrase, image in zip(phrases, parsed.groups(bindings=dict(bindings)), strict=True):
        if image != phrase.image:
            return Problem("binding", f"<{phrase.token}>{phrase.text} is bound to image {image}, not {phrase.image}")
    return None


def is_complete(text: str, request: Request) -> bool:
    """Whether a text that holds attribute tokens is an injected instruction.

    It names every reference, and no token stands in quotation marks, where a caption would merely quote it.
    """
    parsed = parse(text, references=len(request.references))
    if tags(parsed, request) or unnamed(parsed, request):
        return False
    return not token_in_quotes(text)


def token_in_quotes(text: str) -> bool:
    """Whether an attribute token is part of quoted text."""
    return any(parse(text[start:end]).attributes for start, end in quoted_spans(text))


def preserved(request: Request, parsed: Instruction, frames: Sequence[Frame] = ()) -> Kept:
    """Compare an instruction with its caption, in each frame that it may stand in."""
    caption = _items(parse(request.caption, references=len(request.references)).parts)
    single = len(request.references) == 1
    found = _compare(caption, _items(parsed.parts), single=single, fold=False)
    for frame in frames:
        if found.changed is None:
            break
        inner = _inside(_items(parsed.parts), frame)
        if inner is not None:
            framed = _compare(caption, inner, single=single, fold=bool(frame.before))
            found = framed if framed.changed is None else found
    return found


Item = str | int
"""A word, or the number of a placeholder."""


def _items(parts: Sequence[Text | Attribute | Placeholder]) -> list[Item]:
    items: list[Item] = []
    for part in parts:
        if isinstance(part, Text):
            items += words(part.text)
        elif isinstance(part, Placeholder):
            items.append(part.number)
    return items


def _inside(items: list[Item], frame: Frame) -> list[Item] | None:
    """What stands where a frame has its caption, None if the words around it are not the frame's."""
    before, after = _items(parse(frame.before).parts), _items(parse(frame.after).parts)
    if len(items) < len(before) + len(after) or items[: len(before)] != before:
        return None
    end = len(items) - len(after)
    return items[len(before) : end] if items[end:] == after else None


def _compare(caption: Sequence[Item], out: Sequence[Item], *, single: bool, fold: bool) -> Kept:
    """Walk both, taking the longest way that the contract allows; states are (place in each), at most a few alive."""
    alive: dict[tuple[int, int], tuple[str, ...]] = {(0, 0): ()}
    furthest = 0
    while alive:
        following: dict[tuple[int, int], tuple[str, ...]] = {}
        for (left, right), replaced in alive.items():
            if left == len(caption) and right == len(out):
                return Kept(replaced)
            furthest = max(furthest, left)
            for step, more in _steps(caption, out, left, right, single=single, fold=fold):
                following.setdefault(step, replaced + more)
        alive = following
    shown = caption[furthest] if furthest < len(caption) else "the end"
    return Kept(changed=shown if isinstance(shown, str) else f"<image_{shown}>")


def _steps(
    caption: Sequence[Item], out: Sequence[Item], left: int, right: int, *, single: bool, fold: bool
) -> list[tuple[tuple[int, int], tuple[str, ...]]]:
    here = caption[left] if left < len(caption) else None
    there = out[right] if right < len(out) else None
    steps: list[tuple[tuple[int, int], tuple[str, ...]]] = []
    if here is not None and there is not None:
        same = here == there
        if not same and fold and left == 0 and isinstance(here, str) and isinstance(there, str):
            same = here.casefold() == there.casefold()
        if same:
            steps.append(((left + 1, right + 1), ()))
    if isinstance(there, int):
        steps.append(((left, right + 1), ()))
        if single and isinstance(here, str):
            if here.casefold() in PRONOUNS:
                steps.append(((left + 1, right + 1), (here,)))
            after = caption[left + 1] if left + 1 < len(caption) else None
            if here.casefold() == "the" and isinstance(after, str) and after.casefold() in IMAGE_WORDS:
                steps.append(((left + 2, right + 1), (f"{here} {after}",)))
    elif there in (*CONNECTORS, "the"):
        reach = _connected(out, right if there == "the" else right + 1)
        if reach:
            steps.append(((left, reach), ()))
    return steps


def _connected(out: Sequence[Item], right: int) -> int:
    """Behind the placeholder that follows, `the picture` before it left out; 0 if none does."""
    if list(out[right : right + 2]) == ["the", "picture"]:
        right += 2
    return right + 1 if right < len(out) and isinstance(out[right], int) else 0
