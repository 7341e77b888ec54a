"""Source strings as settings write them: from a mapping, and with relative paths below a folder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qsl, urlencode

from sigma_data.sources.base import has_options, source_spec, split_options
from sigma_data.storage.paths import is_uri

_NO_FOLDER = ("world", "hf")
"""Layouts whose path is not a folder."""


def source_of_mapping(value: Mapping[str, Any]) -> str:
    """The source string of {source: LAYOUT, path: PATH, OPTION: VALUE, ...}. Raises ValueError for one without them."""
    options = dict(value)
    layout, path = options.pop("source", None), options.pop("path", None)
    if not isinstance(layout, str) or path is None:
        raise ValueError("write a source as {source: LAYOUT, path: PATH}, options beside them, or as LAYOUT:PATH")
    words = {str(name): _word(option) for name, option in options.items()}
    spec = source_spec(layout, str(path))
    return f"{spec}?{urlencode(words, safe='/,:')}" if words else spec


def source_below(spec: str, folder: str) -> str:
    """A source string whose path, if it is relative, begins at this folder; of `map:` that is the option `root`."""
    layout, colon, rest = spec.partition(":")
    if not folder or not colon or layout in _NO_FOLDER:
        return spec
    path, query = split_options(rest)
    if layout == "map":
        options = [(n, _below(v, folder) if n == "root" else v) for n, v in parse_qsl(query, keep_blank_values=True)]
        query = urlencode(options, safe="/,:")
    else:
        path = _below(path, folder)
    return f"{source_spec(layout, path)}?{query}" if has_options(spec) else source_spec(layout, path)


def _below(path: str, folder: str) -> str:
    if is_uri(path) or path.startswith(("/", "~")):
        return path
    return folder.rstrip("/") + "/" + path.removeprefix("./") if path not in ("", ".") else folder


def _word(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return ",".join(_word(one) for one in value) if isinstance(value, list | tuple) else str(value)
