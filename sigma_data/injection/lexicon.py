"""The words of the rules, from `words.yaml`: nouns by attribute, and the small words around them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Lexicon:
    """Nouns with their attribute, plurals without a rule, and sets of small words by name.

    The attribute is `place` for nouns that are a background where a preposition of place stands before them.
    """

    heads: Mapping[str, str]
    irregular: Mapping[str, str]
    sets: Mapping[str, frozenset[str]]

    def __getitem__(self, name: str) -> frozenset[str]:
        return self.sets[name]

    def attribute(self, word: str) -> str | None:
        """The attribute that a noun in lower case stands for, singular or plural."""
        for form in self._singulars(word):
            if (found := self.heads.get(form)) is not None:
                return found
        return None

    def singular(self, word: str) -> str:
        """A noun's form in the list, the word itself if it is not there."""
        return next((form for form in self._singulars(word) if form in self.heads), word)

    def _singulars(self, word: str) -> list[str]:
        forms = [word]
        if word in self.irregular:
            forms.append(self.irregular[word])
        if word.endswith("ies"):
            forms.append(f"{word[:-3]}y")
        if word.endswith("es"):
            forms.append(word[:-2])
        if word.endswith("s"):
            forms.append(word[:-1])
        return forms


def data_file(name: str) -> Any:
    """The content of a YAML file beside this module."""
    import yaml

    return yaml.safe_load(Path(__file__).with_name(name).read_text("utf-8"))


@cache
def lexicon() -> Lexicon:
    """The shipped words."""
    data = data_file("words.yaml")
    heads = {word: token for token, words in data.pop("heads").items() for word in words.split()}
    irregular = {str(word): str(form) for word, form in data.pop("irregular").items()}
    return Lexicon(heads, irregular, {name: frozenset(str(words).split()) for name, words in data.items()})
