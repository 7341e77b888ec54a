"""CV-Bench: letters read from words, the official and the pooled score, strict reading."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import corpora
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.evaluate.benchmarks import open_benchmark
from pipelines.evaluate.benchmarks.cv_bench import letter
from pipelines.evaluate.item import Result
from sigma_data.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("(A)", "A"),
        ("B", "B"),
        ("b", "B"),
        (" C. ", "C"),
        ("D) 4", "D"),
        ("A: the chair", "A"),
        ("The answer is (b).", "B"),
        ("The answer is C.", "C"),
        ("Answer: A", "A"),
        ("(C) or maybe (A)", "C"),
        ("B, not (A)", "A"),  # parentheses come first
        ("The left one", None),
        ("Definitely the chair", None),
        ("A chair is nearer", None),  # an article
        ("A chair, so B", "B"),
        ("", None),
        ("(E)", None),  # there are four choices
        ("I say D", "D"),
        ("C's place", None),
        ("12", None),
    ],
)
def test_the_letter_of_an_answer_in_words(text: str, expected: str | None) -> None:
    assert letter(text, 4) == expected


@pytest.mark.parametrize("choice", "ABCD")
@pytest.mark.parametrize(
    "phrase",
    [
        "{} is correct.",
        "The answer is {} because it is left",
        "The answer is {} since it is left",
        "Option {} is right",
        "option {} makes sense",
        "Choice {} fits",
        "The correct letter is {} here",
        "{}\nthe left one",
        "{}\n\nthe left one",
        "{} and nothing else",
        "{} or so",
        "{} but I am not sure",
        "{} as it is nearer",
        "{} due to its size",
        "{} seems right",
        "{} looks right",
        "{} would be my guess",
        "{} was my first thought",
        "{}, the left one",
        "{}: the left one",
        "{}. the left one",
        "{}) the left one",
        "{} The left one",
        "I choose {}",
        "**{}** the left one",
    ],
)
def test_every_letter_is_read_from_the_same_phrases(phrase: str, choice: str) -> None:
    assert letter(phrase.format(choice), 4) == choice


@pytest.mark.parametrize(
    "text",
    [
        "A cat is on the left",
        "A\tcat is on the left",
        "It shows A cat",
        "A so-called cat",
        "A thesis lies there",
        "A island is seen",
        "Answer: A chair is nearer",
        "The answer is there. A cat is on the left",
    ],
)
def test_an_article_is_no_answer(text: str) -> None:
    assert letter(text, 4) is None


def test_a_sentence_is_no_answer_of_its_first_letter_even_where_the_letter_is_a_choice() -> None:
    assert letter("The left one", 26) is None


def row(idx: int, source: str, answer: str = "(A)", **changes: Any) -> dict[str, Any]:
    kind = "3D" if source == "Omni3D" else "2D"
    return {
        "idx": idx, "type": kind, "task": "Depth" if kind == "3D" else "Count",
        "image": {"bytes": corpora.picture("png", idx), "path": None}, "question": "How many?",
        "choices": ["1", "2", "3"], "answer": answer, "prompt": "How many?\n(A) 1\n(B) 2\n(C) 3",
        "filename": "x.png", "source": source, **changes,
    }  # fmt: skip


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def test_items_carry_the_question_the_picture_and_the_letter(tmp_path: Path) -> None:
    write(tmp_path / "test_2d.parquet", [row(0, "ADE20K", "(B)"), row(1, "COCO")])
    write(tmp_path / "test_3d.parquet", [row(2, "Omni3D", "(C)")])
    benchmark = open_benchmark(f"cv-bench:{tmp_path}")
    items = benchmark.items()
    assert benchmark.answers == "words"
    assert [(item.id, item.family, item.words) for item in items] == [
        ("2D-0", "Count", "B"), ("2D-1", "Count", "A"), ("3D-2", "Depth", "C"),
    ]  # fmt: skip
    assert items[0].references == (corpora.picture("png", 0),)
    assert items[0].instruction.startswith("How many?\n(A) 1")


def test_the_official_score_weighs_sources_and_the_pooled_one_items(tmp_path: Path) -> None:
    # ADE20K 1 of 4, COCO 1 of 1, Omni3D 1 of 2; a failure and a sentence are wrong, not left out.
    sources = ["ADE20K"] * 4 + ["COCO"] + ["Omni3D"] * 2
    path = write(tmp_path / "test.parquet", [row(number, source) for number, source in enumerate(sources)])
    benchmark = open_benchmark(f"cv-bench:{path}")
    texts = ["(A)", "(B)", "A chair", None, "A", "(a) 1", "C"]
    results = [
        Result(item, failure="out of memory") if text is None else Result(item, text=text)
        for item, text in zip(benchmark.items(), texts, strict=True)
    ]
    scores = benchmark.own_scores(results)
    assert [score.value for score in scores] == [1, 0, 0, 0, 1, 1, 0]
    assert scores[2].reason == "the answer gives no letter" and scores[3].reason == "out of memory"
    summary = benchmark.summary(results, scores)
    assert summary["ADE20K"] == 0.25 and summary["COCO"] == 1.0 and summary["3D"] == 0.5
    assert summary["2D"] == pytest.approx(0.625)
    assert summary["official"] == pytest.approx((0.625 + 0.5) / 2)
    assert summary["pooled"] == pytest.approx(3 / 7)


def test_a_part_of_the_benchmark_has_no_official_score(tmp_path: Path) -> None:
    benchmark = open_benchmark(f"cv-bench:{write(tmp_path / 'test_3d.parquet', [row(0, 'Omni3D')])}")
    results = [Result(item, text="A") for item in benchmark.items()]
    assert benchmark.summary(results, benchmark.own_scores(results)) == {"Omni3D": 1.0, "3D": 1.0, "pooled": 1.0}


def test_questions_that_stand_twice_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "test.parquet", [row(0, "COCO"), row(1, "Omni3D")])
    write(tmp_path / "test_2d.parquet", [row(0, "COCO")])
    with pytest.raises(ConfigError, match="stand twice"):
        open_benchmark(f"cv-bench:{tmp_path}").items()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"source": "KITTI"}, "source 'KITTI'"),
        ({"answer": "(D)"}, "none of its choices"),
        ({"prompt": ""}, "no prompt"),
    ],
)
def test_a_row_that_is_none_of_cv_bench_is_named(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    path = write(tmp_path / "test.parquet", [{**row(7, "COCO"), **changes}])
    with pytest.raises(ConfigError, match=f"question 7.*{message}"):
        open_benchmark(f"cv-bench:{path}").items()


def test_files_of_another_kind_are_refused(tmp_path: Path) -> None:
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(ConfigError, match="cannot be read as parquet"):
        open_benchmark(f"cv-bench:{tmp_path}").items()
    pq.write_table(pa.table({"idx": [1]}), tmp_path / "broken.parquet")
    with pytest.raises(ConfigError, match="has no column type, task"):
        open_benchmark(f"cv-bench:{tmp_path}").items()
