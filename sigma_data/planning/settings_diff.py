"""What differs between two sets of settings, in words: "optimizer.lr was 0.001 and is 0.0001"."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

_ABSENT = object()


def flat(values: Any, name: str = "") -> dict[str, Any]:
    """Nested settings by dotted name: mappings, and lists of mappings, are gone into; other values are leaves."""
    nested: dict[str, Any] = {}
    if isinstance(values, Mapping) and values:
        nested = {str(key): value for key, value in values.items()}
    elif isinstance(values, Sequence) and values and all(isinstance(value, Mapping) for value in values):
        nested = {str(number): value for number, value in enumerate(values)}
    if not nested:
        return {name: values}
    inner = (flat(value, f"{name}.{key}" if name else key) for key, value in nested.items())
    return {key: value for part in inner for key, value in part.items()}


def changed(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """A line for each leaf that differs. A section that was or is none stands for its leaves."""
    names = dict.fromkeys([*before, *now])
    found = []
    for name in names:
        was, is_ = before.get(name, _ABSENT), now.get(name, _ABSENT)
        if was == is_ or (_ABSENT in (was, is_) and _inside_none(name, before if was is _ABSENT else now)):
            continue
        if was is None and is_ is _ABSENT:
            found.append(f"{name} was none and is {_section(name, now)}")
        elif is_ is None and was is _ABSENT:
            found.append(f"{name} was {_section(name, before)} and is none")
        else:
            found.append(f"{name} was {shown(was)} and is {shown(is_)}")
    return found


def shown(value: Any) -> str:
    """A value as a person reads it."""
    if value is _ABSENT:
        return "not there"
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value)
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {shown(one)}" for name, one in value.items()) or "none"
    if isinstance(value, list | tuple):
        return ", ".join(map(shown, value)) or "none"
    return str(value)


def _inside_none(name: str, other: Mapping[str, Any]) -> bool:
    """Whether a section around `name` is none on the other side, which says it all."""
    parts = name.split(".")
    return any(other.get(".".join(parts[:length]), _ABSENT) is None for length in range(1, len(parts)))


def _section(name: str, values: Mapping[str, Any]) -> str:
    inner = {key.removeprefix(f"{name}."): value for key, value in values.items() if key.startswith(f"{name}.")}
    return shown(inner) if inner else "not there"
