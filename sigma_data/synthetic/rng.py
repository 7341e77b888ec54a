"""Random numbers for drawing: a generator for each key.

Numbers come from the raw output of PCG64 by arithmetic written here, so that no release of numpy changes a corpus.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

T = TypeVar("T")


class KeyedRng:
    """A random number generator that depends on its key alone."""

    def __init__(self, *key: str | int) -> None:
        digest = hashlib.sha256("\x1f".join(map(str, key)).encode()).digest()
        self._bits = np.random.PCG64(int.from_bytes(digest[:16], "big"))

    def below(self, count: int) -> int:
        """A whole number in [0, count)."""
        return int(self._bits.random_raw()) % count

    def between(self, low: float, high: float) -> float:
        """A number in [low, high), rounded to four digits so that the ground truth states it exactly."""
        unit = (int(self._bits.random_raw()) >> 11) / (1 << 53)
        return round(low + (high - low) * unit, 4)

    def chance(self, probability: float) -> bool:
        """True with this probability."""
        return (int(self._bits.random_raw()) >> 11) < probability * (1 << 53)

    def pick(self, choices: Sequence[T]) -> T:
        """One of the choices."""
        return choices[self.below(len(choices))]

    def some(self, choices: Sequence[T], count: int) -> list[T]:
        """`count` different choices in random order."""
        rest = list(choices)
        return [rest.pop(self.below(len(rest))) for _ in range(min(count, len(rest)))]

    def grid(self, height: int, width: int) -> NDArray[np.uint8]:
        """Random bytes of shape (height, width)."""
        raw = np.asarray(self._bits.random_raw(height * width), dtype=np.uint64)
        return (raw >> np.uint64(56)).astype(np.uint8).reshape(height, width)
