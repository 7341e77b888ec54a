"""What stands behind the things: landscapes, rooms and plain grounds, as layers of polygons.

A layer has a colour (or two, from top to bottom) and a depth, so the same layers give the image,
its outlines and its depth map.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from sigma_data.synthetic.colours import INK, PALETTE, RGB, WHITE, mix, shift
from sigma_data.synthetic.polygons import Points, bar, ellipse, polygon, rectangle, star
from sigma_data.synthetic.rng import KeyedRng
from sigma_data.synthetic.scene import Backdrop


@dataclass(frozen=True)
class Layer:
    """A filled polygon (None: the whole image); `bottom` makes a vertical gradient of a full layer.

    `depth` is nearness, 0 the far end of the world and 255 the viewer; `fine` layers are too small
    for outline and depth maps.
    """

    points: Points | None
    colour: RGB
    bottom: RGB | None = None
    depth: int = 0
    fine: bool = False


NAMES: dict[str, tuple[str, ...]] = {
    "plain": ("plain wall", "plain background"), "studio": ("studio", "photo studio"),
    "hills": ("green hills", "rolling hills"),
    "mountains": ("mountains", "mountain range"), "sea": ("sea", "seaside"), "desert": ("desert", "sand dunes"),
    "night": ("night sky", "starry night"), "city": ("city skyline", "city street"), "room": ("room", "bare room"),
    "forest": ("forest", "pine forest"), "underwater": ("underwater scene", "sea bed"),
    "stage": ("stage", "theatre stage"),
    "sunburst": ("sunburst", "sunburst poster"), "wallpaper": ("patterned wallpaper", "wallpaper"),
}  # fmt: skip

SCENIC = tuple(kind for kind in NAMES if kind not in ("plain", "studio", "wallpaper"))

_SKIES: tuple[tuple[RGB, RGB], ...] = (
    ((92, 168, 232), (214, 238, 250)), ((250, 150, 92), (255, 222, 150)), ((96, 96, 176), (240, 160, 170)),
    ((130, 206, 214), (244, 246, 214)), ((160, 176, 196), (226, 230, 234)), ((236, 134, 160), (255, 214, 190)),
)  # fmt: skip
_GROUNDS: dict[str, tuple[RGB, ...]] = {
    "hills": ((110, 176, 84), (78, 148, 84), (168, 190, 78), (196, 150, 70), (96, 160, 130)),
    "mountains": ((104, 112, 140), (124, 96, 88), (84, 118, 112), (136, 110, 150)),
    "sea": ((32, 112, 160), (38, 150, 160), (52, 84, 150), (86, 164, 190)),
    "desert": ((226, 178, 104), (214, 140, 84), (236, 204, 140), (196, 120, 96)),
    "night": ((34, 48, 62), (46, 40, 72), (26, 62, 60), (60, 46, 56)),
    "city": ((70, 78, 110), (104, 84, 96), (84, 104, 116), (124, 104, 90)),
    "forest": ((44, 104, 70), (60, 120, 60), (90, 110, 50), (40, 92, 92), (150, 100, 50)),
    "underwater": ((200, 180, 130), (120, 130, 120), (180, 140, 150)),
}


def backdrop(rng: KeyedRng, kind: str) -> Backdrop:
    """A random backdrop of the kind."""
    horizon, detail = rng.between(0.48, 0.74), rng.below(1 << 30)
    if kind == "night":
        sky: tuple[RGB, RGB] = rng.pick(
            (((16, 20, 56), (70, 60, 120)), ((8, 26, 50), (30, 90, 110)), ((30, 12, 50), (120, 50, 100)))
        )
    elif kind == "underwater":
        sky = rng.pick(
            (((70, 190, 220), (14, 60, 120)), ((90, 210, 190), (12, 80, 100)), ((110, 140, 220), (24, 30, 90)))
        )
    else:
        sky = rng.pick(_SKIES)
    if kind in _GROUNDS:
        return Backdrop(
            kind,
            (shift(rng, sky[0], 14), shift(rng, sky[1], 14), shift(rng, rng.pick(_GROUNDS[kind]), 14)),
            detail,
            horizon,
        )
    first, second = rng.some(tuple(PALETTE.values()), 2)
    wall, other = (
        shift(rng, mix(first, WHITE, rng.pick((20, 45, 65))), 12),
        shift(rng, mix(second, WHITE, rng.pick((0, 30, 55))), 12),
    )
    if kind == "stage":
        wall = shift(rng, mix(first, INK, 35), 10)
    vanish = (rng.pick((0.25, 0.5, 0.75)), rng.pick((0.25, 0.42, 0.6)))
    return Backdrop(kind, (wall, mix(wall, WHITE, 35), other), detail, horizon, vanish)


def layers(drop: Backdrop) -> tuple[Layer, ...]:
    """The layers of a backdrop, back to front; a wallpaper's pattern is drawn by the renderer."""
    return _layers(drop)


@lru_cache(maxsize=64)
def _layers(drop: Backdrop) -> tuple[Layer, ...]:
    return tuple(_MAKERS[drop.kind](drop, KeyedRng("world", "backdrop", drop.kind, drop.detail)))


def _ground(points: Points, colour: RGB, depth: int) -> Layer:
    return Layer(points, colour, depth=depth)


def _ridge(rng: KeyedRng, level: float, height: float, waves: float) -> Points:
    """A smooth hill line from left to right, closed at the bottom of the image."""
    phase, second = rng.between(0, 6.28), rng.between(0, 6.28)
    xs = [i / 24 for i in range(25)]
    line = [
        (
            x,
            level
            - height * round(math.sin(waves * 6.28 * x + phase) + 0.4 * math.sin(2.3 * waves * 6.28 * x + second), 6),
        )
        for x in xs
    ]
    return np.array([*line, (1.0, 1.0), (0.0, 1.0)])


def _sky(drop: Backdrop, rng: KeyedRng, *, sun: bool = True) -> list[Layer]:
    result = [Layer(None, drop.colours[0], drop.colours[1])]
    if sun and rng.chance(0.7):
        result.append(
            Layer(
                ellipse(rng.between(0.1, 0.9), rng.between(0.1, 0.36), rng.between(0.05, 0.1)),
                mix((255, 226, 120), WHITE, rng.below(60)),
            )
        )
    if sun:
        tone = mix(drop.colours[1], WHITE, 60)
        for _ in range(rng.below(4)):
            x, y, r = rng.between(0.05, 0.95), rng.between(0.06, 0.36), rng.between(0.03, 0.06)
            for dx, grow in ((-1.3, 0.7), (0, 1.0), (1.4, 0.8)):
                result.append(
                    Layer(ellipse(x + dx * r, y - grow * r * 0.4, r * grow * 1.3, r * grow, count=24), tone, fine=True)
                )
    return result


def _hills(drop: Backdrop, rng: KeyedRng) -> list[Layer]:
    result, colour = _sky(drop, rng), drop.colours[2]
    for step in range(3):
        level = drop.horizon + step * (1 - drop.horizon) * 0.33
        tone = mix(mix(colour, drop.colours[1], 45 - 22 * step), INK, 4 * step)
        result.append(_ground(_ridge(rng, level, 0.05, rng.between(0.5, 1.5)), tone, 40 + 40 * step))
    return result


def _mountains(drop: Backdrop, rng: KeyedRng) -> list[Layer]:
    result, colour = _sky(drop, rng), drop.colours[2]
    for step in range(2):
        for _ in range(3):
            x, half, top = (
                rng.between(0, 1),
                rng.between(0.2, 0.36),
                drop.horizon - rng.between(0.18, 0.42) + 0.14 * step,
            )
            base, cap = drop.horizon + 0.1, 0.28
            tone = mix(colour, drop.colours[1], 40 - 34 * step)
            result.append(_ground(polygon(x, top, x + half, base, x - half, base), tone, 30 + 30 * step))
            y = top + cap * (base - top)
            snow = polygon(
                x, top, x + half * cap, y, x + half * 0.1, y - 0.03, x - half * 0.08, y + 0.02, x - half * cap, y
            )
            result.append(Layer(snow, mix(tone, WHITE, 82), depth=30 + 30 * step))
    result.append(_ground(_ridge(rng, drop.horizon + 0.06, 0.02, 1.0), mix(colour, (90, 150, 80), 55), 110))
    return result


def _sea(drop: Backdrop, rng: KeyedRng) -> list[Layer]:
    result, water = _sky(drop, rng), drop.colours[2]
    result.append(_ground(rectangle(0, drop.horizon, 1, 1), water, 60))
    for row in range(7):
        y = drop.horizon + 0.02 + (1 - drop.horizon) * (row / 7) ** 1.3
        for _ in range(3):
            x, length = rng.between(-0.05, 0.95), rng.between(0.05, 0.16)
            result.append(
                Layer(bar(x, y, x + length, y, 0.006 + 0.0016 * row), mix(water, WHITE, 34), depth=60, fine=True)
            )
    if rng.chance(0.6):
        result.append(_ground(_ridge(rng, 0.9, 0.03, 0.6), (232, 208, 150), 140))
    return result


def _desert(drop: Backdrop, rng: KeyedRng) -> list[Layer]:
    result, sand = _sky(drop, rng), drop.colours[2]
    for step in range(4):
        level = drop.horizon + step * (1 - drop.horizon) * 0.25
        result.append(
            _ground(
                _ridge(rng, level, 0.04, rng.between(0.4, 1.0)),
                mix(sand, INK if step % 2 else WHITE, 6 + 5 * step),
                40 + 30 * step,
            )
        )
    return result


def _night(drop: Backdrop, rng: KeyedRng) -> list[Layer]:
    result = _sky(drop, rng, sun=False)
    for _ in range(46):
        x, y, r = rng.between(0, 1), rng.between(0, drop.horizon), rng.between(0.003, 0.008)
        result.append(Layer(ellipse(x, y, r, count=8), mix(drop.colours[1], WHITE, 85), fine=True))
    x, y, r = rng.between(0.12, 0.88), rng.between(0.12, 0.3), rng.between(0.06, 0.11)
    result.append(Layer(ellipse(x, y, r), (248, 240, 206)))
    result.append(Layer(ellipse(x + r * 0.35, y - r * 0.2, r * 0.22), (226, 216, 180), fine=True))
    for step in range(2):
        result.append(
            _ground(
                _ridge(rng, drop.horizon + 0.1 + 0.12 * step, 0.05, rng.between(0.5, 1.4)),
                mix(drop.colours[2], INK, 30 * step),
                50 + 50 * step,
            )
        )
    return result


def _city(drop: Backdrop, rng: KeyedRng) -> list[Layer]:
    result, wall = _sky(drop, rng), drop.colours[2]
    for step in range(2):
        x = -0.03
        while x < 1:
            width, top = rng.between(0.1, 0.2), drop.horizon - rng.between(0.02, 0.34) + 0.16 * step
            tone = mix(mix(wall, drop.colours[1], 50 - 40 * step), WHITE if rng.chance(0.5) else INK, rng.below(16))
            result.append(_ground(rectangle(x, top, x + width - 0.01, 1), tone, 40 + 40 * step))
            for row in range(4 if step else 0):
                for column in range(3):
                    if rng.chance(0.65):
                        left, y = x + width * (0.16 + 0.26 * column), top + 0.03 + 0.06 * row
                        result.append(
                            Layer(
                                rectangle(left, y, left + width * 0.13, y + 0.03),
                                (252, 222, 130),
                                depth=40 + 40 * step,
                                fine=True,
                            )
                        )
            x += width
    result.append(_ground(rectangle(0, 0.86, 1, 1), mix(wall, INK, 45), 140))
    for column in range(5):
        result.append(
            Layer(
                rectangle(0.04 + 0.21 * column, 0.92, 0.14 + 0.21 * column, 0.94), (236, 226, 196), depth=140, fine=True
            )
        )
    return result


def _room(drop: Backdrop, rng: KeyedRng) -> list[Layer]:
    """One-point perspective: every edge of the room runs to the vanishing point."""
    wall, light, floor = drop.colours
    (vx, vy), deep = drop.vanish, 0.42

    def toward(x: float, y: float) -> tuple[float, float]:
        return vx + (x - vx) * deep, vy + (y - vy) * deep

    (x0, y0), (x1, y1) = toward(0, 0), toward(1, 1)
    result = [
        Layer(None, mix(light, WHITE, 40), depth=90), _ground(polygon(0, 0, x0, y0, x0, y1, 0, 1), mix(wall, INK, 14),
            90),
        _ground(polygon(1, 0, x1, y0, x1, y1, 1, 1), mix(wall, INK, 26), 90),
        _ground(polygon(0, 1, 1, 1, x1, y1, x0, y1), floor, 130),
    ]  # fmt: skip
    for plank in range(1, 7):
        (ax, ay), bx = toward(plank / 7, 1), plank / 7
        result.append(Layer(polygon(ax, ay, bx - 0.006, 1, bx + 0.006, 1), mix(floor, INK, 30), depth=130))
    result.append(_ground(rectangle(x0, y0, x1, y1), wall, 30))
    fx, fy, fw = x0 + (x1 - x0) * rng.between(0.15, 0.5), y0 + (y1 - y0) * 0.2, (x1 - x0) * 0.34
    result.append(Layer(rectangle(fx, fy, fx + fw, fy + fw), mix(wall, INK, 50), depth=34))
    result.append(
        Layer(
            rectangle(fx + 0.014, fy + 0.014, fx + fw - 0.014, fy + fw - 0.014),
            shift(rng, (150, 206, 236), 40),
            depth=30,
        )
    )
    return result


def _forest(drop: Backdrop, rng: KeyedRng) -> list[Layer]:
    result, green = _sky(drop, rng), drop.colours[2]
    for step in range(3):
        level = drop.horizon + 0.12 * step
        tone = mix(green, drop.colours[1], 46 - 23 * step)
        for _ in range(6 - step):
            x, high = rng.between(-0.05, 1.05), rng.between(0.2, 0.34)
            result.append(
                _ground(rectangle(x - 0.01, level - 0.04, x + 0.01, level + 0.06), (96, 70, 50), 30 + 40 * step)
            )
            for tier in range(2):
                top, wide = level - high + tier * high * 0.35, high * (0.26 + 0.12 * tier)
                result.append(
                    _ground(
                        polygon(x, top, x + wide, top + high * 0.55, x - wide, top + high * 0.55),
                        mix(tone, INK, 6 * tier),
                        30 + 40 * step,
                    )
                )
        result.append(_ground(_ridge(rng, level + 0.03, 0.012, 1.2), mix(tone, (120, 170, 90), 40), 40 + 40 * step))
    return result


def _underwater(drop: Backdrop, rng: KeyedRng) -> list[Layer]:
    result = _sky(drop, rng, sun=False)
    for _ in range(4):
        x, lean, wide = rng.between(-0.1, 0.9), rng.between(-0.2, 0.2), rng.between(0.05, 0.12)
        ray = polygon(x, 0, x + wide, 0, x + wide * 2 + lean, 0.9, x - wide + lean, 0.9)
        result.append(Layer(ray, mix(mix(drop.colours[0], drop.colours[1], 30), WHITE, 12), depth=4, fine=True))
    result.append(_ground(_ridge(rng, drop.horizon + 0.2, 0.03, 1.0), drop.colours[2], 110))
    weed = shift(rng, (60, 140, 90), 30)
    for _ in range(7):
        x, high = rng.between(0, 1), rng.between(0.12, 0.34)
        ys = [drop.horizon + 0.26 - high * i / 6 for i in range(7)]
        side = [(x + (0.02 if i % 2 else -0.02), y) for i, y in enumerate(ys)]
        result.append(
            _ground(np.array([(a - 0.012, b) for a, b in side] + [(a + 0.012, b) for a, b in side[::-1]]), weed, 100)
        )
    for _ in range(14):
        result.append(
            Layer(
                ellipse(rng.between(0, 1), rng.between(0, 0.8), rng.between(0.006, 0.02), count=16),
                mix(drop.colours[0], WHITE, 55),
                fine=True,
            )
        )
    return result


def _stage(drop: Backdrop, rng: KeyedRng) -> list[Layer]:
    cloth, _, floor = drop.colours
    folds = 5 + rng.below(5)
    result = [Layer(None, cloth, depth=30)]
    for fold in range(folds):
        x, wide = fold / folds, 1 / folds
        result.append(Layer(rectangle(x, 0, x + wide * 0.45, 1), mix(cloth, WHITE, 14), depth=34))
    for fold in range(folds):
        result.append(Layer(ellipse((fold + 0.5) / folds, 0.02, 0.56 / folds, 0.1), mix(cloth, INK, 30), depth=60))
    result.append(_ground(rectangle(0, drop.horizon + 0.12, 1, 1), floor, 110))
    result.append(_ground(ellipse(rng.between(0.4, 0.6), drop.horizon + 0.24, 0.36, 0.08), mix(floor, WHITE, 40), 112))
    return result


def _sunburst(drop: Backdrop, rng: KeyedRng) -> list[Layer]:
    wall, _, other = drop.colours
    x, y, rays, phase = rng.between(0.2, 0.8), rng.between(0.3, 0.9), 9 + rng.below(8), rng.between(0, 1)
    result = [Layer(None, wall)]
    for ray in range(rays):
        first, second = (6.2832 * (ray + phase + half) / rays for half in (0.0, 0.5))
        a, b = ((x + 2 * round(math.cos(t), 6), y + 2 * round(math.sin(t), 6)) for t in (first, second))
        result.append(Layer(polygon(x, y, *a, *b), other, depth=10))
    return result


def _studio(drop: Backdrop, rng: KeyedRng) -> list[Layer]:
    wall, light, floor = drop.colours
    result = [Layer(None, light, wall, depth=30), _ground(rectangle(0, drop.horizon + 0.14, 1, 1), floor, 110)]
    if rng.chance(0.5):
        result.insert(
            1,
            Layer(
                ellipse(rng.between(0.3, 0.7), rng.between(0.3, 0.6), rng.between(0.3, 0.42)),
                mix(light, WHITE, 45),
                depth=34,
            ),
        )
    if rng.chance(0.3):
        x, y = rng.between(0.1, 0.9), rng.between(0.1, 0.4)
        result.insert(1, Layer(star(4 + rng.below(4), 0.2, 0.1) + (x, y), mix(wall, INK, 12), depth=34))
    return result


def _plain(drop: Backdrop, rng: KeyedRng) -> list[Layer]:
    return [Layer(None, drop.colours[0])]


_MAKERS: dict[str, Callable[[Backdrop, KeyedRng], list[Layer]]] = {
    "plain": _plain, "wallpaper": _plain, "studio": _studio, "hills": _hills, "mountains": _mountains, "sea": _sea,
    "desert": _desert, "night": _night, "city": _city, "room": _room, "forest": _forest, "underwater": _underwater,
    "stage": _stage, "sunburst": _sunburst,
}  # fmt: skip
