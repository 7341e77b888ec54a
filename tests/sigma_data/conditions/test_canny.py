"""Canny pixel for pixel as OpenCV has it."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from sigma_data.conditions.canny import canny

_OPENCV = (
    "0000000801020007ffc8fc9e0000000400c20000000602420000000201220000000200220000000100920000000d8012000000b26012000000a0"
    "980a000001a02c08000003201608000006200b0400000440050400000c40018400000840128400001080148400000980088400001b0000840000"
    "0c00008400000800008480000800008473ffec0000840e000400010404001400030404000b000608030010800c08020010601810018010"
    "3fe032247f100000628600f00000c2720000000182080000000302040008001c0207000001e002021007fe000211c108000002c43c1800000232"
    "0317ffffff0a40e8000000"
)
"""cv2.Canny(grey, 100, 200) of OpenCV 5.0.0 for the image below, as packed bits."""


def grey() -> npt.NDArray[np.uint8]:
    """A curved ramp that wraps round, a disc and a box, 48 x 40."""
    y, x = np.mgrid[:40, :48]
    disc = np.where((x - 30) ** 2 + (y - 18) ** 2 < 110, 90, 0)
    box = np.where((x > 5) & (x < 20) & (y > 22), 140, 0)
    return ((((x * x * 3 + y * y * 5 - x * y * 4) // 9) + disc + box) % 256).astype(np.uint8)


def slow_canny(image: npt.NDArray[np.uint8], low: int, high: int) -> npt.NDArray[np.bool_]:
    """The definition, a pixel at a time, with angles in floating point."""
    height, width = image.shape

    def at(row: int, column: int) -> int:
        return int(image[min(max(row, 0), height - 1), min(max(column, 0), width - 1)])

    across, down = np.zeros((height, width), int), np.zeros((height, width), int)
    for i in range(height):
        for j in range(width):
            for step, weight in ((-1, 1), (0, 2), (1, 1)):
                across[i, j] += weight * (at(i + step, j + 1) - at(i + step, j - 1))
                down[i, j] += weight * (at(i + 1, j + step) - at(i - 1, j + step))
    norm = abs(across) + abs(down)

    def value(i: int, j: int) -> int:
        return int(norm[i, j]) if 0 <= i < height and 0 <= j < width else 0

    def peak(i: int, j: int) -> bool:
        angle = np.degrees(np.arctan2(abs(down[i, j]), abs(across[i, j])))
        here = value(i, j)
        if angle < 22.5:
            return here > value(i, j - 1) and here >= value(i, j + 1)
        if angle > 67.5:
            return here > value(i - 1, j) and here >= value(i + 1, j)
        side = -1 if (across[i, j] < 0) != (down[i, j] < 0) else 1
        return here > value(i - 1, j - side) and here > value(i + 1, j + side)

    weak = {(i, j) for i in range(height) for j in range(width) if norm[i, j] > low and peak(i, j)}
    waiting = [place for place in weak if norm[place] > high]
    edges = np.zeros((height, width), bool)
    while waiting:
        i, j = waiting.pop()
        if not edges[i, j]:
            edges[i, j] = True
            waiting += [(i + a, j + b) for a in (-1, 0, 1) for b in (-1, 0, 1) if (i + a, j + b) in weak]
    return edges


def test_canny_is_opencvs_pixel_for_pixel() -> None:
    expected = np.unpackbits(np.frombuffer(bytes.fromhex(_OPENCV), np.uint8)).reshape(40, 48).astype(bool)
    np.testing.assert_array_equal(canny(grey(), 100, 200), expected)


@pytest.mark.parametrize("seed", range(12))
def test_canny_is_its_definition_on_noise_of_any_size_and_contrast(seed: int) -> None:
    dice = np.random.default_rng(seed)
    height, width = dice.integers(1, 24, 2)
    noise = dice.integers(0, 256, (height, width)) * dice.choice([0.1, 0.3, 1.0])
    smooth = (noise + np.roll(noise, 1, 0) + np.roll(noise, 1, 1) + np.roll(noise, (1, 1), (0, 1))) / 4
    image = smooth.astype(np.uint8)
    np.testing.assert_array_equal(canny(image, 100, 200), slow_canny(image, 100, 200))


def test_both_thresholds_and_the_joining_count() -> None:
    edges = {pair: int(canny(grey(), *pair).sum()) for pair in ((100, 100), (100, 200), (200, 200))}
    assert edges[100, 100] > edges[100, 200] > edges[200, 200]


def test_a_flat_image_has_no_edges() -> None:
    assert not canny(np.full((9, 7), 200, np.uint8), 100, 200).any()
