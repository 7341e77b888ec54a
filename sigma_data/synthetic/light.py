"""Light and weather over a finished drawing.

Light multiplies: an integer tint a pixel, so the colour of a lit thing is known exactly (`lit`).
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from PIL import Image, ImageChops, ImageDraw

from sigma_data.synthetic.colours import RGB
from sigma_data.synthetic.polygons import bar, ellipse, polygon
from sigma_data.synthetic.rng import KeyedRng
from sigma_data.synthetic.scene import Environment, Lighting

TINTS: dict[str, RGB] = {
    "golden": (255, 214, 140), "moonlit": (120, 140, 210), "rosy": (255, 170, 190), "dim": (112, 108, 118),
    "greenish": (176, 246, 170), "spotlight": (255, 246, 220), "side": (255, 250, 240),
}  # fmt: skip
"""Kinds of light other than day, and the tint at their brightest."""

_FALL = {"spotlight": 78, "side": 70}
"""Percent of the light that is gone where it is darkest."""

WEATHER = ("rain", "snow", "fog", "petals", "leaves", "sparks")


def lit(lighting: Lighting, rgb: RGB, x: float, y: float) -> RGB:
    """A colour as seen under the light at a place of the image (to within one step)."""
    level = 255.0
    if lighting.kind in _FALL:
        level = 255 - _FALL[lighting.kind] * 2.55 * _fall(lighting, x, y)
    red, green, blue = (round(c * t * level / 65025) for c, t in zip(rgb, lighting.tint, strict=True))
    return red, green, blue


def _fall(lighting: Lighting, x: float, y: float) -> float:
    if lighting.kind == "side":
        return min(1.0, abs(x - lighting.x))
    distance = ((x - lighting.x) ** 2 + (y - lighting.y) ** 2) / 0.2
    return min(1.0, distance)


def relight(image: Image.Image, lighting: Lighting) -> Image.Image:
    """The image under the light."""
    if lighting.kind == "day":
        return image
    shade = Image.new("RGB", image.size, lighting.tint)
    if lighting.kind in _FALL:
        side = image.width
        x = (np.arange(side) + 0.5) / side - lighting.x
        y = ((np.arange(side) + 0.5) / side - lighting.y)[:, None]
        fall = np.broadcast_to(np.abs(x), (side, side)) if lighting.kind == "side" else (x * x + y * y) / 0.2
        level = 255 - _FALL[lighting.kind] * 2.55 * np.minimum(1.0, fall)
        image = ImageChops.multiply(image, Image.fromarray((level + 0.5).astype(np.uint8)).convert("RGB"))
    return ImageChops.multiply(image, shade)


def weather(image: Image.Image, environment: Environment) -> Image.Image:
    """The image with weather in front of it."""
    if environment.kind == "clear":
        return image
    side = image.width
    if environment.kind == "fog":
        rows = 150 + 60 * np.arange(side) // side
        mask = Image.fromarray(np.broadcast_to(rows[:, None], (side, side)).astype(np.uint8))
    else:
        drops = _drops(environment.kind, environment.detail, min(2 * side, max(side, 512)))
        mask = drops.resize((side, side), Image.Resampling.BOX)
    return Image.composite(Image.new("RGB", image.size, environment.colour), image, mask)


@lru_cache(maxsize=4)
def _drops(kind: str, detail: int, side: int) -> Image.Image:
    """Where drops or flakes are: one of a jittered grid, so that they spread evenly."""
    rng = KeyedRng("world", "weather", kind, detail)
    mask = Image.new("L", (side, side))
    draw = ImageDraw.Draw(mask)
    count = 9 if kind in ("rain", "snow") else 7
    slant = rng.between(-0.06, 0.06)
    for cell in range(count * count):
        x = (cell % count + rng.between(0, 1)) / count
        y = (cell // count + rng.between(0, 1)) / count
        size = rng.between(0.6, 1.2)
        if kind == "rain":
            points = bar(x, y, x + slant * size, y + 0.09 * size, 0.008)
        elif kind == "snow":
            points = ellipse(x, y, 0.012 * size, count=12)
        elif kind == "sparks":
            points = polygon(x, y - 0.02 * size, x + 0.008, y, x, y + 0.02 * size, x - 0.008, y)
        else:
            tilt = 0.02 * size if rng.chance(0.5) else -0.02 * size
            points = polygon(x - 0.022 * size, y - tilt, x, y - 0.008, x + 0.022 * size, y + tilt, x, y + 0.012)
        draw.polygon([(px * side, py * side) for px, py in points.tolist()], fill=215 if kind != "rain" else 170)
    return mask
