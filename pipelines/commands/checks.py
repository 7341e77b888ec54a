"""`sigma checks`."""

from __future__ import annotations

from typing import Any

from pipelines.commands.options import Json, print_json, print_result


def checks(as_json: Json = False) -> None:
    """List the checks that samples must pass.

    For each its code, its severity, the families it applies to, and what it finds.
    """
    rows = checks_table()
    if as_json:
        print_json(rows)
        return
    for row in rows:
        severity = row["severity"] + (" (fixed)" if row["fixed"] else "")
        families = f" [{row['families']}]" if row["families"] != "all" else ""
        print_result(f"{row['code']:<28} {severity:<15} {row['summary']}{families}\n")


def checks_table() -> list[dict[str, Any]]:
    """The checks as rows."""
    from sigma_data.corpus.checks import RULES
    from sigma_data.sample import Family

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
