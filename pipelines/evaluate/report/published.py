"""Numbers that papers print, to stand beside ours.

They were measured with backbones, crops and formulas that are not published, so they are marked as published wherever
they appear, and nothing here claims that ours are the same measurement.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

NOTE = (
    "Published rows are copied from papers whose backbones, crops and formulas are not all published. "
    "They stand here for orientation: the definitions differ from ours, and equal numbers are no parity."
)
"""What must stand wherever a published row does."""

_SIGMA = "arXiv 2602.07564"
_BAGEL = "arXiv 2505.14683"


@dataclass(frozen=True)
class Published:
    """A row that a paper prints: a method's values by metric name, on `test_set`, for a family.

    A family of "" is the benchmark as a whole. `source` is the paper.
    """

    benchmark: str
    family: str
    method: str
    test_set: str
    values: Mapping[str, float] = field(repr=False)
    source: str


def published(benchmark: str, family: str = "") -> tuple[Published, ...]:
    """The rows for a family of a benchmark, or for all of it; none where no paper has any."""
    return tuple(row for row in ROWS if (row.benchmark, row.family) == (benchmark, family))


def _rows(
    family: str, test_set: str, metrics: tuple[str, ...], table: Mapping[str, tuple[float, ...]]
) -> list[Published]:
    return [
        Published("sigma", family, method, test_set, dict(zip(metrics, values, strict=True)), _SIGMA)
        for method, values in table.items()
    ]


_SIMILARITY = ("CLIP", "CLIP-I", "DINO", "DreamSim")

ROWS: tuple[Published, ...] = (
    *_rows("compositional", "SIGMA-Benchmark", _SIMILARITY, {
        "GPT-4o": (31.07, 77.93, 63.58, 67.49),
        "XVerse": (32.33, 44.15, 42.76, 54.63),
        "BAGEL": (17.91, 52.52, 41.62, 43.27),
        "SIGMA": (30.29, 78.94, 64.08, 62.45),
    }),
    *_rows("compositional", "SIGMA-Benchmark, ablation", ("CLIP", "CLIP-I", "DreamSim", "AES"), {
        "SIGMA, mask + LoRA": (29.25, 74.26, 57.11, 5.561),
        "SIGMA, all of it": (30.29, 78.94, 62.45, 5.731),
    }),
    *_rows("compositional", "XVerseBench", _SIMILARITY, {
        "GPT-4o": (32.94, 77.74, 66.42, 68.11),
        "XVerse": (33.94, 67.53, 45.24, 66.25),
        "BAGEL": (24.32, 66.32, 56.13, 53.31),
        "SIGMA": (31.96, 75.57, 59.52, 67.87),
    }),
    *_rows("selective", "SIGMA-Benchmark", ("CLIP", "CLIP-I", "CLIP-ES", "AES"), {
        "GPT-4o": (25.84, 80.14, 60.22, 5.882),
        "BAGEL": (23.49, 70.61, 67.90, 5.209),
        "SIGMA": (25.90, 80.26, 58.02, 5.849),
    }),
    *_rows("layout", "SIGMA-Benchmark", ("F1",), {"BAGEL": (0.10,), "SIGMA": (0.44,)}),
    Published("geneval", "", "BAGEL", "GenEval", {"overall": 0.82}, _BAGEL),
    Published("geneval", "", "BAGEL, rewritten prompts", "GenEval", {"overall": 0.88}, _BAGEL),
)  # fmt: skip
"""In the order of the papers' tables."""
