"""A caption as words, placeholders and quoted stretches, with their places in the text."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from sigma_data.injection.lexicon import lexicon
from sigma_data.instruction import Placeholder, Text, parse

_WORD = re.compile(r"[^\W_]+(?:[-'’][^\W_]+)*")
_QUOTED = re.compile(
    r"\"[^\"\n]*\"|“[^”\n]*”|„[^“”\n]*[“”]|«[^»\n]*»|「[^」\n]*」|『[^』\n]*』|‘[^’\n]*’(?!\w)"
    r"|(?<![\w'])'[^'\n]*'(?!\w)|`[^`\n]*`"
)
_BREAK = re.compile(r"[.!?;:,()\n\[\]{}|。，！？；：、（）—–]|\s-\s|\.\.\.")
_SENTENCE = re.compile(r"[.!?;:\n。！？；：]")
_EASTERN = re.compile(r"[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff]")
_LATIN_WORD = re.compile(r"[A-Za-z]{2,}")


@dataclass(frozen=True)
class Token:
    """A word, or (`image` > 0) a placeholder; `gap` is the text between it and the token before it.

    A word is in lower case in `low`, without a possessive 's; `possessive` tells that it had one.
    """

    low: str
    start: int
    end: int
    gap: str
    image: int = 0
    quoted: bool = False
    possessive: bool = False

    @property
    def breaks(self) -> bool:
        """Whether punctuation stands before it."""
        return _BREAK.search(self.gap) is not None


@dataclass(frozen=True)
class Caption:
    """A caption in canonical spelling (`sigma_data.instruction.canonical`) without attribute tokens."""

    text: str

    @cached_property
    def tokens(self) -> tuple[Token, ...]:
        """Words and placeholders in order."""
        quoted = quoted_spans(self.text)
        found: list[Token] = []
        end = 0
        for start, stop, image in sorted(self._pieces()):
            low, possessive = "", False
            if not image:
                low = self.text[start:stop].lower().replace("’", "'")
                possessive = low.endswith("'s") or (
                    low.endswith("s") and re.match(r"['’]\s", self.text[stop : stop + 2]) is not None
                )
                low = low.removesuffix("'s")
            inside = any(first <= start < last for first, last in quoted)
            found.append(Token(low, start, stop, self.text[end:start], image, inside, possessive))
            end = stop
        return tuple(found)

    def clause_starts(self, index: int) -> bool:
        """Whether the token at an index is the first of a clause, as a command's verb is."""
        if index == 0 or self.tokens[index].breaks:
            return True
        return self.tokens[index - 1].low in ("and", "then", "please", "but", "or", "also", "you", "to", "now")

    def followed_by(self, index: int) -> Token | None:
        """The token behind the one at an index, unless punctuation or the end is between them."""
        if index + 1 >= len(self.tokens) or self.tokens[index + 1].breaks:
            return None
        return self.tokens[index + 1]

    def first_verb(self) -> str:
        """The word that begins the caption, courtesies left out."""
        skipped = {"please", "can", "could", "would", "you", "now", "then", "also", "i", "want", "to", "kindly"}
        return next((token.low for token in self.tokens if token.low not in skipped), "")

    def _pieces(self) -> Iterator[tuple[int, int, int]]:
        position = 0
        for part in parse(self.text).parts:
            if isinstance(part, Text):
                for match in _WORD.finditer(part.text):
                    yield position + match.start(), position + match.end(), 0
                position += len(part.text)
            elif isinstance(part, Placeholder):
                length = len(f"<image_{part.number}>")
                yield position, position + length, part.number
                position += length


def quoted_spans(text: str) -> list[tuple[int, int]]:
    """(start, end) of what stands in quotation marks: text to be shown, not things to be named."""
    return [match.span() for match in _QUOTED.finditer(text)]


def is_eastern(text: str) -> bool:
    """Whether a caption is in a language of which there is no list of words (Chinese, Japanese, Korean)."""
    plain = parse(_QUOTED.sub(" ", text)).plain
    return len(_EASTERN.findall(plain)) > len(_LATIN_WORD.findall(plain))


def words(text: str) -> list[str]:
    """What word preservation compares: split at white space, punctuation taken off the ends."""
    return [word for part in text.split() if (word := strip_punctuation(part))]


def strip_punctuation(word: str) -> str:
    """A word without punctuation and symbols at its ends."""
    start, end = 0, len(word)
    while start < end and not word[start].isalnum():
        start += 1
    while end > start and not word[end - 1].isalnum():
        end -= 1
    return word[start:end]


def sentence_end(text: str) -> int:
    """Where the final full stop begins, the end of the text if there is none; quotation marks stay before it."""
    end = len(text.rstrip())
    while end and text[end - 1] in ".!?。！？":
        end -= 1
    return len(text[:end].rstrip())


def sentence_starts_between(gap: str) -> bool:
    """Whether a sentence ends in a stretch of text."""
    return _SENTENCE.search(gap) is not None


def is_participle(word: str) -> bool:
    """Whether a word looks like a participle and not like a noun that ends so."""
    return word.endswith(("ing", "ed")) and len(word) > 4 and word not in lexicon()["not_participles"]
