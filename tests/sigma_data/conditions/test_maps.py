"""Condition maps: what is written is read back, others' maps are read, and what shows nothing is told."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image
from support.image_files import encoded, plain, smooth

from sigma_data.conditions.canny import HIGH, LOW, canny
from sigma_data.conditions.maps import condition_faults, edge_png, grey_of, read_edges
from sigma_data.sample import ImageKind


def edges() -> np.ndarray:
    return canny(grey_of(smooth(3, 160, 120).resize((160, 120))), LOW // 4, HIGH // 4)


def test_an_edge_map_is_a_grey_png_of_0_and_255_that_is_read_back() -> None:
    data = edge_png(edges())
    image = Image.open(io.BytesIO(data))
    assert (image.format, image.mode) == ("PNG", "L")
    assert set(np.unique(np.asarray(image))) == {0, 255}
    found = read_edges(data)
    assert np.array_equal(found.edges, edges()) and not found.inverted


@pytest.mark.parametrize("kind", ["jpeg", "webp"])
def test_a_map_that_was_saved_with_losses_is_read_at_127(kind: str) -> None:
    three = np.repeat(np.where(edges(), 255, 0).astype(np.uint8)[..., None], 3, 2)
    assert np.array_equal(read_edges(encoded(three, kind, quality=95)).edges, edges())


def test_an_inverted_map_is_read_as_such_and_told() -> None:
    data = encoded(Image.fromarray(np.where(edges(), 0, 255).astype(np.uint8)))
    found = read_edges(data)
    assert found.inverted and np.array_equal(found.edges, edges())
    assert set(condition_faults(ImageKind.CANNY, data)) == {"inverted_condition"}


def test_a_map_that_shows_nothing_or_everything_is_told() -> None:
    def faults(share: float) -> set[str]:
        pixels = np.zeros(10_000, bool)
        pixels[: round(share * 10_000)] = True
        return set(condition_faults(ImageKind.CANNY, edge_png(pixels.reshape(100, 100))))

    assert [faults(share) for share in (0, 0.0019, 0.002, 0.4, 0.41)] == [
        {"blank_condition"}, {"blank_condition"}, set(), set(), {"crowded_condition"},
    ]  # fmt: skip


def test_a_depth_map_of_one_value_is_blank_and_other_images_are_not_looked_at() -> None:
    assert set(condition_faults(ImageKind.DEPTH, plain(colour="#808080", kind="jpeg"))) == {"blank_condition"}
    assert not condition_faults(ImageKind.DEPTH, encoded(smooth(1)))
    assert not condition_faults(ImageKind.STYLE, plain())
