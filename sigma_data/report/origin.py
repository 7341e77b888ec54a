"""Where samples come from, as the report tells it: sources, filters, injected tokens, samples made from others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

from sigma_data.instruction import ATTRIBUTES
from sigma_data.report.style import printable
from sigma_data.sample import Family

FILTERS: Mapping[str, str] = {
    "license_refused": "A license that the build does not take",
    "no_derivatives": "A license that forbids derivatives",
    "small_side": "An image whose shortest side is too short",
    "few_pixels": "An image of too few pixels",
    "long_aspect": "An image that is too long for its width",
    "no_reference": "A caption and its image, without a reference",
    "benchmark_image": "An image of a benchmark that was to be excluded",
    "over_quota": "More samples than the build was asked to keep",
    "low_score": "A score below the source's threshold",
    "no_score": "No score, where one was asked for",
    "invalid_description": "A text that its publisher marks as wrong",
    "task_excluded": "A task that the source's filter leaves out",
}
"""What the codes of filters mean; sources may have others of their own."""


def sources(manifest: pl.DataFrame, quarantine: pl.DataFrame) -> list[dict[str, Any]]:
    """A row a source: samples, bytes, licenses, families, and how many rows were filtered or not taken."""
    filtered = Counter(quarantine.filter("filtered")["source"].to_list())
    rejected = Counter(quarantine.filter(~pl.col("filtered"))["source"].to_list())
    kept = manifest.group_by("source").agg(
        pl.len().alias("samples"), pl.col("size").sum(), pl.col("license").unique().sort(), pl.col("family").unique()
    )
    rows = {row["source"]: row for row in kept.iter_rows(named=True)}
    nothing = {"samples": 0, "size": 0, "license": [], "family": []}
    return [
        (row := rows.get(name, nothing)) | {
            "name": printable(name),
            "licenses": ", ".join(printable(name or "unknown") for name in row["license"]),
            "families": ", ".join(family for family in Family if family in row["family"]),
            "filtered": filtered[name],
            "rejected": rejected[name],
        }
        for name in sorted((rows.keys() | rejected.keys() | filtered.keys()) - {None})
    ]  # fmt: skip


def filters(quarantine: pl.DataFrame) -> list[dict[str, Any]]:
    """A row a reason, the most frequent first: how many rows of which sources, and the first of them."""
    out = quarantine.filter(pl.col("filtered") & pl.col("code").is_not_null())
    found = []
    for code, count in _sorted(Counter(out["code"].to_list())):
        rows = out.filter(pl.col("code") == code)
        by_source = _sorted(Counter(rows["source"].drop_nulls().to_list()))
        found.append({
            "code": printable(code), "count": count, "summary": FILTERS.get(code, ""),
            "message": printable(rows["message"][0] or ""),
            "sources": [(printable(name), many) for name, many in by_source],
        })  # fmt: skip
    return found


def tokens_by_family(manifest: pl.DataFrame) -> dict[str, Any]:
    """Samples with each attribute token by family: the families that have any, and a row of counts a token."""
    used = manifest.select("id", "family", "attributes").explode("attributes").drop_nulls()
    table = used.group_by("family", "attributes").agg(pl.col("id").n_unique())
    counts = {(family, name): many for family, name, many in table.iter_rows()}
    families = [family.value for family in Family if any(one == family for one, _ in counts)]
    rows = [(name, [counts.get((family, name), 0) for family in families]) for name in ATTRIBUTES]
    return {"families": families, "rows": [row for row in rows if any(row[1])]}


def injections(manifest: pl.DataFrame) -> dict[str, Any]:
    """How attribute tokens came into the texts, by family: a row of counts an outcome, the most frequent first."""
    return _by_family(manifest.select("family", "injection"), "injection")


def made(manifest: pl.DataFrame) -> list[dict[str, Any]]:
    """A row for each rule by which samples were made of others: family, how many, and of which sources' samples."""
    rows = manifest.select("family", "source", "made").drop_nulls("made")
    rows = rows.with_columns(pl.col("made").str.extract("^([^:]*)").alias("rule"))
    found = []
    for (rule, family), part in sorted(rows.group_by("rule", "family")):
        by_source = _sorted(Counter(part["source"].drop_nulls().to_list()))
        found.append({
            "rule": printable(str(rule)), "family": str(family), "count": part.height,
            "sources": [(printable(name), many) for name, many in by_source],
        })  # fmt: skip
    return found


def _by_family(rows: pl.DataFrame, column: str) -> dict[str, Any]:
    table = rows.drop_nulls().group_by("family", column).len()
    counts = {(family, value): many for family, value, many in table.iter_rows()}
    families = [family.value for family in Family if any(one == family for one, _ in counts)]
    totals: Counter[str] = Counter()
    for (_, value), many in counts.items():
        totals[value] += many
    return {
        "families": families,
        "rows": [
            (printable(value), total, [counts.get((family, value), 0) for family in families])
            for value, total in _sorted(totals)
        ],
    }


def _sorted(counts: Mapping[str, int]) -> Sequence[tuple[str, int]]:
    return sorted(counts.items(), key=lambda entry: (-entry[1], entry[0]))
