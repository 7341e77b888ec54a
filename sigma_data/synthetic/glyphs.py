"""Letters as strokes and icons as polygons: what `<text>` and `<icon>` show, without any font."""

from __future__ import annotations

import numpy as np

from sigma_data.synthetic.polygons import Points, ellipse, polygon, star

# Strokes on a grid 4 wide and 6 high, y down: "xy xy xy" a stroke, strokes separated by commas.
_LETTERS = {
    "A": "06 20 46,14 34", "B": "06 00 30 41 42 33 03,33 44 45 36 06", "C": "41 30 10 01 05 16 36 45",
    "D": "00 06 26 45 41 20 00", "E": "40 00 06 46,03 33", "F": "40 00 06,03 33", "G": "41 30 10 01 05 16 36 45 43 23",
    "H": "00 06,40 46,03 43", "I": "20 26,10 30,16 36", "J": "40 45 36 16 05", "K": "00 06,40 03 46", "L": "00 06 46",
    "M": "06 00 23 40 46", "N": "06 00 46 40", "O": "10 30 41 45 36 16 05 01 10", "P": "06 00 30 41 42 33 03",
    "R": "06 00 30 41 42 33 03,23 46", "S": "41 30 10 01 02 13 33 44 45 36 16 05", "T": "00 40,20 26",
    "U": "00 05 16 36 45 40", "V": "00 26 40", "W": "00 16 22 36 40", "X": "00 46,40 06", "Y": "00 23 40,23 26",
    "Z": "00 40 06 46",
}  # fmt: skip

WORDS = (
    "SUN", "SKY", "SEA", "CAFE", "OPEN", "STOP", "PLAY", "ZOO", "HI", "YES", "NO", "GO", "ART", "BUS", "TAXI", "JAM",
    "TEA",
    "MILK", "FISH", "HOME", "EXIT", "LOVE", "WOW", "BIG", "NEW", "SALE", "PARK", "GYM", "BANK", "FREE", "LUCK", "DJ",
    "RUN", "BOX",
)  # fmt: skip


def strokes(word: str) -> list[Points]:
    """The strokes of a word around (0, 0), in units of half a letter's width."""
    lines = []
    for place, letter in enumerate(word):
        left = place * 5.4 - (len(word) * 5.4 - 1.4) / 2
        for stroke in _LETTERS[letter].split(","):
            points = [(left + int(xy[0]), int(xy[1]) - 3) for xy in stroke.split()]
            lines.append(np.array(points, dtype=np.float64) / 2)
    return lines


ICONS: dict[str, list[Points]] = {
    "bolt": [polygon(0.2, -0.95, -0.6, 0.15, -0.05, 0.15, -0.25, 0.95, 0.6, -0.2, 0.05, -0.2)],
    "check mark": [polygon(-0.9, 0.05, -0.6, -0.25, -0.25, 0.15, 0.6, -0.7, 0.9, -0.4, -0.25, 0.75)],
    "music note": [ellipse(-0.45, 0.55, 0.36, count=30), polygon(-0.25, -0.9, 0.75, -0.65, 0.75, -0.2, -0.09, -0.42,
        -0.09, 0.55, -0.25, 0.55)],
    "sun badge": [star(8, 0.98, 0.66)],
    "flag": [polygon(-0.7, -0.95, -0.5, -0.95, -0.5, 0.95, -0.7, 0.95), polygon(-0.5, -0.85, 0.8, -0.45, -0.5, 0.0)],
    "paw": [ellipse(0, 0.4, 0.46, count=30), ellipse(-0.66, -0.05, 0.24, count=30),
        ellipse(-0.26, -0.5, 0.25, count=30), ellipse(0.26, -0.5, 0.25, count=30),
        ellipse(0.66, -0.05, 0.24, count=30)],
    "crosshair": [polygon(-0.14, -0.95, 0.14, -0.95, 0.14, 0.95, -0.14, 0.95),
        polygon(-0.95, -0.14, 0.95, -0.14, 0.95, 0.14, -0.95, 0.14),
                  ellipse(0, 0, 0.42, count=30)],
    "hourglass": [polygon(-0.7, -0.9, 0.7, -0.9, 0.1, 0, 0.7, 0.9, -0.7, 0.9, -0.1, 0)],
    "spark": [star(4, 1.0, 0.34)],
    "wedge": [polygon(-0.8, -0.8, 0.8, 0, -0.8, 0.8, -0.35, 0)],
    "stairs": [polygon(-0.85, 0.8, -0.85, 0.3, -0.3, 0.3, -0.3, -0.2, 0.3, -0.2, 0.3, -0.7, 0.85, -0.7, 0.85, 0.8)],
    "mountain": [polygon(-0.95, 0.7, -0.3, -0.6, 0.05, 0.05, 0.3, -0.3, 0.95, 0.7),
        ellipse(0.55, -0.62, 0.2, count=30)],
}  # fmt: skip
