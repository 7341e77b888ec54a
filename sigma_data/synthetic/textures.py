"""Patterns of two colours, computed per pixel with soft edges from elementary arithmetic only.

Every pattern is a signed distance to the edge between its colours, in cells; the edge is softened
over one pixel, so a pattern looks the same at every size.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sigma_data.synthetic.colours import RGB
from sigma_data.synthetic.polygons import cos_sin
from sigma_data.synthetic.rng import KeyedRng
from sigma_data.synthetic.scene import Texture

Plane = NDArray[np.float32]
_HALF = np.float32(0.5)

KINDS = ("stripes", "checker", "dots", "plaid", "zigzag", "bricks", "rings", "marble", "gradient", "triangles", "waves")


def paint(
    texture: Texture, base: RGB, *, width: int, height: int, origin: tuple[float, float], unit: float, rotation: int = 0
) -> Image.Image:
    """An image of `width` x `height` pixels full of the texture on `base`.

    `origin` is the texture's origin in pixels, `unit` the pixels of its unit length.
    """
    if texture.colour is None:
        return Image.new("RGB", (width, height), base)
    c, s = cos_sin(texture.angle + rotation)
    cell = unit * texture.scale
    x = (np.arange(width, dtype=np.float32) + np.float32(0.5 - origin[0])) / np.float32(cell)
    y = (np.arange(height, dtype=np.float32)[:, None] + np.float32(0.5 - origin[1])) / np.float32(cell)
    u = x * np.float32(c) + y * np.float32(s)
    v = y * np.float32(c) - x * np.float32(s)
    cover = _cover(texture.kind, u, v, np.float32(cell), np.float32(texture.scale))
    mask = Image.fromarray((cover * np.float32(255) + np.float32(0.5)).astype(np.uint8))
    return Image.composite(Image.new("RGB", mask.size, texture.colour.rgb), Image.new("RGB", mask.size, base), mask)


def _cover(kind: str, u: Plane, v: Plane, cell: np.float32, scale: np.float32) -> Plane:
    """How much of the second colour is seen, 0..1, of the shape of u."""
    if kind == "gradient":
        return _soft(v * scale * np.float32(0.6))
    if kind == "marble":
        tone = _noise(u * np.float32(0.6), v * np.float32(0.6)) * np.float32(2.5)
        veins: Plane = np.clip(np.float32(1.5) - np.abs(_wave(tone) - np.float32(0.5)) * np.float32(6), 0, 1)
        return veins
    if kind == "plaid":
        bands = [_soft((np.float32(0.22) - np.abs(_wave(axis) - np.float32(0.5))) * cell) for axis in (u, v)]
        both: Plane = (bands[0] + bands[1]) * _HALF
        return both
    return _soft(_distance(kind, u, v) * cell)


def _distance(kind: str, u: Plane, v: Plane) -> Plane:
    """Signed distance to the edge between the colours, in cells, positive in the second colour."""
    across, along = _stripe(u), _stripe(v)
    match kind:
        case "stripes":
            result = across
        case "checker":
            result = np.maximum(np.minimum(across, along), np.minimum(-across, -along))
        case "dots":
            cu, cv = _wave(u) - _HALF, _wave(v) - _HALF
            result = np.float32(0.32) - np.sqrt(cu * cu + cv * cv)
        case "zigzag":
            result = _stripe(v + np.abs(_wave(u) - _HALF))
        case "bricks":
            shifted = (u + np.floor(v)) * _HALF
            beds = np.abs(_wave(v) - _HALF) - np.float32(0.42)
            joints = (np.abs(_wave(shifted) - _HALF) - np.float32(0.46)) * np.float32(2)
            result = np.maximum(beds, joints)
        case "rings":
            result = _stripe(np.sqrt(u * u + v * v))
        case "triangles":
            result = (_wave(u) + _wave(v) - np.float32(1)) * np.float32(0.7)
        case _:
            swing = np.abs(_wave(u * _HALF) - _HALF) * np.float32(2)
            smooth = swing * swing * (np.float32(3) - np.float32(2) * swing)
            result = _stripe(v + smooth * _HALF)
    return result


def _stripe(value: Plane) -> Plane:
    result: Plane = np.abs(_wave(value) - _HALF) - np.float32(0.25)
    return result


def _wave(value: Plane) -> Plane:
    fraction: Plane = value - np.floor(value)
    return fraction


def _soft(distance: Plane) -> Plane:
    result: Plane = np.clip(distance + np.float32(0.5), 0, 1)
    return result


@lru_cache(maxsize=1)
def _lattice() -> Plane:
    values: Plane = KeyedRng("world", "lattice").grid(32, 32).astype(np.float32) / np.float32(255)
    return values


def _noise(u: Plane, v: Plane) -> Plane:
    """Smooth noise in 0..1, from a fixed lattice of random values."""
    left, top = np.floor(u), np.floor(v)
    fu, fv = u - left, v - top
    fu, fv = fu * fu * (3 - 2 * fu), fv * fv * (3 - 2 * fv)
    x0, y0 = left.astype(np.int64) & 31, top.astype(np.int64) & 31
    x1, y1 = (x0 + 1) & 31, (y0 + 1) & 31
    grid = _lattice()
    above = grid[y0, x0] * (1 - fu) + grid[y0, x1] * fu
    below = grid[y1, x0] * (1 - fu) + grid[y1, x1] * fu
    result: Plane = above * (1 - fv) + below * fv
    return result
