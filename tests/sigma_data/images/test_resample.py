"""Pictures as the model takes them: the sizes of the rule, Pillow's own pixels, the reference's patches."""

from __future__ import annotations

import io
import json
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.numpy import load_file
from support.image_files import encoded, image_bytes, smooth
from support.places import TESTS

from sigma_data.images import jpeg
from sigma_data.images.decode import ImageFault, load, to_rgb
from sigma_data.images.resample import patchify, resized, resized_all
from sigma_data.images.resize_rule import VAE_RULE, VIT_RULE, ResizeRule

GOLDEN = TESTS / "golden"
SMALL = ResizeRule(max_size=128, min_size=32, stride=8)


def by_pillow(image: Image.Image, size: tuple[int, int]) -> np.ndarray:
    """The oracle: the whole picture resampled at once."""
    return np.asarray(image.resize(size, Image.Resampling.BICUBIC))


def hardly_differ(first: np.ndarray, second: np.ndarray) -> bool:
    """Whether two ways to resample the same pixels differ by rounding alone: two levels, and seldom one."""
    error = np.abs(first.astype(int) - second)
    return first.shape == second.shape and bool(error.max() <= 2 and error.mean() < 0.02)


def photograph(width: int, height: int, seed: int = 0) -> Image.Image:
    """Smooth colours, hard edges and grain: what a scaled decode finds easy and hard."""
    dice = np.random.default_rng(seed)
    base = np.asarray(smooth(seed, width, height), dtype=np.float64)
    rows, columns = np.mgrid[:height, :width]
    edges = 40.0 * ((rows // 97 + columns // 61) % 2)[..., None]
    return Image.fromarray((0.7 * base + edges + dice.normal(0, 8, base.shape)).clip(0, 255).astype(np.uint8))


def turned(image: Image.Image, orientation: int, kind: str = "jpeg", **options: Any) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(image, kind, exif=exif, **options)


# Resizing -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["jpeg", "png", "webp", "gif", "bmp", "tiff"])
@pytest.mark.parametrize("images", [1, 2])
def test_a_picture_comes_at_the_size_of_the_rule_as_pillow_resamples_it(kind: str, images: int) -> None:
    rule = ResizeRule(max_size=128, min_size=32, stride=8, max_pixels=16384)
    data = image_bytes(kind, 3, width=171, height=97)
    result = resized(data, rule, images=images)
    size = rule.size(171, 97, images=images)
    assert (result.dtype, result.shape) == (np.uint8, (size[1], size[0], 3))
    assert hardly_differ(result, by_pillow(load(data), size))
    assert np.array_equal(resized(data, size), result)


@pytest.mark.parametrize("rule", [VAE_RULE, VIT_RULE, SMALL])
def test_enlarging_is_as_pillow_does_it_too(rule: ResizeRule) -> None:
    data = image_bytes("png", 5, width=30, height=21)
    assert hardly_differ(resized(data, rule), by_pillow(load(data), rule.size(30, 21)))


def test_a_picture_of_the_right_size_is_untouched() -> None:
    image = smooth(8, 64, 48)
    assert np.array_equal(resized(encoded(image, "png"), (64, 48)), np.asarray(image))


def test_what_is_transparent_is_white_before_it_is_resized() -> None:
    ink = np.zeros((40, 40, 4), np.uint8)
    ink[:, :20, 3] = 255  # black on the left, black but invisible on the right
    result = resized(encoded(Image.fromarray(ink), "png"), (20, 20))
    assert result[:, :8].max() == 0
    assert result[:, 12:].min() == 255
    assert 0 < result[:, 9:11].mean() < 255


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(("width", "height"), [(640, 430), (431, 640), (1001, 1000), (1000, 1001)])
def test_a_turned_photograph_has_the_size_and_pixels_of_the_upright_one(
    orientation: int, width: int, height: int
) -> None:
    data = turned(photograph(width, height), orientation, quality=95)
    upright = load(data)
    fine = ResizeRule(max_size=120, min_size=16, stride=1)  # a stride of 1 tells 1001 x 1000 from 1000 x 1001
    for rule in (SMALL, fine):
        size = rule.size(*upright.size)
        result = resized(data, rule)
        assert result.shape == (size[1], size[0], 3)
        assert np.abs(result - by_pillow(upright, size).astype(int)).mean() < 2


@pytest.mark.parametrize("shrink", [1, 2.5, 3.5])
def test_a_photograph_not_much_too_large_is_resampled_as_pillow_does_it(shrink: float) -> None:
    data = encoded(photograph(1500, 1100), "jpeg", quality=92)
    size = (round(1500 / shrink), round(1100 / shrink))
    assert hardly_differ(resized(data, size), by_pillow(load(data), size))


@pytest.mark.parametrize("shrink", [4.01, 6.5, 8.02, 9, 13, 16.1, 25])
def test_scaled_decoding_is_hardly_told_from_full_decoding(shrink: float) -> None:
    data = encoded(photograph(1500, 1100), "jpeg", quality=92)
    size = (round(1500 / shrink), round(1100 / shrink))
    error = resized(data, size) - by_pillow(load(data), size).astype(int)
    assert 10 * np.log10(255**2 / np.mean(error**2)) > 45  # dB
    assert np.abs(error).max() <= 6


@pytest.mark.parametrize(("width", "height"), [(1200, 900), (1201, 901), (1207, 903)])
def test_pixels_that_a_scaled_decode_hangs_over_do_not_shift_the_picture(width: int, height: int) -> None:
    data = encoded(photograph(width, height), "jpeg")
    drafted = Image.open(io.BytesIO(data))
    drafted.draft(None, (width // 8, height // 8))
    box = (0, 0, width / 8, height / 8)
    expected = np.asarray(drafted.resize((60, 45), Image.Resampling.BICUBIC, box=box))
    assert hardly_differ(resized(data, (60, 45)), expected)


def test_a_photograph_far_too_large_is_decoded_at_a_fraction_its_largest_use_allows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    decoded: list[tuple[int, int]] = []

    def spy(image: Image.Image) -> Image.Image:
        decoded.append(image.size)
        return to_rgb(image)

    monkeypatch.setattr("sigma_data.images.resample.to_rgb", spy)
    for orientation in (1, 6):
        data = turned(photograph(1201, 901), orientation)
        for sizes in ([(60, 45), (190, 140)], [(60, 45), (80, 60)], [(60, 45)], [(40, 30)]):
            resized_all(data, [size[::-1] for size in sizes] if orientation == 6 else sizes)
    # 6.3, 15, 20 and 30 times too large: what is decoded stays twice as large as the largest use, or larger.
    assert decoded == [(601, 451), (301, 226), (151, 113), (151, 113)] * 2


@given(st.integers(1, 60), st.integers(1, 60))
@settings(max_examples=30, deadline=None)
def test_any_size_may_be_asked_for_even_one_of_another_shape(width: int, height: int) -> None:
    data = encoded(smooth(1, 400, 90), "jpeg", quality=95)
    result = resized(data, (width, height))
    assert result.shape == (height, width, 3)
    assert np.abs(result - by_pillow(load(data), (width, height)).astype(int)).mean() < 12  # two pictures differ by 60


@pytest.mark.parametrize("kind", ["jpeg", "png"])
def test_several_sizes_come_from_one_decode(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded(photograph(500, 375), kind)
    sizes = [(128, 96), (140, 98), (128, 96)]
    decodes = []

    def fast(image: Image.Image, data: bytes) -> np.ndarray | None:
        pixels = jpeg.decoded(image, data)
        decodes.extend([1] * (pixels is not None))
        return pixels

    monkeypatch.setattr("sigma_data.images.resample.to_rgb", lambda image: decodes.append(1) or to_rgb(image))
    monkeypatch.setattr("sigma_data.images.resample.jpeg", SimpleNamespace(decoded=fast))
    results = resized_all(data, sizes)
    assert len(decodes) == 1
    assert [result.shape for result in results] == [(96, 128, 3), (98, 140, 3), (96, 128, 3)]
    assert np.array_equal(results[0], results[2])
    for size, result in zip(sizes, results, strict=True):
        assert np.abs(result - by_pillow(load(data), size).astype(int)).mean() < 1.5


def test_faults_of_a_picture_have_their_codes() -> None:
    whole = encoded(photograph(900, 700), "jpeg")
    cases = {
        "empty": (b"", None), "wrong_type": (b"<html>not found", None), "truncated": (whole[:-2000], None),
        "bomb": (whole, 1000),
    }  # fmt: skip
    for code, (data, limit) in cases.items():
        options = {} if limit is None else {"max_pixels": limit}
        for call in (lambda: resized(data, SMALL, **options), lambda: resized_all(data, [(32, 32)], **options)):  # noqa: B023
            with pytest.raises(ImageFault) as caught:
                call()
            assert caught.value.code == code
    with pytest.raises(ImageFault):
        resized(None, SMALL)


@pytest.mark.parametrize("size", [(0, 5), (5, -1)])
def test_a_size_that_is_none_is_refused(size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="positive"):
        resized(image_bytes("png"), size)


# Patches --------------------------------------------------------------------------------------------


def test_every_number_of_a_patch_lies_where_the_rule_says() -> None:
    image = np.random.default_rng(0).normal(size=(3, 6, 8)).astype(np.float32)
    patches = patchify(image, patch=2)
    assert patches.shape == (12, 12)
    for row, column, channel in np.ndindex(6, 8, 3):
        patch = row // 2 * 4 + column // 2
        assert patches[patch, (row % 2 * 2 + column % 2) * 3 + channel] == image[channel, row, column]


def test_patches_are_those_of_the_reference() -> None:
    tensors = load_file(GOLDEN / "train.safetensors")
    plans = json.loads((GOLDEN / "train.json").read_text("utf-8"))["plans"]
    mine = []
    for number, plan in enumerate(plans):
        images = [segment["kind"] for segment in plan if segment["kind"] != "text"]
        mine += [
            patchify(tensors[f"sample.{number}.image.{index}"])
            for index, kind in enumerate(images)
            if kind == "vit_image"
        ]
    assert [len(patches) for patches in mine] == tensors["in.vit_token_seqlens"].tolist()
    assert np.array_equal(np.concatenate(mine), tensors["in.packed_vit_tokens"])


@pytest.mark.parametrize("shape", [(3, 15, 28), (3, 28, 27)])
def test_a_picture_that_cannot_be_cut_into_patches_is_refused(shape: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="patches of 14"):
        patchify(np.zeros(shape, np.float32))


def test_nothing_of_a_picture_is_shared_or_read_only() -> None:
    data = encoded(smooth(2, 32, 32), "png")
    first, second = resized_all(data, [(32, 32), (32, 32)])
    first[:] = 0
    assert np.array_equal(second, np.asarray(Image.open(io.BytesIO(data))))


# Masks ----------------------------------------------------------------------------------------------


def colours(pixels: np.ndarray) -> set[tuple[int, ...]]:
    return {tuple(colour) for colour in pixels.reshape(-1, 3).tolist()}


@pytest.mark.slow
@given(
    st.integers(0, 2**32), st.integers(1, 90), st.integers(1, 90), st.integers(1, 90), st.integers(1, 90),
    st.sampled_from(["png", "webp", "gif", "jpeg"]), st.integers(1, 8),
)  # fmt: skip
@settings(deadline=None, max_examples=60)
def test_a_resized_mask_has_no_colour_that_it_did_not_have(
    seed: int, width: int, height: int, to_width: int, to_height: int, kind: str, orientation: int
) -> None:
    labels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    options: dict[str, Any] = {"lossless": True} if kind == "webp" else {}
    exif = {} if kind == "gif" else {"exif": _orientation(orientation)}
    data = encoded(Image.fromarray(labels), kind, **options, **exif)
    whole = colours(np.asarray(load(data)))
    found = resized_all(data, [(to_width, to_height), (2 * to_width, to_height)], mask=True)
    assert [one.shape for one in found] == [(to_height, to_width, 3), (to_height, 2 * to_width, 3)]
    assert all(colours(one) <= whole for one in found)


def _orientation(number: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = number
    return exif


@pytest.mark.parametrize("size", [(16, 16), (33, 57), (200, 90), (640, 333)])
def test_a_mask_is_resized_as_pillow_s_nearest_neighbour_does(size: tuple[int, int]) -> None:
    image = photograph(171, 97)
    assert np.array_equal(
        resized(encoded(image), size, mask=True), np.asarray(image.resize(size, Image.Resampling.NEAREST))
    )


def test_a_mask_stays_upon_its_image_at_every_size() -> None:
    image = np.zeros((96, 160, 3), np.uint8)
    image[24:72, 40:120] = 255
    for size in ((80, 48), (48, 32), (320, 192), (112, 80)):
        picture, mask = resized(encoded(image), size) > 127, resized(encoded(image), size, mask=True) > 127
        assert (picture != mask).mean() < 0.002, size
