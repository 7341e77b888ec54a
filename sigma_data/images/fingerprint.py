"""Duplicate and near-duplicate images, and the splits that follow from them.

Exact duplicates have the same SHA-256, near duplicates similar perceptual signatures. Samples that share an image
either way form a component, and a component lies in one split.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping

import numpy as np
from numpy.typing import NDArray
from PIL import Image

GRID = 32
"""Side of the thumbnail that a signature is computed from."""

_HASH, _EDGES, _COLOURS = 8, 30, 48
SIGNATURE_BYTES = _HASH + _EDGES + _COLOURS

MAX_HASH_BITS = 3  # of 63: candidates, found exactly by four 16-bit bands
MAX_EDGE_BITS = 20  # of 240
MAX_COLOUR_STEP = 10  # of 255

_DCT = np.round(4096 * np.cos(np.pi / GRID * np.outer(np.arange(8), np.arange(GRID) + 0.5)))
_DCT_T = np.ascontiguousarray(_DCT.T)


def signature(small: Image.Image) -> bytes:
    """The perceptual signature of a thumbnail, RGB of GRID x GRID: 86 bytes.

    Eight bytes of DCT hash (the 63 lowest frequencies against their median, as in pHash), thirty of
    horizontal edges on a 16 x 16 grid, forty-eight of mean colours on a 4 x 4 grid. Whole numbers
    only, exact in float64, so the same thumbnail gives the same bytes on every machine.
    """
    luma = small.convert("L")
    waves = _DCT @ np.asarray(luma, dtype=np.float64) @ _DCT_T  # (8, 8)
    flat = waves.ravel()
    hash_bits = flat > np.sort(flat[1:])[31]
    hash_bits[0] = False  # brightness is not a feature
    # Two levels of tolerance, so that flat areas do not turn noise into bits.
    coarse = np.asarray(luma.reduce(2), dtype=np.int16)  # (16, 16)
    edge_bits = coarse[:, 1:] > coarse[:, :-1] + 2
    return np.packbits(hash_bits).tobytes() + np.packbits(edge_bits).tobytes() + small.reduce(GRID // 4).tobytes()


def near(first: bytes, second: bytes) -> bool:
    """Whether two signatures are of near-duplicate images (the definition; slow)."""
    pair = np.frombuffer(first + second, dtype=np.uint8).reshape(2, SIGNATURE_BYTES)
    return bool(_near(pair, np.array([0]), np.array([1]))[0])


def similar_colours(first: bytes, second: bytes) -> bool:
    """Whether the mean colours of two signatures hardly differ: a cheap necessary condition for equal pixels.

    Unlike the hash bits, the colours stay within a few steps in every encoding and orientation of the same pixels.
    """
    return all(abs(a - b) <= MAX_COLOUR_STEP for a, b in zip(first[-_COLOURS:], second[-_COLOURS:], strict=True))


def near_pairs(signatures: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Links between near-duplicate images, for signatures of shape (N, 86): pairs (P, 2), all of `near_links`."""
    return np.concatenate([np.empty((0, 2), dtype=np.int64), *near_links(signatures)])


def near_links(signatures: NDArray[np.uint8]) -> Iterator[NDArray[np.int64]]:
    """Links between near-duplicate images, for signatures of shape (N, 86): pairs (P, 2), in bounded chunks.

    The pairs connect exactly the sets that `near` connects. Two hashes at most 3 bits apart agree in at least one of
    four 16-bit bands, and mean colours at most 10 steps apart lie in the same or neighbouring cells of a grid of 11:
    only images that share a band in adjacent cells are compared. Equal signatures are merged first. More than 128 in
    one cell (e.g. blank pages) are joined without comparing each pair, which may join too much, never too little.
    Beside the signatures this takes some 35 bytes an image: a band is searched in stretches of whole values of it.
    """
    if len(signatures) < 2:
        return
    same = _first_with_equal_signature(signatures)
    places = np.arange(len(signatures))
    copies = np.flatnonzero(same != places)
    yield np.stack([copies, same[copies]], axis=1)
    different = np.flatnonzero(same == places)
    del same, places, copies
    cells = _cells(signatures, different)
    for band in range(4):
        values = np.ascontiguousarray(signatures[different, 2 * band : 2 * band + 2]).view(np.uint16).reshape(-1)
        order = np.argsort(values, kind="stable")
        for start, stop in _stretches(values[order]):
            some = order[start:stop]
            keys = (values[some].astype(np.int64) << 15) + cells[some]
            inner = np.argsort(keys, kind="stable")
            images = different[some[inner]]
            for left, right, sure in _candidates(keys[inner]):
                close = sure | _near(signatures, images[left], images[right])
                yield np.stack([images[left[close]], images[right[close]]], axis=1)


def _first_with_equal_signature(signatures: NDArray[np.uint8]) -> NDArray[np.int64]:
    """[N] the first image with the same signature, by a hash of 64 bits whose matches are compared."""
    mixed = np.zeros(len(signatures), dtype=np.uint64)
    for start in range(0, len(signatures), _ROWS):
        part = signatures[start : start + _ROWS]
        words = np.zeros((len(part), -(-SIGNATURE_BYTES // 8) * 8), dtype=np.uint8)
        words[:, :SIGNATURE_BYTES] = part
        for word in words.view(np.uint64).T:
            row = mixed[start : start + _ROWS]
            row ^= word
            row *= np.uint64(0x9E3779B97F4A7C15)  # odd, so that no two values of a word become one
            row ^= row >> np.uint64(29)
    order = np.argsort(mixed, kind="stable")
    begins = np.ones(len(order), dtype=bool)
    for start in range(1, len(order), _ROWS):
        here, before = order[start : start + _ROWS], order[start - 1 : start - 1 + _ROWS][: len(order) - start]
        alike = mixed[here] == mixed[before]
        alike[alike] = (signatures[here[alike]] == signatures[before[alike]]).all(axis=1)
        begins[start : start + _ROWS] = ~alike
    starts = np.flatnonzero(begins)
    first = np.empty(len(order), dtype=np.int64)
    first[order] = np.repeat(order[starts], np.diff(np.append(starts, len(order))))
    return first


def _cells(signatures: NDArray[np.uint8], images: NDArray[np.int64]) -> NDArray[np.int32]:
    """The colour cell of each of these images."""
    cells = np.empty(len(images), dtype=np.int32)
    for start in range(0, len(images), _ROWS):
        cells[start : start + _ROWS] = _bands_and_cells(signatures[images[start : start + _ROWS]])[1]
    return cells


def _stretches(values: NDArray[np.uint16]) -> Iterator[tuple[int, int]]:
    """Cuts of sorted values, of about `_CHUNK` places each, never within one value."""
    start = 0
    while start < len(values):
        stop = min(start + _CHUNK, len(values))
        stop = int(np.searchsorted(values, values[stop - 1], "right"))
        yield start, stop
        start = stop


def near_matches(signatures: NDArray[np.uint8], known: NDArray[np.uint8]) -> NDArray[np.int64]:
    """For signatures (N, 86) and known ones (M, 86): the index of the first known one that is near, or -1: (N,).

    Exactly the definition of `near`; candidates are found as in `near_pairs`, memory is bounded by chunks.
    """
    found = np.full(len(signatures), len(known), dtype=np.int64)
    if not len(signatures) or not len(known):
        return np.full(len(signatures), -1, dtype=np.int64)
    both = np.concatenate([signatures, known])
    bands, cells = _bands_and_cells(both)
    for band in range(4):
        keys = (bands[:, band] << 15) + cells
        order = np.argsort(keys[len(signatures) :], kind="stable")
        table = keys[len(signatures) :][order]
        for step in np.ndindex(3, 3, 3):
            wanted = keys[: len(signatures)] + (np.array(step) - 1) @ _CELL
            start = np.searchsorted(table, wanted, "left")
            count = np.searchsorted(table, wanted, "right") - start
            for left, place in _expanded(np.arange(len(signatures)), start, count):
                right = order[place]
                close = _near(both, left, right + len(signatures))
                np.minimum.at(found, left[close], right[close])
    return np.where(found == len(known), -1, found)


_CELL = np.array([1 << 10, 1 << 5, 1])  # a colour cell's place in a key, five bits a channel
_STEPS = [step for step in np.ndindex(3, 3, 3) if step >= (1, 1, 1)]  # a cell itself and half of its neighbours
_CROWD = 128
_CHUNK = 1 << 18
_ROWS = 1 << 16


def _candidates(
    keys: NDArray[np.int64],
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]]:
    """Pairs of positions in sorted keys that lie in one colour cell or in adjacent ones, in chunks.

    A crowded cell gives one pair a position, to be joined without a comparison.
    """
    places = np.arange(len(keys))
    for step in _STEPS:
        wanted = keys + (np.array(step) - 1) @ _CELL
        first, end = np.searchsorted(keys, wanted, "left"), np.searchsorted(keys, wanted, "right")
        crowded = end - first > _CROWD
        start = places + 1 if step == (1, 1, 1) else first
        count = np.where(crowded, np.minimum(end - start, 1), end - start)
        left, start, crowded, count = (values[count > 0] for values in (places, start, crowded, count))
        for cut in _chunks(count):
            many = count[cut]
            yield np.repeat(left[cut], many), _ranges(start[cut], many), np.repeat(crowded[cut], many)


def _bands_and_cells(signatures: NDArray[np.uint8]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The four bands of each hash, (N, 4), and the colour cell of each image, (N,)."""
    bands = signatures[:, :_HASH].copy().view(np.uint16).astype(np.int64)
    means = signatures[:, -_COLOURS:].reshape(len(signatures), -1, 3).mean(axis=1).astype(np.int64)
    return bands, means // (MAX_COLOUR_STEP + 1) @ _CELL


def _chunks(count: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """The places 0 .. len(count) - 1, cut where their counts exceed a chunk."""
    ends = np.cumsum(count)
    return np.split(np.arange(len(count)), np.searchsorted(ends, np.arange(_CHUNK, ends[-1:].sum(), _CHUNK)))


def _ranges(start: NDArray[np.int64], count: NDArray[np.int64]) -> NDArray[np.int64]:
    """The numbers start, start + 1 .. start + count - 1 of each, one after the other."""
    return np.repeat(start, count) + np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)


def _expanded(
    left: NDArray[np.int64], start: NDArray[np.int64], count: NDArray[np.int64]
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Pairs (left, place) for `count` places from `start` on, in chunks."""
    left, start, count = (values[count > 0] for values in (left, start, count))
    for cut in _chunks(count):
        yield np.repeat(left[cut], count[cut]), _ranges(start[cut], count[cut])


def components(count: int, pairs: NDArray[np.int64]) -> NDArray[np.int64]:
    """The smallest member of each of `count` nodes' connected component, for links (P, 2)."""
    return joined_components(count, [pairs])


def joined_components(count: int, links: Iterable[NDArray[np.int64]]) -> NDArray[np.int64]:
    """As `components`, for links that come in chunks, of which no more than a few are held."""
    label = np.arange(count, dtype=np.int64)
    held: list[NDArray[np.int64]] = []
    size = 0
    for pairs in links:
        if len(pairs):
            held.append(pairs)
            size += len(pairs)
        if size >= _CHUNK:
            _join(label, np.concatenate(held))
            held, size = [], 0
    if held:
        _join(label, np.concatenate(held))
    return label


def _join(label: NDArray[np.int64], pairs: NDArray[np.int64]) -> None:
    """Join the components of linked nodes, in place: every label stays that of its component's smallest member."""
    # Only the components that a link touches move, however many there are.
    nodes, ends = np.unique(label[pairs], return_inverse=True)
    ends = ends.reshape(-1, 2)
    left, right = ends[:, 0], ends[:, 1]
    if not (left != right).any():
        return
    roots = np.arange(len(nodes))
    while True:
        low = np.minimum(roots[left], roots[right])
        before = roots.copy()
        # Hook both roots below the smaller label, then shorten every path.
        np.minimum.at(roots, roots[left], low)
        np.minimum.at(roots, roots[right], low)
        while not np.array_equal(roots, roots[roots]):
            roots = roots[roots]
        if np.array_equal(before, roots):
            break
    label[nodes] = nodes[roots]  # of the roots; their members follow
    label[:] = label[label]


def hash_fraction(*words: str | int) -> float:
    """A number in [0, 1) from the SHA-256 of the words: the only source of randomness in a build."""
    digest = hashlib.sha256("\x1f".join(str(word) for word in words).encode()).digest()
    return int.from_bytes(digest[:7], "big") / (1 << 56)


def choose_split(representative: str, shares: Mapping[str, float], *, seed: int) -> str:
    """The split of a component, by a hash of its representative's id and the seed: no other data moves it."""
    position = hash_fraction("split", seed, representative) * sum(shares.values())
    for name, share in shares.items():
        if position < share:
            return name
        position -= share
    return list(shares)[-1]


def _near(signatures: NDArray[np.uint8], left: NDArray[np.int64], right: NDArray[np.int64]) -> NDArray[np.bool_]:
    result = _bits(signatures, left, right, slice(0, _HASH)) <= MAX_HASH_BITS
    for part in (slice(_HASH, _HASH + _EDGES), slice(-_COLOURS, None)):  # few pairs come so far
        rest = np.flatnonzero(result)
        if part.start > 0:
            result[rest] = _bits(signatures, left[rest], right[rest], part) <= MAX_EDGE_BITS
        else:
            a, b = signatures[left[rest], part], signatures[right[rest], part]
            result[rest] = (np.maximum(a, b) - np.minimum(a, b)).max(axis=1, initial=0) <= MAX_COLOUR_STEP
    return result


def _bits(
    signatures: NDArray[np.uint8], left: NDArray[np.int64], right: NDArray[np.int64], part: slice
) -> NDArray[np.int64]:
    """In how many bits of a part of the signatures the images differ."""
    bits: NDArray[np.int64] = np.bitwise_count(signatures[left, part] ^ signatures[right, part]).sum(axis=1)
    return bits
