"""CV-Bench: questions about pictures with lettered choices, answered in words.

Two scores are printed in papers and both are here: the official one weighs sources, the pooled one items.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipelines.evaluate.aggregate import MetricInfo
from pipelines.evaluate.benchmarks.base import Benchmark, share
from pipelines.evaluate.item import Item, Result, Score
from sigma_data.errors import ConfigError

TASKS = ("Count", "Relation", "Depth", "Distance")
TYPES = ("2D", "3D")
SOURCES = ("ADE20K", "COCO", "Omni3D")
_COLUMNS = ("idx", "type", "task", "image", "question", "choices", "answer", "prompt", "source")
_BATCH_ROWS = 64

CORRECT = MetricInfo("cv-bench-correct", "2", "up", (
    "1 where the letter of the answer is the right one, else 0. The letter is the first in parentheses, else the first"
    " capital that stands alone; an A before a word in small letters, as in A cat, is an article. No letter is a wrong"
    " answer."
))  # fmt: skip

_IN_PARENTHESES = re.compile(r"\(\s*([A-Za-z])\s*\)")
_ALONE = re.compile(r"(?<![\w'’])[A-Z](?![\w'’])")
_NO_NOUNS = (
    "am and appears are as at because being but by could does due fits for from given has if in is it lies looks makes"
    " matches might of on or seems shall should shows since so than that the then this was were when where which while"
    " with would"
)
"""Words in front of which an A is no article: they begin neither a noun nor what tells of one."""
_ARTICLE = re.compile(rf"A[^\S\n]+(?!(?:{_NO_NOUNS.replace(' ', '|')})(?![\w-]))[a-z]")
_NAMED = re.compile(r"\b(?:answer|option|choice|letter)(?:\s+is)?\s+$", re.IGNORECASE)
"""What stands before a letter that is called one."""
_NOTHING_ELSE = re.compile(r"\s*([A-Za-z])\s*[.):,]?\s*")


def letter(text: str, choices: int = 26) -> str | None:
    """The letter that an answer in words gives, among the first `choices` of the alphabet; None where it gives none.

    The first letter in parentheses, else the first capital that stands alone, else a small letter that is the
    whole answer. A word is not an answer of its first letter: `The left one` is not T, and `A cat` has an article.
    """
    known = [chr(ord("A") + number) for number in range(choices)]
    only = _NOTHING_ELSE.fullmatch(text)
    found = [
        *(match[1].upper() for match in _IN_PARENTHESES.finditer(text)),
        *(match[0] for match in _ALONE.finditer(text) if not _is_article(text, match.start())),
        *([only[1].upper()] if only else []),
    ]
    return next((one for one in found if one in known), None)


def _is_article(text: str, place: int) -> bool:
    """Whether the capital at `place` is the article A: `A cat`, but not `A is right`, `Option A shows`, `A` alone."""
    return _ARTICLE.match(text, place) is not None and _NAMED.search(text[:place]) is None


class CvBench(Benchmark):
    """`path`: a parquet file of CV-Bench or a folder with its parts (`test_2d.parquet`, `test_3d.parquet`)."""

    name = "cv-bench"
    version = "1"
    answers = "words"
    metrics = (CORRECT,)
    main = dict.fromkeys(TASKS, CORRECT.name)

    def __init__(self, path: str) -> None:
        place = Path(path)
        self.files = sorted(place.rglob("*.parquet")) if place.is_dir() else [place] if place.is_file() else []
        if not self.files:
            raise ConfigError(f"benchmark cv-bench: {path}: no parquet file there")

    def items(self) -> list[Item]:
        items = [item for file in self.files for item in _read(file)]
        if len({item.id for item in items}) < len(items):
            names = ", ".join(str(file) for file in self.files)
            raise ConfigError(f"benchmark cv-bench: questions stand twice in {names}; name one file")
        return items

    def own_scores(self, results: Sequence[Result]) -> list[Score]:
        """A failed or unreadable answer is wrong: it scores 0, with the reason."""
        return [_score(result) for result in results]

    def summary(self, results: Sequence[Result], scores: Sequence[Score]) -> dict[str, float]:
        """`official` = mean(2D, 3D) where 2D = mean(ADE20K, COCO) and 3D = Omni3D; `pooled` over all items."""
        known = {
            source: value
            for source in SOURCES
            if (value := share([r for r in results if r.item.truth["source"] == source], scores, CORRECT.name))
            is not None
        }
        if "ADE20K" in known and "COCO" in known:
            known["2D"] = (known["ADE20K"] + known["COCO"]) / 2
        if "Omni3D" in known:
            known["3D"] = known["Omni3D"]
        if "2D" in known and "3D" in known:
            known["official"] = (known["2D"] + known["3D"]) / 2
        pooled = share(results, scores, CORRECT.name)
        return known if pooled is None else {**known, "pooled": pooled}


def _score(result: Result) -> Score:
    item = result.item
    if result.text is None:
        return Score(item.id, CORRECT.name, 0.0, result.failure or "there is no answer")
    given = letter(result.text, len(item.truth["choices"]))
    return Score(item.id, CORRECT.name, float(given == item.words), "" if given else "the answer gives no letter")


def _read(path: Path) -> list[Item]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
        if missing := [name for name in _COLUMNS if name not in file.schema_arrow.names]:
            raise ConfigError(f"benchmark cv-bench: {path}: has no column {', '.join(missing)}")
        batches = file.iter_batches(_BATCH_ROWS, columns=list(_COLUMNS))
        return [_item(row, path) for batch in batches for row in batch.to_pylist()]
    except (OSError, pa.ArrowException) as error:
        raise ConfigError(f"benchmark cv-bench: {path}: cannot be read as parquet ({error})") from None


def _item(row: dict[str, Any], path: Path) -> Item:
    where = f"benchmark cv-bench: {path}: question {row['idx']}"
    choices = row["choices"] or []
    answer = letter(row["answer"] or "", len(choices))
    if row["source"] not in SOURCES or row["type"] not in TYPES:
        raise ConfigError(f"{where}: the source {row['source']!r} of type {row['type']!r} is none of CV-Bench")
    if answer is None or not row["prompt"]:
        raise ConfigError(f"{where}: has no prompt, or an answer {row['answer']!r} that is none of its choices")
    image = row["image"]["bytes"] if isinstance(row["image"], dict) else row["image"]
    return Item(
        id=f"{row['type']}-{row['idx']}",
        family=row["task"],
        instruction=row["prompt"],
        references=(image or b"",),
        words=answer,
        truth={"source": row["source"], "type": row["type"], "task": row["task"], "choices": list(choices)},
    )
