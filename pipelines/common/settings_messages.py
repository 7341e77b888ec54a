"""Error messages for settings: pydantic's findings for the person who wrote the value."""

from __future__ import annotations

import types
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from enum import Enum
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel

from pipelines.common.yaml_values import Place

_NEEDS = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "string": "text",
    "path": "a path",
    "tuple": "a list, e.g. [a, b]",
    "list": "a list, e.g. [a, b]",
    "dict": "names with values, e.g. {a: 1, b: 2}",
    "finite": "a finite number",
}
_BOUNDS = {
    "greater_than": ("gt", "more than"),
    "greater_than_equal": ("ge", "at least"),
    "less_than": ("lt", "less than"),
    "less_than_equal": ("le", "at most"),
}


def name_of(place: Place) -> str:
    """A setting's name as a user writes it; items of a list by number, e.g. data.corpora[0].path."""
    text = ""
    for part in place:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text


def error_message(error: Mapping[str, Any], model: type[BaseModel]) -> tuple[Place, str]:
    """The setting that a finding of pydantic is about, and what is wrong with it."""
    kind, place, found = str(error["type"]), tuple(error["loc"]), error["input"]
    context = error.get("ctx", {})
    if place and place[-1] == "[key]":
        key = place[-2]
        return place[:-2], f"there is no {key!r}{_choices(context.get('expected', ''), str(key))}"
    annotation = annotation_at(model, place)
    none = "; null for none" if annotation is not None and type(None) in get_args(annotation) else ""
    shown = _shown(found)
    if kind == "extra_forbidden":
        return place, unknown_name(model, place)
    if kind == "missing" and place and isinstance(place[-1], int):
        return place[:-1], f"needs {_count(model, place[:-1])} values, not {len(found)}"
    if kind == "missing":
        return place, "must be set"
    if kind == "too_long" and isinstance(found, Sequence):
        return place, f"needs {_count(model, place) or context.get('max_length')} values, not {len(found)}"
    if kind == "too_short":
        return place, "must not be empty"
    if kind == "string_too_short":
        return place, "must not be empty"
    if kind in ("literal_error", "enum"):
        return place, f"{shown} is not possible{_choices(str(context.get('expected', '')), str(found))}{none}"
    if kind in _BOUNDS and isinstance(found, bool):
        return place, f"needs a number, not {shown}"
    if kind in _BOUNDS:
        key, bound = _BOUNDS[kind]
        return place, f"must be {bound} {_figure(context[key])}, not {shown}"
    if kind == "value_error":
        return place, str(error["msg"]).removeprefix("Value error, ")
    if kind in ("model_type", "model_attributes_type"):
        inner = _model(annotation)
        names = ", ".join(inner.model_fields) if inner is not None else ""
        return place, f"is a section ({names}): set what is in it, not {shown}{none}"
    wanted = next((need for start, need in _NEEDS.items() if kind.startswith(start)), None)
    if wanted is not None:
        return place, f"needs {wanted}, not {shown}{none}"
    return place, str(error["msg"]).replace("Input should be", "must be")


def unknown_name(model: type[BaseModel], place: Place) -> str:
    """That there is no such setting, with the nearest that there is, here or in another section."""
    name = str(place[-1])
    inner = _model(annotation_at(model, place[:-1])) if place[:-1] else model
    here = sorted(inner.model_fields) if inner is not None else []
    near = get_close_matches(name, here, n=1, cutoff=0.7)
    suggestion = name_of([*place[:-1], near[0]]) if near else None
    if suggestion is None:
        every = _all_names(model)
        wanted = name_of(place)
        same = [one for one in every if one.rpartition(".")[2] == name]
        suggestion = next(iter(same or get_close_matches(wanted, every, n=1, cutoff=0.75)), None)
    hint = f": did you mean {suggestion}?" if suggestion else ""
    return f"there is no such setting{hint} (there are: {', '.join(here)})"


def annotation_at(model: type[BaseModel], place: Place) -> Any:
    """The type of a setting; None if there is none or it is unknown."""
    annotation: Any = model
    for part in place:
        core = _core(annotation)
        arguments = get_args(core)
        if isinstance(core, type) and issubclass(core, BaseModel):
            field = core.model_fields.get(str(part))
            annotation = field.annotation if field is not None else None
        elif get_origin(core) is tuple and isinstance(part, int):
            annotation = arguments[0] if arguments[-1] is Ellipsis else (*arguments, None)[min(part, len(arguments))]
        elif get_origin(core) is dict:
            annotation = arguments[1]
        else:
            return None
    return annotation


def items_of(annotation: Any) -> Any:
    """The type of a list's items."""
    arguments = get_args(_core(annotation))
    return _core(arguments[0]) if get_origin(_core(annotation)) is tuple and arguments else None


def _core(annotation: Any) -> Any:
    """A type without what says more of it, and without None."""
    while True:
        origin = get_origin(annotation)
        if origin is Annotated:
            annotation = get_args(annotation)[0]
        elif origin in (Union, types.UnionType):
            others = [one for one in get_args(annotation) if one is not type(None)]
            if len(others) != 1:
                return annotation
            annotation = others[0]
        else:
            return annotation


def _model(annotation: Any) -> type[BaseModel] | None:
    core = _core(annotation)
    return core if isinstance(core, type) and issubclass(core, BaseModel) else None


def _all_names(model: type[BaseModel], before: tuple[str, ...] = ()) -> list[str]:
    names = []
    for name, field in model.model_fields.items():
        names.append(".".join((*before, name)))
        if (inner := _model(field.annotation)) is not None:
            names += _all_names(inner, (*before, name))
    return names


def _count(model: type[BaseModel], place: Place) -> int | None:
    """How many items a list of a fixed length has."""
    core = _core(annotation_at(model, place))
    arguments = get_args(core)
    return len(arguments) if get_origin(core) is tuple and Ellipsis not in arguments else None


def _choices(expected: str, found: str) -> str:
    """What there is to choose from, with the nearest first asked for."""
    names = [part.strip().strip("'") for part in expected.replace(" or ", ", ").split(",") if part.strip()]
    near = get_close_matches(found, names, n=1, cutoff=0.7)
    hint = f": did you mean {near[0]}?" if near else ""
    return f"{hint} (there are: {', '.join(names)})" if names else ""


def _figure(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:g}"


def _shown(value: Any) -> str:
    """A value as a user would write it, cut short."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Enum | str):
        return repr(str(value))[:80]
    if isinstance(value, dict):
        return "settings"
    return str(value)[:80]


def is_text(annotation: Any) -> bool:
    """Whether items of this type may hold commas and spaces, so that a word is one item."""
    return _core(annotation) is str or get_origin(_core(annotation)) is Literal
