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
    from sigma_data.text_format import described

    print_result(described([(row["code"], _told(row)) for row in rows]) + "\n")


def _told(row: dict[str, Any]) -> str:
    severity = row["severity"] + (" (fixed)" if row["fixed"] else "")
    families = f" [{row['families']}]" if row["families"] != "all" else ""
    return f"{severity}: {row['summary']}{families}"


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
