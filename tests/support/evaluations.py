"""Small runs of a benchmark, for the tests of tables and reports."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pipelines.evaluate.aggregate import MetricInfo, RunScores
from pipelines.evaluate.item import Item, Result, Score
from support.image_files import plain

CLIP_I = MetricInfo("CLIP-I", "1", "up", "100 cos of CLIP image embeddings, output and reference answer.")
RMSE = MetricInfo("RMSE", "2", "down", "Root of the mean square difference.")


def plain_image(colour: str = "#336699", size: tuple[int, int] = (64, 48)) -> bytes:
    return plain(*size, colour)


def run(
    values: Mapping[str, Mapping[str, float | None]],
    *,
    name: str = "ours",
    families: Mapping[str, str] | None = None,
    failed: Mapping[str, str] | None = None,
    reasons: Mapping[tuple[str, str], str] | None = None,
    metrics: Sequence[MetricInfo] = (CLIP_I,),
    **changes: Any,
) -> RunScores:
    """A run with the values item -> metric -> score; a failed item has no image, a reason stands in a score."""
    families, failed, reasons = families or {}, failed or {}, reasons or {}
    results = []
    for at, key in enumerate([*values, *(item for item in failed if item not in values)]):
        item = Item(
            key, families.get(key, "compositional"), f"Put the <subject>thing {key} of <image_1> on <image_2>.",
            (plain_image("#aa2211"), plain_image(f"#22{at % 256:02x}44", (48, 64))), plain_image("#808080"),
        )  # fmt: skip
        results.append(Result(item, image=None if key in failed else plain_image(), failure=failed.get(key)))
    scores = [Score(key, metric, value) for key, of in values.items() for metric, value in of.items()]
    scores += [Score(key, metric, None, reason) for (key, metric), reason in reasons.items()]
    fields: dict[str, Any] = {
        "benchmark": "sigma", "settings": {"seed": 42, "guidance": {"text": 4.0}}, "skipped": {},
        "main": {"compositional": "CLIP-I"},
    } | changes  # fmt: skip
    return RunScores(name=name, metrics=metrics, results=results, scores=scores, **fields)
