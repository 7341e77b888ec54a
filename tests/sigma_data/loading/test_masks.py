"""A mask keeps its colours from the source to the model; rows without any image go the same way as all others."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Pillow
from support.corpora import build
from support.image_files import encoded, image_bytes
from support.listed_source import listed, sample
from support.sequences import one_thread  # noqa: F401
from support.training_data import dataset_of, index_of, planned

from pipelines.evaluate.benchmarks.samples import items_of
from pipelines.validate.run import validate_corpus
from sigma_data.corpus.corpus import open_corpus
from sigma_data.images.decode import load
from sigma_data.loading.loader import Loader, LoaderSettings
from sigma_data.sample import Family, Image, ImageKind, Sample, Turn

PALETTE = np.array([[0, 0, 0], [230, 25, 75], [60, 180, 75], [0, 130, 200]], np.uint8)


def mask_bytes(seed: int, width: int, height: int) -> bytes:
    """A map of labels in large patches, of the colours of PALETTE alone."""
    labels = np.random.default_rng(seed).integers(0, len(PALETTE), (9, 13))
    rows, columns = np.arange(height) * 9 // height, np.arange(width) * 13 // width
    return encoded(PALETTE[labels[rows[:, None], columns]])


def colours(pixels: np.ndarray) -> set[tuple[int, ...]]:
    return {tuple(colour) for colour in pixels.reshape(-1, 3).tolist()}


def segmentation(row: int) -> Sample:
    images = [Image(1, image_bytes("jpeg", row, width=301, height=203)), Image(2, mask_bytes(row, 301, 203))]
    return sample(row, Family.SEGMENTATION, images, [Turn(f"Colour every thing of <image_1>, {row}", target=2)])


def guided(row: int) -> Sample:
    """A mask as a reference: by its kind, whatever the family."""
    images = [
        Image(1, mask_bytes(row, 150, 101), kind=ImageKind.MASK),
        Image(2, image_bytes("jpeg", row, width=301, height=203)),
    ]
    return sample(row, Family.LAYOUT, images, [Turn(f"Paint scene {row} by the map <image_1>", target=2)])


def words(row: int, turns: int) -> Sample:
    asked = [Turn(f"How much is {row} and {turn}?", response=f"{row + turn}.") for turn in range(turns)]
    return sample(row, Family.UNDERSTANDING, [], asked)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    records = [
        *(segmentation(row) for row in range(4)),
        *(guided(row) for row in range(10, 13)),
        *(words(row, 1 + row % 3) for row in range(20, 26)),
    ]
    out = tmp_path_factory.mktemp("masks") / "corpus"
    build(out, listed("masks", records), splits={"train": 1}, max_side=128)
    return out


def test_masks_keep_their_colours_in_the_build_and_lie_upon_their_images(corpus: Path) -> None:
    for one in open_corpus(corpus):
        shown = {image.number: load(image.data) for image in one.images}
        assert len({image.size for image in shown.values()}) <= 1  # also where the mask came at half the size
        for number in one.masks:
            assert colours(np.asarray(shown[number])) <= colours(PALETTE)
            data = next(image.data for image in one.images if image.number == number)
            assert Pillow.open(io.BytesIO(data or b"")).format == "PNG"


def test_a_corpus_with_masks_and_rows_without_images_is_sound(corpus: Path) -> None:
    assert not validate_corpus(corpus, deep=True, workers=0).problems
    assert open_corpus(corpus).sums["families"] == {"layout": 3, "segmentation": 4, "understanding": 6}
    assert "understanding" in (corpus / "report.html").read_text("utf-8")


def test_what_the_model_sees_of_a_mask_are_its_own_colours(corpus: Path) -> None:
    index = index_of(corpus)
    planner = planned(index, dropout={"text": 0, "latent": 0, "patch": 0})
    masks = {one.id: one.masks for one in open_corpus(corpus)}
    allowed, seen, written = colours(PALETTE), 0, 0
    for pack in Loader(planner, dataset_of(planner), settings=LoaderSettings(workers=0), epochs=1):
        written += len(pack.batch.names)
        for key, pixels in zip(pack.batch.image_keys, pack.batch.images, strict=True):
            if key.number in masks[index.ids[key.row].decode()]:
                assert colours(pixels.permute(1, 2, 0).numpy()) <= allowed
                seen += 1
    assert (seen, written) == (7, 13), "all masks, and rows without images are read as well"


def test_an_evaluation_item_tells_masks_from_images(corpus: Path) -> None:
    items = [item for one in open_corpus(corpus) for item in items_of(one)]
    assert {item.family: item.masks for item in items if item.family != "understanding"} == {
        "segmentation": frozenset(),
        "layout": frozenset({1}),
    }
