"""Instance colour maps of scenes: every thing in a colour of its own on black, to the pixel of the image.

The rule: things take the colours of `COLOURS` from left to right by their centres, of two straight above each other
the upper first. A pixel has the colour of the nearest thing that covers half of it or more, as the image is drawn, and
is black without one. Nothing is blended, so a map holds these colours and no other.
"""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image

from sigma_data.synthetic.colours import RGB
from sigma_data.synthetic.draw import silhouette
from sigma_data.synthetic.scene import Thing

BACKGROUND: RGB = (0, 0, 0)

COLOURS: tuple[RGB, ...] = (
    (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (255, 0, 255), (0, 255, 255), (255, 255, 255),
)  # fmt: skip
"""The corners of the RGB cube but black: no two of them, nor one and the background, are nearer than 255."""

_HALF = 128
"""A pixel of which a thing covers this much (of 255) belongs to it."""


def instance_colours(things: Sequence[Thing]) -> list[RGB]:
    """The colour of every thing, in the order of the things. At most `len(COLOURS)` things."""
    order = sorted(range(len(things)), key=lambda number: (things[number].x, things[number].y))
    colours = dict(zip(order, COLOURS[: len(things)], strict=True))
    return [colours[number] for number in range(len(things))]


def instance_map(things: Sequence[Thing], size: int) -> Image.Image:
    """The colour map of a scene's things (the last is the nearest), RGB of `size` x `size` pixels."""
    drawn = Image.new("RGB", (size, size), BACKGROUND)
    for thing, colour in zip(things, instance_colours(things), strict=True):
        alpha, corner = silhouette(thing, size)
        drawn.paste(colour, (*corner, corner[0] + alpha.width, corner[1] + alpha.height), alpha.point(_whole()))
    return drawn


def visible_pixels(things: Sequence[Thing], size: int) -> list[int]:
    """How many pixels of a map each thing is seen in, in the order of the things."""
    colours = instance_colours(things)
    counts = {colour: count for count, colour in instance_map(things, size).getcolors(size * size) or ()}
    return [counts.get(colour, 0) for colour in colours]


def _whole() -> list[int]:
    return [255 if value >= _HALF else 0 for value in range(256)]
