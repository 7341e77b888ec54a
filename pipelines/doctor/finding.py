"""What a check has found, and all findings as a table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from sigma_data.text_format import aligned, counted


class Status(StrEnum):
    """`FAIL` stops what was asked about, `WARN` makes it slow or risky."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True)
class Finding:
    """A line of the result: the subject, how it stands, what was found, and what to do about it."""

    check: str
    status: Status
    found: str
    advice: str = ""

    def __post_init__(self) -> None:
        assert self.advice or self.status is Status.OK, f"{self.check}: says not what to do"


def ok(check: str, found: str) -> Finding:
    """All is well."""
    return Finding(check, Status.OK, found)


def warn(check: str, found: str, advice: str) -> Finding:
    """It works, and not as it should."""
    return Finding(check, Status.WARN, found, advice)


def fail(check: str, found: str, advice: str) -> Finding:
    """It does not work."""
    return Finding(check, Status.FAIL, found, advice)


def failed(findings: Sequence[Finding]) -> bool:
    """Whether anything does not work."""
    return any(one.status is Status.FAIL for one in findings)


def as_dict(findings: Sequence[Finding]) -> dict[str, Any]:
    """For JSON: the findings, and how many there are of each status."""
    return {"findings": [asdict(one) for one in findings], **_counts(findings)}


def show(findings: Sequence[Finding]) -> str:
    """A line a finding, the advice below it, and the sum."""
    lines = aligned([(one.status.value, one.check, one.found) for one in findings]).splitlines()
    indent = " " * (len(Status.WARN) + 2)
    told = [
        text
        for line, one in zip(lines, findings, strict=True)
        for text in (line, *([f"{indent}-> {one.advice}"] if one.advice else []))
    ]
    counts = _counts(findings)
    return "\n".join([*told, "", f"{counts['ok']} ok, {counted(counts['warn'], 'warning')}, {counts['fail']} failed"])


def _counts(findings: Sequence[Finding]) -> dict[str, int]:
    return {status.value: sum(one.status is status for one in findings) for status in Status}
