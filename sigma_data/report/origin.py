"""Where samples come from, as the report tells it: sources, filters, injected tokens, samples made from others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

from sigma_data.corpus.table_rows import TableRows
from sigma_data.instruction import ATTRIBUTES
from sigma_data.sample import Family
from sigma_data.token_style import printable

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


def sources(manifest: TableRows, quarantine: TableRows) -> list[dict[str, Any]]:
    """A row a source: samples, bytes, licenses, families, and how many rows were filtered or not taken."""
    filtered: Counter[str] = Counter()
    rejected: Counter[str] = Counter()
    for name, left_out, count in quarantine.counts("source", "filtered").iter_rows():
        (filtered if left_out else rejected)[name] += count
    kept = manifest.grouped(
        ["source", "license", "family", "size"],
        lambda frame: frame.group_by("source", "license", "family").agg(pl.len(), pl.col("size").sum().alias("sum")),
    )
    rows: dict[str, dict[str, Any]] = {}
    for name, terms, family, count, size in kept.iter_rows():
        row = rows.setdefault(name, {"samples": 0, "size": 0, "license": set(), "family": set()})
        row["samples"] += count
        row["size"] += size
        row["license"].add(terms or "unknown")
        row["family"].add(family)
    nothing: dict[str, Any] = {"samples": 0, "size": 0, "license": set(), "family": set()}
    return [
        (row := rows.get(name, nothing)) | {
            "name": printable(name),
            "licenses": ", ".join(printable(name) for name in sorted(row["license"])),
            "families": ", ".join(family for family in Family if family in row["family"]),
            "filtered": filtered[name],
            "rejected": rejected[name],
        }
        for name in sorted((rows.keys() | rejected.keys() | filtered.keys()) - {None})
    ]  # fmt: skip


def filters(quarantine: TableRows) -> list[dict[str, Any]]:
    """A row a reason, the most frequent first: how many rows of which sources, and the first of them."""
    first: dict[str, str] = {}
    by_source: dict[str, Counter[str]] = {}
    counts: Counter[str] = Counter()
    for frame in quarantine.batches(["filtered", "code", "source", "message"]):
        out = frame.filter(pl.col("filtered").fill_null(False) & pl.col("code").is_not_null())
        groups = out.group_by("code", "source", maintain_order=True).agg(pl.len(), pl.col("message").first())
        for code, source, count, message in groups.iter_rows():
            counts[code] += count
            first.setdefault(code, message)
            if source is not None:
                by_source.setdefault(code, Counter())[source] += count
    return [
        {
            "code": printable(code), "count": count, "summary": FILTERS.get(code, ""),
            "message": printable(first[code] or ""),
            "sources": [(printable(name), many) for name, many in _sorted(by_source.get(code, {}))],
        }
        for code, count in _sorted(counts)
    ]  # fmt: skip


def tokens_by_family(manifest: TableRows) -> dict[str, Any]:
    """Samples with each attribute token by family: the families that have any, and a row of counts a token."""
    table = manifest.list_counts("attributes", "family")
    counts = {(family, name): many for family, name, _, many in table.iter_rows()}
    families = [family.value for family in Family if any(one == family for one, _ in counts)]
    rows = [(name, [counts.get((family, name), 0) for family in families]) for name in ATTRIBUTES]
    return {"families": families, "rows": [row for row in rows if any(row[1])]}


def injections(manifest: TableRows) -> dict[str, Any]:
    """How attribute tokens came into the texts, by family: a row of counts an outcome, the most frequent first."""
    table = manifest.counts("family", "injection").iter_rows()
    counts = {(family, value): many for family, value, many in table if family is not None and value is not None}
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


def made(manifest: TableRows) -> list[dict[str, Any]]:
    """A row for each rule by which samples were made of others: family, how many, and of which sources' samples."""

    def by_rule(frame: pl.DataFrame) -> pl.DataFrame:
        rule = pl.col("made").str.extract("^([^:]*)").alias("rule")
        return frame.drop_nulls("made").group_by(rule, "family", "source").len()

    by_source: dict[tuple[str, str], Counter[str]] = {}
    for rule, family, source, count in manifest.grouped(["made", "family", "source"], by_rule).iter_rows():
        by_source.setdefault((str(rule), str(family)), Counter())[source] += count
    return [
        {
            "rule": printable(rule), "family": family, "count": counts.total(),
            "sources": [(printable(name), many) for name, many in _sorted(counts) if name is not None],
        }
        for (rule, family), counts in sorted(by_source.items())
    ]  # fmt: skip


def _sorted(counts: Mapping[str, int]) -> Sequence[tuple[str, int]]:
    return sorted(counts.items(), key=lambda entry: (-entry[1], entry[0]))
