"""Values as a user writes them: YAML 1.2's core types, and what a plain word means on a command line.

YAML 1.1, which PyYAML reads by default, takes `010` for 8, `1:30` for 90, `no` for false and `2024-01-01` for a date,
and `1e3` for text. Here a number is decimal (or 0x..., 0o...) with or without an exponent, `true`, `false` and `null`
are the only words that mean something else, and everything else is text. `_` may group digits: 100_000_000.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Sequence
from typing import Any

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

Place = Sequence[int | str]
"""Where a value stands: names of settings and numbers of list items, from the outside in."""

_NULL = re.compile(r"~|null|Null|NULL|")
_BOOL = re.compile(r"true|True|TRUE|false|False|FALSE")
_INT = re.compile(r"[-+]?[0-9]+(_[0-9]+)*|0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(
    r"[-+]?(\.[0-9]+|[0-9]+(_[0-9]+)*(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"
)
_TAG = "tag:yaml.org,2002:"
_KINDS = (("null", _NULL), ("bool", _BOOL), ("int", _INT), ("float", _FLOAT))


class _Loader(yaml.SafeLoader):
    """Safe, with the types of YAML 1.2; names of settings are text, and stand once."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}

    def construct_mapping(self, node: MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, ScalarNode):
                raise yaml.constructor.ConstructorError(None, None, "a name must be text", key.start_mark)
            if key.tag == f"{_TAG}merge":
                continue
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key.value!r} stands twice", key.start_mark)
            seen.add(key.value)
            key.tag = f"{_TAG}str"
        self.flatten_mapping(node)
        return super().construct_mapping(node, deep=deep)


def _construct(loader: _Loader, node: ScalarNode) -> Any:
    """A scalar of a type other than text, also where its tag is written out, e.g. `!!int 3`."""
    text = loader.construct_scalar(node)
    value = plain_value(text)
    kind = {bool: "bool", int: "int", float: "float", type(None): "null", str: "str"}[type(value)]
    wanted = node.tag.removeprefix(_TAG)
    if kind != wanted and (kind, wanted) != ("int", "float"):
        raise yaml.constructor.ConstructorError(None, None, f"{text!r} is not of type {wanted}", node.start_mark)
    return float(value) if wanted == "float" else value


for _kind, _pattern in (*_KINDS, ("merge", re.compile("<<"))):
    _Loader.add_implicit_resolver(f"{_TAG}{_kind}", re.compile(rf"^(?:{_pattern.pattern})$"), None)
    if _kind != "merge":
        _Loader.add_constructor(f"{_TAG}{_kind}", _construct)


class _Dumper(yaml.SafeDumper):
    """Quotes what YAML 1.1 or 1.2 would take for anything but the text it is."""


_Dumper.yaml_implicit_resolvers = {key: list(found) for key, found in yaml.SafeDumper.yaml_implicit_resolvers.items()}
for _kind, _pattern in _KINDS[2:]:
    _Dumper.add_implicit_resolver(f"{_TAG}{_kind}", re.compile(rf"^(?:{_pattern.pattern})$"), list("-+.0123456789"))


def compose(text: str) -> tuple[Node | None, Any]:
    """The nodes of a YAML document and its value; None and None where it is empty.

    Raises yaml.YAMLError, ValueError, RecursionError.
    """
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        return (node, loader.construct_document(node)) if node is not None else (None, None)
    finally:
        loader.dispose()


def dump(values: Any) -> str:
    """Plain values as YAML, in their order."""
    text: str = yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True)
    return text


def plain_value(text: str) -> Any:
    """What a word without quotes means: None, a truth value, a number, or itself. Raises ValueError past all digits."""
    kind = next((name for name, pattern in _KINDS if pattern.fullmatch(text)), "str")
    if kind == "null":
        return None
    if kind == "bool":
        return text.lower() == "true"
    if kind == "int":
        digits = text.replace("_", "")
        return int(digits, 0) if digits[:2] in ("0x", "0o") else int(digits)
    if kind == "float":
        return float(text.replace("_", "").lower().replace(".inf", "inf").replace(".nan", "nan"))
    return text


def node_at(node: Node | None, place: Place) -> tuple[Node | None, int]:
    """The node at a place, or the last one on the way there; and how many steps of the way were found."""
    for depth, name in enumerate(place):
        inner = None
        if isinstance(node, MappingNode):
            found = [value for key, value in node.value if isinstance(key, ScalarNode) and key.value == str(name)]
            inner = found[-1] if found else None
        elif isinstance(node, SequenceNode) and isinstance(name, int) and name < len(node.value):
            inner = node.value[name]
        if inner is None:
            return node, depth
        node = inner
    return node, len(place)


def written(node: Node | None) -> str | None:
    """A scalar's text as it was written; None for anything else."""
    return str(node.value) if isinstance(node, ScalarNode) else None
