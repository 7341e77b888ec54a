"""Read field maps: a user's by path, those shipped by name. Unknown keys are named together with the nearest one."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from sigma_data.errors import ConfigError
from sigma_data.sources.base import MAPS
from sigma_data.sources.field_map.schema import FieldMap, RowLayout
from sigma_data.storage.paths import local_path

_MOST_BYTES = 2**20


@cache
def load_shipped(name: str) -> FieldMap:
    """A map that comes with sigma."""
    return load_map(MAPS / f"{name}.yaml")


def load_map(path: str | Path) -> FieldMap:
    """Read a field map. Raises ConfigError, one line with the place in the file."""
    file = local_path(path)
    try:
        if file.stat().st_size > _MOST_BYTES:
            raise ConfigError(f"{file}: a field map has at most {_MOST_BYTES:,} bytes")
        content = yaml.load(file.read_bytes(), Loader=_Loader)  # noqa: S506 - a safe loader
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read ({error.strerror or error})") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"{file}: not YAML ({' '.join(str(error).split())[:300]})") from None
    try:
        return parse_map(content)
    except ConfigError as error:
        raise ConfigError(f"{file}: {error}") from None


def parse_map(content: Any) -> FieldMap:
    """A field map of its content. Raises ConfigError.

    Keys of a layout that stand beside the corpus' own hold for every layout of the list `layouts`, if any.
    """
    if not isinstance(content, dict):
        raise ConfigError("a field map is a list of keys and values: `sigma sources` names some to begin with")
    own = {key: value for key, value in content.items() if key in FieldMap.model_fields and key != "layouts"}
    common = {key: value for key, value in content.items() if key not in FieldMap.model_fields or key == "license"}
    layouts = content.get("layouts", [{}])
    if not isinstance(layouts, list) or not all(isinstance(layout, dict) for layout in layouts):
        raise ConfigError("layouts: must be a list of layouts")
    common.pop("license", None)
    merged = own | {"layouts": [{**common, **layout} for layout in layouts]}
    try:
        return FieldMap.model_validate(merged)
    except ValidationError as error:
        raise ConfigError(_message(error)) from None


class _Loader(yaml.SafeLoader):
    """Refuses a key that stands twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        plain = [key for key in keys if isinstance(key, str)]
        if twice := next((key for key in plain if plain.count(key) > 1), None):
            raise yaml.YAMLError(f"the key {twice} stands twice{node.start_mark}")
        return super().construct_mapping(node, deep)


def _message(error: ValidationError) -> str:
    """The first fault in one line: unknown keys first, for they explain what else is missing."""
    errors = error.errors(include_url=False)
    first = next((item for item in errors if item["type"] == "extra_forbidden"), errors[0])
    place = [part for part in first["loc"] if not str(part)[:1].isupper() and "[" not in str(part)]
    if place[:1] == ["layouts"] and "layouts" not in FieldMap.model_fields:
        place = place[2:]
    where = ".".join(str(part) for part in place)
    if first["type"] == "extra_forbidden":
        key = str(first["loc"][-1])
        known = sorted(set(_known(first["loc"][:-1])))
        near = difflib.get_close_matches(key, known, 1, 0.5) or difflib.get_close_matches(
            key, sorted(_all_keys()), 1, 0.5
        )
        hint = f"; did you mean {near[0]}?" if near else f"; it may be one of {', '.join(known)}"
        return f"{where}: there is no key {key}{hint}"
    return f"{where}: {first['msg'].removeprefix('Value error, ')}"


def _known(place: tuple[int | str, ...]) -> list[str]:
    """The keys that may stand at a place of the map."""
    models: list[type[BaseModel]] = [FieldMap]
    for part in place:
        inner = [
            found
            for model in models
            if isinstance(part, str) and (field := _field(model, part)) is not None
            for found in _models(field)
        ]
        models = inner or models
    names = [info.alias or name for model in models for name, info in model.model_fields.items()]
    if models == [FieldMap]:
        names += list(RowLayout.model_fields)
    return names


def _all_keys() -> set[str]:
    models, keys = [FieldMap], set[str]()
    while models:
        model = models.pop()
        for name, info in model.model_fields.items():
            keys.add(info.alias or name)
            models += list(_models(info.annotation))
    return keys


def _field(model: type[BaseModel], key: str) -> Any:
    for name, info in model.model_fields.items():
        if key in (name, info.alias):
            return info.annotation
    return None


def _models(annotation: Any) -> Iterator[Any]:
    """The models inside an annotation."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    elif get_origin(annotation) in (Union, UnionType, tuple, list, dict) or get_args(annotation):
        for inner in get_args(annotation):
            yield from _models(inner)
