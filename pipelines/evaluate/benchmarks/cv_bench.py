"""CV-Bench: questions about images with lettered choices, answered with text.

Two scores are printed in papers and both are here: the official one weighs sources, the pooled one items.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pipelines.evaluate.aggregate import MetricInfo
from pipelines.evaluate.benchmarks.base import Benchmark, share
from pipelines.evaluate.benchmarks.choice_letter import RULES
from pipelines.evaluate.benchmarks.choice_letter import choice_letter as letter
from pipelines.evaluate.benchmarks.cv_bench_rows import SOURCES, TASKS, Question, read_questions, table_files
from pipelines.evaluate.item import Item, Result, Score
from sigma_data.errors import ConfigError

__all__ = ["CORRECT", "CvBench", "letter"]

CORRECT = MetricInfo(
    "cv-bench-correct", "3", "up", f"1 where the letter of the answer is the right one, else 0. {RULES}"
)


class CvBench(Benchmark):
    """`path`: a table of CV-Bench or a folder with its parts (`test_2d.parquet`, `test_3d.parquet`).

    A table is parquet, JSON lines, TSV or CSV; images stand in it, or as files below its folder.
    """

    name = "cv-bench"
    version = "1"
    answers = "text"
    metrics = (CORRECT,)
    main = dict.fromkeys(TASKS, CORRECT.name)

    def __init__(self, path: str) -> None:
        self.files = table_files(path)

    def iter_items(self) -> Iterator[Item]:
        seen: set[str] = set()
        for file in self.files:
            for question in read_questions(file):
                item = _item(question)
                if item.id in seen:
                    names = ", ".join(str(file) for file in self.files)
                    raise ConfigError(f"benchmark cv-bench: questions stand twice in {names}; name one file")
                seen.add(item.id)
                yield item

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
    given = letter(result.text, item.truth["choices"])
    return Score(item.id, CORRECT.name, float(given == item.answer_text), "" if given else "the answer gives no letter")


def _item(question: Question) -> Item:
    return Item(
        id=f"{question.type}-{question.idx}",
        family=question.task,
        instruction=question.prompt,
        references=question.images,
        answer_text=question.letter,
        truth={
            "source": question.source,
            "type": question.type,
            "task": question.task,
            "choices": list(question.choices),
        },
    )
