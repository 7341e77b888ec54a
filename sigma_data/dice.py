"""Random choices that depend on names alone: the same on any machine, in any order, for any number of workers.

A choice about a sample is a hash of (seed, epoch, purpose) and the sample's own 64-bit name. Nothing
has a state, so nothing has to be saved, and asking twice gives the same answer.
"""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt

Names = npt.NDArray[np.uint64]


def key(*words: str | int) -> int:
    """64 bits of SHA-256 over words that say what choices are for: seed, epoch and a purpose."""
    text = "\x1f".join(str(word) for word in words)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def name_of(sample_id: str) -> int:
    """The 64-bit name of a sample, from its id."""
    return key(sample_id)


def bits(names: Names, stream: int) -> Names:
    """64 well-mixed bits for each name in a stream: the finaliser of splitmix64, twice.

    Source: Steele, Lea and Flood, Fast splittable pseudorandom number generators (OOPSLA 2014).
    """
    with np.errstate(over="ignore"):
        return _mix(_mix(names + np.uint64(stream)) ^ np.uint64(stream))


def uniform(names: Names, stream: int) -> npt.NDArray[np.float64]:
    """A number in [0, 1) for each name, 53 bits of it random."""
    return (bits(names, stream) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _mix(z: Names) -> Names:
    z = z + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: Names = z ^ (z >> np.uint64(31))
    return mixed
