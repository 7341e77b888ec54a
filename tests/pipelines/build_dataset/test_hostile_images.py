"""Hostile images: bombs, headers that announce too much, any bit changed: a commit whose sums add up, or one sentence."""

from __future__ import annotations

import resource
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import corpora, image_files
from support.hostile import build_safely

from sigma_data.images.decode import ImageFault, load, probe, thumbnail

pytestmark = pytest.mark.usefixtures("no_hang")


def huge_headers() -> Iterator[tuple[str, bytes]]:
    """Small files of every format whose headers announce pictures of hundreds of millions of pixels."""
    yield "png", image_files.huge_png(30_000, 30_000)
    png = bytearray(image_files.huge_png(64, 64))
    png[8:33] = image_files.png_chunk(b"IHDR", struct.pack(">IIBBBBB", 2**31 - 1, 2**31 - 1, 16, 6, 0, 0, 0))
    yield "png_of_the_largest_size", bytes(png)
    jpeg = bytearray(image_files.image_bytes("jpeg"))
    place = jpeg.index(b"\xff\xc0") + 5
    jpeg[place : place + 4] = struct.pack(">HH", 65_500, 65_500)
    yield "jpeg", bytes(jpeg)
    gif = bytearray(image_files.image_bytes("gif"))
    gif[6:10] = struct.pack("<HH", 65_535, 65_535)
    yield "gif_screen", bytes(gif)
    gif = bytearray(image_files.image_bytes("gif"))
    place = gif.index(b",\0\0\0\0", 13) + 5
    gif[place : place + 4] = struct.pack("<HH", 65_535, 65_535)
    yield "gif_frame", bytes(gif)
    bmp = bytearray(image_files.image_bytes("bmp"))
    bmp[18:26] = struct.pack("<ii", 60_000, 60_000)
    yield "bmp", bytes(bmp)
    bmp[18:26] = struct.pack("<ii", 60_000, -60_000)
    yield "bmp_top_down", bytes(bmp)
    for compression in ("raw", "tiff_lzw", "jpeg"):
        tiff = bytearray(image_files.image_bytes("tiff", compression=compression))
        start = struct.unpack("<I", tiff[4:8])[0]
        for entry in range(struct.unpack("<H", tiff[start : start + 2])[0]):
            place = start + 2 + 12 * entry
            if struct.unpack("<H", tiff[place : place + 2])[0] in (256, 257, 278):  # width, height, rows a strip
                tiff[place + 2 : place + 12] = struct.pack("<HII", 4, 1, 60_000)
        yield f"tiff_{compression}", bytes(tiff)
    size = (16_383).to_bytes(3, "little")
    webp = image_files.image_bytes("webp", lossless=True)
    extended = b"VP8X" + struct.pack("<I", 10) + b"\x10\0\0\0" + size + size
    yield "webp_extended", b"RIFF" + struct.pack("<I", len(webp) - 8 + len(extended)) + b"WEBP" + extended + webp[12:]
    lossless = bytearray(webp)
    place = lossless.index(b"VP8L") + 9
    lossless[place : place + 4] = struct.pack("<I", 16_383 | 16_383 << 14)
    yield "webp_lossless", bytes(lossless)
    lossy = bytearray(image_files.image_bytes("webp"))
    place = lossy.index(b"\x9d\x01\x2a") + 3
    lossy[place : place + 4] = struct.pack("<HH", 16_383, 16_383)
    yield "webp_lossy", bytes(lossy)


@pytest.mark.parametrize(
    ("name", "data"), list(huge_headers()), ids=lambda value: value if isinstance(value, str) else ""
)
def test_a_header_that_announces_a_huge_picture_is_refused_before_memory_is_taken(name: str, data: bytes) -> None:
    assert len(data) < 2_000_000
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ImageFault) as raised:
        probe(data)
    assert raised.value.code in ("bomb", "truncated", "undecodable")
    if name == "png":
        assert raised.value.code == "bomb"
        assert "178,956,970 pixels" in raised.value.message
    with pytest.raises(ImageFault):
        load(data)
    assert thumbnail(data, 64) is None
    taken = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert taken < 150 * 1024, f"{taken / 1024:.0f} MB for a picture that is refused"


@pytest.mark.slow
def test_bombs_are_quarantined_and_the_rest_is_built(arena: Path) -> None:
    rows = [corpora.release_row(seed) for seed in range(3)]
    for seed, (_, data) in enumerate(huge_headers(), 100):
        rows.append(corpora.release_row(seed) | {"image_list": [image_files.image_bytes(seed=seed), data]})
    corpora.write_parquet(arena / "in" / "rows.parquet", rows)
    sums = build_safely(arena / "out", f"release:{arena / 'in'}", watch=arena.parents[2])
    assert sums is not None
    assert (sums["written"], sums["quarantined"]) == (3, len(rows) - 3)
    assert sums["codes"]["bomb"] >= 8


def attempt(read: Callable[[bytes], Any], data: bytes) -> tuple[Any, ImageFault | None]:
    """What `read` makes of the data, or its fault; any other exception passes through."""
    try:
        return read(data), None
    except ImageFault as fault:
        return None, fault


@pytest.mark.parametrize("kind", image_files.KINDS)
def test_a_mutated_picture_gives_facts_or_a_fault(kind: str) -> None:
    generator = np.random.default_rng(5)
    save: list[dict[str, Any]] = {
        "jpeg": [{}, {"progressive": True}, {"mode": "CMYK"}, {"mode": "L"}],
        "png": [{}, {"mode": "P"}, {"mode": "RGBA"}, {"mode": "LA"}],
        "webp": [{}, {"lossless": True}, {"mode": "RGBA"}],
        "gif": [{}, {"mode": "L"}],
        "bmp": [{}, {"mode": "P"}, {"mode": "1"}],
        "tiff": [{}, {"compression": "tiff_lzw"}, {"compression": "jpeg"}, {"mode": "CMYK"}],
    }[kind]  # fmt: skip
    sound = [image_files.image_bytes(kind, index, **options) for index, options in enumerate(save)]
    for data in sound:
        probe(data)
    faults = 0
    for index in range(100):
        data = image_files.mutated(sound[index % len(sound)], generator, times=1 + index % 3)
        facts, fault = attempt(probe, data)
        shown, _ = attempt(load, data)
        if fault is not None:
            faults += 1
            assert fault.code in ("empty", "wrong_type", "bomb", "truncated", "undecodable")
            assert "0x" not in fault.message  # an address would make two builds differ
        small = thumbnail(data, 32)
        assert (small is None) == (shown is None)
        # What passed the check must be readable for good.
        assert facts is None or (shown is not None and shown.size == (facts.width, facts.height)), (kind, index)
    assert faults > 10


# --- commit and manifest ---------------------------------------------------------------------------
