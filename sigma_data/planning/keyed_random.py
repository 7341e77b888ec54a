"""Chance that depends on names alone: the same number for the same words, on any machine, in any order.

Whole arrays at once, where `fingerprint.hash_fraction` hashes one by one: splitmix64 (Steele, Lea, Flood 2014)
over 64-bit words, whose finaliser changes half of the bits on average for a change of any one.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Words = npt.NDArray[np.uint64]

_STEP = np.uint64(0x9E3779B97F4A7C15)
_FIRST = np.uint64(0xBF58476D1CE4E5B9)
_SECOND = np.uint64(0x94D049BB133111EB)
_ALL = 2**64 - 1


def mixed(*words: Words | int) -> Words:
    """One word of 64 bits for each row of `words`, arrays or numbers that broadcast together."""
    state = np.zeros((), np.uint64)
    with np.errstate(over="ignore"):
        for word in words:
            state = _scrambled(state ^ np.asarray(word).astype(np.uint64))
    return state


def mixed_one(*words: int) -> int:
    """`mixed` of numbers alone, many times as fast."""
    state = 0
    for word in words:
        state = ((state ^ word) + int(_STEP)) & _ALL
        state = ((state ^ (state >> 30)) * int(_FIRST)) & _ALL
        state = ((state ^ (state >> 27)) * int(_SECOND)) & _ALL
        state ^= state >> 31
    return state


def units(words: Words) -> npt.NDArray[np.float64]:
    """Numbers in [0, 1) of words: the upper 53 bits."""
    return (words >> np.uint64(11)).astype(np.float64) * 2.0**-53


def names(texts: npt.NDArray[np.bytes_]) -> Words:
    """A word for each text [n] of at most 8 k bytes; what stands behind the end as zeros does not count."""
    width = -(-max(texts.itemsize, 1) // 8)
    padded = np.ascontiguousarray(texts.astype(f"S{8 * width}"))
    columns = padded.view("<u8").reshape(len(texts), width).astype(np.uint64)
    state = np.zeros(len(texts), np.uint64)
    for column in columns.T:
        # A column of nothing must leave the state as it is, or the width of the array would count.
        state = np.where(column == 0, state, mixed(state, column))
    return state


def name_of(text: bytes) -> int:
    """The word that `names` has for one text."""
    state = 0
    for start in range(0, len(text), 8):
        column = int.from_bytes(text[start : start + 8], "little")
        state = mixed_one(state, column) if column else state
    return state


def _scrambled(word: Words) -> Words:
    word = word + _STEP
    word = (word ^ (word >> np.uint64(30))) * _FIRST
    word = (word ^ (word >> np.uint64(27))) * _SECOND
    return word ^ (word >> np.uint64(31))
