"""Several samples as one image, e.g. one of each family of a corpus."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image

from sigma_data.report.draw import PAPER, draw
from sigma_data.sample import Sample


def draw_sheet(samples: Sequence[Sample], *, width: int = 1280) -> Image.Image:
    """Samples in two columns, each put where the shorter one ends. Never raises for what a sample holds."""
    drawn = [draw(sample, width=width // 2) for sample in samples]
    heights = [0, 0]
    places = []
    for image in drawn:
        column = heights.index(min(heights))
        places.append((column * (width // 2), heights[column]))
        heights[column] += image.height
    sheet = Image.new("RGB", (width, max(1, *heights)), PAPER)
    for image, place in zip(drawn, places, strict=True):
        sheet.paste(image, place)
    return sheet
