"""Pictures as bytes: what is broken is found, what is legal is read right, and nothing global moves."""

from __future__ import annotations

import io
import json
import pickle
import struct
import warnings
import zlib
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile, ImageOps
from support.image_files import encoded
from support.places import TESTS

from sigma_data.images.decode import (
    EXTENSIONS,
    ImageFault,
    load,
    open_image,
    probe,
    reencode,
    same_pixels,
    sniff,
    thumbnail,
)
from sigma_data.images.fingerprint import SIGNATURE_BYTES, near
from sigma_data.images.resize_rule import VAE_RULE, VIT_RULE, ResizeRule

GOLDEN = json.loads((TESTS / "golden" / "resize.json").read_text("utf-8"))


@pytest.fixture(autouse=True)
def nothing_global_changes() -> Iterator[None]:
    before = (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES, list(warnings.filters))
    yield
    assert (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES, list(warnings.filters)) == before


def picture(width: int = 96, height: int = 72, *, seed: int = 0) -> Image.Image:
    """Smooth colours and a little grain, about like a photograph."""
    dice = np.random.default_rng(seed)
    small = Image.fromarray(dice.integers(0, 256, (5, 5, 3), dtype=np.uint8))
    smooth = np.asarray(small.resize((width, height), Image.Resampling.BICUBIC), dtype=np.float64)
    grain = dice.normal(0, 6, (height, width, 3))
    return Image.fromarray((smooth + grain).clip(0, 255).astype(np.uint8))


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image)


def fault_of(data: bytes | None, **options: int) -> ImageFault:
    with pytest.raises(ImageFault) as caught:
        probe(data, **options)
    return caught.value


def decodes(data: bytes) -> bool:
    """The oracle: Pillow decodes the picture in full."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            Image.open(io.BytesIO(data)).load()
    except Exception:
        return False
    return True


FORMATS: dict[str, bytes] = {
    "jpeg": encoded(picture(), "JPEG", quality=90),
    "jpeg-420-odd": encoded(picture(333, 271), "JPEG", quality=75, subsampling=2),
    "jpeg-progressive": encoded(picture(320, 240), "JPEG", quality=80, progressive=True),
    "jpeg-cmyk": encoded(picture().convert("CMYK"), "JPEG"),
    "jpeg-grey": encoded(picture().convert("L"), "JPEG"),
    "png": encoded(picture(), "PNG"),
    "png-palette": encoded(picture().quantize(32), "PNG"),
    "webp": encoded(picture(), "WEBP", quality=80),
    "webp-lossless": encoded(picture(), "WEBP", lossless=True),
    "gif": encoded(picture().quantize(64), "GIF"),
    "bmp": encoded(picture(), "BMP"),
    "tiff": encoded(picture(), "TIFF"),
    "tiff-deflate": encoded(picture(), "TIFF", compression="tiff_deflate"),
}


# Truncation -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FORMATS)
def test_whole_files_pass_and_their_facts_are_right(name: str) -> None:
    data = FORMATS[name]
    image = Image.open(io.BytesIO(data))
    facts = probe(data)
    assert (facts.format, facts.mode) == (image.format, image.mode)
    assert (facts.width, facts.height) == image.size
    assert facts.size == len(data)
    assert len(facts.signature) == SIGNATURE_BYTES
    assert facts.extension == EXTENSIONS[facts.format]
    assert sniff(data) in (facts.format, "JPEG")


@pytest.mark.parametrize("name", FORMATS)
def test_a_cut_that_full_decoding_notices_is_noticed(name: str) -> None:
    data = FORMATS[name]
    cuts = {*range(1, min(len(data), 40)), *range(len(data) - 24, len(data))}
    cuts |= set(np.random.default_rng(7).integers(1, len(data), 60).tolist())
    for cut in sorted(cuts):
        if not decodes(data[:cut]):
            fault = fault_of(data[:cut])
            assert fault.code in ("truncated", "undecodable", "wrong_type"), cut


@pytest.mark.parametrize("name", ["jpeg", "jpeg-420-odd", "jpeg-progressive", "jpeg-cmyk", "jpeg-grey"])
def test_a_cut_jpeg_is_refused_exactly_where_full_decoding_refuses_it(name: str) -> None:
    data = FORMATS[name]
    for cut in range(len(data) - 3, len(data) // 3, -max(1, len(data) // 90)):
        assert not decodes(data[:cut]), cut
        assert fault_of(data[:cut]).code == "truncated", cut


@pytest.mark.parametrize("name", ["png", "png-palette", "webp", "webp-lossless"])
def test_every_cut_of_a_png_or_webp_behind_its_header_is_called_truncated(name: str) -> None:
    data = FORMATS[name]
    for cut in [*range(40, len(data), max(1, len(data) // 60)), *range(len(data) - 14, len(data))]:
        assert fault_of(data[:cut]).code == "truncated", cut


@pytest.mark.parametrize("name", ["gif", "bmp", "tiff", "tiff-deflate"])
def test_half_a_file_is_refused_in_every_other_format(name: str) -> None:
    data = FORMATS[name]
    for cut in (len(data) // 4, len(data) // 2, len(data) * 3 // 4):
        assert fault_of(data[:cut]).code in ("truncated", "undecodable")


@settings(deadline=None, max_examples=150)
@given(
    st.sampled_from(sorted(FORMATS)), st.lists(st.tuples(st.integers(0), st.integers(0, 255)), min_size=1, max_size=8)
)
def test_changed_bytes_are_a_picture_or_a_fault_and_never_a_crash(name: str, changes: list[tuple[int, int]]) -> None:
    data = bytearray(FORMATS[name])
    for place, value in changes:
        data[place % len(data)] = value
    try:
        facts = probe(bytes(data), max_pixels=1_000_000)
    except ImageFault as fault:
        assert fault.code in ("truncated", "undecodable", "wrong_type", "bomb")
        assert "\n" not in fault.message
        assert " at 0x" not in fault.message
    else:
        assert facts.width * facts.height <= 1_000_000


def test_what_follows_a_whole_picture_does_not_matter() -> None:
    for name in ("jpeg", "png"):
        assert probe(FORMATS[name] + bytes(100)).signature == probe(FORMATS[name]).signature


def test_faults_travel_between_processes() -> None:
    fault = fault_of(FORMATS["png"][:-1])
    again = pickle.loads(pickle.dumps(fault))
    assert (again.code, again.message, str(again)) == (fault.code, fault.message, str(fault))


# Not a picture --------------------------------------------------------------------------------------


@pytest.mark.parametrize("data", [None, b""])
def test_no_bytes_are_empty(data: bytes | None) -> None:
    assert fault_of(data).code == "empty"
    with pytest.raises(ImageFault, match="no bytes"):
        load(data)
    assert thumbnail(data, 32) is None


@pytest.mark.parametrize(
    ("data", "guess"),
    [
        (b"<!DOCTYPE html><html></html>", "HTML"),
        (b"  \n<html><body>404</body></html>", "HTML"),
        (b"<?xml version='1.0'?><svg/>", "XML or SVG"),
        (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "SVG"),
        (b'{"error": "not found"}', "JSON"),
        (b"%PDF-1.7 ...", "PDF"),
        (b"PK\x03\x04....", "zip"),
        (b"\x1f\x8b\x08....", "gzip"),
        (b"PAR1....", "parquet"),
        (b"8BPS....", "Photoshop"),
        (b"\x00\x00\x00\x18ftypheic....", "HEIC"),
        (b"RIFF\x10\x00\x00\x00WAVEfmt ", "unknown bytes"),
        (bytes(500), "unknown bytes"),
        (b"\xff", "unknown bytes"),
    ],
)
def test_what_is_no_picture_is_called_by_what_it_seems_to_be(data: bytes, guess: str) -> None:
    fault = fault_of(data)
    assert fault.code == "wrong_type"
    assert guess in fault.message
    assert "JPEG" in fault.message


@pytest.mark.parametrize("kind", ["ICO", "PPM", "TGA", "PCX", "JPEG2000"])
def test_formats_beyond_the_known_ones_are_a_wrong_type(kind: str) -> None:
    assert fault_of(encoded(picture(64, 64), kind)).code == "wrong_type"


@pytest.mark.parametrize("start", [b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"BM", b"II*\x00", b"MM\x00*"])
def test_a_picture_s_first_bytes_alone_are_no_picture(start: bytes) -> None:
    for rest in (b"", bytes(200), b"\xff" * 200):
        assert fault_of(start + rest).code in ("truncated", "undecodable", "bomb")


# Decompression bombs --------------------------------------------------------------------------------


def png_header(width: int, height: int) -> bytes:
    """A PNG that announces a size and holds next to nothing."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


BOMBS = {
    "png": png_header(30_000, 30_000),
    "png-largest": png_header(2**31 - 1, 2**31 - 1),
    "png-long": png_header(64_000_001, 1),
    "png-just-over": png_header(8_001, 8_000),
    "gif": FORMATS["gif"][:6] + struct.pack("<HH", 65_535, 65_535) + FORMATS["gif"][10:],
    "bmp": FORMATS["bmp"][:18] + struct.pack("<ii", 60_000, 60_000) + FORMATS["bmp"][26:],
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_refused_by_its_header(name: str) -> None:
    data = BOMBS[name]
    assert fault_of(data).code == "bomb"
    assert thumbnail(data, 32) is None
    with pytest.raises(ImageFault) as caught:
        load(data)
    assert caught.value.code == "bomb"


def test_the_limit_is_the_last_size_that_passes_and_nothing_is_decoded_beyond_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data = FORMATS["png"]
    assert probe(data, max_pixels=96 * 72).width == 96
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: pytest.fail("a pixel was decoded"))
    assert fault_of(data, max_pixels=96 * 72 - 1).code == "bomb"


def test_a_header_is_read_without_decoding() -> None:
    assert open_image(png_header(4_000, 3_000)).size == (4_000, 3_000)


# Orientation ----------------------------------------------------------------------------------------


def rotated(kind: str, orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(picture(70, 41, seed=3), kind, exif=exif)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_applied_as_the_standard_says(kind: str, orientation: int) -> None:
    data = rotated(kind, orientation)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    facts = probe(data)
    assert (facts.width, facts.height) == upright.size == ((70, 41) if orientation < 5 else (41, 70))
    assert np.array_equal(pixels(load(data)), pixels(upright))
    assert near(facts.signature, probe(encoded(upright, "PNG")).signature)
    assert same_pixels(data, encoded(upright, "PNG"))


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_an_orientation_that_does_not_exist_is_none(orientation: int) -> None:
    assert (probe(rotated("JPEG", orientation)).width, load(rotated("JPEG", orientation)).width) == (70, 70)


def test_a_broken_exif_block_does_not_make_a_picture_illegal() -> None:
    for exif in (b"Exif\x00\x00", b"Exif\x00\x00II*\x00\xff\xff\xff\xff", b"Exif\x00\x00garbage, not TIFF at all"):
        assert probe(encoded(picture(), "JPEG", exif=exif)).width == 96
        assert load(encoded(picture(), "JPEG", exif=exif)).size == (96, 72)


def test_a_large_rotated_jpeg_s_thumbnail_is_upright() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    small = thumbnail(encoded(picture(800, 400), "JPEG", exif=exif), 100)
    assert small is not None
    assert Image.open(io.BytesIO(small)).size == (50, 100)


# Modes ----------------------------------------------------------------------------------------------


def on_white(colour: tuple[int, int, int], alpha: int) -> np.ndarray:
    return (np.array(colour) * alpha + 255 * (255 - alpha)) / 255


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("alpha", [0, 1, 64, 128, 254, 255])
def test_transparency_is_composited_on_white(kind: str, alpha: int) -> None:
    options = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    data = encoded(Image.new("RGBA", (40, 40), (200, 40, 0, alpha)), kind, **options)
    facts, image = probe(data), load(data)
    assert image.mode == "RGB"
    assert np.abs(pixels(image) - on_white((200, 40, 0), alpha)).max() <= 1
    if alpha in (0, 255):
        assert image.getpixel((7, 7)) == ((255, 255, 255) if alpha == 0 else (200, 40, 0))
    assert facts.mode in ("RGBA", "RGB")


def test_grey_with_alpha_is_composited_on_white() -> None:
    image = load(encoded(Image.new("LA", (40, 40), (0, 128)), "PNG"))
    assert image.mode == "RGB"
    assert np.abs(pixels(image).astype(int) - 127).max() <= 1


def test_a_palette_with_transparency_is_composited_on_white() -> None:
    indexed = Image.new("P", (40, 40), 1)
    indexed.putpalette([255, 0, 0, 0, 0, 255, 0, 255, 0])
    indexed.paste(0, (0, 0, 20, 40))
    image = load(encoded(indexed, "PNG", transparency=0))
    assert (image.getpixel((5, 5)), image.getpixel((30, 5))) == ((255, 255, 255), (0, 0, 255))
    half = load(encoded(indexed, "PNG", transparency=bytes([128, 255, 255])))
    assert half.getpixel((5, 5)) == (255, 127, 127)
    gif = load(encoded(indexed, "GIF", transparency=0))
    assert (gif.getpixel((5, 5)), gif.getpixel((30, 5))) == ((255, 255, 255), (0, 0, 255))


@pytest.mark.parametrize(("mode", "key", "rest"), [("RGB", (0, 0, 0), (255, 0, 0)), ("L", 0, 90), ("1", 0, 255)])
def test_a_transparent_colour_of_a_picture_without_alpha_is_white(mode: str, key: object, rest: object) -> None:
    image = Image.new(mode, (40, 40), key)
    image.paste(rest, (0, 0, 20, 40))
    data = encoded(image, "PNG", transparency=key)
    upright = load(data)
    colour = rest if isinstance(rest, tuple) else (rest,) * 3
    assert (upright.getpixel((5, 5)), upright.getpixel((30, 5))) == (colour, (255, 255, 255))
    assert probe(data).signature == probe(encoded(upright, "PNG")).signature


def test_a_transparent_value_of_a_16_bit_picture_is_white() -> None:
    deep = np.full((40, 40), 20_000, dtype=np.uint16)
    deep[:, :20] = 7
    image = load(encoded(Image.fromarray(deep), "PNG", transparency=7))
    assert (image.getpixel((5, 5)), image.getpixel((30, 5))) == ((255,) * 3, (20_000 >> 8,) * 3)


def test_a_16_bit_ramp_stays_a_ramp() -> None:
    ramp = np.linspace(0, 65535, 256).astype(np.uint16)[None, :].repeat(64, axis=0)
    for data in (encoded(Image.fromarray(ramp), "PNG"), encoded(Image.fromarray(ramp), "TIFF")):
        assert probe(data).mode.startswith("I")
        row = pixels(load(data))[0, :, 0].astype(int)
        assert np.array_equal(row, np.arange(256))


def test_a_32_bit_whole_number_picture_is_scaled_as_a_16_bit_one() -> None:
    deep = np.linspace(0, 65535, 256).astype(np.int32)[None, :].repeat(64, axis=0)
    assert np.array_equal(pixels(load(encoded(Image.fromarray(deep), "TIFF")))[0, :, 0], np.arange(256))


def test_one_bit_pictures_are_black_and_white() -> None:
    image = Image.new("1", (40, 40), 1)
    image.paste(0, (0, 0, 20, 40))
    for kind in ("PNG", "TIFF", "BMP"):
        decoded = load(encoded(image, kind))
        assert (decoded.getpixel((5, 5)), decoded.getpixel((30, 5))) == ((0, 0, 0), (255, 255, 255))


def test_cmyk_reads_as_pillow_reads_it() -> None:
    data = FORMATS["jpeg-cmyk"]
    assert probe(data).mode == "CMYK"
    assert np.array_equal(pixels(load(data)), pixels(Image.open(io.BytesIO(data)).convert("RGB")))


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_the_first_frame_of_several_is_the_picture(kind: str) -> None:
    first, second = Image.new("RGB", (48, 40), (250, 0, 0)), Image.new("RGB", (48, 40), (0, 0, 250))
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(first, kind, save_all=True, append_images=[second, first], **options)
    assert getattr(Image.open(io.BytesIO(data)), "n_frames", 1) == 3
    assert (probe(data).width, probe(data).height) == (48, 40)
    assert load(data).getpixel((20, 20)) == (250, 0, 0)


def test_a_jpeg_with_more_pictures_behind_the_first_is_that_first_picture() -> None:
    first, second = picture(seed=1), picture(seed=2)
    data = encoded(first, "MPO", save_all=True, append_images=[second], quality=95)
    facts = probe(data)
    assert (facts.format, facts.extension) == ("MPO", "jpg")
    assert np.array_equal(pixels(load(data)), pixels(Image.open(io.BytesIO(data)).convert("RGB")))
    assert same_pixels(data, encoded(Image.open(io.BytesIO(data)), "PNG"))


# Re-encoding, thumbnails ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", FORMATS)
def test_bytes_pass_through_untouched_unless_a_limit_says_otherwise(name: str) -> None:
    data = FORMATS[name]
    facts = probe(data)
    side = max(facts.width, facts.height)
    assert reencode(data, facts, max_side=None) is None
    assert reencode(data, facts, max_side=side) is None
    changed = reencode(data, facts, max_side=side - 8)
    assert changed is not None
    new = probe(changed[0])
    assert changed[1] == "max_side"
    assert max(new.width, new.height) == side - 8
    assert new.format == ("JPEG" if name.startswith("jpeg") else "PNG")


def test_a_mode_that_readers_do_not_share_is_re_encoded() -> None:
    data = encoded(picture().convert("LAB"), "TIFF")
    facts = probe(data)
    changed = reencode(data, facts, max_side=None)
    assert changed is not None
    assert changed[1] == "mode"
    assert probe(changed[0]).mode == "RGB"
    assert np.array_equal(pixels(load(changed[0])), pixels(load(data)))


def test_a_re_encoded_picture_is_upright_and_says_so() -> None:
    data = rotated("JPEG", 6)
    changed = reencode(data, probe(data), max_side=50)
    assert changed is not None
    assert Image.open(io.BytesIO(changed[0])).size == (29, 50)
    assert Image.open(io.BytesIO(changed[0])).getexif().get(0x0112) is None


def test_re_encoding_is_reproducible() -> None:
    for name in ("jpeg", "png"):
        facts = probe(FORMATS[name])
        assert reencode(FORMATS[name], facts, max_side=40) == reencode(FORMATS[name], facts, max_side=40)


@pytest.mark.slow
def test_a_picture_beyond_the_default_limit_can_be_scaled_down_where_the_limit_was_raised() -> None:
    data = encoded(Image.new("1", (8_100, 8_000), 1), "PNG")
    facts = probe(data, max_pixels=70_000_000)
    changed = reencode(data, facts, max_side=256)
    assert changed is not None
    assert max(load(changed[0]).size) == 256


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("side", [16, 64, 1000])
def test_a_thumbnail_is_a_small_jpeg_in_the_same_shape(name: str, side: int) -> None:
    small = thumbnail(FORMATS[name], side)
    assert small is not None
    image = Image.open(io.BytesIO(small))
    whole = load(FORMATS[name])
    assert image.format == "JPEG"
    assert max(image.size) == min(side, max(whole.size))
    assert abs(image.width / image.height - whole.width / whole.height) < 0.1


def test_a_thumbnail_of_what_cannot_be_decoded_is_none() -> None:
    assert thumbnail(FORMATS["jpeg"][:-200], 32) is None
    assert thumbnail(b"<html>", 32) is None


def test_scaled_loading_keeps_both_sides_at_least_as_long_as_asked() -> None:
    data = encoded(picture(900, 700), "JPEG")
    for at_least in (1, 50, 100, 333, 699, 700, 5_000):
        width, height = load(data, at_least=at_least).size
        assert min(width, height) >= min(at_least, 700)


# Equal pixels ---------------------------------------------------------------------------------------


def test_equal_pixels_are_found_in_any_encoding_and_one_changed_pixel_is_seen() -> None:
    image = picture()
    other = image.copy()
    other.putpixel((11, 13), tuple(255 - value for value in image.getpixel((11, 13))))
    lossless = [encoded(image, kind) for kind in ("PNG", "BMP", "TIFF")] + [encoded(image, "WEBP", lossless=True)]
    for one in lossless:
        assert same_pixels(lossless[0], one)
        assert not same_pixels(one, encoded(other, "PNG"))
    assert not same_pixels(lossless[0], encoded(image.resize((72, 96)), "PNG"))
    assert not same_pixels(lossless[0], encoded(image.crop((0, 0, 96, 71)), "PNG"))


@pytest.mark.parametrize("first", ["jpeg-420-odd", "jpeg-progressive", "webp", "gif"])
def test_a_decoded_picture_stored_without_loss_has_equal_pixels(first: str) -> None:
    assert same_pixels(FORMATS[first], encoded(load(FORMATS[first]), "PNG"))


# The resize rule ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", GOLDEN)
def test_the_resize_rule_agrees_with_the_published_one(name: str) -> None:
    rule = ResizeRule(**GOLDEN[name]["rule"])
    assert GOLDEN[name]["cases"]
    for case in GOLDEN[name]["cases"]:
        size = rule.size(case["width"], case["height"], images=case["img_num"])
        assert size == (case["out_width"], case["out_height"]), case


def test_the_rules_of_the_model_are_the_golden_ones() -> None:
    assert ResizeRule(**GOLDEN["vae"]["rule"]) == VAE_RULE
    assert ResizeRule(**GOLDEN["vit_sigma"]["rule"]) == VIT_RULE


@settings(deadline=None, max_examples=200)
@given(st.integers(1, 10_000), st.integers(1, 10_000), st.integers(1, 8), st.sampled_from(sorted(GOLDEN)))
def test_a_resized_picture_is_whole_strides_and_within_the_longest_side(
    width: int, height: int, images: int, name: str
) -> None:
    rule = ResizeRule(**GOLDEN[name]["rule"])
    size: Callable[..., tuple[int, int]] = rule.size
    for side in size(width, height, images=images):
        assert side >= rule.stride
        assert side % rule.stride == 0
        assert side <= rule.max_size + rule.stride


@given(st.integers(0, 2**32), st.integers(17, 90), st.integers(17, 90), st.sampled_from(["PNG", "JPEG", "GIF"]))
@settings(deadline=None, max_examples=40)
def test_a_mask_that_is_too_long_becomes_a_png_of_colours_it_had_at_the_size_of_its_image(
    seed: int, width: int, height: int, kind: str
) -> None:
    labels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    data, image = encoded(labels, kind), encoded(labels, "JPEG")
    changed = reencode(data, probe(data), max_side=16, mask=True)
    beside = reencode(image, probe(image), max_side=16)
    assert changed is not None and beside is not None
    assert Image.open(io.BytesIO(changed[0])).format == "PNG"
    assert load(changed[0]).size == load(beside[0]).size
    colours, had = ({tuple(c) for c in pixels(load(d)).reshape(-1, 3).tolist()} for d in (changed[0], data))
    assert colours <= had
