"""The named colours of instructions, and arithmetic on RGB values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sigma_data.synthetic.rng import KeyedRng

RGB = tuple[int, int, int]


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
"""The named colours; every use of one is shifted a little, and the ground truth has the shifted value."""

INK: RGB = (40, 36, 48)
WHITE: RGB = (255, 255, 255)


def colour(rng: KeyedRng, *, avoid: Sequence[str] = ()) -> Colour:
    """A named colour, shifted by up to nine steps a channel, whose name is not in `avoid`."""
    name = rng.pick([name for name in PALETTE if name not in avoid])
    return Colour(name, shift(rng, PALETTE[name], 9))


def shift(rng: KeyedRng, rgb: RGB, steps: int) -> RGB:
    """The colour moved by up to `steps` in every channel."""
    red, green, blue = (min(255, max(0, c + rng.below(2 * steps + 1) - steps)) for c in rgb)
    return red, green, blue


def mix(first: RGB, second: RGB, percent: int) -> RGB:
    """`percent` of the second colour in the first."""
    red, green, blue = ((a * (100 - percent) + b * percent + 50) // 100 for a, b in zip(first, second, strict=True))
    return red, green, blue
