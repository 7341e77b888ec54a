"""The filters and the family of a row, by its scores and values."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

from sigma_data.sample import Family
from sigma_data.sources.field_map.schema import FamilyRule, Filter, RowLayout
from sigma_data.sources.field_map.values import ABSENT, Row, RowFault, look_up, numbers, spelled


class Filtered(RowFault):
    """A good row that a filter leaves out."""


def check_filters(layout: RowLayout, row: Row) -> None:
    """Raise Filtered if a filter of the layout leaves the row out."""
    words: dict[str, str] = {}
    for rule in layout.filters:
        if rule.when and not _asked(rule, row, words):
            continue
        if rule.unless is None or numbers(look_up(row, rule.unless)) is None:
            _check(rule, row)


def _asked(rule: Filter, row: Row, words: dict[str, str]) -> bool:
    """Whether a rule is for this row; `words` keeps the row's values, for several rules look at the same."""
    for name, values in rule.when.items():
        if (word := words.get(name)) is None:
            word = words[name] = spelled(look_up(row, name))
        if word not in _spelled_set(values):
            return False
    return True


@lru_cache(maxsize=256)
def _spelled_set(values: tuple[str | bool, ...]) -> frozenset[str]:
    return frozenset(map(spelled, values))


def _check(rule: Filter, row: Row) -> None:
    for field in rule.field:
        value = look_up(row, field)
        if rule.min is not None or rule.sum_min is not None:
            if _passes_scores(rule, field, value):
                return
        elif value is not ABSENT and value is not None:
            _check_value(rule, field, value)
            return
    if rule.missing == "drop":
        code = rule.code or ("no_score" if rule.min is not None or rule.sum_min is not None else "task_excluded")
        raise Filtered(code, f"no {' or '.join(rule.field)}")


def _passes_scores(rule: Filter, field: str, value: Any) -> bool:
    """Whether the field holds scores, all good enough. Raises Filtered where one is too low."""
    parts = [(field, value)]
    if rule.keys:
        parts = [(f"{field}.{key}", look_up({field: value}, f"{field}.{key}")) for key in rule.keys]
    scores: list[tuple[str, list[float]]] = []
    whole = True
    for name, part in parts:
        found = numbers(_groups(rule.pattern, part) if rule.pattern and isinstance(part, str) else part)
        if found is None:
            whole = False
        else:
            scores.append((name, found))
    if not whole and rule.missing == "drop":
        return False
    for name, found in scores:
        if rule.min is not None and min(found) < rule.min:
            raise Filtered(rule.code or "low_score", f"{name} is {min(found):g}, below {rule.min:g}")
    total = sum(sum(found) for _, found in scores)
    if rule.sum_min is not None and whole and total < rule.sum_min:
        raise Filtered(rule.code or "low_score", f"{field} adds up to {total:g}, below {rule.sum_min:g}")
    return whole


def _groups(pattern: str, text: str) -> list[str]:
    """What the groups of a pattern find in a text, of all matches."""
    return [
        group for match in re.finditer(pattern, text) for group in match.groups() or (match[0],) if group is not None
    ]


def _check_value(rule: Filter, field: str, value: Any) -> None:
    word = spelled(value)
    kept = _spelled_set(rule.keep)
    code = rule.code or "task_excluded"
    if word in _spelled_set(rule.drop) or (kept and word not in kept):
        raise Filtered(code, f"{field} is {str(value)[:80]!r}")
    if rule.matches is not None and not re.search(rule.matches, str(value)):
        raise Filtered(code, f"{field} is {str(value)[:80]!r}, which {rule.matches} is not found in")


def family_of(rule: Family | FamilyRule, row: Row) -> tuple[Family, bool]:
    """The family of a row, and whether it was only inferred from the wording."""
    if not isinstance(rule, FamilyRule):
        return rule, False
    value = look_up(row, rule.by)
    if value is ABSENT or value is None:
        return rule.default, False
    if isinstance(value, str) and rule.wording:
        for pattern, family in rule.wording.items():
            if re.search(pattern, value, re.IGNORECASE):
                return family, True
    return rule.spelled_map.get(spelled(value), rule.default), False
