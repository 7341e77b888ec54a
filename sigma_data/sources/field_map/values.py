"""Values of a row: looked up by name, read as texts or as numbers. Nothing is evaluated.

Publishers write scores as numbers, as text, as the text of a list, as "None"; instructions as text, as a list of
phrasings, as the text of a list, as JSON.
"""

from __future__ import annotations

import ast
import json
import math
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, Final

Row = Mapping[str, Any]


class RowFault(Exception):
    """A row that gives no sample: `code` is the reason's code."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class _Absent:
    def __bool__(self) -> bool:
        return False

    def __repr__(self) -> str:
        return "ABSENT"


ABSENT: Final = _Absent()
"""What `look_up` gives for a field that the row does not have."""

NULL_WORDS = frozenset({"", "none", "null", "nan", "n/a", "无", "no change", "no changes"})
"""Words for nothing, in lower case without the closing full stop."""

_NUMBER = r"[-+]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]{1,4})?"
_NUMBERS = re.compile(rf"\s*[\[(]?\s*({_NUMBER}(?:\s*[,;\s]\s*{_NUMBER})*)\s*,?\s*[\])]?\s*", re.ASCII)
_MOST_TEXT = 1000
"""Longest text that is read as scores."""
_MOST_NAME = 200
"""Longest value whose spelling is kept: names of tasks recur in every row."""
_MOST_LIST = 100_000
"""Longest text that is read as the text of a list."""


def look_up(row: Row, name: str) -> Any:
    """The value of a field: `a|b` is the first of them that the row has, `a.b` a value inside another.

    A whole name is a field before its parts are. ABSENT if there is none; a part of null is null.
    """
    if name in row:
        return row[name]
    if "." not in name and "|" not in name:
        return ABSENT
    for one in name.split("|"):
        if one in row:
            return row[one]
        if "." in one and (found := _look_up(row, one)) is not ABSENT:
            return found
    return ABSENT


def _look_up(value: Any, name: str) -> Any:
    if isinstance(value, dict):
        if name in value:
            return value[name]
        head, dot, rest = name.partition(".")
        while dot:  # the longest beginning that is a field
            if head in value:
                return None if value[head] is None else _look_up(value[head], rest)
            more, dot, rest = rest.partition(".")
            head = f"{head}.{more}"
        return ABSENT
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        head, _, rest = name.partition(".")
        if re.fullmatch(r"-?[0-9]{1,6}", head, re.ASCII) and -len(value) <= int(head) < len(value):
            found = value[int(head)]
            return _look_up(found, rest) if rest else found
    return ABSENT


def numbers(value: Any) -> list[float] | None:
    """The scores a value holds: a number, a list of them, or the text of either; None where one is not finite."""
    if isinstance(value, bool) or value is None:
        return None
    if isinstance(value, int | float):
        found = [_float(value)]
    elif isinstance(value, str):
        match = _NUMBERS.fullmatch(value) if len(value) <= _MOST_TEXT else None
        found = [float(text) for text in re.findall(_NUMBER, match[1], re.ASCII)] if match else []
    elif isinstance(value, Sequence) and not isinstance(value, bytes):
        found = []
        for item in value:
            inside = numbers(item)
            if inside is None or len(inside) != 1:
                return None
            found += inside
    else:
        return None
    return found if found and all(math.isfinite(number) for number in found) else None


def _float(value: float) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.inf


def is_empty(text: str) -> bool:
    """Whether a text says nothing: no letter and no sign of another script, or a word for nothing."""
    plain = " ".join(text.split()).lower().strip().rstrip(".").strip("\"'`")
    return plain in NULL_WORDS or not any(letter.isalpha() for letter in plain)


def texts(value: Any, name: str, *, from_json: bool = False) -> list[str]:
    """The texts of a field in order, outer white space gone, those that say nothing left out.

    Raises RowFault `bad_fields` for what is no text or list of texts, and for text that is not the JSON it must be.
    """
    if from_json and isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise RowFault("bad_fields", f"{name} is not JSON: {value[:80]!r}") from None
        if not isinstance(value, dict | list):
            raise RowFault("bad_fields", f"{name} is JSON but no object or list: {str(value)[:80]!r}")
    if value is None:
        return []
    if isinstance(value, bytes):
        try:
            value = value.decode("utf-8-sig")
        except UnicodeDecodeError:
            raise RowFault("bad_fields", f"{name} is not UTF-8") from None
    if isinstance(value, str):
        value = printed_list(value)
    items = list(value.values()) if isinstance(value, Mapping) else value
    if isinstance(items, str):
        items = [items]
    if not isinstance(items, Sequence) or isinstance(items, bytes):
        raise RowFault("bad_fields", f"{name} is {type(value).__name__}, not text")
    found: list[str] = []
    for item in items:
        if isinstance(item, float) and math.isnan(item):  # how tables write null
            continue
        if item is not None and not isinstance(item, str):
            raise RowFault("bad_fields", f"{name} holds {type(item).__name__}, not text")
        if item is not None and not is_unicode(item):
            raise RowFault("bad_fields", f"{name} has half of a surrogate pair")
        if item is not None and not is_empty(item):
            found.append(item.strip())
    return found


def is_unicode(text: str) -> bool:
    """Whether text can be written: JSON may hold half of a surrogate pair as an escape."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def printed_list(text: str) -> str | list[str]:
    """The list of texts that somebody printed, such as "['a', 'b']"; any other text as it is."""
    plain = text.strip()
    if not (plain.startswith("[") and plain.endswith("]") and len(plain) <= _MOST_LIST):
        return text
    for read in (json.loads, ast.literal_eval):  # literals only: nothing is evaluated
        try:
            found = read(plain)
        except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError):
            continue
        if isinstance(found, list) and all(item is None or isinstance(item, str) for item in found):
            return [item for item in found if item is not None]
    return text


def spelled(value: Any) -> str:
    """A value as maps write it: lower case, underscores for spaces and hyphens."""
    return _spelled(value) if isinstance(value, str) and len(value) < _MOST_NAME else _spelled.__wrapped__(str(value))


@lru_cache(maxsize=4096)
def _spelled(text: str) -> str:
    return re.sub(r"[\s_-]+", "_", text.strip().lower())
