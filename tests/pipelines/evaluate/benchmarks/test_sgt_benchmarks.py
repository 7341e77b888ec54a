"""Colour maps and questions as benchmarks: which items, in what order, how each is scored."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.evaluate.benchmarks import open_benchmark
from pipelines.evaluate.benchmarks.questions import EXACT, QuestionsBenchmark, plain
from pipelines.evaluate.benchmarks.segmentation import COUNT, HUNGARIAN, SegmentationBenchmark
from pipelines.evaluate.item import Result
from sigma_data import open_corpus
from sigma_data.errors import ConfigError
from sigma_data.sample import Family

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from pipelines.build_dataset.config import BuildConfig
    from pipelines.build_dataset.run import build

    place = tmp_path_factory.mktemp("sgt") / "corpus"
    source = "world:24?size=64&families=segmentation:2,understanding:1"
    build(BuildConfig(sources=(source,), splits={"train": 0, "val": 0, "test": 100}), place, workers=1)
    return place


def test_colour_maps_are_asked_at_their_own_size_and_the_answer_scores_one(corpus: Path) -> None:
    benchmark = open_benchmark(f"segmentation:{corpus}")
    items = benchmark.items()
    assert len(items) == 16 and {item.family for item in items} == {"segmentation"}
    assert all(item.size == (64, 64) and len(item.references) == 1 and not item.masks for item in items)
    results = [Result(item, image=item.answer) for item in items[:-1]] + [Result(items[-1], failure="no memory")]
    scores = benchmark.own_scores(results)
    values = {(score.item, score.metric): score.value for score in scores}
    assert all(values[item.id, HUNGARIAN.name] == 1 and values[item.id, COUNT.name] == 0 for item in items[:-1])
    assert {score.reason for score in scores if score.item == items[-1].id} == {"no memory"}
    assert benchmark.summary(results, scores) == {"iou": pytest.approx(15 / 16)}


def test_an_output_that_is_no_image_has_no_score_and_the_reason(corpus: Path) -> None:
    benchmark = open_benchmark(f"segmentation:{corpus}")
    [item, *_] = benchmark.items()
    scores = benchmark.own_scores([Result(item, image=b"no image")])
    assert len(scores) == len(benchmark.metrics) and all(one.value is None and one.reason for one in scores)


def test_every_turn_is_a_question_after_the_true_answers_before_it(corpus: Path) -> None:
    items = open_benchmark(f"questions:{corpus}").items()
    samples = [sample for sample in open_corpus(corpus) if sample.family is Family.UNDERSTANDING]
    assert len(items) == sum(len(sample.turns) for sample in samples)
    by_id = {item.id: item for item in items}
    for sample in samples:
        for index, turn in enumerate(sample.turns):
            item = by_id[sample.id if len(sample.turns) == 1 else f"{sample.id}-{index + 1}"]
            assert (item.instruction, item.answer_text, item.answer) == (turn.instruction, turn.response, None)
            assert item.before == sample.turns[:index]
            assert item.question == sample.id
            assert item.references == tuple(image.data for image in sample.images)
    assert any(item.before for item in items)


def test_questions_are_scored_exactly_by_kind(corpus: Path) -> None:
    benchmark = open_benchmark(f"questions:{corpus}")
    items = benchmark.items()
    right = [Result(item, text=item.answer_text) for item in items]
    assert all(score.value == 1 for score in benchmark.own_scores(right))
    assert set(benchmark.summary(right, benchmark.own_scores(right)).values()) == {1.0}
    wrong = [Result(item, text=f"{item.answer_text} or so") for item in items[1:]] + [Result(items[0], failure="none")]
    scores = benchmark.own_scores(wrong)
    assert all(score.value == 0 for score in scores) and scores[-1].reason == "none"
    kinds = {item.family for item in items}
    assert kinds <= set(benchmark.main) and len(kinds) > 2
    one = next(iter(kinds))
    some = [Result(item, text=item.answer_text if item.family == one else "") for item in items]
    assert benchmark.summary(some, benchmark.own_scores(some))["accuracy"] == pytest.approx(1 / len(kinds))


@pytest.mark.parametrize(
    ("said", "answer", "same"),
    [
        ("The blue star.", "the blue star", True),
        ("BLUE STAR", "the blue star", True),
        ("3", "three", True),
        ("Three objects", "three", False),
        ("left or right", "left", False),
        ("", "left", False),
        ("blue", "the blue star", False),
        ("the star blue", "the blue star", False),
    ],
)
def test_answers_are_compared_word_by_word(said: str, answer: str, same: bool) -> None:
    assert (plain(said) == plain(answer)) is same


def test_no_answer_is_right_for_most_questions_of_a_kind(corpus: Path) -> None:
    items = open_benchmark(f"questions:{corpus}").items()
    for guess in ("left", "two", "red", "the star"):
        assert sum(plain(item.answer_text or "") == guess for item in items) < 0.5 * len(items)


def test_the_world_leaves_both_to_their_own_benchmarks(corpus: Path) -> None:
    with pytest.raises(ConfigError, match=r"ask segmentation:.* or questions:"):
        open_benchmark(f"world:{corpus}").items()


def test_a_corpus_without_such_samples_is_refused(corpus: Path, tmp_path: Path) -> None:
    for name in ("segmentation", "questions"):
        with pytest.raises(ConfigError, match="no corpus"):
            open_benchmark(f"{name}:{tmp_path}")
        with pytest.raises(ConfigError, match="no sample in the split"):
            open_benchmark(f"{name}:{corpus}", split="train").items()


def test_definitions_state_a_version_and_numbers_that_the_code_has() -> None:
    for metric in (*SegmentationBenchmark.metrics, EXACT):
        assert metric.version == "1" and len(metric.definition) > 60
    from pipelines.evaluate.metrics.instance_maps import CORE, EDGE, FEWEST, LEAST, RADIUS, SOLID

    assert (RADIUS, LEAST, FEWEST, CORE, SOLID, EDGE) == (110, 0.002, 4, 3, 0.25, 0.008)
    assert QuestionsBenchmark.answers == "text" and SegmentationBenchmark.answers == "image"
