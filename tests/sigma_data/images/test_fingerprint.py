"""What is the same and what is not: signatures, links between pictures, components, splits."""

from __future__ import annotations

from collections import Counter
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps
from support.image_files import encoded

from sigma_data.images.decode import load, probe
from sigma_data.images.fingerprint import (
    GRID,
    MAX_COLOUR_STEP,
    MAX_EDGE_BITS,
    MAX_HASH_BITS,
    SIGNATURE_BYTES,
    choose_split,
    components,
    hash_fraction,
    near,
    near_matches,
    near_pairs,
    signature,
    similar_colours,
)

HASH, EDGES = 8, 30
PHOTOS = 24


@cache
def photograph(seed: int, width: int = 480, height: int = 360) -> Image.Image:
    """Octaves of noise with a photograph's falling spectrum, and a little grain."""
    dice = np.random.default_rng(seed)
    sheet = np.zeros((height, width, 3))
    for octave in range(1, 8):
        cells = 2**octave
        shape = (max(2, cells * height // width) + 1, cells + 1)
        grid = 0.6 * dice.normal(0, 1, (*shape, 3)) + dice.normal(0, 1, (*shape, 1))
        for band in range(3):
            layer = Image.fromarray(grid[..., band].astype(np.float32))
            sheet[..., band] += np.asarray(layer.resize((width, height), Image.Resampling.BICUBIC)) * 0.75**octave
    sheet = (sheet - sheet.mean()) / sheet.std() * 55 + 120 + dice.normal(0, 3, sheet.shape)
    return Image.fromarray(sheet.clip(0, 255).astype(np.uint8))


def sign(image: Image.Image, kind: str = "BMP", **options: object) -> bytes:
    return probe(encoded(image, kind, **options)).signature


@cache
def original(seed: int) -> tuple[Image.Image, bytes]:
    """A published JPEG: its pixels and its signature."""
    data = encoded(photograph(seed), "JPEG", quality=92)
    return load(data), probe(data).signature


# Signatures -----------------------------------------------------------------------------------------


def test_a_signature_is_86_bytes_and_depends_on_nothing_but_the_thumbnail() -> None:
    small = photograph(1).resize((GRID, GRID))
    assert len(signature(small)) == SIGNATURE_BYTES == 86
    assert signature(small) == signature(Image.fromarray(np.asarray(small).copy()))


def test_a_signature_s_bytes_are_fixed_for_good() -> None:
    """Manifests keep signatures: they may not change between versions or machines."""
    x, y = np.meshgrid(np.arange(GRID), np.arange(GRID))
    ramps = np.stack([x * 8, y * 8, (x * y) % 256], axis=2).astype(np.uint8)
    assert signature(Image.fromarray(ramps)).hex() == SIGNATURE_OF_RAMPS


SIGNATURE_OF_RAMPS = (
    "003f79676c595235ffffffffffffffffff9ffcffe7ff9ffefdf9e3e79fdf7f3ddef7bddef3bb"
    "1c1c0c5c1c289c1c44dc1c601c5c285c5c849c5c9cdc5c781c9c445c9c9c9c9c78dc9c801cdc605cdc789cdc80dcdc84"
)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "options", "scale"),
    [
        ("PNG", {"compress_level": 1}, 1.0),
        ("JPEG", {"quality": 50}, 1.0),
        ("JPEG", {"quality": 85, "progressive": True, "subsampling": 2}, 1.0),
        ("WEBP", {"quality": 70}, 1.0),
        ("JPEG", {"quality": 85}, 0.5),
        ("TIFF", {}, 0.75),
        ("JPEG", {}, 2.0),
        ("BMP", {}, 0.33),
    ],
)
def test_re_encoded_and_resized_copies_are_near(kind: str, options: dict[str, object], scale: float) -> None:
    for seed in range(PHOTOS):
        image, published = original(seed)
        size = (round(image.width * scale), round(image.height * scale))
        assert near(published, sign(image.resize(size, Image.Resampling.LANCZOS), kind, **options)), seed


def test_a_slightly_brighter_copy_is_near() -> None:
    for seed in range(6):
        image, published = original(seed)
        assert near(published, sign(image.point(lambda value: min(255, value + 4))))


def test_different_mirrored_and_turned_pictures_are_not_near() -> None:
    signs = [original(seed)[1] for seed in range(PHOTOS)]
    assert not any(near(a, b) for i, a in enumerate(signs) for b in signs[:i])
    for seed in range(PHOTOS):
        image = original(seed)[0]
        for other in (ImageOps.mirror(image), ImageOps.flip(image), image.rotate(180), ImageOps.invert(image)):
            assert not near(signs[seed], sign(other))


def test_the_same_shapes_in_another_colour_are_not_near() -> None:
    image, published = original(2)
    red, green, blue = image.split()
    assert not near(published, sign(Image.merge("RGB", (blue, red, green))))


def test_an_edit_of_a_sixteenth_of_the_picture_is_not_near() -> None:
    image, published = original(3)
    edited = image.copy()
    edited.paste((255, 0, 0), (120, 90, 240, 180))
    assert not near(published, sign(edited))


def test_flat_pictures_of_one_colour_are_near_and_of_different_colours_are_not() -> None:
    grey = Image.new("RGB", (200, 150), (90, 90, 90))
    assert near(sign(grey), sign(grey.resize((64, 64)), "JPEG"))
    assert not near(sign(grey), sign(Image.new("RGB", (200, 150), (90, 90, 120))))


@pytest.mark.parametrize("kind", ["noise", "chequers", "flat", "photograph"])
@pytest.mark.parametrize("quality", [30, 95])
def test_equal_pixels_are_alike_in_any_encoding(kind: str, quality: int) -> None:
    dice = np.random.default_rng(5)
    shown = {
        "noise": Image.fromarray(dice.integers(0, 2, (150, 201, 3), dtype=np.uint8) * 255),
        "chequers": Image.fromarray((np.indices((300, 401)).sum(0) // 10 % 2 * 255).astype(np.uint8)).convert("RGB"),
        "flat": Image.new("RGB", (99, 64), (120, 30, 200)),
        "photograph": photograph(4, 333, 270),
    }[kind]
    data = encoded(shown, "JPEG", quality=quality)
    pixels = load(data)
    assert similar_colours(probe(data).signature, sign(pixels))
    exif = Image.Exif()
    exif[0x0112] = 8
    assert similar_colours(
        sign(pixels), sign(ImageOps.exif_transpose(pixels).rotate(-90, expand=True), "PNG", exif=exif)
    )


# Links ----------------------------------------------------------------------------------------------


def naive_components(count: int, links: list[tuple[int, int]]) -> list[int]:
    """Union-find without any cleverness: the smallest member of each node's set."""
    parent = list(range(count))

    def root(node: int) -> int:
        while parent[node] != node:
            node = parent[node]
        return node

    for left, right in links:
        low, high = sorted((root(left), root(right)))
        parent[high] = low
    return [root(node) for node in range(count)]


def brute_force(signatures: np.ndarray) -> list[int]:
    rows = [row.tobytes() for row in signatures]
    links = [(i, j) for i in range(len(rows)) for j in range(i) if near(rows[i], rows[j])]
    return naive_components(len(rows), links)


def adversarial(seed: int, count: int) -> np.ndarray:
    """A few pictures and many copies a few bits, edges and colour steps away, about the thresholds."""
    dice = np.random.default_rng(seed)
    bases = dice.integers(0, 256, (4, SIGNATURE_BYTES), dtype=np.uint8)
    bases[1] = bases[0]  # two families that differ in colours only
    bases[1, -48:] ^= 0x40
    bases[2, :HASH] = bases[3, :HASH]  # and two that share every band
    made = [bases[dice.integers(4)].copy() for _ in range(count)]
    for one in made:
        for start, stop, most in ((0, 64, MAX_HASH_BITS + 2), (64, 64 + 240, MAX_EDGE_BITS + 2)):
            changes = int(dice.integers(0, most)) if dice.random() < 0.8 else 0
            for bit in dice.choice(np.arange(start, stop), changes, replace=False):
                one[bit // 8] ^= 0x80 >> bit % 8
        if dice.random() < 0.5:
            place = HASH + EDGES + int(dice.integers(48))
            one[place] = np.clip(int(one[place]) + dice.integers(-MAX_COLOUR_STEP - 3, MAX_COLOUR_STEP + 4), 0, 255)
    return np.array(made, dtype=np.uint8).reshape(count, SIGNATURE_BYTES)


@pytest.mark.slow
@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**32), st.integers(0, 40))
def test_links_connect_exactly_what_near_connects(seed: int, count: int) -> None:
    signatures = adversarial(seed, count)
    links = near_pairs(signatures)
    assert links.shape[1:] == (2,)
    assert components(count, links).tolist() == brute_force(signatures)
    for left, right in links.tolist():
        assert near(signatures[left].tobytes(), signatures[right].tobytes())


@pytest.mark.slow
@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**32), st.integers(0, 30), st.integers(0, 30))
def test_matches_are_the_first_known_image_that_is_near(seed: int, count: int, known: int) -> None:
    both = adversarial(seed, count + known)
    rows = [row.tobytes() for row in both]
    expected = [next((k for k in range(known) if near(rows[i], rows[count + k])), -1) for i in range(count)]
    assert near_matches(both[:count], both[count:]).tolist() == expected


@pytest.mark.parametrize("bits", range(MAX_HASH_BITS + 1))
def test_pictures_that_share_few_bands_are_still_found(bits: int) -> None:
    """Changed bits spread over as many of the four bands as they can."""
    base = np.random.default_rng(9).integers(0, 256, SIGNATURE_BYTES, dtype=np.uint8)
    other = base.copy()
    for band in range(bits):
        other[2 * band] ^= 1
    assert components(2, near_pairs(np.stack([base, other]))).tolist() == [0, 0]


def test_the_thresholds_are_the_last_values_that_are_near() -> None:
    base = np.full(SIGNATURE_BYTES, 128, dtype=np.uint8)
    for start, limit in ((0, MAX_HASH_BITS), (HASH, MAX_EDGE_BITS)):
        for change, verdict in ((limit, True), (limit + 1, False)):
            other = base.copy()
            for bit in range(change):
                other[start + bit // 8] ^= 0x80 >> bit % 8
            assert near(base.tobytes(), other.tobytes()) is verdict
    for step, verdict in ((MAX_COLOUR_STEP, True), (MAX_COLOUR_STEP + 1, False)):
        for sign_of in (1, -1):
            other = base.copy()
            other[-1] = 128 + sign_of * step
            assert near(base.tobytes(), other.tobytes()) is verdict
            assert similar_colours(base.tobytes(), other.tobytes()) is verdict


def test_near_is_symmetric_and_every_picture_is_near_itself() -> None:
    rows = [row.tobytes() for row in adversarial(3, 30)]
    for a in rows:
        assert near(a, a)
        assert [near(a, b) for b in rows] == [near(b, a) for b in rows]


def test_none_and_one_picture_have_no_links() -> None:
    for count in (0, 1):
        assert near_pairs(np.zeros((count, SIGNATURE_BYTES), dtype=np.uint8)).shape == (0, 2)


def test_a_picture_that_occurs_very_often_costs_little() -> None:
    signatures = np.repeat(adversarial(1, 1), 50_000, axis=0)
    links = near_pairs(signatures)
    assert len(links) < 60_000
    assert not components(len(signatures), links).any()


# Components -----------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=150)
@given(st.data())
def test_components_are_those_of_a_naive_union_find(data: st.DataObject) -> None:
    count = data.draw(st.integers(1, 60))
    node = st.integers(0, count - 1)
    links = data.draw(st.lists(st.tuples(node, node), max_size=80))
    found = components(count, np.array(links, dtype=np.int64).reshape(-1, 2))
    assert found.tolist() == naive_components(count, links)


@pytest.mark.parametrize("order", ["forward", "backward", "random", "zigzag"])
def test_a_long_chain_is_one_component(order: str) -> None:
    count = 3_000
    chain = np.arange(count)
    if order == "backward":
        chain = chain[::-1]
    elif order == "random":
        chain = np.random.default_rng(0).permutation(count)
    elif order == "zigzag":
        chain = np.stack([np.arange(count // 2), np.arange(count - 1, count // 2 - 1, -1)], axis=1).reshape(-1)
    links = np.stack([chain[:-1], chain[1:]], axis=1)
    assert not components(count, links).any()
    assert components(count, links[1:]).max() > 0


def test_without_links_every_node_is_its_own_component() -> None:
    assert components(4, np.empty((0, 2), dtype=np.int64)).tolist() == [0, 1, 2, 3]
    assert components(0, np.empty((0, 2), dtype=np.int64)).tolist() == []


# Chance and splits ----------------------------------------------------------------------------------


def test_the_source_of_chance_is_fixed_and_even() -> None:
    draws = [hash_fraction("test", number) for number in range(4_000)]
    assert all(0 <= draw < 1 for draw in draws)
    assert len(set(draws)) == len(draws)
    assert abs(np.mean(draws) - 0.5) < 0.02
    assert hash_fraction("a", 1) == hash_fraction("a", "1") != hash_fraction("a1")
    assert hash_fraction("split", 0, "x") == hash_fraction("split", 0, "x")


def test_splits_have_their_shares() -> None:
    shares = {"train": 95.0, "val": 2.5, "test": 2.5}
    counts = Counter(choose_split(f"id-{number}", shares, seed=0) for number in range(20_000))
    assert abs(counts["train"] / 20_000 - 0.95) < 0.006
    assert abs(counts["val"] / 20_000 - 0.025) < 0.005
    assert abs(counts["test"] / 20_000 - 0.025) < 0.005


def test_a_split_depends_on_the_representative_and_the_seed_only() -> None:
    shares = {"train": 50.0, "test": 50.0}
    names = [f"id-{number}" for number in range(400)]
    first = [choose_split(name, shares, seed=1) for name in names]
    assert first == [choose_split(name, {"train": 0.5, "test": 0.5}, seed=1) for name in names]
    assert first == [choose_split(name, shares, seed=1) for name in reversed(names)][::-1]
    assert first != [choose_split(name, shares, seed=2) for name in names]


def test_a_split_without_a_share_gets_nothing() -> None:
    for shares in ({"train": 0.0, "test": 1.0, "val": 0.0}, {"test": 3.0}, {"test": 1.0, "val": 0.0}):
        assert {choose_split(f"id-{number}", shares, seed=0) for number in range(500)} == {"test"}
