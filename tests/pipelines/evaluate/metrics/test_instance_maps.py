"""Instance maps compared: a slow plain version agrees, drift costs nothing, and nothing empty scores."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from pipelines.evaluate.metrics.instance_maps import (
    Answer,
    boundary,
    boundary_f1,
    clusters,
    greedy,
    grown,
    hungarian,
    ious,
    matched,
    measure,
    pixel_iou,
)
from sigma_data.synthetic.draw import render
from sigma_data.synthetic.families.crowds import crowd
from sigma_data.synthetic.instances import COLOURS, instance_map
from sigma_data.synthetic.rng import KeyedRng
from sigma_model.config import preset, preset_directory
from sigma_model.vae import Vae

few = hypothesis_settings(max_examples=60, deadline=None, derandomize=True)
labelled = arrays.arrays(np.int64, (7, 9), elements=st.integers(0, 3))


def scene(index: int, size: int = 64, least: int = 3) -> Image.Image:
    """The colour map of a crowd of at least so many things."""
    while True:
        things = crowd(KeyedRng("instances", index)).scene.things
        if len(things) >= least:
            return instance_map(things, size)
        index += 1000


def score(output: Image.Image, answer: Image.Image) -> dict[str, float]:
    return measure(output, Answer.of(answer))


def recoloured(image: Image.Image, colours: list[tuple[int, int, int]]) -> Image.Image:
    pixels = np.asarray(image).copy()
    made = pixels.copy()
    for old, new in zip(COLOURS, colours, strict=True):
        made[(pixels == old).all(axis=2)] = new
    return Image.fromarray(made)


PERFECT = {"hungarian": 1.0, "greedy": 1.0, "pixels": 1.0, "boundary": 1.0, "count": 0.0}


@pytest.mark.parametrize("index", range(6))
def test_the_answer_itself_is_perfect(index: int) -> None:
    answer = scene(index, least=1)
    assert score(answer, answer) == PERFECT


@pytest.mark.parametrize("index", range(4))
def test_permuted_colours_are_the_same_instances_and_other_pixels(index: int) -> None:
    answer = scene(index)
    turned = score(recoloured(answer, [*COLOURS[1:], COLOURS[0]]), answer)
    assert {**turned, "pixels": 1.0} == PERFECT and turned["pixels"] < 0.2


@pytest.mark.parametrize("index", range(4))
def test_colours_that_only_drift_cost_nothing(index: int) -> None:
    answer = scene(index)
    noise = np.random.default_rng(index).integers(-20, 21, (64, 64, 3))
    shade = np.linspace(0.85, 1.0, 64)[:, None, None]
    drifted = np.clip(np.asarray(answer) * shade * 0.9 + 10 + noise, 0, 255).astype(np.uint8)
    assert score(Image.fromarray(drifted), answer) == PERFECT


@pytest.mark.parametrize("index", range(4))
@pytest.mark.parametrize("blur", [0.5, 1, 1.5, 2])
def test_blended_edges_are_no_instances(index: int, blur: float) -> None:
    answer = scene(index, 128)
    found = score(answer.filter(ImageFilter.GaussianBlur(blur)), answer)
    assert found["count"] == 0 and found["hungarian"] > 0.84 and found["boundary"] > 0.9


@pytest.mark.slow
def test_what_an_autoencoder_makes_of_a_map_is_the_map_and_its_image_is_not() -> None:
    vae = Vae.load(preset_directory("tiny") / "ae.safetensors", preset("tiny").vae)
    scores = []
    for index in range(12):
        answer = scene(index, least=1)
        pixels = torch.from_numpy(np.asarray(answer).copy()).permute(2, 0, 1).float() / 127.5 - 1
        with torch.no_grad():
            [decoded] = vae.decode(vae.encode([pixels]))
        made = ((decoded.clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
        scores.append(score(Image.fromarray(made), answer))
    assert np.mean([one["hungarian"] for one in scores]) > 0.85
    assert np.mean([one["count"] for one in scores]) < 0.1
    copies = []
    for index in range(12):
        things = crowd(KeyedRng("instances", index)).scene
        copies.append(score(render(things, 64), instance_map(things.things, 64))["hungarian"])
    assert np.mean(copies) < 0.35


@pytest.mark.parametrize("index", range(4))
@pytest.mark.parametrize("colour", [(0, 0, 0), (255, 0, 0), (128, 128, 128), (255, 255, 255)])
def test_an_empty_output_and_one_of_one_colour_score_next_to_nothing(index: int, colour: tuple[int, int, int]) -> None:
    answer = scene(index)
    found = score(Image.new("RGB", (64, 64), colour), answer)
    assert found["hungarian"] < 0.1 and found["greedy"] < 0.1 and found["pixels"] < 0.1 and found["boundary"] == 0
    if colour == (0, 0, 0):
        assert found["hungarian"] == found["pixels"] == 0


def test_noise_and_tiles_score_next_to_nothing() -> None:
    answer = scene(1)
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    tiles = np.zeros((64, 64, 3), np.uint8)
    for row in range(8):
        for column in range(8):
            tiles[row * 8 : row * 8 + 8, column * 8 : column * 8 + 8] = (row * 36, column * 36, 128)
    assert score(noise, answer)["hungarian"] < 0.1 and score(Image.fromarray(tiles), answer)["hungarian"] < 0.15


def test_everything_as_one_instance_and_one_split_in_two_cost_what_they_are() -> None:
    answer = Image.new("RGB", (60, 60))
    answer.paste((255, 0, 0), (10, 10, 20, 20))
    answer.paste((0, 255, 0), (30, 30, 40, 40))
    joined = recoloured(answer, [COLOURS[0]] * len(COLOURS))
    assert score(joined, answer) == {**PERFECT, "hungarian": 0.25, "greedy": 0.25, "pixels": 0.25, "count": 1.0}
    split = answer.copy()
    split.paste((0, 0, 255), (10, 10, 20, 15))
    found = score(split, answer)
    assert found["hungarian"] == pytest.approx(1.5 / 3) and found["count"] == 1
    extra = answer.copy()
    extra.paste((0, 0, 255), (45, 45, 55, 55))
    assert score(extra, answer)["hungarian"] == pytest.approx(2 / 3)


@pytest.mark.parametrize("change", [(1, 0), (0, 1), (-1, -1), (64, 64)])
def test_sizes_off_by_a_pixel_or_doubled_compare(change: tuple[int, int]) -> None:
    answer = scene(2)
    output = answer.resize((64 + change[0], 64 + change[1]), Image.Resampling.NEAREST)
    found = score(output, answer)
    assert found["hungarian"] > 0.85 and found["count"] == 0 and found["boundary"] > 0.9


def test_a_map_moved_by_three_pixels_keeps_instances_and_loses_its_boundary() -> None:
    answer = scene(3)
    moved = Image.new("RGB", (64, 64))
    moved.paste(answer, (3, 0))
    found = score(moved, answer)
    assert 0.3 < found["hungarian"] < 0.9 and found["boundary"] < 0.75 and found["count"] == 0


def test_two_close_colours_of_the_answer_stay_two() -> None:
    answer = Image.new("RGB", (60, 60))
    answer.paste((200, 0, 0), (5, 5, 25, 25))
    answer.paste((200, 40, 0), (30, 30, 50, 50))
    assert Answer.of(answer).radius == 20
    assert score(answer, answer) == PERFECT


def test_an_answer_without_instances_is_met_by_black_alone() -> None:
    black = Image.new("RGB", (32, 32))
    assert score(black, black) == PERFECT
    wrong = score(Image.new("RGB", (32, 32), (255, 0, 0)), black)
    assert wrong["hungarian"] == wrong["pixels"] == 0 and wrong["count"] == 1


def test_an_answer_in_jpeg_colours_is_clustered() -> None:
    answer = scene(2, 128)
    noise = np.random.default_rng(1).integers(-8, 9, (128, 128, 3))
    noisy = Image.fromarray(np.clip(np.asarray(answer).astype(int) + noise, 0, 255).astype(np.uint8))
    assert Answer.of(noisy).count == Answer.of(answer).count
    assert score(answer, noisy)["hungarian"] == 1


@few
@given(labelled, labelled)
def test_overlaps_equal_a_plain_count(one: NDArray[np.int64], other: NDArray[np.int64]) -> None:
    fast = ious(one, other, 3, 3)
    for row in range(3):
        for column in range(3):
            first = {place for place, value in np.ndenumerate(one) if value == row + 1}
            second = {place for place, value in np.ndenumerate(other) if value == column + 1}
            either = len(first | second)
            assert fast[row, column] == (len(first & second) / either if either else 0)


@few
@given(arrays.arrays(np.float64, st.tuples(st.integers(1, 5), st.integers(1, 5)), elements=st.floats(0, 1)))
def test_the_hungarian_match_is_the_best_of_all(overlaps: NDArray[np.float64]) -> None:
    rows, columns = overlaps.shape
    pairs = hungarian(overlaps)
    assert len({row for row, _ in pairs}) == len({column for _, column in pairs}) == len(pairs) == min(rows, columns)
    if rows <= columns:
        best = max(sum(overlaps[r, c] for r, c in enumerate(some)) for some in permutations(range(columns), rows))
    else:
        best = max(sum(overlaps[r, c] for c, r in enumerate(some)) for some in permutations(range(rows), columns))
    assert matched(overlaps, pairs) * max(rows, columns) == pytest.approx(best)
    assert matched(overlaps, greedy(overlaps)) <= matched(overlaps, pairs) + 1e-12


@few
@given(arrays.arrays(np.float64, st.tuples(st.integers(1, 5), st.integers(1, 5)), elements=st.floats(0, 1)))
def test_the_greedy_match_equals_a_plain_one(overlaps: NDArray[np.float64]) -> None:
    left = sorted(np.ndindex(*overlaps.shape), key=lambda pair: (-overlaps[pair], pair))
    plain: list[tuple[int, int]] = []
    for row, column in left:
        if all(row != r and column != c for r, c in plain):
            plain.append((row, column))
    assert greedy(overlaps) == plain


@few
@given(labelled, labelled)
def test_the_boundary_score_equals_a_plain_one(one: NDArray[np.int64], other: NDArray[np.int64]) -> None:
    def plain(labels: NDArray[np.int64]) -> list[tuple[int, int]]:
        height, width = labels.shape
        return [
            (y, x)
            for y in range(height)
            for x in range(width)
            if (x + 1 < width and labels[y, x] != labels[y, x + 1])
            or (y + 1 < height and labels[y, x] != labels[y + 1, x])
        ]

    first, second = plain(one), plain(other)
    assert [tuple(place) for place in np.argwhere(boundary(one))] == first

    def near(some: list[tuple[int, int]], others: list[tuple[int, int]]) -> float:
        hits = [any(abs(y - v) <= 1 and abs(x - u) <= 1 for v, u in others) for y, x in some]
        return sum(hits) / len(hits) if hits else 0.0

    precision, recall = near(second, first), near(first, second)
    wanted = 2 * precision * recall / (precision + recall) if precision + recall else float(not first and not second)
    assert boundary_f1(one, other) == pytest.approx(wanted)


@few
@given(arrays.arrays(np.bool_, (6, 8)), st.integers(1, 3))
def test_growing_reaches_so_many_rows_and_columns(mask: NDArray[np.bool_], reach: int) -> None:
    there = np.argwhere(mask)
    for place, value in np.ndenumerate(grown(mask, reach)):
        assert value == any(np.abs(np.array(place) - one).max() <= reach for one in there)


@few
@given(labelled)
def test_pixel_scores_equal_a_plain_count(labels: NDArray[np.int64]) -> None:
    palette = np.array([(0, 0, 0), *COLOURS[:3]])
    answer = Answer(labels, palette.astype(float))
    pixels = np.random.default_rng(0).integers(0, 256, (7, 9, 3)).astype(float)
    snapped = [[min(range(4), key=lambda k: float(((pixels[y, x] - palette[k]) ** 2).sum())) for x in range(9)]
               for y in range(7)]  # fmt: skip
    table = ious(labels, np.array(snapped), 3, 3)
    assert pixel_iou(pixels, answer) == pytest.approx(sum(table[k, k] for k in range(3)) / 3)


@few
@given(labelled)
def test_clusters_of_blocks_are_the_blocks(labels: NDArray[np.int64]) -> None:
    palette = np.array([(0, 0, 0), *COLOURS[:3]], dtype=float)
    large = labels.repeat(5, axis=0).repeat(5, axis=1)
    found = clusters(palette[large], 64)
    for value in np.unique(large):
        assert len(np.unique(found[large == value])) == 1
    assert len(np.unique(found)) == len(np.unique(large))
    assert ((found == 0) == (large == 0)).all()
