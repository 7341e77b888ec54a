"""JPEGs read by simplejpeg: Pillow's pixels to the bit, or Pillow itself."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import simplejpeg
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from sigma_data.images import jpeg
from sigma_data.images.formats import ImageFault
from sigma_data.images.resample import resized_all


@pytest.fixture(autouse=True)
def _asked_anew() -> Iterator[None]:
    jpeg._reader.cache_clear()
    yield
    jpeg._reader.cache_clear()


def picture(width: int, height: int, seed: int = 0, mode: str = "RGB") -> Image.Image:
    """Noise on a slope, so that chroma differs from pixel to pixel and from block to block."""
    random = np.random.default_rng(seed)
    slope = np.linspace(0, 200, width)[None, :, None] + np.linspace(0, 40, height)[:, None, None]
    pixels = (slope + random.integers(0, 60, (height, width, 3))).clip(0, 255).astype(np.uint8)
    return Image.fromarray(pixels).convert(mode)


def encoded(image: Image.Image, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", **options)
    return buffer.getvalue()


def read(data: bytes) -> np.ndarray | None:
    return jpeg.decoded(Image.open(io.BytesIO(data)), data)


@settings(max_examples=60, deadline=None)
@given(
    sides=st.tuples(st.integers(1, 70), st.integers(1, 70)), seed=st.integers(0, 9), quality=st.integers(5, 100),
    subsampling=st.sampled_from((0, 1, 2)), progressive=st.booleans(), restart=st.sampled_from((0, 1, 3)),
)  # fmt: skip
def test_the_pixels_are_pillow_s(
    sides: tuple[int, int], seed: int, quality: int, subsampling: int, progressive: bool, restart: int
) -> None:
    data = encoded(
        picture(*sides, seed), quality=quality, subsampling=subsampling, progressive=progressive,
        restart_marker_blocks=restart,
    )  # fmt: skip
    found = read(data)
    assert found is not None
    assert np.array_equal(found, np.array(Image.open(io.BytesIO(data))))


@pytest.mark.parametrize("subsampling", ["444", "422", "420", "440", "411"])
@pytest.mark.parametrize("sides", [(64, 48), (37, 51), (1, 9)])
def test_of_every_subsampling_the_pixels_are_pillow_s(subsampling: str, sides: tuple[int, int]) -> None:
    data = simplejpeg.encode_jpeg(np.asarray(picture(*sides)), quality=92, colorsubsampling=subsampling)
    found = read(data)
    assert found is not None
    assert np.array_equal(found, np.array(Image.open(io.BytesIO(data))))


def test_a_subsampling_that_it_has_no_name_for_is_left_to_pillow() -> None:
    data = simplejpeg.encode_jpeg(np.asarray(picture(32, 8)), quality=92, colorsubsampling="411")
    frame = data.index(b"\xff\xc0")
    # Four blocks of luminance beside each other, told to lie one upon the other.
    data = data[: frame + 5] + b"\0\x20\0\x08\x03\x01\x14" + data[frame + 12 :]
    assert read(data) is None
    assert np.array_equal(resized_all(data, [(8, 32)])[0], np.array(Image.open(io.BytesIO(data))))


def test_one_that_holds_rgb_and_no_luminance_too() -> None:
    data = encoded(picture(33, 21), keep_rgb=True, quality=90)
    found = read(data)
    assert found is not None
    assert np.array_equal(found, np.array(Image.open(io.BytesIO(data))))


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_other_colour_modes_are_left_to_pillow(mode: str) -> None:
    assert read(encoded(picture(16, 16, mode=mode))) is None


def test_other_formats_are_left_to_pillow() -> None:
    buffer = io.BytesIO()
    picture(16, 16).save(buffer, "PNG")
    assert read(buffer.getvalue()) is None


def test_one_that_ends_early_is_left_to_pillow_which_says_so() -> None:
    data = encoded(picture(64, 64), quality=90)[:-400]
    assert read(data) is None
    with pytest.raises(ImageFault, match="ends too early"):
        resized_all(data, [(8, 8)])


def test_another_size_than_the_header_that_was_judged_is_left_to_pillow() -> None:
    judged = Image.open(io.BytesIO(encoded(picture(16, 16))))
    assert jpeg.decoded(judged, encoded(picture(64, 64))) is None


def test_without_the_package_the_sizes_are_the_same_to_the_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded(picture(200, 120), quality=85, exif=_turned(6))
    with_it = resized_all(data, [(64, 96), (20, 30)])
    assert jpeg._reader() is simplejpeg
    jpeg._reader.cache_clear()
    monkeypatch.setitem(sys.modules, "simplejpeg", None)
    without = resized_all(data, [(64, 96), (20, 30)])
    assert jpeg._reader() is None
    assert all(np.array_equal(one, two) for one, two in zip(with_it, without, strict=True))


def _coarser(data: bytes, *words: Any, **_options: Any) -> np.ndarray:
    found: np.ndarray = simplejpeg.decode_jpeg(data, *words, fastdct=True, fastupsample=True) ^ 1
    return found


def _smoother(data: bytes, *words: Any, **options: Any) -> np.ndarray:
    """As libjpeg-turbo 2.1 and 3.0 differ in what they guess of a progressive image that has not all its scans."""
    found: np.ndarray = simplejpeg.decode_jpeg(data, *words, **options)
    return found ^ 1 if b"\xff\xc2" in data else found


def _with_fewer_options(data: bytes, colorspace: str) -> np.ndarray:
    found: np.ndarray = simplejpeg.decode_jpeg(data, colorspace)
    return found


@pytest.mark.parametrize("decode", [_coarser, _smoother, _with_fewer_options])
def test_a_library_that_reads_other_pixels_is_not_used(decode: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    other = SimpleNamespace(decode_jpeg_header=simplejpeg.decode_jpeg_header, decode_jpeg=decode)
    monkeypatch.setitem(sys.modules, "simplejpeg", other)
    assert jpeg._reader() is None
    assert read(encoded(picture(16, 16))) is None


def test_one_that_cannot_be_imported_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "simplejpeg.py").write_text("raise ValueError('numpy.dtype size changed')")
    monkeypatch.delitem(sys.modules, "simplejpeg")
    monkeypatch.syspath_prepend(tmp_path)
    assert jpeg._reader() is None
    assert resized_all(encoded(picture(16, 16)), [(8, 8)])[0].shape == (8, 8, 3)


def _turned(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif.tobytes()
