"""The world as a benchmark: exact answers score perfectly, everything else measurably worse."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from statistics import fmean

import numpy as np
import pytest
import torch
from PIL import Image
from support import corpora

from pipelines.evaluate.benchmarks import open_benchmark
from pipelines.evaluate.benchmarks.world import Exact, WorldBenchmark, item_of
from pipelines.evaluate.benchmarks.world_pixels import GRID, cells, distance, lab, shift, silhouettes
from pipelines.evaluate.benchmarks.world_scenes import alternatives, redraw
from pipelines.evaluate.item import Item, Result
from sigma_data.errors import ConfigError
from sigma_data.images.decode import load
from sigma_data.instruction import parse
from sigma_data.sample import Sample
from sigma_data.sources import open_source
from sigma_data.sources.world import FAMILIES
from sigma_model.config import VAE_FILE, preset, preset_directory
from sigma_model.vae import Vae

Answer = Callable[[Item], Image.Image]
Asked = list[tuple[Item, Exact]]
COUNT = 12
"""Samples a family where kinds of answers are compared."""


def draw(family: str, count: int, *, seed: int = 5, size: int = 64) -> list[Item]:
    reader = open_source(f"world:{count}?size={size}&seed={seed}&families={family}")
    samples = [record for fragment in reader.fragments() for record in reader.read(fragment)]
    return [item_of(sample) for sample in samples if isinstance(sample, Sample)]


def measured(asked: Asked, answer: Answer) -> list[dict[str, float]]:
    return [exact.measure(cells(answer(item))) for item, exact in asked]


def average(values: list[dict[str, float]], metric: str) -> float:
    return fmean(value[metric] for value in values if metric in value)


def truth(item: Item) -> Image.Image:
    return load(item.answer)


@pytest.fixture(scope="module")
def families() -> Mapping[str, Asked]:
    return {family.value: [(item, Exact(item)) for item in draw(family, COUNT)] for family in FAMILIES}


@pytest.fixture(scope="module")
def tiny_vae() -> Answer:
    directory = preset_directory("tiny")
    vae = Vae.load(directory / VAE_FILE, preset("tiny").vae)

    def blurred(item: Item) -> Image.Image:
        pixels = torch.from_numpy(np.array(truth(item))).permute(2, 0, 1).float() / 127.5 - 1
        given = vae.decode(vae.encode([pixels]))[0].float().clamp(-1, 1)
        return Image.fromarray(((given + 1) * 127.5).round().byte().permute(1, 2, 0).numpy())

    return blurred


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_the_exact_answer_has_no_error_on_sixty_samples(family: str) -> None:
    for item in draw(family, 60, seed=11):
        exact = Exact(item)
        output = cells(truth(item))
        off = distance(output, exact.answer)
        assert set((exact.regions(output, off) | exact.change(off)).values()) == {0.0}, item.id


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_the_exact_answer_has_every_attribute_and_leaks_nothing(families: Mapping[str, Asked], family: str) -> None:
    for value in measured(families[family], truth):
        assert value["world-accuracy"] == 1.0
        assert value.get("world-leakage", 0.0) == 0.0


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_the_tiny_autoencoder_costs_little(families: Mapping[str, Asked], family: str, tiny_vae: Answer) -> None:
    values = measured(families[family], tiny_vae)
    assert average(values, "world-accuracy") > 0.95
    assert average(values, "world-leakage") < 0.05
    assert average(values, "world-error") < 9
    assert average(values, "world-placement") < 0.02


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_references_and_noise_score_clearly_worse_than_the_answer_through_the_autoencoder(
    families: Mapping[str, Asked], family: str, tiny_vae: Answer
) -> None:
    items = families[family]
    random = np.random.default_rng(0)
    main = WorldBenchmark.main[family]
    good = measured(items, tiny_vae)
    copied = measured(items, lambda item: load(item.references[0]))
    noise = measured(items, lambda item: Image.fromarray(random.integers(0, 256, (64, 64, 3), dtype=np.uint8)))
    for bad in (copied, noise):
        assert average(bad, main) > 2.5 * average(good, main)
        assert average(bad, "world-accuracy") < 0.72
        assert average(bad, "world-leakage") > 0.15
    assert all(value["world-accuracy-copy"] == 0.0 for value in copied if "world-accuracy-copy" in value)


@pytest.mark.slow
def test_answers_of_other_items_score_like_guesses(families: Mapping[str, Asked]) -> None:
    asked = [one for some in families.values() for one in some]
    others = {item.id: other for (item, _), (other, _) in zip(asked, [*asked[1:], asked[0]], strict=True)}
    values = measured(asked, lambda item: truth(others[item.id]))
    assert average(values, "world-accuracy") < 0.6
    assert average(values, "world-error") > 25


def test_handing_back_the_input_of_an_edit_is_wrong_about_the_change_alone(families: Mapping[str, Asked]) -> None:
    values = measured(families["editing"], lambda item: load(item.references[0]))
    assert all(value["world-accuracy-copy"] == 0.0 for value in values)
    assert average(values, "world-change") > 2 * average(values, "world-error") - 1e-9
    assert average(values, "world-change") > 15


def test_every_alternative_differs_from_the_answer_and_stands_in_a_reference() -> None:
    for family in FAMILIES:
        for index in range(10):
            draft = redraw(family, 3, index)
            found = list(alternatives(draft))
            assert found
            assert all(other.scene != draft.target for other in found)
            scenes = [reference.scene for reference in draft.references]
            for other in found:
                if other.attribute == "background":
                    assert other.scene.backdrop in [scene.backdrop for scene in scenes]
                if other.attribute == "colour":
                    taken = other.scene.things[other.thing].colour
                    assert taken in [thing.colour for scene in scenes for thing in scene.things]
                assert other.leak == (other.attribute != "presence")


def test_cielab_has_the_values_of_the_standard() -> None:
    colours = np.array([[0, 0, 0], [255, 255, 255], [255, 0, 0], [0, 255, 0], [0, 0, 255]])
    expected = [[0, 0, 0], [100, 0, 0], [53.24, 80.09, 67.20], [87.73, -86.18, 83.18], [32.30, 79.19, -107.86]]
    assert np.allclose(lab(colours), expected, atol=0.02)


def test_a_thing_is_found_where_it_was_moved_to() -> None:
    answer = np.zeros((GRID, GRID, 3))
    answer[10:14, 8:12] = (60.0, 40.0, 20.0)
    cover = (answer[..., 0] > 0).astype(float)
    assert shift(answer, answer, cover) == 0.0
    assert shift(np.roll(answer, (3, 4), (0, 1)), answer, cover) == pytest.approx(5 / GRID)
    flat = shift(np.full((GRID, GRID, 3), 30.0), answer, cover)
    assert flat > 0.2  # nothing to be seen is no right place


def test_silhouettes_share_the_image() -> None:
    for index in range(6):
        covers, free = silhouettes(redraw("layout", 2, index).target.things)
        assert np.allclose(sum(covers) + free, 1.0)
        assert min(cover.min() for cover in covers) >= 0.0


def test_an_image_of_another_size_is_measured_too(families: Mapping[str, Asked]) -> None:
    (values,) = measured(
        families["compositional"][:1], lambda item: truth(item).resize((96, 96), Image.Resampling.BICUBIC)
    )
    assert values["world-accuracy"] == 1.0
    assert values["world-error"] < 4


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("world") / "corpus"
    corpora.build(out, "world:24?size=64", splits={"train": 1.0, "test": 1.0})
    return out


@pytest.mark.slow
def test_the_items_are_those_of_the_split_with_size_and_map(corpus: Path) -> None:
    rows = [row for row in corpora.read_manifest(corpus) if row["split"] == "test"]
    items = open_benchmark(f"world:{corpus}").items()
    assert [item.id for item in items] == [row["id"] for row in rows] and items
    for item, row in zip(items, rows, strict=True):
        assert item.size == (64, 64)
        assert len(item.references) == row["references"]
        assert (item.condition > 0) == (item.family == "layout")
        roles = {reference["image"]: reference for reference in item.truth["references"]}
        if item.condition:
            assert roles[item.condition]["map"]
        if "style" in item.truth["sources"] and "<style>" in item.instruction:
            assert item.style == item.truth["sources"]["style"]


@pytest.mark.slow
def test_scores_come_with_definitions_and_failed_items_stay_in_the_summary(corpus: Path) -> None:
    benchmark = open_benchmark(f"world:{corpus}")
    items = benchmark.items()
    results = [Result(item, image=item.answer) for item in items]
    scores = benchmark.own_scores(results)
    assert {score.metric for score in scores} == {metric.name for metric in benchmark.metrics}
    assert len({(score.item, score.metric) for score in scores}) == len(scores)
    assert set(benchmark.summary(results, scores).values()) == {1.0}
    family = items[0].family
    mine = [number for number, item in enumerate(items) if item.family == family]
    results[mine[0]] = Result(items[mine[0]], failure="out of memory")
    scores = benchmark.own_scores(results)
    assert {(s.value, s.reason) for s in scores if s.item == items[mine[0]].id} == {(None, "out of memory")}
    assert benchmark.summary(results, scores)[f"accuracy, {family}"] == pytest.approx(1 - 1 / len(mine))


def test_an_answer_that_is_no_image_fails_with_the_reason(corpus: Path) -> None:
    benchmark = open_benchmark(f"world:{corpus}")
    scores = benchmark.own_scores([Result(benchmark.items()[0], image=b"<html>")])
    assert all(score.value is None and "HTML" in score.reason for score in scores)


def test_a_sample_of_another_source_or_version_is_refused() -> None:
    reader = open_source("world:1?size=64")
    (sample,) = reader.read(reader.fragments()[0])
    assert isinstance(sample, Sample)
    assert item_of(sample).answer
    with pytest.raises(ConfigError, match="not drawn by the world"):
        item_of(Sample(sample.id, sample.family, sample.images, sample.turns, sample.source))
    truth = (sample.truth or "").replace('"horizon":', '"horizon_":')
    with pytest.raises(ConfigError, match="another version of the world"):
        item_of(Sample(sample.id, sample.family, sample.images, sample.turns, sample.source, truth=truth))


@pytest.mark.slow
def test_a_corpus_without_attribute_tokens_asks_the_same_questions_in_other_words(tmp_path: Path) -> None:
    splits = {"train": 1.0, "test": 1.0}
    asked: list[list[Item]] = []
    manifests = []
    for words in ("", "&attributes=no"):
        out = tmp_path / f"corpus{words}"
        corpora.build(out, f"world:30?size=64{words}", splits=splits)
        manifests.append([(row["id"], row["split"], row["component"]) for row in corpora.read_manifest(out)])
        asked.append(open_benchmark(f"world:{out}").items())
    assert manifests[0] == manifests[1]
    told, plain = asked
    assert {item.family for item in plain} == set(FAMILIES)
    for one, other in zip(told, plain, strict=True):
        assert replace(other, instruction=one.instruction) == one
        assert not parse(other.instruction).attributes
        output = cells(load(other.references[0]))
        assert Exact(other).measure(output) == Exact(one).measure(output)
    assert any(item.style for item in plain)


@pytest.mark.slow
def test_a_corpus_without_the_split_says_which_it_has(tmp_path: Path) -> None:
    corpora.build(tmp_path / "corpus", "world:6?size=64", splits={"train": 1.0})
    with pytest.raises(ConfigError, match="split 'test'; splits with samples: train"):
        open_benchmark(f"world:{tmp_path / 'corpus'}").items()
    assert len(open_benchmark(f"world:{tmp_path / 'corpus'}", split="train").items()) == 6
