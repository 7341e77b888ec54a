"""Warnings of images: nearly black or white ones are named, masks and edge maps are not."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageDraw
from support.image_files import encoded

from sigma_data.images.decode import probe
from sigma_data.images.image_warnings import IMAGE_WARNINGS, image_warnings
from sigma_data.images.near_blank import DARK, LIGHT, SHARE, near_blank


def codes(data: bytes) -> list[str]:
    return list(image_warnings(probe(data)))


RAMP = np.tile(np.linspace(0, 1, 200), (150, 1))
NOISE = np.random.default_rng(0).integers(0, 256, (150, 200, 3), dtype=np.uint8)


def drawn(paper: int, ink: int, width: int = 2, *, size: tuple[int, int] = (512, 512)) -> Image.Image:
    """A few thin lines."""
    image = Image.new("L", size, paper)
    pen = ImageDraw.Draw(image)
    pen.line((40, 60, 430, 180), fill=ink, width=width)
    pen.ellipse((200, 220, 300, 320), outline=ink, width=width)
    return image


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
@pytest.mark.parametrize(
    ("pixels", "code"),
    [
        (RAMP * 15, "near_black"),
        (np.zeros((150, 200)), "near_black"),
        (255 - RAMP * 15, "near_white"),
        (np.full((150, 200), 255), "near_white"),
        ((RAMP * 5_000).clip(0, 255), None),  # 95 % white, and a gradient
        ((RAMP * 20_000).clip(0, 255), "near_white"),
        (RAMP * 40, None),
        (RAMP * 255, None),
    ],
)
def test_an_image_that_shows_next_to_nothing_is_named(pixels: np.ndarray, code: str | None, kind: str) -> None:
    assert codes(encoded(pixels.astype(np.uint8), kind)) == ([] if code is None else [code])


def test_shares_are_those_of_the_least_and_most_of_each_pixels_channels() -> None:
    dice = np.random.default_rng(1)
    found = set()
    for _ in range(400):
        ground, other = dice.choice([0, 8, 15, 16, 239, 240, 255], 2)
        pixels = np.full((20, 30, 3), ground, dtype=np.uint8)
        some = dice.random((20, 30)) < dice.choice([0, 0.001, 0.005, 0.019, 0.02, 0.03])
        pixels[some] = other
        pixels[some, dice.integers(3)] = dice.choice([0, 16, 240])
        least, most = pixels.min(axis=2), pixels.max(axis=2)
        expected = None
        for name, ground_is, drawn_is in (
            ("near_black", most < DARK, most >= LIGHT), ("near_white", least >= LIGHT, least < DARK),
        ):  # fmt: skip
            rest = max(0.001, 0.25 * (1 - ground_is.mean()))
            if expected is None and ground_is.mean() >= SHARE and drawn_is.mean() <= rest:
                expected = name
        assert near_blank(Image.fromarray(pixels)) == expected
        found.add(expected)
    assert found == {None, "near_black", "near_white"}


def test_a_few_specks_are_no_drawing() -> None:
    black = np.zeros((512, 512), np.uint8)
    black[7, 7] = black[300, 300] = 255
    assert codes(encoded(black)) == ["near_black"]


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
@pytest.mark.parametrize(("paper", "ink"), [(0, 255), (255, 0)])
def test_masks_edge_maps_and_line_drawings_are_not_meant(paper: int, ink: int, kind: str) -> None:
    assert codes(encoded(drawn(paper, ink), kind)) == []
    mask = Image.new("L", (512, 512), paper)
    mask.paste(ink, (100, 100, 140, 140))  # 0.6 % of the image
    assert codes(encoded(mask, kind)) == []


def test_coloured_objects_on_black_are_not_meant() -> None:
    mask = Image.new("RGB", (256, 256))
    mask.paste((255, 40, 0), (100, 100, 120, 120))
    assert codes(encoded(mask)) == []


def test_what_other_readers_show_differently_is_named() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    rgba = np.dstack([NOISE, np.full((150, 200), 128, np.uint8)])
    key = tuple(NOISE[0, 0].tolist())
    indexed = Image.fromarray(NOISE).quantize(16)
    cases = {
        "deep_image": [
            encoded((RAMP * 4000).astype(np.uint16)),
            encoded((RAMP * 65535).astype(np.uint16)),
            encoded(RAMP.astype(np.float32), "TIFF"),
        ],
        "turned_image": [encoded(NOISE, kind, exif=exif) for kind in ("JPEG", "PNG", "WEBP")],
        "transparent_image": [
            encoded(rgba),
            encoded(rgba, "WEBP", lossless=True),
            encoded(rgba, "TIFF"),
            encoded(Image.fromarray(rgba).convert("LA")),
            encoded(NOISE, transparency=key),
            encoded(indexed, transparency=3),
            encoded(indexed, "GIF", transparency=3),
        ],
    }
    for code, images in cases.items():
        for data in images:
            assert codes(data) == [code]
            assert code in IMAGE_WARNINGS


def test_what_all_readers_show_alike_is_not_named() -> None:
    opaque = np.dstack([NOISE, np.full((150, 200), 255, np.uint8)])
    unused = Image.fromarray(NOISE).quantize(16)
    for data in (
        encoded(NOISE),
        encoded(NOISE, "JPEG"),
        encoded(Image.fromarray(NOISE).convert("CMYK"), "JPEG"),
        encoded(opaque),
        encoded(opaque, "WEBP", lossless=True),
        encoded(unused, transparency=200),
        encoded(Image.fromarray(NOISE).convert("1")),
    ):
        assert codes(data) == []
