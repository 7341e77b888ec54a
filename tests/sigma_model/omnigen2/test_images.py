"""Images enter as their sizes and colours say: upright, transparency on white, colour maps without new colours."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image

from sigma_data.errors import ConfigError
from sigma_model.omnigen2.images import (
    INFERENCE_RULE,
    SizeRule,
    open_image,
    output_sizes,
    pixels,
    training_reference_rule,
)


def encoded(image: Image.Image, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", **options)
    return buffer.getvalue()


def test_grey_and_transparent_images_become_rgb_on_white() -> None:
    hidden = Image.new("RGBA", (32, 32), (255, 0, 0, 0))  # red where nothing shows
    assert (pixels(open_image(encoded(hidden)), SizeRule()) == 1).all()
    for mode in ("L", "LA", "1"):
        found = pixels(open_image(encoded(Image.new(mode, (32, 16)))), SizeRule())
        assert found.shape == (3, 16, 32)


def test_an_image_is_turned_as_its_exif_says() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    assert open_image(encoded(Image.new("RGB", (64, 32)), exif=exif)).size == (32, 64)
    with pytest.raises(ConfigError, match="cat.png: "):
        open_image(b"no image", "cat.png")


def test_a_colour_map_gets_no_colour_that_it_had_not_and_stays_upon_its_image() -> None:
    colours = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255]], dtype=np.uint8)
    plain = colours[np.random.default_rng(1).integers(0, 3, (100, 150))]
    size = SizeRule(max_pixels=64 * 48).size(150, 100)
    found = pixels(Image.fromarray(plain), size, colour_map=True)
    assert tuple(found.shape[1:]) == size[::-1]
    assert set(torch.unique(found).tolist()) == {-1.0, 1.0}
    assert len(torch.unique(pixels(Image.fromarray(plain), size))) > 10


def test_five_references_have_a_pixel_limit_too() -> None:
    """OmniGen2's list of limits ends at four: its samples with five fail, and others are put in their place."""
    limits = [training_reference_rule(count).max_pixels for count in (1, 2, 3, 4, 5)]
    assert limits == [1_048_576, 1_048_576, 589_824, 262_144, 262_144]


def test_sizes_are_multiples_of_16_never_larger_and_never_nothing() -> None:
    for width, height in ((1, 1), (5, 3000), (1025, 1023), (4000, 20)):
        found = INFERENCE_RULE.size(width, height)
        assert all(side >= 16 and side % 16 == 0 for side in found)
        assert all(new <= max(old, 16) for new, old in zip(found, (width, height), strict=True))
        assert max(found) <= 1024


def test_the_output_has_the_size_of_a_single_reference_or_the_wanted_one() -> None:
    assert output_sizes(None, [(640, 416)]) == ((640, 416), (640, 416))
    assert output_sizes(None, [(640, 416), (32, 32)]) == ((1024, 1024), (1024, 1024))
    assert output_sizes((1000, 700), []) == ((992, 688), (1000, 700))
    assert output_sizes((4096, 1024), [])[0] == (2048, 512)
