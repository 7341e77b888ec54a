"""Styles: a finished image redrawn as halftone, mosaic, watercolour, neon and so on.

A style's marks are sized in fractions of the image (`pitch`), its colours are its `inks`; the
masks it draws through depend on the size alone and are kept.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageFilter, ImageOps

from sigma_data.synthetic.colours import INK, RGB, WHITE, mix, shift
from sigma_data.synthetic.polygons import cos_sin
from sigma_data.synthetic.rng import KeyedRng
from sigma_data.synthetic.scene import Style

Bytes = NDArray[np.uint8]

NAMES: dict[str, tuple[str, ...]] = {
    "pencil": ("pencil sketch", "pencil drawing"), "halftone": ("halftone print", "newspaper halftone"),
    "poster": ("three-tone poster", "screen print"), "mosaic": ("tile mosaic", "mosaic-style artwork"),
    "watercolour": ("watercolour painting", "watercolour"), "hatching": ("ink hatching", "cross-hatched ink drawing"),
    "neon": ("neon sign", "glowing neon lines"), "glass": ("stained glass window", "stained glass"),
    "blueprint": ("blueprint", "technical blueprint"), "stitch": ("cross-stitch embroidery", "embroidery"),
    "clay": ("clay relief", "embossed clay"), "vintage": ("old sepia photograph", "sepia photograph"),
    "thermal": ("thermal camera image", "heat map"), "engraving": ("engraving", "line engraving"),
    "pointillist": ("pointillist painting", "painting made of dots"),
}  # fmt: skip

_PAIRS: tuple[tuple[RGB, RGB], ...] = (
    ((30, 34, 60), (250, 242, 220)), ((150, 24, 60), (255, 232, 214)), ((16, 84, 78), (238, 250, 226)),
    ((84, 36, 120), (250, 228, 250)),
    ((20, 60, 140), (255, 236, 180)), ((120, 60, 20), (252, 240, 210)), ((24, 24, 28), (255, 214, 70)),
    ((180, 40, 30), (190, 236, 240)),
)  # fmt: skip


def style(rng: KeyedRng, kind: str) -> Style:
    """A random style of the kind."""
    dark, light = rng.pick(_PAIRS)
    dark, light = shift(rng, dark, 14), shift(rng, light, 8)
    if kind == "blueprint":
        dark, light = (
            shift(rng, rng.pick(((24, 60, 140), (16, 90, 110), (60, 40, 130), (30, 34, 40))), 12),
            (236, 244, 255),
        )
    elif kind == "vintage":
        dark, light = shift(rng, (52, 34, 22), 10), shift(rng, (250, 228, 186), 8)
    elif kind == "neon":
        dark, light = (
            shift(rng, (16, 12, 30), 8),
            shift(rng, rng.pick(((255, 60, 200), (60, 240, 255), (255, 180, 40), (120, 255, 90))), 14),
        )
    elif kind == "thermal":
        dark, light = (
            shift(rng, rng.pick(((20, 0, 90), (0, 40, 60), (50, 0, 40))), 10),
            shift(rng, (255, 244, 160), 8),
        )
    elif kind == "clay":
        dark, light = (
            shift(rng, rng.pick(((110, 56, 40), (70, 78, 92), (70, 90, 64), (120, 96, 40))), 10),
            shift(rng, (248, 240, 228), 7),
        )
    middle = shift(rng, rng.pick(((230, 90, 60), (60, 150, 200), (240, 180, 60), (90, 180, 120), (200, 90, 160))), 16)
    return Style(kind, (dark, middle, light), rng.between(0.045, 0.062), rng.pick((0, 20, 45)))


def restyle(image: Image.Image, style: Style) -> Image.Image:
    """The image redrawn in the style."""
    match style.kind:
        case "flat":
            return image
        case "poster":
            return _tones(image, style)
        case "vintage":
            return ImageChops.multiply(
                _ramp(image.convert("L"), (style.inks[0], style.inks[2])), _vignette(image.width)
            )
        case "thermal":
            return _ramp(image.convert("L"), (style.inks[0], (170, 30, 140), (250, 110, 40), style.inks[2]))
        case "mosaic" | "stitch" | "pointillist":
            return _cells(image, style)
        case "glass":
            return _glass(image, style)
        case "watercolour":
            return _watercolour(image, style)
        case "halftone" | "engraving" | "hatching":
            return _screen(image, style)
    return _lines(image, style)


def _pixels(image: Image.Image, style: Style, least: int = 3) -> int:
    return max(least, round(style.pitch * image.width))


def _ramp(grey: Image.Image, inks: tuple[RGB, ...]) -> Image.Image:
    """Grey values mapped to a ramp through the inks."""
    steps = len(inks) - 1
    table = [mix(inks[min(v * steps // 255, steps - 1)], inks[min(v * steps // 255, steps - 1) + 1],
                 (v * steps - 255 * min(v * steps // 255, steps - 1)) * 100 // 255) for v in range(256)]  # fmt: skip
    return Image.merge("RGB", [grey.point([entry[channel] for entry in table]) for channel in range(3)])


def _tones(image: Image.Image, style: Style) -> Image.Image:
    grey = ImageOps.autocontrast(image.convert("L").filter(ImageFilter.BoxBlur(image.width / 256)), cutoff=1)
    ramp = [style.inks[0] if v < 96 else style.inks[1] if v < 168 else style.inks[2] for v in range(256)]
    return Image.merge("RGB", [grey.point([entry[channel] for entry in ramp]) for channel in range(3)])


def _cells(image: Image.Image, style: Style) -> Image.Image:
    """One colour a cell, drawn as a tile, a cross-stitch or a dot of paint."""
    size, cell = image.width, _pixels(image, style)
    count = -(-size // cell)
    small = image.resize((count, count), Image.Resampling.BOX, (0, 0, size, size))
    large = small.resize((count * cell, count * cell), Image.Resampling.NEAREST).crop((0, 0, size, size))
    ground = {"mosaic": mix(style.inks[0], WHITE, 30), "stitch": style.inks[2], "pointillist": style.inks[2]}[
        style.kind
    ]
    return Image.composite(large, Image.new("RGB", image.size, ground), _cell_mask(style.kind, size, cell))


@lru_cache(maxsize=32)
def _cell_mask(kind: str, size: int, cell: int) -> Image.Image:
    fine = 4  # the cell is drawn four times too large
    place = (np.arange(cell * fine) + 0.5) / (cell * fine) - 0.5
    x, y = (
        np.broadcast_to(place, (cell * fine, cell * fine)),
        np.broadcast_to(place[:, None], (cell * fine, cell * fine)),
    )
    if kind == "mosaic":
        inside = np.maximum(np.abs(x), np.abs(y)) < 0.43
    elif kind == "stitch":
        inside = np.minimum(np.abs(x - y), np.abs(x + y)) < 0.24
    else:
        inside = x * x + y * y < 0.235
    tile = np.asarray(Image.fromarray(inside.astype(np.uint8) * 255).reduce(fine))
    repeat = -(-size // cell)
    return Image.fromarray(np.tile(tile, (repeat, repeat))[:size, :size].copy())


def _screen(image: Image.Image, style: Style) -> Image.Image:
    """Ink where the image is darker than a screen of dots or lines."""
    size = image.width
    grey = ImageOps.autocontrast(image.convert("L").filter(ImageFilter.BoxBlur(size / 200)), cutoff=1)
    if style.kind == "hatching":
        ink = Image.new("L", image.size)
        for limit, angle in ((176, 45), (118, -45), (70, 0)):
            dark = grey.point([255 if v < limit else 0 for v in range(256)])
            ink = ImageChops.lighter(ink, ImageChops.multiply(dark, _line_mask(size, _pixels(image, style, 4), angle)))
        ink = ImageChops.lighter(ink, _outline(image, 3))
    else:
        kind = "dots" if style.kind == "halftone" else "waves"
        cell = _pixels(image, style, 4) if kind == "dots" else max(3, round(0.6 * style.pitch * size))
        screen = _screen_mask(kind, size, cell, style.angle)
        over = np.asarray(screen, dtype=np.int16) - np.asarray(grey, dtype=np.int16)
        ink = Image.fromarray(np.clip(over * 5 + 128, 0, 255).astype(np.uint8))
    return Image.composite(
        Image.new("RGB", image.size, style.inks[0]), Image.new("RGB", image.size, style.inks[2]), ink
    )


def _turned(size: int, cell: int, angle: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    c, s = cos_sin(angle)
    x = (np.arange(size) + 0.5) / cell
    y = x[:, None]
    return x * c + y * s, y * c - x * s


@lru_cache(maxsize=32)
def _screen_mask(kind: str, size: int, cell: int, angle: int) -> Image.Image:
    u, v = _turned(size, cell, angle)
    if kind == "dots":
        du, dv = u - np.floor(u) - 0.5, v - np.floor(v) - 0.5
        value = 255 - (du * du + dv * dv) * 430
    else:
        bend = np.abs(u / 5 - np.floor(u / 5) - 0.5) * 2
        w = v + bend * bend * (3 - 2 * bend) * 0.9
        value = 225 - np.abs(w - np.floor(w) - 0.5) * 400
    return Image.fromarray(np.clip(value, 6, 250).astype(np.uint8))


@lru_cache(maxsize=32)
def _line_mask(size: int, cell: int, angle: int) -> Image.Image:
    u, _ = _turned(size, cell, angle)
    distance = (0.14 - np.abs(u - np.floor(u) - 0.5)) * cell
    return Image.fromarray((np.clip(distance + 0.5, 0, 1) * 255).astype(np.uint8))


def _outline(image: Image.Image, gain: int) -> Image.Image:
    """Edges as bright lines whose width grows with the image."""
    soft = image.filter(ImageFilter.BoxBlur(image.width / 110))
    apart = ImageChops.difference(image, soft)
    red, green, blue = apart.split()
    most = ImageChops.lighter(ImageChops.lighter(red, green), blue)
    return most.point([max(0, min(255, (v - 6) * gain)) for v in range(256)])


def _lines(image: Image.Image, style: Style) -> Image.Image:
    size = image.width
    if style.kind == "clay":
        grey = image.convert("L").filter(ImageFilter.BoxBlur(size / 128))
        step = max(1, size // 90)
        raised = ImageChops.subtract(grey, ImageChops.offset(grey, -step, -step), 0.4, 128)
        return _ramp(Image.blend(raised, grey, 0.25), (style.inks[0], style.inks[2]))
    if style.kind == "pencil":
        edges = ImageChops.invert(_outline(image, 4))
        tone = image.convert("L").point([150 + v * 105 // 255 for v in range(256)])
        strokes = _line_mask(size, max(3, size // 40), 30).point([255 - v * 22 // 255 for v in range(256)])
        drawn = ImageChops.multiply(ImageChops.multiply(edges, tone), ImageChops.multiply(strokes, _grain(size)))
        return _ramp(drawn, (mix(style.inks[0], INK, 50), mix(style.inks[2], WHITE, 50)))
    edges = _outline(image, 7 if style.kind == "neon" else 6)
    if style.kind == "blueprint":
        lines = ImageChops.lighter(edges, _grid(size, _pixels(image, style, 6) * 2))
        return Image.composite(
            Image.new("RGB", image.size, style.inks[2]), Image.new("RGB", image.size, style.inks[0]), lines
        )
    # neon: the lines keep something of the image's hue and glow into the dark
    colour = Image.blend(image, Image.new("RGB", image.size, style.inks[2]), 0.6)
    dark = Image.new("RGB", image.size, style.inks[0])
    drawn = Image.composite(colour, dark, edges)
    glow = drawn.filter(ImageFilter.BoxBlur(size / 50))
    return ImageChops.screen(drawn, glow)


def _watercolour(image: Image.Image, style: Style) -> Image.Image:
    size = image.width
    wet = image.filter(ImageFilter.BoxBlur(size / 90)).filter(ImageFilter.BoxBlur(size / 90))
    wet = wet.point([90 + v * 165 // 255 for v in range(256)] * 3)
    rim = _outline(wet, 3).point([255 - v * 90 // 255 for v in range(256)]).convert("RGB")
    paper = ImageChops.multiply(_blots(size), _grain(size)).convert("RGB")
    return ImageChops.multiply(
        ImageChops.multiply(wet, rim),
        ImageChops.multiply(paper, Image.new("RGB", image.size, mix(style.inks[2], WHITE, 40))),
    )


def _glass(image: Image.Image, style: Style) -> Image.Image:
    """Every pane of a fixed window takes its mean colour, between dark leads."""
    labels, leads = _panes(image.width)
    pixels = np.asarray(image).reshape(-1, 3)
    counts = np.maximum(np.bincount(labels), 1)
    panes = np.stack([np.bincount(labels, weights=pixels[:, c]) for c in range(3)], axis=1) // counts[:, None]
    bright = np.minimum(255, panes * 1.12).astype(np.uint8)[labels].reshape(image.height, image.width, 3)
    return Image.composite(Image.new("RGB", image.size, mix(style.inks[0], INK, 60)), Image.fromarray(bright), leads)


@lru_cache(maxsize=4)
def _panes(size: int) -> tuple[NDArray[np.int64], Image.Image]:
    """Cells of a jittered grid of 13 x 13 points: labels (size * size,) and the lines between them."""
    count = 13
    jitter = KeyedRng("world", "panes").grid(2 * count, count).reshape(2, count, count) / 300.0 + 0.07
    place = (np.arange(size) + 0.5) / size * count
    column, row = np.meshgrid(place, place)
    best = np.full((size, size), 99.0)
    second, label = best.copy(), np.zeros((size, size), dtype=np.int64)
    for dy in (-1, 0, 1):
        for dx in (-1, 0, 1):
            cx, cy = (
                np.clip(np.floor(axis).astype(np.int64) + d, 0, count - 1) for axis, d in ((column, dx), (row, dy))
            )
            distance = np.sqrt((column - cx - jitter[0][cy, cx]) ** 2 + (row - cy - jitter[1][cy, cx]) ** 2)
            index = cy * count + cx
            other = index != label
            nearer = distance < best
            second = np.where(nearer & other, best, np.where(other, np.minimum(second, distance), second))
            label, best = np.where(nearer, index, label), np.minimum(best, distance)
    lead = np.clip((0.13 - (second - best)) * size / count / 1.5 + 0.5, 0, 1)
    return label.reshape(-1), Image.fromarray((lead * 255).astype(np.uint8))


@lru_cache(maxsize=4)
def _grain(size: int) -> Image.Image:
    paper = Image.fromarray(KeyedRng("world", "grain").grid(96, 96)).resize((size, size), Image.Resampling.BILINEAR)
    return paper.point([228 + v * 27 // 255 for v in range(256)])


@lru_cache(maxsize=4)
def _blots(size: int) -> Image.Image:
    blots = Image.fromarray(KeyedRng("world", "blots").grid(9, 9)).resize((size, size), Image.Resampling.BICUBIC)
    return blots.point([214 + v * 41 // 255 for v in range(256)])


@lru_cache(maxsize=4)
def _vignette(size: int) -> Image.Image:
    x = (np.arange(size) + 0.5) / size - 0.5
    level = 255 - np.minimum(1.0, (x * x + (x * x)[:, None]) * 1.9) * 150
    return Image.fromarray(level.astype(np.uint8)).convert("RGB")


@lru_cache(maxsize=16)
def _grid(size: int, cell: int) -> Image.Image:
    wide = max(1, size // 256)
    on = (np.arange(size) % cell) < wide
    return Image.fromarray(((on | on[:, None]) * 80).astype(np.uint8))
