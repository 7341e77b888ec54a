"""The letter that a text answer chooses: one parser for every benchmark with lettered choices.

No letter is favoured: what is read for one letter is read for every other, so permuting the choices of all
questions permutes the answers and leaves the score. `A` is an article as well, so a letter that stands before a
noun is not an answer, whichever letter it is; what follows it decides, and the choices' own texts are known.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence

RULES = (
    "The letter is one that an answer names as its choice (`Answer: c`, `option d`), else the first in brackets, else"
    " the first that stands alone: a capital anywhere, a small letter at the start of a line. A letter before a word"
    " in small letters is read where that word is its choice's own text or cannot follow an article (`A is`, `B"
    " above`, not `A cat`). Without a letter, an answer that is the text of one choice to the letter is that choice."
    " All of it after Unicode NFKC (full-width letters); what names no choice is a wrong answer."
)
"""The rules as text, for a metric's definition."""

_LATIN = r"A-Za-z0-9_\u00C0-\u024F"
_BEFORE = rf"(?<![{_LATIN}])(?<![{_LATIN}]['’.])"
_AFTER = rf"(?![{_LATIN}]|['’][{_LATIN}]|\.[{_LATIN}]\b)"
"""What a letter that stands alone has not beside it: a letter, or one behind an apostrophe or a dot (`e.g.`).

Scripts without spaces may stand there (`答案是B`).
"""

_NAMING = (
    r"answers?|options?|choices?|letters?|choose|chose|pick|select(?:ed|ion)?|go(?:ing)?\ with|is|it's|"
    r"respuesta|opci[oó]n|r[eé]ponse|antwort|resposta|risposta|ответ|вариант|"
    r"答案|選項|选项|選擇|选择|选|選|正解|答え|回答|정답|답"
)
_STRONG = re.compile(
    rf"(?:(?<![{_LATIN}])(?:{_NAMING})|(?<=[^\x00-\u024F])[是为為は은는])"
    rf"(?:\ (?:is|are|es|est|ist|è|é))?[\s:=>是为為は은는\"'“”‘’(\[{{*]*"
    rf"{_BEFORE}(?P<letter>[A-Za-z]){_AFTER}",
    re.IGNORECASE,
)
"""A letter that is called the answer: `Answer: c`, `the answer is (B)`, `option d`, `{{"answer": "b"}}`, `答案是B`."""

_CALLED = re.compile(
    rf"(?<![{_LATIN}])(?:(?:answers?|options?|choices?|letters?)\s+(?:is\s+)?(?-i:(?P<capital>[A-Z]))"
    rf"|(?:options?|letters?)\s+(?P<small>[a-z])){_AFTER}",
    re.IGNORECASE,
)
"""A letter that cannot be an article, whatever follows it: `option d shows`, `the answer is A here`."""

_BRACKETED = re.compile(r"[(\[{<【〔「『]\s*([A-Za-z])\s*[)\]}>】〕」』]")
_CAPITAL = re.compile(rf"{_BEFORE}[A-Z]{_AFTER}")
_LEADING = re.compile(rf"^[^\S\n]*[\"'“‘]?([a-z]){_AFTER}", re.MULTILINE)

_NOT_NOUNS = (
    "above across after again against along alone among amongst am and appears are around as at because been before "
    "behind being below beneath beside besides between beyond both but by can can't cannot chosen clearly correct "
    "corresponds could definitely depicts describes did does due each either fits for from given had has have here if "
    "in indeed indicates inside instead into is isn't it its just lies looks makes matches means might near next no "
    "not obviously of off on only onto opposite or out outside over per points probably rather reads represents says "
    "seems shall should shows since so stands than that the then therefore this those through to too toward towards "
    "under underneath unlike until upon via was wasn't were what when where which while who will wins with within "
    "without works would "
)
"""Words before which an article cannot stand: they begin neither a noun nor what describes one."""

_NEXT_WORD = re.compile(rf"[^\S\n]+(?P<word>[a-z][{_LATIN}'’-]*)")
_EMPHASIS = re.compile(r"\\(?:boxed|text|textbf|mathrm|mathbf)\b|[*`$#]|(?<!\w)_+|_+(?!\w)")
_FRAME = re.compile(r"^(?:the\s+)?(?:correct\s+)?(?:final\s+)?(?:answer|option|choice)\s*(?:is|:)\s*", re.IGNORECASE)


def choice_letter(text: str, choices: int | Sequence[str]) -> str | None:
    """The capital of the choice that `text` names; None where it names none.

    `choices` are the choices' texts in order, or how many there are where their texts are not known: at most 26.
    """
    texts = [""] * choices if isinstance(choices, int) else [_plain(choice) for choice in choices]
    known = [chr(ord("A") + number) for number in range(len(texts))]
    plain = _EMPHASIS.sub(" ", unicodedata.normalize("NFKC", text))
    found = next((letter for letter in _letters(plain, dict(zip(known, texts, strict=True))) if letter in known), None)
    if found is None:
        given = _plain(_FRAME.sub("", plain.strip()))
        same = [letter for letter, choice in zip(known, texts, strict=True) if choice and choice == given]
        found = same[0] if len(same) == 1 else None
    return found


def _letters(answer: str, texts: dict[str, str]) -> Iterator[str]:
    """Every letter that may be the answer, the most certain first."""
    called = {match.end() - 1: match[match.lastgroup or 0] for match in _CALLED.finditer(answer)}
    named = {match.start("letter"): match["letter"] for match in _STRONG.finditer(answer)}
    for place, letter in sorted({**named, **called}.items()):
        if place in called or _stands_alone(answer, place, texts):
            yield letter.upper()
    for match in _BRACKETED.finditer(answer):
        yield match[1].upper()
    alone = sorted(
        [match.start() for match in _CAPITAL.finditer(answer)] + [match.start(1) for match in _LEADING.finditer(answer)]
    )
    for place in dict.fromkeys(alone):
        if _stands_alone(answer, place, texts):
            yield answer[place].upper()


def _stands_alone(answer: str, place: int, texts: dict[str, str]) -> bool:
    """Whether the letter at `place` is a letter, and not an article."""
    following = _NEXT_WORD.match(answer, place + 1)
    if following is None or following["word"].strip("'’") in _NOT_NOUNS.split():
        return True
    own = texts.get(answer[place].upper(), "")
    rest = _plain(answer[place + 1 :])
    return bool(own) and (rest == own or rest.startswith(own + " "))


def _plain(text: str) -> str:
    """Lower case, without articles, punctuation and doubled space, so that texts compare."""
    text = re.sub(r"[^\w\s]+", " ", unicodedata.normalize("NFKC", text).lower())
    return " ".join(word for word in text.split() if word not in ("the", "an", "a"))
