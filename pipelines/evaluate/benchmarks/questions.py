"""Questions whose answers are a few known words: every turn of a corpus that is answered in words.

Of the world's questions the kind is known, and each kind counts by itself; those of other corpora are one family.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace

from pipelines.evaluate.aggregate import MetricInfo
from pipelines.evaluate.benchmarks.base import Benchmark, share
from pipelines.evaluate.benchmarks.samples import corpus_samples, is_corpus, text_items_of
from pipelines.evaluate.item import Item, Result, Score
from sigma_data.errors import ConfigError
from sigma_data.sample import Family, Sample
from sigma_data.synthetic.families.understanding import KINDS, NUMBERS

EXACT = MetricInfo(
    "questions-exact",
    "1",
    "up",
    "1 where the answer is the right one word by word, else 0: after Unicode NFKC in small letters, without"
    " punctuation and articles, with numbers up to ten in digits. Nothing may stand beside it.",
)
_DIGITS = {word: str(number) for number, word in enumerate(NUMBERS)}


class QuestionsBenchmark(Benchmark):
    """`path`: a corpus whose `split` has turns that are answered in words. Later turns see earlier true answers."""

    name = "questions"
    version = "1"
    answers = "text"
    metrics = (EXACT,)
    main = dict.fromkeys((*KINDS, Family.UNDERSTANDING.value), EXACT.name)

    split: str

    def __init__(self, path: str, *, split: str = "test") -> None:
        if not is_corpus(path):
            raise ConfigError(f"benchmark questions: {path}: no corpus; make one with sigma build-dataset")
        self.path = path
        self.split = split

    def iter_items(self) -> Iterator[Item]:
        empty = True
        for sample in corpus_samples(self.path, self.split, self.places):
            for item in items_of_questions(sample):
                empty = False
                yield item
        if empty:
            raise ConfigError(
                f"benchmark questions: {self.path}: the split {self.split!r} has no question that is answered in words"
            )

    def own_scores(self, results: Sequence[Result]) -> list[Score]:
        """A question without an answer is wrong: it scores 0, with the reason."""
        return [_score(result) for result in results]

    def summary(self, results: Sequence[Result], scores: Sequence[Score]) -> dict[str, float]:
        """`accuracy` is the plain mean of the kinds, `pooled` that of all questions."""
        kinds: dict[str, list[Result]] = defaultdict(list)
        for result in results:
            kinds[result.item.family].append(result)
        each = {kind: share(some, scores, EXACT.name) or 0.0 for kind, some in kinds.items()}
        pooled = share(results, scores, EXACT.name)
        if pooled is None:
            return {}
        return {"accuracy": sum(each.values()) / len(each), "pooled": pooled}


def items_of_questions(sample: Sample) -> Iterator[Item]:
    """The items of a sample's turns that are answered in words; the family is the kind, if the truth says it."""
    stated = json.loads(sample.truth).get("questions") if sample.truth else None
    for index, item in text_items_of(sample):
        kind = stated[index]["kind"] if stated else item.family
        yield replace(item, family=kind, truth={"kind": kind, "sample": sample.id}, question=sample.id)


def plain(text: str) -> str:
    """An answer as it is compared."""
    words = re.sub(r"[^\w\s]+", " ", unicodedata.normalize("NFKC", text).lower()).split()
    return " ".join(_DIGITS.get(word, word) for word in words if word not in ("the", "a", "an"))


def _score(result: Result) -> Score:
    item = result.item
    if result.text is None:
        return Score(item.id, EXACT.name, 0.0, result.failure or "there is no answer")
    return Score(item.id, EXACT.name, float(plain(result.text) == plain(item.answer_text or "")))
