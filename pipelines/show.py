"""Results as text for a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sigma_data.corpus.checks import RULES
from sigma_data.corpus.corpus import REPORT, Corpus
from sigma_data.corpus.refused_files import refused_files, refused_lines
from sigma_data.sample import FAMILY_RULES, Family
from sigma_data.text_format import aligned

if TYPE_CHECKING:
    from pipelines.validate.run import Validation


def shard_summary(out: Path, counts: Mapping[str, Any]) -> str:
    """What `sigma shard` has written; of an export, which folder holds which split."""
    counted = ", ".join(f"{count:,} {name.replace('_', ' ')}" for name, count in counts.items() if name != "splits")
    lines = [f"{out}: {counted}"]
    if "splits" in counts:
        folders = ", ".join(f"{split}/ {count:,}" for split, count in counts["splits"].items())
        lines.append(f"a folder a split: {folders}; built again with release:, each sample keeps its split")
    return "\n".join(lines) + "\n"


def build_summary(corpus: Corpus, *, fresh: bool) -> str:
    """What a build has done, with the sum that must hold, and where to look."""
    sums = corpus.sums
    lines = ["" if fresh else "this corpus was complete already"]
    lines += [
        f"read         {sums['read']:>10,}",
        f"= written    {sums['written']:>10,}   {_counts(sums['splits'])}",
        f"+ quarantine {sums['quarantined']:>10,}   {_counts(sums['codes'])}",
        f"+ duplicates {sums['duplicates']:>10,}",
        "",
    ]
    if warnings := dict(corpus.warnings):
        lines[-1:] = [f"warnings, of samples written: {_counts(warnings)} (sigma checks says what they mean)", ""]
    if refused := refused_lines(refused_files(corpus.quarantine)):
        lines += [*refused, "(--strict-files makes this an error)", ""]
    for name, count in sums["families"].items():
        goal = FAMILY_RULES[Family(name)].goal
        share = f"  {100 * count / goal:5.1f} % of SIGMA's {goal:,}" if goal else ""
        lines.append(f"{name:<14} {count:>8,}{share}")
    lines += [
        "",
        f"{sums['images']:,} pictures, {sums['bytes'] / 1e6:,.1f} MB in {len(corpus.shards)} shards: {corpus.path}",
        f"report: {corpus.path / REPORT}",
    ]
    return "\n".join(lines).lstrip("\n") + "\n"


def validation_summary(result: Validation) -> str:
    """A line where all is well, else a table of what is not."""
    depth = "every byte, picture and rule" if result.deep else "index, sizes and commit; --deep checks the contents"
    if not result.problems:
        return f"{result.path}: sound ({result.samples:,} samples in {result.shards:,} shards; {depth})\n"
    problems = aligned([(problem.code, f"{problem.where}: {problem.message}") for problem in result.problems])
    return f"{problems}\n\n{result.path}: {len(result.problems):,} problems ({depth})\n"


def checks_table() -> list[dict[str, Any]]:
    """The rules as rows."""
    return [
        {
            "code": check.code,
            "severity": check.severity.value,
            "fixed": check.fixed,
            "families": "all" if check.families is None else ", ".join(f for f in Family if f in check.families),
            "summary": check.summary,
        }
        for check in RULES.values()
    ]


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in counts.items())
