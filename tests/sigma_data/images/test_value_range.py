"""Deep images become 8 bits by a rule that only their values decide: nothing is clipped away, nothing depends on when."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from support.image_files import encoded

from sigma_data.images.decode import ImageFault, load, probe, reencode, thumbnail
from sigma_data.images.resample import resized
from sigma_data.images.value_range import Rule, ValueRange

RAMP = np.tile(np.linspace(0, 1, 160, dtype=np.float32), (120, 1))


def with_top(values: np.ndarray, mark: float) -> np.ndarray:
    """The upper third of the image holds the mark."""
    marked = values.copy()
    marked[:40] = mark
    return marked


def shown(data: bytes) -> np.ndarray:
    return np.asarray(load(data))[..., 0]


def range_of(data: bytes) -> ValueRange:
    found = probe(data).value_range
    assert found is not None
    return found


MIN_MAX = {
    "metres": (encoded(RAMP * 10, "TIFF"), 0, 10),
    "millimetres": (encoded(RAMP * 10_000, "TIFF"), 0, 10_000),
    "a tenth of the unit range": (encoded(RAMP / 10, "TIFF"), 0, 0.1),
    "negative": (encoded(RAMP * 2 - 1, "TIFF"), -1, 1),
    "far from zero": (encoded(RAMP + 1000, "TIFF"), 1000, 1001),
    "as large as float32 goes": (encoded(RAMP * np.float32(3e38), "TIFF"), 0, 3e38),
    "16-bit PNG in millimetres": (encoded((RAMP * 4000).astype(np.uint16), "PNG"), 0, 4000),
    "16-bit TIFF of 12 bits": (encoded((RAMP * 4095).astype(np.uint16), "TIFF"), 0, 4095),
    "16 bits, all of them high": (encoded((60_000 + RAMP * 255).astype(np.uint16), "PNG"), 60_000, 60_255),
    "32-bit whole numbers": (encoded((RAMP * 100_000).astype(np.int32), "TIFF"), 0, 100_000),
    "32-bit negative": (encoded((RAMP * -5000).astype(np.int32), "TIFF"), -5000, 0),
}


@pytest.mark.parametrize("name", MIN_MAX)
def test_a_depth_map_of_any_unit_is_scaled_from_its_least_to_its_greatest_value(name: str) -> None:
    data, low, high = MIN_MAX[name]
    found = range_of(data)
    assert found.rule is Rule.MIN_MAX
    assert (found.low, found.high) == pytest.approx((low, high), rel=1e-6)
    image = shown(data)
    assert (image.min(), image.max()) == (0, 255)
    assert len(np.unique(image)) > 100
    steps = np.diff(image.astype(int), axis=1)
    assert (steps >= 0).all() or (steps <= 0).all()


@pytest.mark.parametrize(
    ("values", "rule"),
    [
        (RAMP, Rule.UNIT),
        (0.2 + RAMP * 0.6, Rule.UNIT),
        (RAMP * 255, Rule.FULL_8BIT),
        (10 + RAMP * 230, Rule.FULL_8BIT),
        (RAMP * 65535, Rule.FULL_16BIT),
        ((RAMP > 0.5).astype(np.uint16), Rule.UNIT),
        ((RAMP * 255).astype(np.uint16), Rule.FULL_8BIT),
        ((RAMP * 255).astype(np.int32), Rule.FULL_8BIT),
        ((20_000 + RAMP * 25_000).astype(np.uint16), Rule.FULL_16BIT),
    ],
)
def test_values_that_fill_a_range_in_common_use_keep_their_place_in_it(values: np.ndarray, rule: Rule) -> None:
    top = {Rule.UNIT: 1, Rule.FULL_8BIT: 255, Rule.FULL_16BIT: 65535}[rule]
    data = encoded(values, "TIFF")
    assert range_of(data) == ValueRange(rule, 0.0, top)
    assert np.abs(shown(data) - values.astype(np.float64) / top * 255).max() <= 1


def test_a_16_bit_photograph_is_its_high_byte_to_the_bit() -> None:
    values = np.random.default_rng(0).integers(0, 65536, (90, 110), dtype=np.uint16)
    assert np.array_equal(shown(encoded(values, "PNG")), values >> 8)


@pytest.mark.parametrize(
    ("data", "low", "high", "mark"),
    [
        (encoded(with_top((RAMP * 4000).astype(np.uint16), 65535), "PNG"), 0, 4000, 255),
        (encoded(with_top(RAMP * 9 + 1, 1e10), "TIFF"), 1, 10, 255),
        (encoded(with_top(RAMP * 9 + 1, -9999), "TIFF"), 1, 10, 0),
        (encoded(with_top(RAMP * 9 + 1, np.nan), "TIFF"), 1, 10, 0),
        (encoded(with_top(RAMP * 9 + 1, np.inf), "TIFF"), 1, 10, 255),
        (encoded(with_top(RAMP * 9 + 1, -np.inf), "TIFF"), 1, 10, 0),
    ],
)
def test_a_mark_for_what_was_not_measured_does_not_press_the_rest_into_one_grey(
    data: bytes, low: float, high: float, mark: int
) -> None:
    assert range_of(data) == ValueRange(Rule.MIN_MAX, low, high)
    image = shown(data)
    assert (image[:40] == mark).all()
    assert len(np.unique(image[40:])) > 100


def test_two_marks_at_once_are_both_seen() -> None:
    values = with_top(RAMP * 9 + 1, 1e10)
    values[:20] = -1e10
    assert range_of(encoded(values, "TIFF")) == ValueRange(Rule.MIN_MAX, 1, 10)


def test_labels_and_masks_are_no_marks() -> None:
    labels = np.zeros((60, 60), np.uint16)
    labels[20:40], labels[40:] = 1, 60_000
    assert range_of(encoded(labels, "PNG")).rule is Rule.FULL_16BIT
    mask = (RAMP > 0.5).astype(np.uint16) * 65535
    assert set(np.unique(shown(encoded(mask, "PNG"))).tolist()) == {0, 255}


def test_the_transparent_value_does_not_count() -> None:
    values = with_top((1000 + RAMP * 3000).astype(np.uint16), 7)
    data = encoded(values, "PNG", transparency=7)
    assert range_of(data) == ValueRange(Rule.MIN_MAX, 1000, 4000)
    assert (shown(data)[:40] == 255).all()


@pytest.mark.parametrize(
    "values",
    [
        np.full((60, 60), np.nan, np.float32),
        np.full((60, 60), np.inf, np.float32),
        np.full((60, 60), 0.5, np.float32),
        with_top(np.full((60, 60), 3.5, np.float32), np.nan),
        np.full((60, 60), 70_000, np.int32),
        np.full((60, 60), -1, np.int32),
    ],
)
def test_an_image_without_a_range_is_a_fault_and_never_black(values: np.ndarray) -> None:
    data = encoded(values, "TIFF")
    for read in (probe, load, lambda data: resized(data, (32, 32))):
        with pytest.raises(ImageFault) as caught:
            read(data)
        assert caught.value.code == "no_range"
    assert thumbnail(data, 32) is None


@pytest.mark.parametrize("value", [0, 7, 20_000, 65_535])
def test_a_16_bit_image_of_one_value_is_its_high_byte(value: int) -> None:
    data = encoded(np.full((60, 60), value, np.uint16), "PNG")
    assert range_of(data) == ValueRange(Rule.FULL_16BIT, 0, 65535)
    assert (shown(data) == value >> 8).all()


def unsigned_tiff(values: np.ndarray) -> bytes:
    """A 32-bit unsigned TIFF, which Pillow reads (as signed) and does not write."""
    data = values.astype("<u4").tobytes()
    height, width = values.shape
    entries = [
        (256, width),
        (257, height),
        (258, 32),
        (259, 1),
        (262, 1),
        (273, 122),
        (277, 1),
        (279, len(data)),
        (339, 1),
    ]
    body = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in entries)
    return b"II*\0" + struct.pack("<IH", 8, len(entries)) + body + bytes(4) + data


def test_unsigned_32_bit_values_beyond_the_signed_ones_stay_the_greatest() -> None:
    data = unsigned_tiff(RAMP.astype(np.float64) * 4e9)
    assert range_of(data).high == pytest.approx(4e9)
    assert (np.diff(shown(data).astype(int), axis=1) >= 0).all()


@pytest.mark.parametrize("name", MIN_MAX)
def test_build_training_and_what_is_stored_show_the_same(name: str) -> None:
    data, _, _ = MIN_MAX[name]
    facts = probe(data)
    changed = reencode(data, facts, max_side=None)
    assert changed is not None
    assert changed == reencode(data, probe(data), max_side=None)
    assert changed[1] == "deep_image"
    again = probe(changed[0])
    assert (again.format, again.mode, again.value_range) == ("PNG", "RGB", None)
    assert np.array_equal(np.asarray(load(changed[0])), np.asarray(load(data)))
    assert np.array_equal(resized(changed[0], (64, 48)), resized(data, (64, 48)))
    assert again.signature == facts.signature
    assert reencode(data, facts, max_side=None, store="original") is None
