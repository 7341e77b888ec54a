"""Settings a user writes: YAML, then `key.key=value` overrides, into a typed model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from sigma_data.errors import ConfigError

Model = TypeVar("Model", bound=BaseModel)


def load_settings(model: type[Model], file: Path | None, overrides: Sequence[str], **given: Any) -> Model:
    """Settings from a YAML file, `a.b=value` overrides and keyword values, the later ones winning.

    Keyword values that are None are left out. Raises ConfigError naming the setting that is wrong.
    """
    values = _read_yaml(file) if file else {}
    for override in overrides:
        path, equals, text = override.partition("=")
        if not equals or not path:
            raise ConfigError(f"{override!r}: write settings as name=value")
        names = path.split(".")
        if len(names) > 1 and names[0] not in values:  # one share of the default splits, say, leaves the others
            default = getattr(model.model_fields.get(names[0]), "default", None)
            values |= {names[0]: dict(default)} if isinstance(default, dict) else {}
        _set(values, names, _parse(text, override), override)
    for name, value in given.items():
        if isinstance(value, dict):
            for key, item in value.items():
                _set(values, (name, key), item, f"{name}.{key}")
        elif value is not None:
            values[name] = value
    try:
        return model.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(place) for place in first["loc"])
        message = first["msg"].removeprefix("Value error, ")
        if first["type"] == "extra_forbidden":
            message = f"there is no such setting (there are: {', '.join(_fields(model, first['loc'][:-1]))})"
        raise ConfigError(f"{file or 'settings'}: {where + ': ' if where else ''}{message}") from None


def dump_settings(settings: BaseModel) -> str:
    """The settings as YAML that `load_settings` reads."""
    import yaml

    return yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _read_yaml(file: Path) -> dict[str, Any]:
    import yaml

    try:
        values = yaml.safe_load(file.read_text("utf-8"))
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read ({error.strerror})") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: no UTF-8, the 45th of May
        raise ConfigError(f"{file}: not valid YAML ({' '.join(str(error).split())[:200]})") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{file}: the file must hold settings, one `name: value` a line")
    return values


def _parse(text: str, override: str) -> Any:
    import yaml

    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError):
        raise ConfigError(f"{override[:200]!r}: the value is not valid YAML") from None


def _set(values: dict[str, Any], path: Sequence[str], value: Any, override: str) -> None:
    for name in path[:-1]:
        if values.get(name) is None:  # not there, or a section with nothing in it
            values[name] = {}
        values = values[name]
        if not isinstance(values, dict):
            raise ConfigError(f"{override!r}: {name} holds a value, not settings")
    values[path[-1]] = value


def _fields(model: type[BaseModel], place: Sequence[int | str]) -> list[str]:
    for name in place:
        kind = model.model_fields[str(name)].annotation if str(name) in model.model_fields else None
        if not (isinstance(kind, type) and issubclass(kind, BaseModel)):
            return []
        model = kind
    return sorted(model.model_fields)
