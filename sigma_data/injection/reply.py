"""A language model's reply into an injection: validated, and rendered by ourselves wherever that is possible.

From the phrases alone our own rendering places tokens and placeholders, so that no word of the caption can change. The
model's own text is taken only where that fails, and then it must keep the contract.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field, ValidationError

from sigma_data.injection import contract
from sigma_data.injection.caption import quoted_spans
from sigma_data.injection.contract import Problem
from sigma_data.injection.lexicon import lexicon
from sigma_data.injection.prompt import LONGEST_INSTRUCTION, LONGEST_PHRASE, MOST_PHRASES
from sigma_data.injection.request import INJECTED, Injection, Phrase, Request
from sigma_data.injection.rules import all_frames, inject_phrases
from sigma_data.injection.writing import bindings_of
from sigma_data.instruction import canonical, parse
from sigma_data.settings_base import StrictRecord

_FENCED = re.compile(r"\s*```[A-Za-z]*\s*\n(.*?)\n?\s*```\s*", re.DOTALL)
_TOKEN = Literal[
    "style", "subject", "id", "icon", "text", "pose", "layout", "perspective", "lighting", "background", "environment",
    "emotion", "clothing", "texture", "select",
]  # fmt: skip


class _PhraseReply(StrictRecord):
    text: Annotated[str, Field(min_length=1, max_length=LONGEST_PHRASE)]
    token: _TOKEN
    image: int | None


class _Reply(StrictRecord):
    phrases: Annotated[list[_PhraseReply], Field(max_length=MOST_PHRASES)]
    instruction: Annotated[str, Field(min_length=1, max_length=LONGEST_INSTRUCTION)]


def read_reply(request: Request, content: str) -> Injection | Problem:
    """The injection that a reply gives for a request, or the first rule that it breaks, by code.

    The codes, in order: not_json, schema, unknown_token, control_token, image_range, unnamed_reference, words_changed,
    phrase_not_found, binding.
    """
    fenced = _FENCED.fullmatch(content)
    try:
        data = json.loads(fenced[1] if fenced else content)
    except (ValueError, RecursionError):
        return Problem("not_json", "the reply is not JSON")
    try:
        reply = _Reply.model_validate(data)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(place) for place in first["loc"]) or "the reply"
        return Problem("schema", f"{where}: {first['msg']}"[:200])
    phrases = _phrases(request, reply)
    if not isinstance(phrases, Problem):
        found = inject_phrases(request, phrases)
        if not found.refused:
            return found
    text = canonical(reply.instruction.strip(), references=len(request.references))
    if problem := contract.check(text, request, frames=all_frames(request)):
        return problem
    return phrases if isinstance(phrases, Problem) else _as_written(request, text, reply)


def _phrases(request: Request, reply: _Reply) -> list[tuple[int, int, str, int]] | Problem:
    """(start, end, token, image) in the caption of each phrase that has an image."""
    text = canonical(request.caption.strip(), references=len(request.references))
    taken: list[tuple[int, int]] = []
    found = []
    for phrase in reply.phrases:
        if phrase.image is not None and phrase.image not in request.images:
            return Problem("image_range", f"{phrase.text[:60]!r} is given image {phrase.image}, which is not there")
        span = _find(text, phrase.text.strip(), taken)
        if span is None:
            return Problem("phrase_not_found", f"{phrase.text[:60]!r} does not occur in the caption")
        taken.append(span)
        if phrase.image is not None:
            start, end = span
            found.append((start if phrase.token == "select" else _behind_article(text, start, end), end, phrase.token,
                          phrase.image))  # fmt: skip
    return sorted(found)


def _find(text: str, phrase: str, taken: Sequence[tuple[int, int]]) -> tuple[int, int] | None:
    """The first place of a phrase as whole words, case folded, that no other phrase and no quotation has."""
    if not phrase:
        return None
    quoted = quoted_spans(text)
    pattern = re.compile(rf"(?<!\w){re.escape(phrase)}(?!\w)" if phrase[0].isascii() else re.escape(phrase),
                         re.IGNORECASE)  # fmt: skip
    spans = [match.span() for match in pattern.finditer(text)]
    free = [one for one in spans if not any(one[0] < end and start < one[1] for start, end in (*taken, *quoted))]
    return free[0] if free else None


def _behind_article(text: str, start: int, end: int) -> int:
    """Where the words of a phrase begin behind `the`, `a`, `her` ..."""
    match = re.match(r"(\w+)\s+(?=\S)", text[start:end])
    words = lexicon()
    article = match is not None and match[1].lower() in words["definite"] | {"a", "an", "some"}
    return start + match.end() if match is not None and article else start


def _as_written(request: Request, text: str, reply: _Reply) -> Injection | Problem:
    """The model's own text, whose tokens must be those of its phrases in their order of the text."""
    meant = [one for one in reply.phrases if one.image is not None]
    parsed = parse(text)
    if sorted(parsed.attributes) != sorted(one.token for one in meant):
        return Problem("binding", "the instruction's tokens are not those of the phrases")
    ordered = []
    for name, image in zip(parsed.attributes, parsed.groups(), strict=True):
        one = next((one for one in meant if (one.token, one.image) == (name, image)), None)
        if one is None:
            return Problem("binding", f"<{name}> is bound to image {image}, and no phrase says so")
        meant.remove(one)
        ordered.append(Phrase(one.text, name, image or 0))
    kept = contract.preserved(request, parsed, all_frames(request))
    bindings = bindings_of(text, [one.image for one in ordered])
    return Injection(text, request.family, INJECTED, tuple(ordered), bindings, kept.replaced)
