"""Condition maps as files: edge maps and depth maps written as grey PNG, and read whoever wrote them."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from sigma_data.conditions.canny import Edges
from sigma_data.images.decode import load
from sigma_data.images.encode import encode
from sigma_data.sample import ImageKind

Grey = npt.NDArray[np.uint8]

FEWEST, MOST = 0.002, 0.4
"""Shares of edge pixels: with fewer an edge map shows nothing, with more everything. Ours, measured on no corpus."""

_HALF = 127
_FLAT = 2
"""Levels that JPEG may add to a map of one value."""


@dataclass(frozen=True)
class EdgeMap:
    """An edge map as it was read: `edges` bool [h, w]; `inverted` if its edges are dark on white."""

    edges: Edges
    inverted: bool

    @property
    def density(self) -> float:
        """Share of the pixels that are edges."""
        return float(self.edges.mean())


def edge_png(edges: Edges) -> bytes:
    """White edges on black, 0 and 255 in one channel: JPEG would blur what is read back."""
    return grey_png(np.where(edges, np.uint8(255), np.uint8(0)))


def grey_png(levels: Grey) -> bytes:
    """uint8 [h, w] as a PNG of one channel."""
    return encode(Image.fromarray(levels, "L"), "PNG")


def read_edges(data: bytes) -> EdgeMap:
    """An edge map of any origin: an edge is what is lighter than 127, or darker where the map is mostly light.

    Raises ImageFault.
    """
    bright = grey_of(load(data, max_pixels=sys.maxsize)) > _HALF
    inverted = bool(bright.mean() > 0.5)
    return EdgeMap(~bright if inverted else bright, inverted)


def is_flat(data: bytes) -> bool:
    """Whether a depth map has one value everywhere, and so shows nothing. Raises ImageFault."""
    levels = grey_of(load(data, max_pixels=sys.maxsize))
    return bool(int(levels.max()) - int(levels.min()) <= _FLAT)


CONDITION_FAULTS = {
    "blank_condition": "An edge map with hardly an edge, or a depth map that is the same everywhere",
    "crowded_condition": "An edge map that is nearly all edges",
    "inverted_condition": "An edge map with dark edges on white; it is kept as it is",
}
"""Code -> what is wrong with a condition map."""


def condition_faults(kind: ImageKind | None, data: bytes | None) -> Mapping[str, str]:
    """Code -> what is wrong with an image of this kind; nothing of other kinds, or without bytes. Raises ImageFault."""
    if not data:
        return {}
    if kind is ImageKind.DEPTH:
        return {"blank_condition": "is a depth map that is the same everywhere"} if is_flat(data) else {}
    if kind is not ImageKind.CANNY:
        return {}
    found = read_edges(data)
    edges = f"is an edge map with edges on {found.density:.2%} of its pixels"
    faults = {
        "blank_condition": f"{edges}, {FEWEST:.1%} are the fewest" if found.density < FEWEST else "",
        "crowded_condition": f"{edges}, {MOST:.0%} are the most" if found.density > MOST else "",
        "inverted_condition": "is an edge map with dark edges on white" if found.inverted else "",
    }
    return {code: message for code, message in faults.items() if message}


def grey_of(image: Image.Image) -> Grey:
    """uint8 [h, w] by ITU-R 601 weights, as evaluation has it."""
    return np.asarray(image.convert("L"))
