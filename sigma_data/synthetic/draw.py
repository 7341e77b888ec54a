"""Rendering: a scene and a size in pixels give an image, an outline map or a depth map.

Polygons are drawn several times too large and averaged down; textures, light and style work on the
final pixels. Only integers and elementary arithmetic touch a pixel.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from PIL import Image, ImageDraw

from sigma_data.synthetic import backdrops, textures
from sigma_data.synthetic.colours import INK, RGB, WHITE, mix
from sigma_data.synthetic.light import relight, weather
from sigma_data.synthetic.polygons import Points
from sigma_data.synthetic.scene import Backdrop, Scene, Thing
from sigma_data.synthetic.shapes import Part, parts
from sigma_data.synthetic.styles import restyle

XY: TypeAlias = "list[tuple[float, float]]"

FRAME = 0.07
"""Width of a frame, in sides of the image."""

_FIXED: dict[str, RGB] = {
    "ink": INK, "white": WHITE, "cream": (246, 236, 214), "wood": (132, 92, 60), "leaf": (88, 156, 78),
    "flame": (250, 158, 46), "blush": (244, 140, 140),
}  # fmt: skip


def render(scene: Scene, size: int) -> Image.Image:
    """The scene as an RGB image of `size` x `size` pixels."""
    image = _ground(scene.backdrop, size)
    shadow = scene.backdrop.kind != "plain"
    for thing in scene.things:
        _place(image, thing, shadow=shadow)
    image = restyle(relight(weather(image, scene.environment), scene.lighting), scene.style)
    if scene.frame:
        edge = max(2, round(FRAME * size))
        framed = Image.new("RGB", image.size, scene.frame.rgb)
        framed.paste(image.crop((edge, edge, size - edge, size - edge)), (edge, edge))
        image = framed
    return image


def condition(scene: Scene, size: int, kind: str) -> Image.Image:
    """The `outline` (white edges on black) or `depth` map (near is bright), exactly from the geometry."""
    scale = _oversampling(size)
    side = size * scale
    canvas = Image.new("L", (side, side))
    draw = ImageDraw.Draw(canvas)
    width = max(scale, round(side * 0.008))
    for layer in backdrops.layers(scene.backdrop):
        if layer.fine:
            continue
        if layer.points is None:
            draw.rectangle((0, 0, side, side), fill=layer.depth if kind == "depth" else 0)
        elif kind == "depth":
            draw.polygon(_pixels(layer.points, side), fill=layer.depth)
        else:
            _edge(draw, layer.points, side, width)
    for order, thing in enumerate(scene.things):
        near = 175 + 70 * (order + 1) // len(scene.things)
        for part in parts(thing):
            if kind == "depth":
                draw.polygon(_pixels(part.points, side), fill=40 if part.role == "hole" else near)
            else:
                _edge(draw, part.points, side, width)
    return canvas.reduce(scale).convert("RGB")


def _oversampling(size: int) -> int:
    return 4 if size < 100 else 3 if size < 200 else 2


def _pixels(points: Points, side: float, left: float = 0.0, top: float = 0.0) -> XY:
    # Rounded to a sixteenth: the last digit of a product must not decide over a pixel.
    values: XY = (np.round((points * side - (left, top)) * 16) / 16).tolist()
    return values


def _edge(draw: ImageDraw.ImageDraw, points: Points, side: int, width: int) -> None:
    xy = [(x, y) for x, y in _pixels(points, side)]
    draw.polygon(xy, fill=0)
    draw.line([*xy, xy[0]], fill=255, width=width)


def _ground(drop: Backdrop, size: int) -> Image.Image:
    if drop.kind == "wallpaper":
        return textures.paint(
            drop.texture, drop.colours[0], width=size, height=size, origin=(size / 2, size / 2), unit=size
        )
    scale = _oversampling(size)
    side = size * scale
    canvas = Image.new("RGB", (side, side))
    draw = ImageDraw.Draw(canvas)
    for layer in backdrops.layers(drop):
        if layer.points is not None:
            draw.polygon(_pixels(layer.points, side), fill=layer.colour)
        elif layer.bottom is None:
            canvas.paste(layer.colour, (0, 0, side, side))
        else:
            _gradient(draw, side, layer.colour, layer.bottom)
    return canvas.reduce(scale)


def _gradient(draw: ImageDraw.ImageDraw, side: int, top: RGB, bottom: RGB) -> None:
    """Bands of one colour each, as few as the colours need."""
    bands = max(1, *(abs(a - b) for a, b in zip(top, bottom, strict=True)))
    for band in range(bands):
        tone = [(a * (bands - band) + b * band) // bands for a, b in zip(top, bottom, strict=True)]
        rows = (band * side // bands, (band + 1) * side // bands - 1)
        if rows[1] >= rows[0]:
            draw.rectangle((0, rows[0], side, rows[1]), fill=(tone[0], tone[1], tone[2]))


def silhouette(thing: Thing, size: int) -> tuple[Image.Image, tuple[int, int]]:
    """How much of each pixel a thing covers (0 to 255), and the pixel (left, top) at which that image lies."""
    pieces = parts(thing)
    every = np.concatenate([piece.points for piece in pieces])
    low, high = np.floor(every.min(axis=0) * size) - 1, np.ceil(every.max(axis=0) * size) + 1
    left, top = int(low[0]), int(low[1])
    scale = _oversampling(size)
    alpha = Image.new("L", ((int(high[0]) - left) * scale, (int(high[1]) - top) * scale))
    draw = ImageDraw.Draw(alpha)
    for piece in pieces:
        xy = _pixels(piece.points, size * scale, left * scale, top * scale)
        draw.polygon(xy, fill=0 if piece.role == "hole" else 255)
    return alpha.reduce(scale), (left, top)


def _place(image: Image.Image, thing: Thing, *, shadow: bool) -> None:
    """Draw a thing onto the image through its own small canvas."""
    size = image.width
    pieces = parts(thing)
    alpha, (left, top) = silhouette(thing, size)
    width, height = alpha.size
    scale = _oversampling(size)
    area = (width * scale, height * scale)

    edge = mix(thing.colour.rgb, INK, 62)
    flat = Image.new("RGB", area, edge)
    pattern = Image.new("L", area) if thing.texture.colour else None
    line = max(2, round(size * scale * 0.011 * min(1.0, thing.size * 4)))
    for piece in pieces:
        xy = _pixels(piece.points, size * scale, left * scale, top * scale)
        hole = piece.role == "hole"
        small = piece.role in ("blush", "light", "white", "letter")
        fill = edge if hole else _fill(thing, piece)
        if small or hole:
            ImageDraw.Draw(flat).polygon(xy, fill=fill)
        else:
            ImageDraw.Draw(flat).polygon(xy, fill=fill, outline=mix(fill, INK, 62), width=line)
        if pattern:
            if piece.role == "body":
                ImageDraw.Draw(pattern).polygon(xy, fill=255, outline=0, width=line)
            else:
                ImageDraw.Draw(pattern).polygon(xy, fill=0)
    flat = flat.reduce(scale)
    if pattern:
        origin = (thing.x * size - left, thing.y * size - top)
        cloth = textures.paint(
            thing.texture,
            thing.colour.rgb,
            width=width,
            height=height,
            origin=origin,
            unit=thing.size * size,
            rotation=thing.rotation,
        )
        flat = Image.composite(cloth, flat, pattern.reduce(scale))
    if shadow:
        away = max(1, round(size * 0.016))
        image.paste(
            (24, 20, 40), (left + away // 2, top + away), alpha.point([value * 84 // 255 for value in range(256)])
        )
    image.paste(flat, (left, top), alpha)


def _fill(thing: Thing, piece: Part) -> RGB:
    role = piece.role
    if role in _FIXED:
        return _FIXED[role]
    if role == "body" or (role == "letter" and thing.shape == "word"):
        return thing.colour.rgb
    if role == "dark":
        return mix(thing.colour.rgb, INK, 32)
    if role == "light":
        return mix(thing.accent.rgb, WHITE, 74)
    if role == "emblem" and thing.emblem:
        return thing.emblem.colour.rgb
    if role.startswith("wear:"):
        _, code, shade = role.split(":")
        red, green, blue = bytes.fromhex(code)
        return {"main": (red, green, blue), "dark": mix((red, green, blue), INK, 30)}.get(
            shade, mix((red, green, blue), WHITE, 60)
        )
    return thing.accent.rgb
