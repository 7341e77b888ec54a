"""Instance colour maps compared: which pixels of an output belong to one instance, and how well instances agree.

A map gives every instance a colour of its own on black. Which colour that is says nothing, and a generated map's
colours drift and its edges blend; so an output's instances are its clusters of colours, found without regard to the
answer's colours. Letters: H, W the answer's size; T instances of the answer, P of the output.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

Labels = npt.NDArray[np.int64]
"""[H, W] 0 is background, 1 ... the instances."""
Mask = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]

RADIUS = 110.0
"""Colours nearer than this (Euclidean, of 0..255 a channel) are one; less where the answer's own are closer."""
LEAST = 0.002
"""Share of the image's pixels that a cluster needs, at least `FEWEST` pixels."""
FEWEST = 4
CORE, SOLID = 3, 0.25
"""An instance fills squares of so many pixels a side, in the middle of which at least this share of its pixels lie."""
EDGE = 0.008
"""Tolerance of a boundary in diagonals of the image, at least one pixel (DAVIS, Perazzi et al. 2016)."""
_MOST_COLOURS = 512
"""A map of more colours is no clean one (JPEG, say), and is clustered as an output is."""
_BITS = 3
"""Bits of a channel that the histogram drops."""


def at_size(image: Image.Image, size: tuple[int, int]) -> npt.NDArray[np.float64]:
    """The image as RGB [H, W, 3] of 0..255, brought to `size` (width, height) by nearest neighbour."""
    rgb = image.convert("RGB")
    if rgb.size != size:
        rgb = rgb.resize(size, Image.Resampling.NEAREST)
    return np.asarray(rgb, dtype=np.float64)


@dataclass(frozen=True)
class Answer:
    """A right map: its labels and the colour of each, [T + 1, 3], the background's first."""

    labels: Labels
    colours: Floats

    @classmethod
    def of(cls, image: Image.Image) -> Answer:
        """Every colour but black is an instance."""
        pixels = at_size(image, image.size)
        flat = pixels.reshape(-1, 3)
        colours, inverse = np.unique(flat, axis=0, return_inverse=True)
        if len(colours) > _MOST_COLOURS:
            labels = clusters(pixels, RADIUS)
            means = [flat[labels.reshape(-1) == number].mean(axis=0) for number in range(1, labels.max() + 1)]
            return cls(labels, np.stack([np.zeros(3), *means]))
        black = ~colours.any(axis=1)
        number = np.cumsum(~black) * ~black  # 0 for black, 1 ... for the others
        labels = number[inverse.reshape(-1)].reshape(pixels.shape[:2]).astype(np.int64)
        return cls(labels, np.concatenate([np.zeros((1, 3)), colours[~black]]))

    @property
    def count(self) -> int:
        """T, the number of instances."""
        return len(self.colours) - 1

    @cached_property
    def radius(self) -> float:
        """How far an output's colours may be from each other to be one: half of the least distance, `RADIUS` at most.

        Of colours that agree to within 8 steps a metric of colours can tell nothing, so it is 4 at least.
        """
        apart = np.sqrt(((self.colours[:, None] - self.colours[None]) ** 2).sum(axis=2))
        apart[np.diag_indices_from(apart)] = np.inf
        return float(min(RADIUS, max(4.0, apart.min() / 2)))


def measure(output: Image.Image, answer: Answer) -> dict[str, float]:
    """Scores of an output: `greedy`, `hungarian`, `pixels`, `boundary` in 0 to 1, and by how many `count` is wrong."""
    height, width = answer.labels.shape
    pixels = at_size(output, (width, height))
    labels = clusters(pixels, answer.radius)
    overlaps = ious(answer.labels, labels, answer.count, int(labels.max()))
    return {
        "hungarian": matched(overlaps, hungarian(overlaps)),
        "greedy": matched(overlaps, greedy(overlaps)),
        "pixels": pixel_iou(pixels, answer),
        "boundary": boundary_f1(answer.labels, labels),
        "count": float(abs(int(labels.max()) - answer.count)),
    }


def clusters(pixels: Floats, radius: float) -> Labels:
    """Labels [H, W] of an output [H, W, 3] by its own colours.

    Only pixels like their four neighbours found a cluster. The most frequent colour (in cells of 8 steps) takes all
    such pixels within `radius` of their mean, then the next of what is left, as long as there are enough; then every
    pixel goes to the nearest mean. A cluster is an edge where two colours blend, and its pixels go to the nearest of
    the others, if it is thin (fewer than `SOLID` of its pixels lie in the middle of a square of `CORE` x `CORE` of
    them) and its mean within half of `radius` of the line between two others. The cluster within `radius` of black, if
    any, is the background.
    """
    flat = pixels.reshape(-1, 3)
    founders = flat[_calm(pixels, radius).reshape(-1)]
    least = max(FEWEST, round(LEAST * len(flat)))
    means: list[Floats] = []
    while len(founders) >= least:
        cells = (founders.astype(np.int64) >> _BITS) @ np.array([1 << 12, 1 << 6, 1])
        values, counts = np.unique(cells, return_counts=True)
        centre = founders[cells == values[counts.argmax()]].mean(axis=0)
        near = _near(founders, centre, radius)
        centre = founders[near].mean(axis=0)
        near = near | _near(founders, centre, radius)
        if near.sum() >= least:
            means.append(founders[near].mean(axis=0))
        founders = founders[~near]
    # The darkest first: it is the background, unless it is not dark.
    centres = sorted(means, key=lambda mean: float(np.linalg.norm(mean)))
    nearest = _nearest(flat, centres).reshape(pixels.shape[:2])
    thin = [_thin(nearest == number) for number in range(len(centres))]
    solid = [centre for centre, is_thin in zip(centres, thin, strict=True) if not is_thin]
    centres = [
        centre
        for centre, is_thin in zip(centres, thin, strict=True)
        if not (is_thin and _between(centre, [np.zeros(3), *solid], radius / 2))
    ]
    if not centres:
        return np.zeros(pixels.shape[:2], dtype=np.int64)
    first = 0 if np.linalg.norm(centres[0]) <= radius else 1
    return _without_gaps(_nearest(flat, centres) + first).reshape(pixels.shape[:2])


def _thin(mask: Mask) -> bool:
    """Whether few of its pixels lie in the middle of a square of `CORE` x `CORE` of them."""
    if min(mask.shape) < CORE:
        return False
    squares = np.lib.stride_tricks.sliding_window_view(mask, (CORE, CORE))
    return bool(squares.all(axis=(2, 3)).sum() < SOLID * mask.sum())


def _between(colour: Floats, ends: Sequence[Floats], tolerance: float) -> bool:
    """Whether a colour lies within the tolerance of the line between two of the ends."""
    for number, one in enumerate(ends):
        for other in ends[:number]:
            along = other - one
            share = min(1.0, max(0.0, float((colour - one) @ along) / max(1e-9, float(along @ along))))
            if float(np.linalg.norm(colour - one - share * along)) <= tolerance:
                return True
    return False


def _without_gaps(labels: Labels) -> Labels:
    """The same labels numbered 1, 2 ... without those that no pixel has; 0 stays."""
    used = np.unique(labels[labels > 0])
    table = np.zeros(int(labels.max()) + 1, dtype=np.int64)
    table[used] = np.arange(1, len(used) + 1)
    renamed: Labels = table[labels]
    return renamed


def _near(colours: Floats, centre: Floats, radius: float) -> Mask:
    near: Mask = ((colours - centre) ** 2).sum(axis=1) <= radius**2
    return near


def _calm(pixels: Floats, radius: float) -> Mask:
    """[H, W] where no neighbour above, below, left or right differs by more than `radius`."""
    calm = np.ones(pixels.shape[:2], dtype=bool)
    across = ((pixels[:, 1:] - pixels[:, :-1]) ** 2).sum(axis=2) <= radius**2
    down = ((pixels[1:] - pixels[:-1]) ** 2).sum(axis=2) <= radius**2
    calm[:, 1:] &= across
    calm[:, :-1] &= across
    calm[1:] &= down
    calm[:-1] &= down
    return calm


def _nearest(colours: Floats, centres: Sequence[Floats]) -> Labels:
    """[N] which of the centres is nearest to each of the colours [N, 3], of equally near ones the first."""
    best, nearest = np.full(len(colours), np.inf), np.zeros(len(colours), dtype=np.int64)
    for number, centre in enumerate(centres):  # one by one: a photograph's map has a hundred instances
        away = ((colours - centre) ** 2).sum(axis=1)
        nearer = away < best
        best[nearer], nearest[nearer] = away[nearer], number
    return nearest


def ious(answer: Labels, output: Labels, count: int, found: int) -> Floats:
    """[T, P] intersection over union of every instance of the answer with every one of the output."""
    table = np.bincount((answer * (found + 1) + output).reshape(-1), minlength=(count + 1) * (found + 1))
    table = table.reshape(count + 1, found + 1)
    both = table[1:, 1:]
    union = table[1:].sum(axis=1)[:, None] + table[:, 1:].sum(axis=0)[None] - both
    overlaps: Floats = both / np.maximum(union, 1)
    return overlaps


def greedy(overlaps: Floats) -> list[tuple[int, int]]:
    """Pairs (instance of the answer, of the output), the largest overlap first; of equal ones the first by row."""
    pairs: list[tuple[int, int]] = []
    free = np.array(overlaps, dtype=np.float64)
    for _ in range(min(free.shape)):
        row, column = np.unravel_index(int(free.argmax()), free.shape)
        pairs.append((int(row), int(column)))
        free[row], free[:, column] = -1.0, -1.0
    return pairs


def hungarian(overlaps: Floats) -> list[tuple[int, int]]:
    """Pairs whose overlaps have the largest sum (Kuhn 1955; shortest augmenting paths, Jonker and Volgenant 1987)."""
    if not overlaps.size:
        return []
    flip = overlaps.shape[0] > overlaps.shape[1]
    cost = -(overlaps.T if flip else overlaps)
    rows, columns = cost.shape
    potential_row, potential_column = np.zeros(rows + 1), np.zeros(columns + 1)
    owner = np.zeros(columns + 1, dtype=np.int64)  # the row, from 1, that a column is given to
    for row in range(1, rows + 1):
        owner[0], column = row, 0
        slack, before = np.full(columns + 1, np.inf), np.zeros(columns + 1, dtype=np.int64)
        done = np.zeros(columns + 1, dtype=bool)
        while owner[column]:
            done[column] = True
            reduced = cost[owner[column] - 1] - potential_row[owner[column]] - potential_column[1:]
            better = ~done[1:] & (reduced < slack[1:])
            slack[1:][better], before[1:][better] = reduced[better], column
            column_next = int(np.where(done, np.inf, slack)[1:].argmin()) + 1
            step = slack[column_next]
            potential_row[owner[done]] += step
            potential_column[done] -= step
            slack[~done] -= step
            column = column_next
        while column:
            owner[column] = owner[before[column]]
            column = int(before[column])
    pairs = [(int(owner[column]) - 1, column - 1) for column in range(1, columns + 1) if owner[column]]
    return sorted((column, row) if flip else (row, column) for row, column in pairs)


def matched(overlaps: Floats, pairs: list[tuple[int, int]]) -> float:
    """The sum of the pairs' overlaps over the instances of answer or output, whichever are more; 1 without any."""
    most = max(overlaps.shape)
    return sum(float(overlaps[pair]) for pair in pairs) / most if most else 1.0


def pixel_iou(pixels: Floats, answer: Answer) -> float:
    """Every pixel takes the nearest of the answer's colours and black; mean IoU over the answer's instances.

    Of an answer without instances it is whether every pixel is black, to within `RADIUS`.
    """
    if not answer.count:
        return float(_near(pixels.reshape(-1, 3), np.zeros(3), RADIUS).all())
    height, width = answer.labels.shape
    snapped = _nearest(pixels.reshape(-1, 3), list(answer.colours)).reshape(height, width)
    return float(np.diag(ious(answer.labels, snapped, answer.count, answer.count)).mean())


def boundary_f1(answer: Labels, output: Labels) -> float:
    """F1 of boundary pixels within the tolerance of each other; 1 where neither has any, 0 where one has none."""
    height, width = answer.shape
    reach = max(1, round(EDGE * float(np.hypot(height, width))))
    right, made = boundary(answer), boundary(output)
    if not right.any() or not made.any():
        return float(right.any() == made.any())
    precision = float(grown(right, reach)[made].mean())
    recall = float(grown(made, reach)[right].mean())
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def boundary(labels: Labels) -> Mask:
    """[H, W] where the label differs from that of the pixel to the right or below."""
    edge = np.zeros(labels.shape, dtype=bool)
    edge[:, :-1] |= labels[:, :-1] != labels[:, 1:]
    edge[:-1] |= labels[:-1] != labels[1:]
    return edge


def grown(mask: Mask, reach: int) -> Mask:
    """The mask with all pixels within `reach` rows and columns of it."""
    grown_mask: Any = mask
    for axis in (0, 1):
        padded = np.pad(grown_mask, [(reach, reach) if axis == one else (0, 0) for one in (0, 1)])
        windows = np.lib.stride_tricks.sliding_window_view(padded, 2 * reach + 1, axis=axis)
        grown_mask = windows.any(axis=-1)
    result: Mask = grown_mask
    return result
