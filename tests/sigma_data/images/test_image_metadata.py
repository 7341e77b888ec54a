"""Metadata of images: orientation wherever tools note it, texts of any size, colour profiles, containers."""

from __future__ import annotations

import io
import os
import random
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageFile, ImageOps, PngImagePlugin, features
from support.image_files import encoded, png_chunk, smooth

from sigma_data.images.decode import ImageFault, load, probe, reencode, sniff, thumbnail
from sigma_data.images.png_metadata import MAX_CHUNK, MAX_TEXT, readable
from sigma_data.images.resample import resized

AVIF = pytest.mark.skipif(not features.check("avif"), reason="this Pillow is built without AVIF")


@pytest.fixture(autouse=True)
def nothing_global_changes() -> Iterator[None]:
    def state() -> tuple[object, ...]:
        return PngImagePlugin.MAX_TEXT_CHUNK, PngImagePlugin.MAX_TEXT_MEMORY, ImageFile.LOAD_TRUNCATED_IMAGES

    before = state()
    yield
    assert state() == before


# Orientation ----------------------------------------------------------------------------------------


def exif(orientation: int) -> bytes:
    block = Image.Exif()
    block[0x0112] = orientation
    return block.tobytes()


def xmp(orientation: int, *, element: bool = False) -> bytes:
    inside = f"><tiff:Orientation>{orientation}</tiff:Orientation></rdf:Description>"
    tail = inside if element else f' tiff:Orientation="{orientation}"/>'
    return f'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF><rdf:Description{tail}</rdf:RDF></x:xmpmeta>'.encode()


def with_chunk(png: bytes, chunk: bytes, *, behind: bool) -> bytes:
    place = png.rindex(b"IEND") - 4 if behind else png.index(b"IDAT") - 4
    return png[:place] + chunk + png[place:]


def itxt(key: bytes, value: bytes, *, packed: bool = False) -> bytes:
    return png_chunk(
        b"iTXt", key + (b"\0\1\0\0\0" if packed else bytes(5)) + (zlib.compress(value) if packed else value)
    )


def raw_profile(orientation: int) -> bytes:
    """EXIF as ImageMagick writes it into a text of a PNG."""
    block = exif(orientation)
    return b"Raw profile type exif\0\0" + zlib.compress(f"\nexif\n{len(block):8}\n{block.hex()}\n".encode())


def _tiff_with_xmp(o: int, **options: object) -> bytes:
    return encoded(smooth(1), "TIFF", tiffinfo={700: xmp(o)}, **options)


def _gif_with_xmp(o: int) -> bytes:
    gif = encoded(smooth(1).quantize(64), "GIF")
    magic_trailer = b"\x01" + bytes(range(255, -1, -1)) + b"\x00"
    place = gif.rindex(b"\x2c", 0, gif.index(b"\x2c", 13 + 3 * 64) + 1)
    return gif[:place] + b"\x21\xff\x0bXMP DataXMP" + xmp(o) + magic_trailer + gif[place:]


PNG = encoded(smooth(1), "PNG")
PLACES: dict[str, Callable[[int], bytes]] = {
    "jpeg exif": lambda o: encoded(smooth(1), "JPEG", exif=exif(o)),
    "jpeg xmp": lambda o: encoded(smooth(1), "JPEG", xmp=xmp(o)),
    "jpeg xmp element": lambda o: encoded(smooth(1), "JPEG", xmp=xmp(o, element=True)),
    "mpo exif": lambda o: encoded(smooth(1), "MPO", save_all=True, append_images=[smooth(2)], exif=exif(o)),
    "mpo xmp": lambda o: encoded(smooth(1), "MPO", save_all=True, append_images=[smooth(2)], xmp=xmp(o)),
    "png exif": lambda o: with_chunk(PNG, png_chunk(b"eXIf", exif(o)[6:]), behind=False),
    "png exif behind": lambda o: with_chunk(PNG, png_chunk(b"eXIf", exif(o)[6:]), behind=True),
    "png xmp": lambda o: with_chunk(PNG, itxt(b"XML:com.adobe.xmp", xmp(o)), behind=False),
    "png xmp behind": lambda o: with_chunk(PNG, itxt(b"XML:com.adobe.xmp", xmp(o)), behind=True),
    "png xmp packed": lambda o: with_chunk(PNG, itxt(b"XML:com.adobe.xmp", xmp(o), packed=True), behind=True),
    "png raw profile": lambda o: with_chunk(PNG, png_chunk(b"zTXt", raw_profile(o)), behind=False),
    "png raw profile behind": lambda o: with_chunk(PNG, png_chunk(b"zTXt", raw_profile(o)), behind=True),
    "webp exif": lambda o: encoded(smooth(1), "WEBP", exif=exif(o)),
    "webp xmp": lambda o: encoded(smooth(1), "WEBP", xmp=xmp(o)),
    "tiff tag": lambda o: encoded(smooth(1), "TIFF", tiffinfo={274: o}),
    "tiff xmp": _tiff_with_xmp,
    "tiff xmp deflate": lambda o: _tiff_with_xmp(o, compression="tiff_deflate"),
    "bigtiff tag": lambda o: encoded(smooth(1), "TIFF", tiffinfo={274: o}, big_tiff=True),
    "gif xmp": _gif_with_xmp,
    "exif before xmp": lambda o: encoded(smooth(1), "JPEG", exif=exif(o), xmp=xmp(3)),
}
if features.check("avif"):
    PLACES["avif exif"] = lambda o: encoded(smooth(1), "AVIF", exif=exif(o))
    PLACES["avif xmp"] = lambda o: encoded(smooth(1), "AVIF", xmp=xmp(o))


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("orientation", [1, 2, 5, 6, 8, 9])
def test_an_orientation_counts_wherever_pillow_and_hf_datasets_find_it(place: str, orientation: int) -> None:
    data = PLACES[place](orientation)
    right = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    if orientation in (5, 6, 8):
        assert right.size == ((80, 64) if place == "gif xmp" else (64, 80)), "where Pillow looks, and where not"
    facts = probe(data)
    assert (facts.width, facts.height) == right.size
    assert np.array_equal(load(data), right)
    small = thumbnail(data, 32)
    assert small is not None
    assert Image.open(io.BytesIO(small)).size[0] in ((32,) if right.size[0] > right.size[1] else (25, 26))
    assert resized(data, right.size).shape == (right.size[1], right.size[0], 3)
    changed = reencode(data, facts, max_side=40)
    assert changed is not None
    assert Image.open(io.BytesIO(changed[0])).size == ((40, 32) if right.size == (80, 64) else (32, 40))


# Large metadata -------------------------------------------------------------------------------------

BIG = b"".join(random.Random(0).randbytes(4).hex().encode() for _ in range(200_000))  # 1.6 MB, packs to half


@cache
def profile() -> bytes:
    """Once: the time stands in it."""
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


LARGE = {
    "zTXt": png_chunk(b"zTXt", b"workflow\0\0" + zlib.compress(BIG)),
    "zTXt that packs well": png_chunk(b"zTXt", b"workflow\0\0" + zlib.compress(bytes(2**24))),
    "iTXt": itxt(b"workflow", BIG, packed=True),
    "iCCP": png_chunk(b"iCCP", b"printer\0\0" + zlib.compress(profile() + BIG)),
    "many": b"".join(png_chunk(b"zTXt", b"k%d\0\0" % k + zlib.compress(bytes(10**6))) for k in range(70)),
    "many plain": png_chunk(b"tEXt", b"k\0" + bytes(10**6)) * 70,
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", LARGE)
@pytest.mark.parametrize("behind", [False, True])
def test_a_png_with_more_metadata_than_pillow_reads_is_a_picture(kind: str, behind: bool) -> None:
    data = with_chunk(PNG, LARGE[kind], behind=behind)
    if not (kind == "iCCP" and behind):
        with pytest.raises(ValueError, match=r"too large|Too much"):
            Image.open(io.BytesIO(data)).load()
    facts = probe(data)
    assert (facts.width, facts.height, facts.size) == (80, 64, len(data))
    assert np.array_equal(load(data), smooth(1))
    assert thumbnail(data, 32)
    assert resized(data, (80, 64)).shape == (64, 80, 3)
    assert reencode(data, facts, max_side=None) is None, "the bytes stay as they are"
    changed = reencode(data, facts, max_side=40)
    assert changed is not None
    assert Image.open(io.BytesIO(changed[0])).size == (40, 32)


@pytest.mark.parametrize("behind", [False, True])
@pytest.mark.parametrize("kind", ["xmp", "raw profile"])
def test_an_orientation_in_a_text_too_large_for_pillow_still_counts(kind: str, behind: bool) -> None:
    if kind == "xmp":
        chunk = itxt(b"XML:com.adobe.xmp", xmp(6) + b" " * 2**21, packed=True)
    else:
        block = exif(6) + bytes(2**20)
        value = f"\nexif\n{len(block):8}\n{block.hex()}\n".encode()
        chunk = png_chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(value))
    facts = probe(with_chunk(PNG, chunk, behind=behind))
    assert (facts.width, facts.height) == (64, 80)


@pytest.mark.parametrize("size", [MAX_CHUNK - 1, MAX_CHUNK, MAX_CHUNK + 1])
def test_only_what_pillow_would_refuse_is_left_out(size: int) -> None:
    data = with_chunk(PNG, png_chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(size))), behind=False)
    try:
        Image.open(io.BytesIO(data)).load()
    except ValueError:
        assert len(readable(data)) < len(data)
    else:
        assert readable(data) is data


def test_the_bounds_are_those_that_pillow_comes_with() -> None:
    assert (MAX_CHUNK, MAX_TEXT) == (PngImagePlugin.MAX_TEXT_CHUNK, PngImagePlugin.MAX_TEXT_MEMORY)


def test_what_pillow_refuses_for_another_reason_stays_refused() -> None:
    broken = bytearray(with_chunk(PNG, png_chunk(b"tEXt", b"k\0words"), behind=False))
    broken[broken.index(b"words")] ^= 1
    unknown = with_chunk(PNG, png_chunk(b"iCCP", b"name\0\7" + zlib.compress(profile())), behind=False)
    for data in (bytes(broken), unknown):
        with pytest.raises(ImageFault) as raised:
            probe(data)
        assert raised.value.code == "undecodable"


@pytest.mark.parametrize("place", range(8, 3_000, 97))
def test_a_png_with_large_metadata_that_is_cut_is_a_fault(place: int) -> None:
    data = with_chunk(PNG, LARGE["zTXt"], behind=False)[:-8]
    with pytest.raises(ImageFault):
        probe(data[:place])


@pytest.mark.slow
@pytest.mark.parametrize(
    "data",
    [
        encoded(smooth(1), "JPEG", icc_profile=profile() + BIG),
        encoded(smooth(1), "JPEG", xmp=b"<x/>" + BIG[:60_000]),
        encoded(smooth(1), "WEBP", icc_profile=profile() + BIG, xmp=BIG, exif=b"Exif\0\0" + exif(1)[6:] + BIG),
        encoded(smooth(1), "TIFF", icc_profile=profile() + BIG, tiffinfo={700: BIG, 270: BIG.decode()}),
        encoded(smooth(1).quantize(16), "GIF", comment=BIG),
    ],
    ids=["jpeg icc", "jpeg", "webp", "tiff", "gif"],
)
def test_large_metadata_of_other_formats_is_no_fault(data: bytes) -> None:
    assert (probe(data).width, probe(data).height) == (80, 64)


# Colour profiles ------------------------------------------------------------------------------------


def lab() -> bytes:
    transform = ImageCms.buildTransform(ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB")
    return encoded(ImageCms.applyTransform(smooth(1), transform), "TIFF")


def carried(data: bytes, **limits: int) -> bytes | None:
    changed = reencode(data, probe(data), max_side=limits.get("max_side", 40))
    assert changed is not None
    found: bytes | None = Image.open(io.BytesIO(changed[0])).info.get("icc_profile")
    return found


KINDS = ["JPEG", "PNG", "WEBP", "TIFF"]


@pytest.mark.parametrize("kind", [*KINDS, pytest.param("AVIF", marks=AVIF)])
def test_a_picture_scaled_down_keeps_its_colour_profile(kind: str) -> None:
    assert carried(encoded(smooth(1), kind, icc_profile=profile())) == profile()
    assert carried(encoded(smooth(1), kind)) is None


def test_a_large_profile_is_kept_where_readers_take_it() -> None:
    large = profile() + BIG
    assert carried(encoded(smooth(1), "JPEG", icc_profile=large)) == large
    assert carried(encoded(smooth(1), "WEBP", icc_profile=large)) is None, "Pillow would refuse the PNG"


def test_a_long_comment_does_not_stand_in_the_way_of_a_profile() -> None:
    data = encoded(smooth(1), "JPEG", icc_profile=profile())
    comment = b"\xff\xfe" + struct.pack(">H", 65_002) + bytes(65_000)
    assert carried(data[:2] + comment + data[2:]) == profile()


@pytest.mark.parametrize(
    "data",
    [
        encoded(smooth(1).convert("CMYK"), "JPEG", icc_profile=profile()),
        encoded(smooth(1).convert("L"), "JPEG", icc_profile=profile()),
        encoded(smooth(1).convert("L"), "PNG", icc_profile=profile()[:16] + b"GRAY" + profile()[20:]),
        encoded(smooth(1), "PNG", icc_profile=profile()[:16] + b"CMYK" + profile()[20:]),
        lab(),
    ],
    ids=["cmyk", "grey", "grey of grey", "false", "lab"],
)
def test_a_profile_that_would_be_false_of_rgb_pixels_is_dropped(data: bytes) -> None:
    assert carried(data) is None


@pytest.mark.slow
def test_a_lab_picture_is_re_encoded_to_the_same_bytes_at_any_time() -> None:
    data = lab()
    facts = probe(data)
    first = reencode(data, facts, max_side=None)
    assert first is not None
    assert first[1] == "mode"
    program = (
        "import sys, time, datetime\n"
        "from sigma_data.images.decode import probe, reencode, thumbnail\n"
        "data = sys.stdin.buffer.read()\n"
        "time.sleep(1.1)\n"  # the profile that Pillow makes holds seconds
        "sys.stdout.buffer.write(reencode(data, probe(data), max_side=None)[0] + thumbnail(data, 32))\n"
    )
    again = subprocess.run([sys.executable, "-c", program], input=data, capture_output=True, check=True).stdout
    assert again == first[0] + (thumbnail(data, 32) or b"")
    assert "icc_profile" not in load(data).info


# Containers -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "I;16"])
def test_a_bigtiff_is_a_tiff(mode: str) -> None:
    image = smooth(1).convert("L").convert("I;16") if mode == "I;16" else smooth(1).convert(mode)
    data = encoded(image, "TIFF", big_tiff=True)
    assert data[2] == 43
    facts = probe(data)
    assert (facts.format, facts.extension, facts.mode) == ("TIFF", "tif", mode)
    assert np.array_equal(load(data), load(encoded(image, "TIFF")))


@AVIF
def test_an_avif_is_a_picture_wherever_pillow_can_decode_it() -> None:
    data = encoded(smooth(1), "AVIF", quality=90)
    facts = probe(data)
    assert (facts.format, facts.extension, facts.width, facts.height) == ("AVIF", "avif", 80, 64)
    assert np.array_equal(load(data), Image.open(io.BytesIO(data)).convert("RGB"))
    for cut in (40, len(data) // 2, len(data) - 20):
        with pytest.raises(ImageFault) as raised:
            probe(data[:cut])
        assert raised.value.code in ("truncated", "undecodable")
    with pytest.raises(ImageFault, match="more than the limit"):
        probe(data, max_pixels=80 * 64 - 1)


def ftyp(major: bytes, *brands: bytes) -> bytes:
    body = major + bytes(4) + b"".join(brands)
    return struct.pack(">I", 8 + len(body)) + b"ftyp" + body


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (ftyp(b"heic", b"mif1"), "HEIC"),
        (ftyp(b"mif1", b"mif1", b"heic"), "HEIC"),
        (ftyp(b"isom", b"avc1"), "video"),
    ],
)
def test_what_is_in_the_same_boxes_as_avif_is_called_by_its_name(data: bytes, what: str) -> None:
    with pytest.raises(ImageFault, match=what) as raised:
        sniff(data)
    assert raised.value.code == "wrong_type"


@AVIF
def test_an_avif_by_its_compatible_brands_is_one() -> None:
    assert sniff(ftyp(b"mif1", b"mif1", b"avif")) == "AVIF"


def test_an_avif_without_a_decoder_names_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "check", lambda _: False)
    with pytest.raises(ImageFault, match=r"pillow 11\.3"):
        sniff(ftyp(b"avif"))


# What libraries print -------------------------------------------------------------------------------


def test_what_a_library_prints_is_in_the_fault_and_not_on_the_terminal(tmp_path: Path) -> None:
    data = bytearray(encoded(smooth(1, 200, 200), "TIFF", compression="tiff_deflate"))
    for place in range(60, 4_000):
        data[place] ^= 0x55  # the compressed strip
    (tmp_path / "broken.tif").write_bytes(data)
    program = (
        "import sys\n"
        "from sigma_data.images.decode import ImageFault, probe\n"
        "try:\n"
        "    probe(open(sys.argv[1], 'rb').read())\n"
        "except ImageFault as fault:\n"
        "    print(fault.message)\n"
        "sys.stderr.write('still there')\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "broken.tif")],
        capture_output=True, text=True, check=True, env=dict(os.environ),
    )  # fmt: skip
    assert run.stderr == "still there"
    assert "ZIPDecode" in run.stdout
    assert run.stdout.count("\n") == 1
