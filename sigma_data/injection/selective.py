"""Instructions that take one thing out of an image: `<select>` before the whole phrase, the placeholder behind it."""

from __future__ import annotations

import re

from sigma_data.injection.caption import Caption, sentence_end
from sigma_data.injection.frames import draw_frame
from sigma_data.injection.lexicon import lexicon
from sigma_data.injection.request import Phrase, Request
from sigma_data.injection.writing import Edits, placeholder

_COURTESY = r"\s*(?:(?:please|kindly|can you|could you)\s+)?"
_ROUTED = re.compile(rf"{_COURTESY}(?:extract|isolate|cut\s+out|segment\s+out)\b(?!['’])", re.IGNORECASE)
_VERB = re.compile(
    rf"{_COURTESY}(?:extract|isolate|cut\s+out|segment\s+out|crop\s+out|pick\s+out|single\s+out|take\s+out|retrieve"
    r"|separate|segment|select|crop|(?:show|keep|leave)\s+(?:me\s+)?(?:only|just|nothing\s+but)|(?:show|give)\s+me)\b"
    r"(?!['’])(?:\s+(?:only|just))?\s*:?\s+(?=\S)",
    re.IGNORECASE,
)
_SPLIT_VERB = re.compile(
    rf"{_COURTESY}(?:cut|segment|crop|pick|single|take)\s+(?=(?:\S+\s+){{1,8}}?out(?:\s+of\b|\s*[.!]?\s*$))",
    re.IGNORECASE,
)
"""Cut the dog out of the picture: the thing stands between the two parts of the verb."""
_SPLIT_END = re.compile(r"\s+out(?:\s+of\b|\s*[.!]?\s*$)", re.IGNORECASE)
_END = re.compile(
    r"\s*[.!?;,:](?=\s|$)|\s*[\n(（。，！？]|\s+(?:onto|as\s+an?|while|so\s+that|keeping|using|then|without)\b"
    r"|\s+(?:on|against|with|into|in)\s+an?\s+(?:\w+\s+){0,3}(?:background|backdrop|image|canvas|picture)\b"
    r"|\s+to\s+(?:create|make|get|obtain|produce)\b|\s+from\s+(?:the|its)\s+(?:\w+\s+)?(?:background|backdrop|scene)\b"
    r"|\s+and\s+(?:place|put|set|show|remove|keep|make|display|leave|paste|then|blur|replace|present|render|save)\b",
    re.IGNORECASE,
)
_TIED = re.compile(
    r"\s+(?:in|of|from|within|out\s+of)\s+(?:the\s+(?:\w+\s+)?(?:image|picture|photo|photograph|pic)\b(?!['’])"
    r"|(?=<image_\d+>))",
    re.IGNORECASE,
)
_PLACEHOLDER = re.compile(r"\s*<image_\d+>")


def is_selective(text: str) -> bool:
    """Whether an instruction begins with Extract, Isolate, Cut out or Segment out."""
    return _ROUTED.match(text) is not None


def takes_out(caption: Caption) -> bool:
    """Whether a caption of the selective family is a command to take something out, or the name of a thing."""
    if _VERB.match(caption.text) or _SPLIT_VERB.match(caption.text):
        return True
    words, first = lexicon(), caption.first_verb()
    return first in words["select_verbs"] or not (first in words["edit_verbs"] or first in words["making_verbs"])


def write_selective(caption: Caption, request: Request) -> tuple[str, Phrase | None]:
    """The instruction and its phrase; None where the text is neither such a command nor a thing's name."""
    text, image = caption.text, request.references[0].image
    verb, ends = _VERB.match(text), (_END, _TIED, _PLACEHOLDER)
    if verb is None and (verb := _SPLIT_VERB.match(text)) is not None:
        ends = (_END, _SPLIT_END, _PLACEHOLDER)
    if verb is None:
        return _framed(caption, request)
    start = verb.end()
    end = min((match.start() for pattern in ends if (match := pattern.search(text, start))), default=len(text))
    phrase = text[start:end].rstrip()
    if not any(character.isalnum() for character in phrase):
        return _appended(text, image), None
    edits = Edits(text)
    edits.insert(start, "<select>")
    end = start + len(phrase)
    if not _has_placeholder(text):
        tie = _TIED.match(text, end)
        if tie is not None:
            edits.insert(tie.end(), f" {placeholder(image)}")
        else:
            edits.insert(end, f" in {placeholder(image)}")
    return edits.result(), Phrase(phrase, "select", image)


def _framed(caption: Caption, request: Request) -> tuple[str, Phrase | None]:
    """A frame around a thing's name; a command of other words only takes the placeholder."""
    text, image = caption.text, request.references[0].image
    words = lexicon()
    first = caption.first_verb()
    if _has_placeholder(text):
        return text, None
    if first in words["select_verbs"]:
        return _appended(text, image, ""), None
    if not any(character.isalnum() for character in text) or len(text) > 200:
        return _appended(text, image), None
    end = sentence_end(text)
    inner = text[:end]
    if first in words["definite"] or first in words["indefinite"]:
        inner = inner[:1].lower() + inner[1:]
    frame = draw_frame("selective", request.references, request.key)
    return f"{frame.around(inner)}{text[end:]}", Phrase(inner, "select", image)


def _has_placeholder(text: str) -> bool:
    return _PLACEHOLDER.search(text) is not None


def _appended(text: str, image: int, connector: str = " in") -> str:
    if _has_placeholder(text):
        return text
    edits = Edits(text)
    edits.insert(sentence_end(text), f"{connector} {placeholder(image)}")
    return edits.result()
