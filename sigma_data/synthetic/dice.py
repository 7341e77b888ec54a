"""Chance and colour: a stream of numbers for every purpose, and the named colours of the world.

Numbers come from the raw output of PCG64 by arithmetic written here, so that no release of numpy
can change a corpus; `key` is all that a stream depends on.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

T = TypeVar("T")
RGB = tuple[int, int, int]


class Dice:
    """A stream of choices that depends on its key and on nothing else."""

    def __init__(self, *key: str | int) -> None:
        digest = hashlib.sha256("\x1f".join(map(str, key)).encode()).digest()
        self._bits = np.random.PCG64(int.from_bytes(digest[:16], "big"))

    def below(self, count: int) -> int:
        """A whole number in [0, count)."""
        return int(self._bits.random_raw()) % count

    def between(self, low: float, high: float) -> float:
        """A number in [low, high), rounded to four digits so that truth can state it exactly."""
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


@dataclass(frozen=True)
class Colour:
    """A colour with the name that instructions use."""

    name: str
    rgb: RGB


PALETTE: dict[str, RGB] = {
    "red": (212, 50, 48), "orange": (242, 138, 38), "yellow": (248, 208, 62), "green": (72, 166, 84),
    "teal": (32, 158, 156), "blue": (52, 104, 212), "purple": (132, 76, 186), "pink": (240, 132, 176),
    "brown": (142, 92, 56), "grey": (136, 140, 148), "black": (48, 48, 58), "cream": (244, 234, 208),
}  # fmt: skip
"""The named colours; every use of one is shifted a little, and truth states the shifted value."""

INK: RGB = (40, 36, 48)
WHITE: RGB = (255, 255, 255)


def colour(dice: Dice, *, avoid: Sequence[str] = ()) -> Colour:
    """A named colour, shifted by up to nine steps a channel, whose name is not in `avoid`."""
    name = dice.pick([name for name in PALETTE if name not in avoid])
    return Colour(name, shift(dice, PALETTE[name], 9))


def shift(dice: Dice, rgb: RGB, steps: int) -> RGB:
    """The colour moved by up to `steps` in every channel."""
    red, green, blue = (min(255, max(0, c + dice.below(2 * steps + 1) - steps)) for c in rgb)
    return red, green, blue


def mix(first: RGB, second: RGB, percent: int) -> RGB:
    """`percent` of the second colour in the first."""
    red, green, blue = ((a * (100 - percent) + b * percent + 50) // 100 for a, b in zip(first, second, strict=True))
    return red, green, blue


def turn(degrees: float) -> tuple[float, float]:
    """Cosine and sine, rounded so that every machine's mathematics library agrees."""
    return round(math.cos(math.radians(degrees)), 7), round(math.sin(math.radians(degrees)), 7)
