"""CV-Bench: letters read from text, the official and the pooled score, strict reading."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support import image_files

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
        "image": {"bytes": image_files.image_bytes("png", idx), "path": None}, "question": "How many?",
        "choices": ["1", "2", "3"], "answer": answer, "prompt": "How many?\n(A) 1\n(B) 2\n(C) 3",
        "filename": "x.png", "source": source, **changes,
    }  # fmt: skip


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def test_items_carry_the_question_the_image_and_the_letter(tmp_path: Path) -> None:
    write(tmp_path / "test_2d.parquet", [row(0, "ADE20K", "(B)"), row(1, "COCO")])
    write(tmp_path / "test_3d.parquet", [row(2, "Omni3D", "(C)")])
    benchmark = open_benchmark(f"cv-bench:{tmp_path}")
    items = benchmark.items()
    assert benchmark.answers == "text"
    assert [(item.id, item.family, item.answer_text) for item in items] == [
        ("2D-0", "Count", "B"), ("2D-1", "Count", "A"), ("3D-2", "Depth", "C"),
    ]  # fmt: skip
    assert items[0].references == (image_files.image_bytes("png", 0),)
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


AS_TEXT = [
    '["1", "2", "3"]', "['1', '2', '3']", "['1' '2' '3']", "['1'\n '2'\n '3']", '["1" "2" "3"]', "('1', '2', '3')",
    "[1, 2, 3]", "[1 2 3]", "['1', '2', '3',]",
]  # fmt: skip


@pytest.mark.parametrize("text", AS_TEXT)
def test_choices_written_as_text_are_the_list_they_were(tmp_path: Path, text: str) -> None:
    path = write(tmp_path / "test.parquet", [{**row(0, "COCO", "(C)"), "choices": text}])
    item = open_benchmark(f"cv-bench:{path}").items()[0]
    assert item.truth["choices"] == ["1", "2", "3"] and item.answer_text == "C"


def test_choices_as_text_keep_quotes_commas_and_brackets(tmp_path: Path) -> None:
    texts = ["the cat's toy", 'a "red" chair', "left, then right", "[none]"]
    for number, text in enumerate([str(texts), json.dumps(texts), str(np.array(texts))]):
        path = write(tmp_path / f"{number}.parquet", [{**row(0, "COCO", "(D)"), "choices": text}])
        assert open_benchmark(f"cv-bench:{path}").items()[0].truth["choices"] == texts


@pytest.mark.parametrize("choices", ["1, 2, 3", "[1 2, 3]", "ABC", "", None, [], ["1"], [None, "2"], [True, False]])
def test_choices_that_are_no_list_of_texts_are_refused_and_never_read_as_letters(tmp_path: Path, choices: Any) -> None:
    path = write(tmp_path / "test.parquet", [{**row(7, "COCO"), "choices": choices}])
    with pytest.raises(ConfigError, match="question 7.*choices"):
        open_benchmark(f"cv-bench:{path}").items()


def test_an_image_may_stand_in_a_list_as_bytes_or_as_a_file(tmp_path: Path) -> None:
    data = image_files.image_bytes("png", 5)
    (tmp_path / "img").mkdir()
    (tmp_path / "img" / "5.png").write_bytes(data)
    base = {"bytes": data, "path": None}
    forms: list[Any] = [
        data, [data], base, [base], {"bytes": None, "path": "img/5.png"}, "img/5.png", ["img/5.png"],
        base64.b64encode(data).decode(), [base64.b64encode(data).decode()],
    ]  # fmt: skip
    for number, form in enumerate(forms):
        path = write(tmp_path / f"{number}.parquet", [{**row(0, "COCO"), "image": form}])
        assert open_benchmark(f"cv-bench:{path}").items()[0].references == (data,), form
    two = write(tmp_path / "two.parquet", [{**row(0, "COCO"), "image": [base, base]}])
    assert open_benchmark(f"cv-bench:{two}").items()[0].references == (data, data)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (None, "has no image"),
        ([], "has no image"),
        (7, "has no image"),
        ({"bytes": None, "path": None}, "has no image"),
        ("missing.png", "cannot be read"),
        ("../outside.png", "outside the folder"),
        ("/etc/hostname", "outside the folder"),
        ("name\0.png", "cannot be read"),
        ("A" * 101, "base64"),
    ],
)
def test_an_image_that_is_none_is_one_line_that_names_the_question(tmp_path: Path, image: Any, message: str) -> None:
    (tmp_path / "outside.png").write_bytes(image_files.image_bytes("png", 1))
    (tmp_path / "in").mkdir()
    path = write(tmp_path / "in" / "test.parquet", [{**row(7, "COCO", filename=None), "image": image}])
    with pytest.raises(ConfigError, match=f"question 7.*{message}") as caught:
        open_benchmark(f"cv-bench:{path}").items()
    assert "\n" not in str(caught.value)


def vlmeval_rows() -> list[dict[str, str | None]]:
    """Two questions as VLMEvalKit's tables hold them: base64, or the index of a row with the same image."""
    image = base64.b64encode(image_files.image_bytes("png", 3)).decode()
    shared = {"split": "2D", "category": "Count", "source": "COCO", "question": "How many?"}
    return [
        {"index": "0", "image": image, "prompt": "How many?\n(A) 1\n(B) 2", "A": "1", "B": "2", "C": None,
         "answer": "B", **shared},
        {"index": "1", "image": "0", "prompt": "What\tis it?\n(A) a \"cat\"\n(B) a dog\n(C) an ox", "A": 'a "cat"',
         "B": "a dog", "C": "an ox", "answer": "C", **shared},
    ]  # fmt: skip


@pytest.mark.parametrize(("ending", "separator"), [("tsv", "\t"), ("csv", ",")])
def test_tables_of_vlmevalkit_give_the_same_items_as_parquet(tmp_path: Path, ending: str, separator: str) -> None:
    path = tmp_path / f"CV-Bench-2D.{ending}"
    pl.DataFrame(vlmeval_rows()).write_csv(path, separator=separator)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    items = open_benchmark(f"cv-bench:{path}").items()
    assert [(item.id, item.family, item.answer_text) for item in items] == [
        ("2D-0", "Count", "B"),
        ("2D-1", "Count", "C"),
    ]
    assert items[0].references == items[1].references == (image_files.image_bytes("png", 3),)
    assert items[0].truth["choices"] == ["1", "2"] and items[1].truth["choices"][0] == 'a "cat"'
    assert items[1].instruction.startswith("What\tis it?\n(A)")


def test_json_lines_name_their_images_and_may_hold_line_separators(tmp_path: Path) -> None:
    data = image_files.image_bytes("png", 2)
    (tmp_path / "img" / "2D").mkdir(parents=True)
    (tmp_path / "img" / "2D" / "a.png").write_bytes(data)
    lines = []
    for number in range(2):
        one = row(number, "ADE20K", filename="img/2D/a.png", prompt="How\u2028many?")
        lines.append(json.dumps({key: value for key, value in one.items() if key != "image"}, ensure_ascii=False))
    (tmp_path / "test_2d.jsonl").write_text("\ufeff" + "\n".join(lines) + "\n\n", "utf-8")
    items = open_benchmark(f"cv-bench:{tmp_path}").items()
    assert [item.references for item in items] == [(data,), (data,)] and items[0].instruction == "How\u2028many?"


def test_of_a_folder_with_the_table_in_two_formats_one_is_read(tmp_path: Path) -> None:
    write(tmp_path / "test_2d.parquet", [row(0, "COCO")])
    (tmp_path / "test_2d.jsonl").write_text(json.dumps({"idx": 0}))
    assert len(open_benchmark(f"cv-bench:{tmp_path}").items()) == 1


@pytest.mark.parametrize(
    "changes",
    [{"idx": None}, {"idx": 1.5}, {"type": 2}, {"task": "count"}, {"task": None}, {"prompt": 7}, {"answer": 1},
     {"answer": None}, {"answer": "left"}, {"source": None}],
)  # fmt: skip
def test_a_column_of_another_type_or_meaning_is_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    path = write(tmp_path / "test.parquet", [{**row(7, "COCO"), **changes}])
    with pytest.raises(ConfigError, match="question"):
        open_benchmark(f"cv-bench:{path}").items()


def test_an_answer_may_be_the_letter_or_the_text_of_a_choice(tmp_path: Path) -> None:
    for number, answer in enumerate(["(B)", "B", "b", "(b)", "B.", "two cats"]):
        path = write(tmp_path / f"{number}.parquet", [row(0, "COCO", answer, choices=["a cat", "two cats", "three"])])
        assert open_benchmark(f"cv-bench:{path}").items()[0].answer_text == "B"
