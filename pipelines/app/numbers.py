"""The page's fields: their labels, the bounds of those that hold a number, and what is said where one is wrong."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sigma_data.errors import ConfigError


@dataclass(frozen=True)
class Field:
    """A number from `least` to `most` (None: no bound) in steps of `step`; whole where that is 1."""

    label: str
    least: float
    most: float | None
    step: float = 1


FIELDS: Mapping[str, Field] = {
    "seed": Field("Seed", 0, None),
    "steps": Field("Noise levels (steps + 1)", 2, 100),
    "text_scale": Field("Guidance towards the text", 1, 12, 0.1),
    "image_scale": Field("Guidance towards the references", 1, 12, 0.1),
    "max_tokens": Field("Longest text answer, in tokens", 16, 2048),
    "temperature": Field("Temperature of a text answer", 0, 2, 0.1),
}
"""By the names of the settings."""

SIZE, MASK, CACHE = "Size", "Group mask", "Leave the network out of some steps"
_LABELS = {name: field.label for name, field in FIELDS.items()} | {"size": SIZE, "group_mask": MASK, "cache": CACHE}
_LOADING = frozenset({"base", "device", "dtype", "device_map", "quantize", "adapter"})
"""Settings that the page has no field for."""


def in_fields(message: str) -> str:
    """An error message in the page's words: an option of `sigma generate` by the label of its field."""
    return re.sub(r"(?<![\w-])--(?:no-)?([a-z]+(?:-[a-z]+)*)", _in_field, message)


def _in_field(option: re.Match[str]) -> str:
    name = option[1].replace("-", "_")
    if name in _LOADING:
        return f"sigma app {option[0]}"
    return f'"{_LABELS[name]}"' if name in _LABELS else option[0]


def read_numbers(given: Mapping[str, Any]) -> dict[str, float]:
    """The fields' values. Raises ConfigError, in a line, for one that is empty, no number or out of its bounds."""
    return {name: _read(FIELDS[name], value) for name, value in given.items()}


def _read(field: Field, value: Any) -> float:
    bounds = f"of {field.least:g} or more" if field.most is None else f"from {field.least:g} to {field.most:g}"
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ConfigError(f"{field.label}: has no number: write one {bounds}")
    if value < field.least or (field.most is not None and value > field.most):
        raise ConfigError(f"{field.label}: {value:g} cannot be: write one {bounds}")
    return int(value) if field.step == 1 else value
