"""Settings a user writes: YAML, then `key.key=value` overrides, into a typed model.

Every value remembers where it was written, so that an error message names its line, word or option. Where a
setting is text, what was written is used as it stands: `title=010` is "010"; where it is a list, `0.9,0.95` is one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel, ValidationError

from pipelines.common.settings_messages import annotation_at, error_message, is_text, items_of, name_of
from pipelines.common.yaml_values import Place, compose, dump, node_at, plain_value, written
from sigma_data.errors import ConfigError

if TYPE_CHECKING:
    from yaml.nodes import Node

Model = TypeVar("Model", bound=BaseModel)

_ORDER = {"extra_forbidden": 0, "missing": 2}
"""Which finding is reported: a name that is not known is why another is missing."""
_REREAD = 200
"""Values that are read a second time, as the text or list that a setting wants; more are a file of nonsense."""


@dataclass(frozen=True)
class _Origin:
    """Where values were written: `place` is what they set, `label` what a user calls it.

    `text` is an override's own; `node` are YAML's, of a file or of a value that is a list or a section.
    """

    place: tuple[str, ...]
    label: str
    node: Node | None = None
    text: str | None = None
    is_file: bool = False

    def text_at(self, place: Place) -> str | None:
        """What stands at a place, as it was written; None unless it is a single word."""
        rest = place[len(self.place) :]
        if not rest and self.text is not None:
            return self.text
        node, depth = node_at(self.node, rest)
        return written(node) if depth == len(rest) else None

    def named(self, place: Place) -> str:
        """Where it stands, and the setting's name where the first does not say it."""
        if not self.is_file:
            name = name_of(place)
            said = name in self.label.replace("-", "_")
            return self.label if not name or said else f"{self.label}: {name}"
        node, depth = node_at(self.node, place)
        line = f":{node.start_mark.line + 1}" if node is not None and depth else ""
        return f"{self.label}{line}: {name_of(place)}" if place else self.label


def load_settings(
    model: type[Model],
    file: Path | None,
    overrides: Sequence[str],
    /,
    *,
    typed: Mapping[str, str] | None = None,
    **given: Any,
) -> Model:
    """Settings from a YAML file, `a.b=value` overrides and keyword values, the later ones winning.

    Keyword values that are None are left out. `typed` says what a user wrote for an override or a keyword; without,
    that is the override itself, and an option of the keyword's name. Raises ConfigError with the place of the first
    setting that is wrong, and what is wrong with it.
    """
    typed = typed or {}
    values: dict[str, Any] = {}
    origins: list[_Origin] = []
    if file is not None:
        node, values = _read_yaml(file)
        origins.append(_Origin((), str(file), node, is_file=True))
    for override in overrides:
        path, equals, text = override.partition("=")
        label = typed.get(override, override)
        if not equals or not path:
            raise ConfigError(f"{override!r}: write settings as name=value")
        names = path.split(".")
        if len(names) > 1 and names[0] not in values:  # one share of the default splits, say, leaves the others
            default = getattr(model.model_fields.get(names[0]), "default", None)
            values |= {names[0]: dict(default)} if isinstance(default, dict) else {}
        node, value = _parse(text, label)
        _set(values, names, value, label)
        origins.append(_Origin(tuple(names), label[:200], node, None if _is_marked(text) else text))
    for name, value in given.items():
        option = typed.get(name, f"--{name.replace('_', '-')}")
        if isinstance(value, dict):
            for key, item in value.items():
                label = f"{option} {key}={item}"
                _set(values, (name, key), plain_value(item) if isinstance(item, str) else item, label)
                origins.append(_Origin((name, key), label[:200], text=item if isinstance(item, str) else None))
        elif value is not None:
            values[name] = value
            origins.append(_Origin((name,), option if isinstance(value, list) else f"{option} {value}"[:200]))
    return _validated(model, values, origins)


def merge_settings(model: type[Model], values: Model | Mapping[str, Any], given: Mapping[str, Any]) -> Model:
    """Settings from Python: `values`, and `given` in their place; of a part, only what the mapping given names.

    Raises ConfigError with the name of the first setting that is wrong.
    """
    merged = values.model_dump(mode="json") if isinstance(values, BaseModel) else dict(values)
    for name, value in given.items():
        old = merged.get(name)
        merged[name] = {**old, **value} if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return _validated(model, merged, [_Origin((name,), name) for name in merged])


def dump_settings(settings: BaseModel) -> str:
    """The settings as YAML that `load_settings` reads."""
    return dump(settings.model_dump(mode="json"))


def _validated(model: type[Model], values: dict[str, Any], origins: Sequence[_Origin]) -> Model:
    """Values as a model, those reread that are not of the type that a setting has. Raises ConfigError."""
    for attempt in range(_REREAD + 1):
        try:
            settings = model.model_validate(values)
        except ValidationError as error:
            first = min(error.errors(include_url=False), key=lambda one: _ORDER.get(one["type"], 1))
            # A value that is a list or a word where the setting is the other is converted once.
            if attempt < _REREAD and _reread(model, values, first, origins):
                continue
            place, message = error_message(first, model)
            missing = first["type"] == "missing" and place == first["loc"]
            raise ConfigError(f"{_where(origins, place, message, missing=missing)}: {message}") from None
        if (truth := _truth_as_number(values, settings)) is not None:
            raise ConfigError(f"{_where(origins, truth)}: needs a number, not {str(_at(values, truth)).lower()}")
        return settings
    raise AssertionError


def _reread(model: type[BaseModel], values: dict[str, Any], error: Any, origins: Sequence[_Origin]) -> bool:
    """Put the text, or the list, that was meant in the place of a value of another type; whether that was possible."""
    place = error["loc"]
    if not place or place[-1] == "[key]" or error["input"] is None:
        return False
    origin = _origin(origins, place)
    text = origin.text_at(place) if origin is not None else None
    value: Any
    if error["type"] in ("string_type", "path_type"):
        value = text
    elif error["type"] in ("tuple_type", "list_type") and text is not None:
        items = items_of(annotation_at(model, place))
        value = text if isinstance(items, type) and issubclass(items, BaseModel) else [text]
        if not is_text(items) and value == [text]:
            value = [plain_value(part) for part in re.split(r"\s*,\s*|\s+", text.strip(" ,")) if part]
    else:
        return False
    old = _at(values, place)
    if value is None or old == value or type(old) is type(value):
        return False
    holder = _at(values, place[:-1])
    try:
        holder[place[-1]] = value
    except (TypeError, KeyError, IndexError):
        return False
    return True


def _at(values: Any, place: Place) -> Any:
    """The value at a place; None if there is none."""
    for name in place:
        try:
            values = values[name]
        except (TypeError, KeyError, IndexError):
            return None
    return values


def _truth_as_number(values: Any, settings: Any, place: tuple[int | str, ...] = ()) -> Place | None:
    """Where a number was wanted and `true` or `false` was written, which Python would count as 1 and 0."""
    if isinstance(values, bool):
        return place if isinstance(settings, int | float) and not isinstance(settings, bool) else None
    if isinstance(values, dict):
        pairs = [
            (name, value, getattr(settings, name, None) if isinstance(settings, BaseModel) else _at(settings, [name]))
            for name, value in values.items()
        ]
    elif isinstance(values, list | tuple) and isinstance(settings, list | tuple) and len(values) == len(settings):
        pairs = [(number, *pair) for number, pair in enumerate(zip(values, settings, strict=True))]
    else:
        return None
    found = (_truth_as_number(value, inner, (*place, name)) for name, value, inner in pairs)
    return next((there for there in found if there is not None), None)


def _origin(origins: Sequence[_Origin], place: Place) -> _Origin | None:
    """Where the value at a place was written last, or something in it."""
    for origin in reversed(origins):
        shared = min(len(origin.place), len(place))
        if tuple(map(str, place[:shared])) == origin.place[:shared]:
            return origin
    return None


def _named_in(message: str, origins: Sequence[_Origin]) -> _Origin | None:
    """The last word or option that set what a message about several settings names."""
    names = set(re.findall(r"[a-z_]+(?:\.[a-z_]+)*", message))
    return next((one for one in reversed(origins) if one.place and ".".join(one.place) in names), None)


def _where(origins: Sequence[_Origin], place: Place, message: str = "", *, missing: bool = False) -> str:
    """A setting as a user finds it: its file and line, the word that set it, or the option."""
    file = next((origin for origin in origins if origin.is_file), None)
    if not place and not missing and (origin := _named_in(message, origins)) is not None:
        return origin.label
    if not place or missing:
        name = name_of(place)
        label = file.label if file is not None else "settings"
        return f"{label}: {name}" if name else label
    origin = _origin(origins, place)
    return origin.named(place) if origin is not None else f"settings: {name_of(place)}"


def _read_yaml(file: Path) -> tuple[Node | None, dict[str, Any]]:
    import yaml

    try:
        node, values = compose(file.read_text("utf-8"))
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read ({error.strerror})") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f":{mark.line + 1}" if mark is not None else ""
        raise ConfigError(f"{file}{line}: not valid YAML ({' '.join(str(error.problem).split())[:200]})") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: not UTF-8, a number of 5,000 digits
        raise ConfigError(f"{file}: not valid YAML ({' '.join(str(error).split())[:200]})") from None
    if values is None:
        return None, {}
    if not isinstance(values, dict):
        raise ConfigError(f"{file}: the file must hold settings, one `name: value` a line")
    return node, values


def _parse(text: str, label: str) -> tuple[Node | None, Any]:
    """An override's value: YAML where it begins as a list, a section or a quotation does; otherwise as it stands."""
    import yaml

    marked = _is_marked(text)
    if not marked and "#" in text:  # on a command line nobody writes comments
        return yaml.ScalarNode("tag:yaml.org,2002:str", text), text
    try:
        node, value = compose(text)
        return (node, value) if node is not None else (yaml.ScalarNode("tag:yaml.org,2002:null", text), None)
    except (yaml.YAMLError, ValueError, RecursionError):
        if marked:
            raise ConfigError(f"{label[:200]!r}: the value is not valid YAML") from None
        return yaml.ScalarNode("tag:yaml.org,2002:str", text), text


def _is_marked(text: str) -> bool:
    """Whether a value is meant as YAML, by how it begins."""
    return text.lstrip()[:1] in tuple("[{\"'!&|>")


def _set(values: dict[str, Any], path: Sequence[str], value: Any, label: str) -> None:
    for name in path[:-1]:
        if values.get(name) is None:  # not there, or a section with nothing in it
            values[name] = {}
        values = values[name]
        if not isinstance(values, dict):
            raise ConfigError(f"{label[:200]!r}: {name} holds a value, not settings")
    values[path[-1]] = value
